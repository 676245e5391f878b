"""A device in a process of its own: the records it exchanges with the server, and its main function."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.federated.device import Device, DeviceReport, StageTotals, Stopped, Update
from edgefast.federated.plan import Parameters, Shard
from edgefast.queues import SharedQueue, ShutDown

__all__ = [
    "FAILED",
    "LOST",
    "READY",
    "TRACE",
    "UPDATE",
    "Order",
    "down_type",
    "serve",
    "to_parameters",
    "to_report",
    "up_type",
]

#: What a message of a device says. LOST is the server's own: a process has ended.
READY, UPDATE, TRACE, FAILED, LOST = range(5)

_SAMPLES = 128  # (time, depth) pairs in one message
_TEXT = 400  # bytes of an error


def down_type(components: int, classes: int, real: Any) -> np.dtype[Any]:
    """The record that carries the global model to a device."""
    real = np.dtype(real).str
    return np.dtype([("round", "<i8"), ("weights", real, (components, classes)), ("bias", real, (classes,))])


def up_type(components: int, classes: int, real: Any) -> np.dtype[Any]:
    """The record that carries an update, or another message, to the server."""
    real = np.dtype(real).str
    return np.dtype(
        [
            ("event", "<i8"),
            ("device", "<i8"),
            ("round", "<i8"),
            ("rows", "<i8"),
            ("loss", "<f8"),
            ("report", "<f8", (_numbers(DeviceReport()).size,)),
            ("count", "<i8"),
            ("samples", "<f8", (_SAMPLES, 2)),
            ("text", f"S{_TEXT}"),
            ("weights", real, (components, classes)),
            ("bias", real, (classes,)),
        ]
    )


def _numbers(report: DeviceReport) -> np.ndarray[Any, Any]:
    found: list[float] = []
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        found += [value.items, value.seconds] if isinstance(value, StageTotals) else [value]
    return np.array(found, np.float64)


def to_report(numbers: Any) -> DeviceReport:
    """The inverse of what a device sends."""
    rest = iter(numbers.tolist())
    sketch, queue, train = (StageTotals(int(next(rest)), next(rest)) for _ in range(3))
    return DeviceReport(sketch, queue, train, *map(int, rest))


def to_parameters(record: Any) -> Parameters:
    """The model in a record, copied."""
    return {key: np.array(record[key]) for key in ("weights", "bias")}


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What a device's process is told: its shard, the names of its two queues, the backend of its kernels, and whether
    it shows its pipeline in `edgefast top`."""

    shard: Shard
    inbox: str
    outbox: str
    backend: str
    publish: bool


def serve(order: Order) -> None:
    """Answer every global model with an update until the inbox is shut down, or the server is gone."""
    # Ctrl-C goes to every process of the terminal; the server decides what becomes of the run.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shard = order.shard
    sizes = (shard.config.components, shard.classes, shard.scaler.dtype)
    down, up = down_type(*sizes), up_type(*sizes)
    with SharedQueue.attach(order.inbox, dtype=down) as inbox, SharedQueue.attach(order.outbox, dtype=up) as outbox:
        threading.Thread(target=_mind_the_server, args=((inbox, outbox),), daemon=True).start()
        with contextlib.suppress(ShutDown), backends.using(order.backend):
            _Post(shard, inbox, outbox, up).work(order.publish)


def _mind_the_server(queues: tuple[SharedQueue, ...]) -> None:
    """Ends this process at once when the server dies, whatever else it is waiting for."""
    server = multiprocessing.parent_process()
    assert server is not None
    connection.wait([server.sentinel])
    for queue in queues:
        with contextlib.suppress(Exception):
            queue.unlink()  # it has a name only if the server died before all devices were ready
    os._exit(1)


class _Post:
    """One device between its two queues."""

    def __init__(self, shard: Shard, inbox: SharedQueue, outbox: SharedQueue, up: np.dtype[Any]) -> None:
        self._shard, self._inbox, self._outbox = shard, inbox, outbox
        self._record = np.zeros((), up)

    def work(self, publish: bool) -> None:
        device = Device(self._shard, sampled=True, publish=publish)
        try:
            self._send(READY)
            for order in self._inbox:
                update = device.fit(int(order["round"]), to_parameters(order))
                if update.round == 0 and self._shard.traced:
                    self._send_trace(device)
                self._send_update(device, update)
        except (ShutDown, Stopped):
            raise
        except BaseException as error:
            text = f"{type(error).__name__}: {error}".encode()[:_TEXT]
            self._send(FAILED, text=text.rstrip(b"\0"))
            raise SystemExit(1) from None
        finally:
            device.stop()
            device.close()

    def _send(self, event: int, **values: Any) -> None:
        self._record["event"] = event
        self._record["device"] = self._shard.index
        for key, value in values.items():
            self._record[key] = value
        self._outbox.put(self._record)

    def _send_update(self, device: Device, update: Update) -> None:
        samples = device.take_depths()
        self._record["samples"][: len(samples)] = samples or np.empty((0, 2))
        self._send(
            UPDATE,
            round=update.round,
            rows=update.rows,
            loss=update.loss,
            report=_numbers(device.report()),
            count=len(samples),
            **update.model,
        )

    def _send_trace(self, device: Device) -> None:
        for start in range(0, len(device.trace), _SAMPLES):
            part = device.trace[start : start + _SAMPLES]
            self._record["samples"][: len(part)] = part
            self._send(TRACE, count=len(part))
