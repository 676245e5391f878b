"""The main job: devices sketch what they measure, queues carry it to local trainers, rounds of averaging join them."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgefast
from edgefast import backends
from edgefast.aggregate import MeanAccumulator
from edgefast.errors import InputError
from edgefast.federated.config import RunConfig
from edgefast.federated.data import Dataset
from edgefast.federated.model import Model
from edgefast.federated.partition import dirichlet_partition, stratified_split
from edgefast.federated.training import Scaler, SoftmaxTrainer, accuracy, fit_centralised
from edgefast.queues import Queue, ShutDown
from edgefast.sketch import SketchOperator

__all__ = ["Progress", "RunResult", "run"]

_END = None  # closes a device's stream for one round
_MAX_SAMPLES = 2000


class _Stopped(Exception):
    """The run was asked to end: a worker found its queue shut down."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gives.

    Attributes:
        model: the global model.
        metrics: everything measured, JSON-ready; docs/federated.md lists the fields.
    """

    model: Model
    metrics: dict[str, Any]


class _Clock:
    """CPU seconds, rows and bytes of one stage of one device; each instance belongs to one thread at a time."""

    __slots__ = ("items", "seconds")

    def __init__(self) -> None:
        self.items = 0
        self.seconds = 0.0


class _Device:
    """A shard, the source that streams it, and the trainer behind a queue."""

    def __init__(
        self, index: int, X: NDArray[Any], y: NDArray[np.int64], config: RunConfig, op: SketchOperator, scaler: Scaler
    ) -> None:
        self.index = index
        self.rows = len(y)
        self.sketching = _Clock()
        self.queueing = _Clock()
        self.training = _Clock()
        self.trained = 0
        #: (seconds, depth) after every put and get of the first round, when set to a list.
        self.trace: list[tuple[float, int]] | None = None
        high, low = config.watermarks
        self.queue: Queue[Any] = Queue(config.queue_size, policy=config.policy, high_watermark=high, low_watermark=low)
        self._X, self._y = X, y
        self._config, self._operator, self._scaler = config, op, scaler

    def stream(self, number: int) -> None:
        """The source: shuffled mini-batches, sketched where they are born, into the queue."""
        config = self._config
        clock = time.thread_time
        rng = np.random.Generator(np.random.Philox(key=[config.seed, 3], counter=[0, 0, number, self.index]))
        try:
            for _ in range(config.epochs):
                order = rng.permutation(self.rows)
                for start in range(0, self.rows, config.batch):
                    rows = order[start : start + config.batch]
                    began = clock()
                    Z = self._operator.transform(self._scaler.transform(self._X[rows]), num_threads=1)
                    sketched = clock()
                    self.queue.put((Z, self._y[rows]))
                    self._note(number)
                    self.queueing.seconds += clock() - sketched
                    self.queueing.items += 1
                    self.sketching.seconds += sketched - began
                    self.sketching.items += len(rows)
        except ShutDown:
            return
        finally:
            with contextlib.suppress(ShutDown):
                if config.policy != "block":
                    self.queue.join()  # the end must neither be dropped nor replace a batch
                self.queue.put(_END)  # also after an error, so that the trainer does not wait for ever

    @property
    def dropped(self) -> int:
        """Batches the queue dropped."""
        statistics = self.queue.statistics()
        return statistics.dropped_newest + statistics.dropped_oldest

    def _note(self, number: int) -> None:
        if number == 0 and self.trace is not None and len(self.trace) < _MAX_SAMPLES:
            self.trace.append((time.perf_counter(), self.queue.qsize()))

    def train(
        self,
        number: int,
        model: dict[str, NDArray[Any]],
        step: float,
        start_source: Callable[[Callable[[], None]], Future[None]],
    ) -> SoftmaxTrainer:
        """One round: everything the source brings, from the global model on."""
        trainer = SoftmaxTrainer(model, step)
        clock = time.thread_time
        source = start_source(lambda: self.stream(number))
        get = self.queue.get
        while True:
            try:
                item = get()
            except ShutDown:
                raise _Stopped from None
            self.queue.task_done()
            if item is _END:
                break
            self._note(number)
            began = clock()
            trainer.train(*item)
            self.training.seconds += clock() - began
        source.result()
        self.training.items += trainer.rows
        self.trained += trainer.rows
        return trainer


class _Depths:
    """Depth of the queues over time, thinned so that memory stays bounded however long the run."""

    def __init__(self, queues: list[Queue[Any]]) -> None:
        self._queues = queues
        self._start = time.perf_counter()
        self.interval = 0.001
        self.samples: list[tuple[float, int]] = []
        self.recent = 0

    def sample(self) -> None:
        now = time.perf_counter() - self._start
        fullest = max(q.qsize() for q in self._queues)
        self.recent = max(self.recent, fullest)
        if not self.samples or now - self.samples[-1][0] >= self.interval:
            self.samples.append((now, fullest))
            if len(self.samples) > _MAX_SAMPLES:
                self.samples = self.samples[::2]
                self.interval *= 2


def run(
    config: RunConfig | None = None,
    data: Dataset | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunResult:
    """Train one model on N devices that keep their data, and measure every stage.

    A KeyboardInterrupt ends the run after the current step; the result then holds the rounds that were finished and
    metrics["interrupted"] is true.

    Args:
        config: options; None for the defaults.
        data: what to train on; None for scikit-learn's digits.
        on_progress: called in the calling thread, about ten times a second and after every round.

    Raises:
        InputError: more devices than rows, more components than features, or scikit-learn is missing.
        ImportError: the backend asked for is unknown or not available.

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
        return _Run(config, data, on_progress).execute()


class _Run:
    def __init__(self, config: RunConfig, data: Dataset, on_progress: Callable[[Progress], None] | None) -> None:
        self.config = config
        self.data = data
        self.on_progress = on_progress or (lambda progress: None)
        d = data.X.shape[1]
        if config.components > d:
            raise InputError(
                f"components: expected at most the {d} features of {data.name}, got {config.components}; ask for fewer"
            )
        train, test = stratified_split(data.y, config.test_fraction, seed=config.seed)
        if not len(test):
            raise InputError(f"{data.name}: expected rows to score with, every class has a single row")
        shards = dirichlet_partition(data.y[train], config.devices, alpha=config.alpha, seed=config.seed)
        self.train_rows, self.test_rows = train, test
        self.operator = SketchOperator(config.kind, d, config.components, seed=config.seed)
        self.scaler = Scaler.fit([data.X[train[s]] for s in shards])
        self.devices = [
            _Device(i, data.X[train[s]], data.y[train[s]], config, self.operator, self.scaler)
            for i, s in enumerate(shards)
        ]
        self.traced = max(self.devices, key=lambda device: device.rows)
        self.traced.trace = []
        self.workers = min(config.devices, max(2, backends.num_threads()))
        self.depths = _Depths([device.queue for device in self.devices])
        self.rounds: list[dict[str, Any]] = []
        self.aggregation = _Clock()
        self.interrupted = False
        self.started = time.perf_counter()
        self.last_progress = 0.0
        classes = len(data.classes)
        self.model = {
            "weights": np.zeros((config.components, classes), self.scaler.dtype),
            "bias": np.zeros(classes, self.scaler.dtype),
        }

    def execute(self) -> RunResult:
        config, data = self.config, self.data
        Z_test = self._sketch(data.X[self.test_rows])
        y_test = data.y[self.test_rows]
        # The loss is smooth with constant m / 2 for rows of mean square norm m, here one per informative feature.
        informative = int((self.scaler.deviation > 0).sum())
        step = config.learning_rate / max(1, informative)
        trainers = ThreadPoolExecutor(self.workers, thread_name_prefix="edgefast-trainer")
        sources = ThreadPoolExecutor(self.workers, thread_name_prefix="edgefast-source")
        done = False
        try:
            for number in range(config.rounds):
                self._round(number, step, trainers, sources, Z_test, y_test)
            done = True
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            if not done:
                for device in self.devices:
                    device.queue.shutdown(immediate=True)
            trainers.shutdown(cancel_futures=not done)
            sources.shutdown(cancel_futures=not done)
        seconds = time.perf_counter() - self.started
        reference: dict[str, float | None] = {"centralised": None, "centralised_raw": None}
        if not self.interrupted:
            try:
                X_train, y_train = data.X[self.train_rows], data.y[self.train_rows]
                reference["centralised"] = fit_centralised(self._sketch(X_train), y_train, Z_test, y_test)
                X_test = self.scaler.transform(data.X[self.test_rows])
                reference["centralised_raw"] = fit_centralised(self.scaler.transform(X_train), y_train, X_test, y_test)
            except ImportError:
                pass  # without scikit-learn there is no reference: null in the metrics, absent from the plot
            except KeyboardInterrupt:
                self.interrupted = True
        model = Model(
            self.operator,
            self.scaler,
            self.model["weights"],
            self.model["bias"],
            data.classes,
            data.features,
            data.target,
        )
        return RunResult(model, self._metrics(reference, seconds))

    def _sketch(self, X: NDArray[Any]) -> NDArray[Any]:
        return self.operator.transform(self.scaler.transform(X))

    def _round(
        self,
        number: int,
        step: float,
        trainers: ThreadPoolExecutor,
        sources: ThreadPoolExecutor,
        Z_test: NDArray[Any],
        y_test: NDArray[np.int64],
    ) -> None:
        began = time.perf_counter()
        dropped = self._dropped()

        # A pool of its own for the sources, as large as the trainers': each trainer has at most one source, so none
        # of them waits for a thread. Context variables carry the backend into the threads.
        def start_source(stream: Callable[[], None]) -> Future[None]:
            return sources.submit(contextvars.copy_context().run, stream)

        futures = [
            trainers.submit(contextvars.copy_context().run, device.train, number, self.model, step, start_source)
            for device in self.devices
        ]
        accumulator = MeanAccumulator(self.model)
        loss, rows, contributors = 0.0, 0, 0
        try:
            for future in futures:  # in device order, whatever the order they finish in
                trainer = self._await(future)
                loss += trainer.loss
                rows += trainer.rows
                if trainer.rows:
                    before = time.thread_time()
                    accumulator.add(trainer.model, trainer.rows if self.config.weights == "rows" else 1.0)
                    self.aggregation.seconds += time.thread_time() - before
                    self.aggregation.items += 1
                    contributors += 1
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if contributors:  # a drop policy may leave a round without a single batch: the model stays
            before = time.thread_time()
            self.model = accumulator.result()
            self.aggregation.seconds += time.thread_time() - before
        self.rounds.append(
            {
                "round": number + 1,
                "accuracy": accuracy(self.model, Z_test, y_test),
                "loss": loss / rows if rows else None,
                "rows": rows,
                "devices": contributors,
                "dropped": self._dropped() - dropped,
                "seconds": time.perf_counter() - began,
            }
        )
        self._report()

    def _await(self, future: Future[SoftmaxTrainer]) -> SoftmaxTrainer:
        """The result; meanwhile samples the queues and reports."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        while True:
            finished = done.wait(self.depths.interval)
            self.depths.sample()
            if finished:
                return future.result()
            if time.perf_counter() - self.last_progress > 0.1:
                self._report()

    def _dropped(self) -> int:
        return sum(device.dropped for device in self.devices)

    def _report(self) -> None:
        self.last_progress = time.perf_counter()
        self.on_progress(
            Progress(
                round=len(self.rounds),
                rounds=self.config.rounds,
                accuracy=self.rounds[-1]["accuracy"] if self.rounds else None,
                depth=self.depths.recent,
                high_watermark=self.config.watermarks[0],
                writable=all(device.queue.writable for device in self.devices),
                dropped=self._dropped(),
                rows=sum(device.trained for device in self.devices),
                seconds=self.last_progress - self.started,
            )
        )
        self.depths.recent = 0

    def _metrics(self, reference: dict[str, float | None], seconds: float) -> dict[str, Any]:
        config, data = self.config, self.data
        statistics = [device.queue.statistics() for device in self.devices]
        high, low = config.watermarks
        classes, d, k = len(data.classes), data.X.shape[1], config.components
        itemsize = np.dtype(self.scaler.dtype).itemsize
        uploads = sum(r["devices"] for r in self.rounds)
        trace = sorted(self.traced.trace or [])
        # The scaler's two passes: means, then mean squares, of d float64 each; needed with and without a sketch.
        standardise = 2 * d * 8 * config.devices
        last = self.rounds[-1]["accuracy"] if self.rounds else None

        def stage(unit: str, clocks: list[_Clock]) -> dict[str, Any]:
            items, spent = sum(c.items for c in clocks), sum(c.seconds for c in clocks)
            return {"unit": unit, "items": items, "cpu_seconds": spent, "per_second": items / spent if spent else None}

        return {
            "accuracy": {"federated": last, **reference},
            "rounds": self.rounds,
            "queue": {
                "policy": config.policy,
                "maxsize": config.queue_size,
                "high_watermark": high,
                "low_watermark": low,
                "offered": sum(device.queueing.items for device in self.devices),
                "dropped": self._dropped(),
                "full_waits": sum(s.full_waits for s in statistics),
                "empty_waits": sum(s.empty_waits for s in statistics),
                "high_events": sum(s.high_events for s in statistics),
                "peak": max(s.peak for s in statistics),
                "depth": {
                    "seconds": [s[0] for s in self.depths.samples],
                    "max": [s[1] for s in self.depths.samples],
                },
                "trace": {
                    "device": self.traced.index,
                    "seconds": [t - trace[0][0] for t, _ in trace],
                    "depth": [depth for _, depth in trace],
                },
            },
            "uplink_bytes": {
                "updates": uploads * (k + 1) * classes * itemsize,
                "updates_without_sketch": uploads * (d + 1) * classes * itemsize,
                "data": len(self.train_rows) * k * itemsize,
                "data_without_sketch": len(self.train_rows) * d * itemsize,
                "standardisation": standardise,
                "operator": len(self.operator.to_bytes()),
            },
            "stages": {
                "sketch": stage("rows", [device.sketching for device in self.devices]),
                "queue": stage("batches", [device.queueing for device in self.devices]),
                "train": stage("rows", [device.training for device in self.devices]),
                "aggregate": stage("updates", [self.aggregation]),
            },
            "data": {
                "name": data.name,
                "rows": len(data.X),
                "features": d,
                "classes": classes,
                "train_rows": len(self.train_rows),
                "test_rows": len(self.test_rows),
                "rows_per_device": [device.rows for device in self.devices],
            },
            "config": config.as_dict(),
            "backend": {"name": backends.backend(), "simd": backends.simd(), "threads": backends.num_threads()},
            "edgefast": edgefast.__version__,
            "repeatable": config.policy == "block",
            "interrupted": self.interrupted,
            "seconds": seconds,
        }
