"""The main job as a Flower app: what runs in the ServerApp's and the ClientApps' processes.

A job is a folder the run's own process writes (edgefast.federated.flower_engine): job.json, operator.bin, scaler.npz,
start.npz and a shard-N.npz for every device. The ServerApp leaves a round-N.npz and round-N.json there for each round,
and a ClientApp that fails a failed-N-DEVICE.txt.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.aggregate import MeanAccumulator
from edgefast.federated.config import RunConfig
from edgefast.federated.device import Device, DeviceReport
from edgefast.federated.plan import Parameters, Shard
from edgefast.federated.training import Scaler
from edgefast.files import replacing
from edgefast.integrations.flower import FedAvg, _wire
from edgefast.integrations.flower._flwr import (
    ArrayRecord,
    Context,
    Grid,
    Message,
    MetricRecord,
    RecordDict,
    app,
    clientapp,
    serverapp,
)
from edgefast.sketch import SketchOperator

__all__ = ["client", "failure_path", "read_job", "read_report", "server", "write_atomically"]

_REPORT = ("sketch", "queue", "train")
_COUNTS = ("dropped", "full_waits", "empty_waits", "high_events", "peak")


def read_job(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "job.json").read_text(encoding="utf-8"))


def write_atomically(path: Path, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)


def failure_path(folder: Path, number: int, device: int) -> Path:
    """Where it says why a device failed in a round, from 1."""
    return folder / f"failed-{number}-{device}.txt"


def _load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _shard(folder: Path, job: dict[str, Any], index: int) -> Shard:
    data, scaler = _load(folder / f"shard-{index}.npz"), _load(folder / "scaler.npz")
    return Shard(
        index=index,
        X=data["X"],
        y=data["y"],
        config=RunConfig(**job["config"]),
        operator=SketchOperator.from_bytes((folder / "operator.bin").read_bytes()),
        scaler=Scaler(scaler["mean"], scaler["deviation"]),
        step=job["step"],
        classes=job["classes"],
        traced=index == job["traced"],
    )


# ---- the devices of a node -------------------------------------------------------------------------------------------

client: Any = clientapp.ClientApp()


@client.train()
def _train(message: Message, context: Context) -> Message:
    """A node is the gateway of its devices: each trains from the global model on, and their sums go up."""
    folder = Path(str(context.run_config["job"]))
    job = read_job(folder)
    number = int(message.content["config"]["server-round"]) - 1  # type: ignore[call-overload]
    devices = [int(index) for index in str(context.node_config["devices"]).split("-")]
    try:
        return _answer(message, folder, job, number, devices)
    except Exception as error:
        # The reply that Flower makes of it says no more than that the app failed.
        for index in devices:
            text = f"{type(error).__name__}: {error}"
            write_atomically(failure_path(folder, number + 1, index), text.encode(errors="replace"))
        raise


def _answer(message: Message, folder: Path, job: dict[str, Any], number: int, devices: list[int]) -> Message:
    model: Parameters = {key: array.numpy() for key, array in message.content["arrays"].items()}  # type: ignore[union-attr]
    config = RunConfig(**job["config"])
    with backends.using(config.backend, num_threads=config.threads):
        sums = MeanAccumulator(model, accumulate="reproducible")
        rows: dict[str, list[float]] = {"device": [], "rows": [], "loss": []}
        for index in devices:
            device = Device(_shard(folder, job, index))
            try:
                update = device.fit(number, model)
            finally:
                device.close()
            if update.rows:
                sums.add(update.model, update.rows if config.weights == "rows" else 1.0)
            rows["device"].append(index)
            rows["rows"].append(update.rows)
            rows["loss"].append(update.loss)
            for key, value in _flat(device.report()).items():
                rows.setdefault(key, []).append(value)
    metrics = app.MetricRecord({"num-examples": sums.weight, **rows})
    return app.Message(app.RecordDict({"arrays": _wire.from_sums(sums), "metrics": metrics}), reply_to=message)


def _flat(report: DeviceReport) -> dict[str, float]:
    flat: dict[str, float] = {name: getattr(report, name) for name in _COUNTS}
    for name in _REPORT:
        totals = getattr(report, name)
        flat[f"{name}.items"], flat[f"{name}.seconds"] = totals.items, totals.seconds
    return flat


def read_report(total: DeviceReport, one: dict[str, float]) -> None:
    """Add what a device counted in one round to what it counted before."""
    for name in _COUNTS:
        value = int(one[name])
        setattr(total, name, max(total.peak, value) if name == "peak" else getattr(total, name) + value)
    for name in _REPORT:
        totals = getattr(total, name)
        totals.items += int(one[f"{name}.items"])
        totals.seconds += one[f"{name}.seconds"]


# ---- the server ------------------------------------------------------------------------------------------------------

server: Any = serverapp.ServerApp()


class _Strategy(FedAvg):
    def _finish(self) -> ArrayRecord:
        if self._sums.models is None and self._model is not None:  # a drop policy left nothing to train on
            return self._model
        return super()._finish()


@server.main()
def _serve(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["job"]))
    job = read_job(folder)
    _end_with(job["parent"])
    config = RunConfig(**job["config"])
    devices: list[dict[str, float]] = []

    def collect(contents: list[RecordDict], key: str) -> MetricRecord:
        for content in contents:
            lists = {k: v for r in content.metric_records.values() for k, v in r.items() if isinstance(v, list)}
            devices.extend(dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True))
        return app.MetricRecord({"devices": len(devices)})

    def report(number: int, arrays: ArrayRecord) -> None:
        nonlocal began
        if number:
            now = time.perf_counter()
            path = folder / f"round-{number}.npz"
            model: dict[str, Any] = {key: array.numpy() for key, array in arrays.items()}
            np.savez(path, **model)
            found = {"devices": devices, "seconds": now - began, "aggregation": strategy.aggregation_seconds}
            write_atomically(folder / f"round-{number}.json", json.dumps(found).encode())
            devices.clear()
        began = time.perf_counter()

    began = time.perf_counter()
    end = time.monotonic() + job["start_timeout"]
    while len(list(grid.get_node_ids())) < job["nodes"] and time.monotonic() < end:
        time.sleep(0.1)
    start = _wire.to_record(_load(folder / "start.npz"))
    with backends.using(config.backend, num_threads=config.threads):
        strategy = _Strategy(
            fraction_evaluate=0.0,
            # All that are there: a node that is lost must not be waited for.
            min_train_nodes=1,
            min_available_nodes=1,
            accumulate="reproducible",
            train_metrics_aggr_fn=collect,
            poll_interval=0.1,
        )
        strategy.start(
            grid,
            start,
            num_rounds=config.rounds,
            timeout=job["round_timeout"],
            train_config=app.ConfigRecord(),
            evaluate_fn=report,
        )


def _end_with(parent: int) -> None:
    """End this process when the one that began the run is gone without having stopped it."""

    def watch() -> None:
        while True:
            time.sleep(1.0)
            try:
                os.kill(parent, 0)
            except OSError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
