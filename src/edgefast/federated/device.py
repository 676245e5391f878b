"""One device's work: what it measures is sketched, queued and trained on. The same in a thread and in a process."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.federated.depths import Depths
from edgefast.federated.plan import Parameters, Shard
from edgefast.federated.training import SoftmaxTrainer
from edgefast.pipeline import Pipeline, PipelineError, Stage
from edgefast.queues import Queue, ShutDown

__all__ = ["Device", "DeviceReport", "StageTotals", "Stopped", "Update"]

_MAX_TRACE = 2000
_GROUP = 4  # mini-batches sketched at once
_MAX_DEPTHS = 128  # samples of a round

Batch = tuple[NDArray[Any], NDArray[np.int64]]


class Stopped(Exception):
    """The device was asked to end: its pipeline is shut down."""


@dataclasses.dataclass(slots=True)
class StageTotals:
    """Items and CPU seconds of one stage of one device since the start; written by one thread at a time."""

    items: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(slots=True)
class DeviceReport:
    """What a device counted since the start; the numbers only grow.

    Attributes:
        sketch: rows sketched and the seconds that took.
        queue: batches put into the queue and the CPU seconds of passing them on.
        train: rows trained on and the seconds that took.
        dropped: batches the queue dropped.
        full_waits, empty_waits, high_events, peak: of the queue's statistics.
    """

    sketch: StageTotals = dataclasses.field(default_factory=StageTotals)
    queue: StageTotals = dataclasses.field(default_factory=StageTotals)
    train: StageTotals = dataclasses.field(default_factory=StageTotals)
    dropped: int = 0
    full_waits: int = 0
    empty_waits: int = 0
    high_events: int = 0
    peak: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A device's answer to one round.

    Attributes:
        device: its number.
        round: the round, from 0.
        model: the parameters after local training.
        rows: rows trained on in the round; 0 when a drop policy left no batch.
        loss: sum over these rows.
    """

    device: int
    round: int
    model: Parameters
    rows: int
    loss: float


class Device:
    """A shard, the source that streams it, and a pipeline of two stages: sketch and train.

    `fit` may be called from any thread, one call at a time.

    Args:
        shard: its data and options.
        sampled: whether it samples the depth of its queue, for `take_depths`.
        publish: whether its pipeline shows itself in `edgefast top`.
    """

    def __init__(self, shard: Shard, *, sampled: bool = False, publish: bool = False) -> None:
        self.index: int = shard.index
        self.rows: int = len(shard.y)
        #: (seconds, depth) at every batch sketched and trained of the first round, for the device that is traced.
        self.trace: list[tuple[float, int]] = []
        config = shard.config
        high, low = config.watermarks
        self._shard = shard
        self._report = DeviceReport()
        self._depths = Depths(_MAX_DEPTHS) if sampled else None
        self._number = 0
        self._trainer: SoftmaxTrainer | None = None
        self._done: Future[None] = Future()
        # Sketching a few mini-batches at once costs little more than one. Fewer than would fill the queue at a blow.
        self._group = max(1, min(_GROUP, high // 4))
        # One worker a stage keeps the order by itself. The limit is the high watermark: a gate is as hard as a limit.
        self._pipeline = Pipeline(
            [
                Stage(self._sketch, name="sketch", ordered=False, maxsize=config.queue_size),
                Stage(
                    self._train,
                    name="train",
                    ordered=False,
                    maxsize=high,
                    low_watermark=low,
                    policy=config.policy,
                ),
            ],
            adapt="none",
            name=f"device-{shard.index}",
            publish=publish,
        )
        #: The queue between source and trainer.
        self.queue: Queue[Any] = self._pipeline._core.stages[-1].queue

    def fit(self, number: int, model: Parameters) -> Update:
        """One round: everything the source brings, from the global model on.

        Args:
            number: the round, from 0; it seeds the order of the rows.
            model: the global model; not changed.

        Raises:
            Stopped: `stop` was called.
        """
        trainer = self._trainer = SoftmaxTrainer(model, self._shard.step)
        self._number = number
        self._done = done = Future()
        try:
            for batches in self._source(number):
                self._pipeline.submit_many(batches)
            if self._shard.config.policy != "block":
                self._pipeline.join()  # the end must neither be dropped nor replace a batch
            self._pipeline.submit(None)
        except (PipelineError, ShutDown):
            if not done.done():
                raise Stopped from None
        done.result()
        return Update(self.index, number, trainer.model, trainer.rows, trainer.loss)

    def report(self) -> DeviceReport:
        """What has been counted so far; from any thread."""
        statistics = self.queue.statistics()
        return dataclasses.replace(
            self._report,
            dropped=statistics.dropped_newest + statistics.dropped_oldest,
            full_waits=statistics.full_waits,
            empty_waits=statistics.empty_waits,
            high_events=statistics.high_events,
            peak=statistics.peak,
        )

    def take_depths(self) -> list[tuple[float, int]]:
        """(time.perf_counter(), depth) of the queue since the last call, at most 128 samples; between two rounds."""
        return [] if self._depths is None else self._depths.take()

    def stop(self) -> None:
        """End a `fit` under way, which raises Stopped; the queue's items are discarded. From any thread."""
        self._end(Stopped())
        self._pipeline.shutdown(immediate=True)

    def close(self) -> None:
        """Wait for the device's threads; after the last `fit` or `stop`."""
        self._pipeline.shutdown(immediate=True)
        with contextlib.suppress(PipelineError):
            self._pipeline.join()

    # ---- the stages --------------------------------------------------------------------------------------------------

    def _source(self, number: int) -> Iterator[list[NDArray[np.int64]]]:
        """Row numbers, an epoch at a time, those of a few mini-batches in each array."""
        config = self._shard.config
        rng = np.random.Generator(np.random.Philox(key=[config.seed, 3], counter=[0, 0, number, self.index]))
        span = config.batch * self._group
        for _ in range(config.epochs):
            order = rng.permutation(self.rows)
            yield [order[start : start + span] for start in range(0, self.rows, span)]

    def _sketch(self, rows: NDArray[np.int64] | None) -> Iterator[Batch | None]:
        """Mini-batches of rows, standardised and sketched where they are born. None ends the round and is passed on."""
        try:
            if rows is None:
                yield None
                return
            shard, size, report = self._shard, self._shard.config.batch, self._report
            began = time.thread_time()
            Z = shard.operator.transform(shard.scaler.transform(shard.X[rows]), num_threads=1)
            y = shard.y[rows]
            passing = time.thread_time()
            report.sketch.seconds += passing - began
            report.sketch.items += len(rows)
            for start in range(0, len(rows), size):
                yield Z[start : start + size], y[start : start + size]
                report.queue.items += 1
                self._note()
                if self._depths is not None:
                    self._depths.add(time.perf_counter(), self.queue.qsize())
            report.queue.seconds += time.thread_time() - passing
        except Exception as error:
            self._end(error)
            raise

    def _train(self, batch: Batch | None) -> None:
        """One step of the local model."""
        began = time.thread_time()
        try:
            if batch is None:
                self._end(None)
                return
            assert self._trainer is not None
            self._note()
            self._trainer.train(*batch)
            self._report.train.items += len(batch[1])
        except Exception as error:
            self._end(error)
            raise
        finally:
            self._report.train.seconds += time.thread_time() - began

    def _end(self, error: BaseException | None) -> None:
        """The round is over."""
        with contextlib.suppress(InvalidStateError):  # it was already
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)

    def _note(self) -> None:
        if self._number == 0 and self._shard.traced and len(self.trace) < _MAX_TRACE:
            self.trace.append((time.perf_counter(), self.queue.qsize()))
