"""The main job: devices sketch what they measure, queues carry it to local trainers, rounds of averaging join them."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import edgefast
from edgefast import backends
from edgefast.aggregate import MeanAccumulator, NonFiniteUpdate
from edgefast.errors import InputError
from edgefast.federated.config import RunConfig
from edgefast.federated.data import Dataset
from edgefast.federated.device import StageTotals
from edgefast.federated.engine import DevicesLost, Engine, ThreadEngine
from edgefast.federated.model import Model
from edgefast.federated.plan import Plan
from edgefast.federated.training import accuracy, fit_centralised

__all__ = ["Progress", "RunResult", "run"]

_log = logging.getLogger("edgefast")

_REPORT_EVERY = 0.1  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, for a live view.

    Attributes:
        round: rounds finished.
        rounds: rounds in all.
        accuracy: share of the test rows the global model classifies correctly; None before the first round.
        depth: most batches seen in a queue since the last report.
        high_watermark: where a queue closes.
        writable: whether every queue accepts now.
        dropped: batches dropped so far.
        rows: rows trained on so far.
        seconds: since the start.
        devices: how many are not lost.
        faults: devices lost so far, or late when they were not in the round before, in words.
    """

    round: int
    rounds: int
    accuracy: float | None
    depth: int
    high_watermark: int
    writable: bool
    dropped: int
    rows: int
    seconds: float
    devices: int
    faults: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gives.

    Attributes:
        model: the global model.
        metrics: everything measured, JSON-ready; docs/federated.md lists the fields.
    """

    model: Model
    metrics: dict[str, Any]


def run(
    config: RunConfig | None = None,
    data: Dataset | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    publish: bool = False,
) -> RunResult:
    """Train one model on N devices that keep their data, and measure every stage.

    A KeyboardInterrupt ends the run after the current step; the result then holds the rounds that were finished and
    metrics["interrupted"] is true.

    With `processes` the devices are started by multiprocessing's "forkserver": a script that calls this at its top
    level needs the usual `if __name__ == "__main__":`. A device whose process ends is lost, and the run goes on with
    the others; when none is left it ends, with the rounds that were finished.

    Args:
        config: options; None for the defaults.
        data: what to train on; None for scikit-learn's digits.
        on_progress: called in the calling thread, about ten times a second and after every round.
        publish: show pipelines and queues in `edgefast top` while the run lasts.

    Raises:
        InputError: more devices than rows, components that do not go with the features and the kind, a learning rate at
            which a model overflows, or scikit-learn is missing.
        ImportError: the backend asked for is unknown or not available; `processes` without Linux or the native backend.
        OSError: `processes` and no room in shared memory, or no device could be started.

    References:
        H. B. McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS
        2017 (federated averaging).

    Examples:
        >>> from edgefast.federated import RunConfig, run
        >>> result = run(RunConfig(rounds=3, devices=4))
        >>> len(result.metrics["rounds"]), result.model.weights.shape
        (3, (32, 10))
    """
    config = config or RunConfig()
    if data is None:
        from edgefast.federated.data import digits

        data = digits()
    with backends.using(config.backend, num_threads=config.threads):
        return _Run(Plan(config, data), on_progress, publish).execute()


def make_engine(plan: Plan, publish: bool) -> Engine:
    """The engine the options ask for."""
    if plan.config.engine == "flower":
        from edgefast.federated.flower_engine import FlowerEngine

        return FlowerEngine(plan)
    if plan.config.processes:
        from edgefast.federated.processes import ProcessEngine

        return ProcessEngine(plan, publish=publish)
    return ThreadEngine(plan, publish=publish)


class _Run:
    """The server: hands the global model to the engine, averages what comes back, keeps the books."""

    def __init__(self, plan: Plan, on_progress: Callable[[Progress], None] | None, publish: bool) -> None:
        self.plan = plan
        self.publish = publish
        self.on_progress = on_progress or (lambda progress: None)
        self.rounds: list[dict[str, Any]] = []
        self.aggregation = StageTotals()
        self.interrupted = False
        self.deserted = False
        self.lost = 0
        self.late: dict[int, int] = {}  # the last round for which a device was
        self.notices: list[str] = []
        self.faults_seen = self.faults_booked = 0
        self.started = time.perf_counter()
        self.last_progress = 0.0
        self.model = plan.start()

    def execute(self) -> RunResult:
        plan, data = self.plan, self.plan.data
        Z_test, y_test = plan.sketch(data.X[plan.test_rows]), data.y[plan.test_rows]
        self.engine = make_engine(plan, self.publish)
        try:
            self.started = time.perf_counter()
            for number in range(plan.config.rounds):
                self._round(number, Z_test, y_test)
        except KeyboardInterrupt:
            self.interrupted = True
        except DevicesLost:
            self.deserted = True
            self._report()
        finally:
            self.engine.close()
        seconds = time.perf_counter() - self.started
        reference: dict[str, float | None] = {"centralised": None, "centralised_raw": None}
        if not self.interrupted:
            try:
                X_train, y_train = data.X[plan.train_rows], data.y[plan.train_rows]
                reference["centralised"] = fit_centralised(plan.sketch(X_train), y_train, Z_test, y_test)
                X_test = plan.scaler.transform(data.X[plan.test_rows])
                reference["centralised_raw"] = fit_centralised(plan.scaler.transform(X_train), y_train, X_test, y_test)
            except ImportError:
                pass  # without scikit-learn there is no reference: null in the metrics, absent from the plot
            except KeyboardInterrupt:
                self.interrupted = True
        model = Model(
            plan.operator,
            plan.scaler,
            self.model["weights"],
            self.model["bias"],
            data.classes,
            data.features,
            data.target,
        )
        metrics = self._metrics(reference, seconds)
        if plan.config.engine == "flower":
            self.engine.complete(metrics)  # type: ignore[attr-defined]
        return RunResult(model, metrics)

    def _round(self, number: int, Z_test: Any, y_test: Any) -> None:
        began = time.perf_counter()
        dropped = self._dropped()
        accumulator = MeanAccumulator(self.model)
        loss, rows, contributors = 0.0, 0, 0
        for update in self.engine.train(number, self.model, self._poll):  # in device order
            loss += update.loss
            rows += update.rows
            if update.rows:
                before = time.thread_time()
                try:
                    accumulator.add(update.model, update.rows if self.plan.config.weights == "rows" else 1.0)
                except NonFiniteUpdate:
                    raise InputError(
                        f"learning_rate: the model of device {update.device} is no longer finite in round {number + 1} "
                        f"with {self.plan.config.learning_rate:g}; ask for a smaller one"
                    ) from None
                self.aggregation.seconds += time.thread_time() - before
                self.aggregation.items += 1
                contributors += 1
        if contributors:  # a drop policy may leave a round without a single batch: the model stays
            before = time.thread_time()
            self.model = accumulator.result()
            self.aggregation.seconds += time.thread_time() - before
        absent = self.engine.faults[self.faults_booked :]
        self.faults_booked += len(absent)
        self.rounds.append(
            {
                "round": number + 1,
                "accuracy": accuracy(self.model, Z_test, y_test),
                "loss": loss / rows if rows else None,
                "rows": rows,
                "devices": contributors,
                "late": sorted(f.device for f in absent if f.kind == "late"),
                "lost": sorted(f.device for f in absent if f.kind == "lost"),
                "dropped": self._dropped() - dropped,
                "seconds": time.perf_counter() - began,
            }
        )
        self._report()

    def _dropped(self) -> int:
        return sum(report.dropped for report in self.engine.reports())

    def _poll(self) -> None:
        """Called by the engine while it waits."""
        if time.perf_counter() - self.last_progress > _REPORT_EVERY:
            self._report()

    def _look_for_faults(self) -> None:
        """Tell what is new: a device that is late for many rounds once."""
        for fault in self.engine.faults[self.faults_seen :]:
            if fault.kind == "lost" or self.late.get(fault.device) not in (fault.round - 1, fault.round):
                self.notices.append(str(fault))
                _log.warning("%s", fault)
            if fault.kind == "late":
                self.late[fault.device] = fault.round
            else:
                self.lost += 1
            self.faults_seen += 1

    def _report(self) -> None:
        self._look_for_faults()
        self.last_progress = time.perf_counter()
        reports = self.engine.reports()
        depth, writable = self.engine.gauge()
        self.on_progress(
            Progress(
                round=len(self.rounds),
                rounds=self.plan.config.rounds,
                accuracy=self.rounds[-1]["accuracy"] if self.rounds else None,
                depth=depth,
                high_watermark=self.plan.config.watermarks[0],
                writable=writable,
                dropped=sum(r.dropped for r in reports),
                rows=sum(r.train.items for r in reports),
                seconds=self.last_progress - self.started,
                devices=self.plan.config.devices - self.lost,
                faults=tuple(self.notices),
            )
        )

    def _metrics(self, reference: dict[str, float | None], seconds: float) -> dict[str, Any]:
        plan, config, data = self.plan, self.plan.config, self.plan.data
        reports = self.engine.reports()
        high, low = config.watermarks
        classes, d, k = len(data.classes), data.X.shape[1], config.components
        itemsize = np.dtype(plan.scaler.dtype).itemsize
        uploads = sum(r["devices"] for r in self.rounds)
        trace = sorted(self.engine.trace)
        # The scaler's two passes: means, then mean squares, of d float64 each; needed with and without a sketch.
        standardise = 2 * d * 8 * config.devices
        last = self.rounds[-1]["accuracy"] if self.rounds else None

        def stage(unit: str, totals: list[StageTotals]) -> dict[str, Any]:
            items, spent = sum(t.items for t in totals), sum(t.seconds for t in totals)
            return {"unit": unit, "items": items, "cpu_seconds": spent, "per_second": items / spent if spent else None}

        return {
            "accuracy": {"federated": last, **reference},
            "rounds": self.rounds,
            "queue": {
                "policy": config.policy,
                "maxsize": config.queue_size,
                "high_watermark": high,
                "low_watermark": low,
                "offered": sum(r.queue.items for r in reports),
                "dropped": sum(r.dropped for r in reports),
                "full_waits": sum(r.full_waits for r in reports),
                "empty_waits": sum(r.empty_waits for r in reports),
                "high_events": sum(r.high_events for r in reports),
                "peak": max(r.peak for r in reports),
                "depth": {
                    "seconds": [t - self.started for t, _ in self.engine.depths],
                    "max": [depth for _, depth in self.engine.depths],
                },
                "trace": {
                    "device": plan.traced,
                    "seconds": [t - trace[0][0] for t, _ in trace],
                    "depth": [depth for _, depth in trace],
                },
            },
            "uplink_bytes": {
                "updates": uploads * (k + 1) * classes * itemsize,
                "updates_without_sketch": uploads * (d + 1) * classes * itemsize,
                "data": len(plan.train_rows) * k * itemsize,
                "data_without_sketch": len(plan.train_rows) * d * itemsize,
                "standardisation": standardise,
                "operator": len(plan.operator.to_bytes()),
            },
            "stages": {
                "sketch": stage("rows", [r.sketch for r in reports]),
                "queue": stage("batches", [r.queue for r in reports]),
                "train": stage("rows", [r.train for r in reports]),
                "aggregate": stage("updates", [self.aggregation]),
            },
            "data": {
                "name": data.name,
                "rows": len(data.X),
                "features": d,
                "classes": classes,
                "train_rows": len(plan.train_rows),
                "test_rows": len(plan.test_rows),
                "rows_per_device": [len(shard) for shard in plan.shards],
            },
            "config": config.as_dict(),
            "backend": {"name": backends.backend(), "simd": backends.simd(), "threads": backends.num_threads()},
            "edgefast": edgefast.__version__,
            "repeatable": config.policy == "block" and not self.engine.faults,
            "faults": [dataclasses.asdict(fault) for fault in self.engine.faults],
            "interrupted": self.interrupted,
            "deserted": self.deserted,
            "seconds": seconds,
        }
