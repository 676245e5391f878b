"""Where the devices of a run work. An engine hands them the global model and brings back their updates."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol

from edgefast import backends
from edgefast.federated.depths import MAX_SAMPLES, Depths
from edgefast.federated.device import Device, DeviceReport, Update
from edgefast.federated.plan import Parameters, Plan

__all__ = ["DevicesLost", "Engine", "Fault", "ThreadEngine"]


class DevicesLost(ChildProcessError):
    """No device is left to go on with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """What kept a device out of a round.

    Attributes:
        device: its number.
        round: the round, from 1.
        kind: "lost", for good; "late", for this round.
        reason: why, in a few words.
    """

    device: int
    round: int
    kind: Literal["lost", "late"]
    reason: str

    def __str__(self) -> str:
        return f"device {self.device} {self.kind} in round {self.round}: {self.reason}"


class Engine(Protocol):
    """What a run asks of the place where its devices work.

    Attributes:
        depths: (time.perf_counter(), batches in the fullest queue) over the run, thinned.
        trace: (time.perf_counter(), depth) after every put and get of the traced device's first round, in any order.
        faults: devices that were lost or late, in the order it was noticed.
    """

    @property
    def depths(self) -> Sequence[tuple[float, int]]: ...

    @property
    def trace(self) -> Sequence[tuple[float, int]]: ...

    @property
    def faults(self) -> Sequence[Fault]: ...

    def train(self, number: int, model: Parameters, poll: Callable[[], None]) -> Iterator[Update]:
        """One round on every device.

        Args:
            number: the round, from 0.
            model: the global model, not changed.
            poll: to be called now and then in the calling thread while it waits; what it raises ends the round.

        Returns:
            The updates in the order of the devices' numbers, so that the mean does not depend on who is first. A
            device that gives none is left out, and its fault is among `faults`.

        Raises:
            DevicesLost: no device is left.
        """
        ...

    def reports(self) -> list[DeviceReport]:
        """What every device has counted so far."""
        ...

    def gauge(self) -> tuple[int, bool]:
        """(most batches seen in a queue since the last call, whether every queue accepts now)."""
        ...

    def close(self) -> None:
        """End rounds that are under way and let go of everything; reports, depths and trace stay."""
        ...


class ThreadEngine:
    """All devices in this process; as many at work at the same time as there are threads."""

    def __init__(self, plan: Plan, *, publish: bool = False) -> None:
        self._devices = [Device(plan.shard(i), publish=publish) for i in range(plan.config.devices)]
        self._traced = self._devices[plan.traced]
        self._depths = Depths(MAX_SAMPLES)
        workers = min(plan.config.devices, max(2, backends.num_threads()))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="edgefast-trainer")
        self._busy = False

    @property
    def depths(self) -> Sequence[tuple[float, int]]:
        return self._depths.samples

    @property
    def trace(self) -> Sequence[tuple[float, int]]:
        return self._traced.trace

    @property
    def faults(self) -> Sequence[Fault]:
        return ()

    def train(self, number: int, model: Parameters, poll: Callable[[], None]) -> Iterator[Update]:
        self._busy = True
        # Context variables carry the backend into the threads.
        futures = [
            self._pool.submit(contextvars.copy_context().run, device.fit, number, model) for device in self._devices
        ]
        for future in futures:
            yield self._await(future, poll)
        self._busy = False

    def _await(self, future: Future[Update], poll: Callable[[], None]) -> Update:
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while True:
            finished = done.wait(self._depths.interval)
            self._depths.add(time.perf_counter(), max(device.queue.qsize() for device in self._devices))
            if finished:
                return future.result()
            poll()

    def reports(self) -> list[DeviceReport]:
        return [device.report() for device in self._devices]

    def gauge(self) -> tuple[int, bool]:
        return self._depths.recent(), all(device.queue.writable for device in self._devices)

    def close(self) -> None:
        with contextlib.ExitStack() as steps:  # each is taken, the last first, whatever becomes of the others
            for device in self._devices:
                steps.callback(device.close)
            steps.callback(self._pool.shutdown, cancel_futures=True)
            if self._busy:  # left in the middle of a round: interrupted, or a device failed
                for device in self._devices:
                    steps.callback(device.stop)
