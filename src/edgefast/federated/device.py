"""One device's work: a source that sketches what it measures, a queue, a local trainer. In a thread or a process."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.federated.depths import Depths
from edgefast.federated.plan import Parameters, Shard
from edgefast.federated.training import SoftmaxTrainer
from edgefast.queues import Queue, ShutDown

__all__ = ["Device", "DeviceReport", "StageTotals", "Stopped", "Update"]

_END = None  # closes a device's stream for one round
_MAX_TRACE = 2000
_MAX_DEPTHS = 128  # samples of a round

Batch = tuple[NDArray[Any], NDArray[np.int64]]


class Stopped(Exception):
    """The device was asked to end: its queue is shut down."""


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
        queue: batches put into the queue and the CPU seconds of the puts.
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
    """A shard, the source that streams it, and the trainer behind a queue.

    `fit` may be called from any thread, one call at a time.

    Args:
        shard: its data and options.
        sampled: whether it samples the depth of its queue, for `take_depths`.
        publish: whether its pipeline shows itself in `edgefast top`.
    """

    def __init__(self, shard: Shard, *, sampled: bool = False, publish: bool = False) -> None:
        self.index: int = shard.index
        self.rows: int = len(shard.y)
        #: (seconds, depth) after every put and get of the first round, for the device that is traced.
        self.trace: list[tuple[float, int]] = []
        config = shard.config
        high, low = config.watermarks
        self.queue: Queue[Any] = Queue(config.queue_size, policy=config.policy, high_watermark=high, low_watermark=low)
        self._shard = shard
        self._report = DeviceReport()
        self._depths = Depths(_MAX_DEPTHS) if sampled else None
        self._source = ThreadPoolExecutor(1, thread_name_prefix="edgefast-source")

    def fit(self, number: int, model: Parameters) -> Update:
        """One round: everything the source brings, from the global model on.

        Args:
            number: the round, from 0; it seeds the order of the rows.
            model: the global model; not changed.

        Raises:
            Stopped: `stop` was called.
        """
        trainer = SoftmaxTrainer(model, self._shard.step)
        clock = time.thread_time
        totals = self._report.train
        # Context variables carry the backend into the thread.
        source = self._source.submit(contextvars.copy_context().run, self._stream, number)
        while True:
            try:
                item = self.queue.get()
            except ShutDown:
                raise Stopped from None
            self.queue.task_done()
            if item is _END:
                break
            self._note(number)
            began = clock()
            trainer.train(*item)
            totals.seconds += clock() - began
            totals.items += len(item[1])
        source.result()
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
        self.queue.shutdown(immediate=True)

    def close(self) -> None:
        """Wait for the device's threads; after the last `fit` or `stop`."""
        self._source.shutdown()

    def batches(self, number: int) -> Iterator[Batch]:
        """The source of one round: shuffled mini-batches, sketched where they are born."""
        shard, config = self._shard, self._shard.config
        clock = time.thread_time
        sketch, queue = self._report.sketch, self._report.queue
        rng = np.random.Generator(np.random.Philox(key=[config.seed, 3], counter=[0, 0, number, self.index]))
        for _ in range(config.epochs):
            order = rng.permutation(self.rows)
            for start in range(0, self.rows, config.batch):
                rows = order[start : start + config.batch]
                began = clock()
                Z = shard.operator.transform(shard.scaler.transform(shard.X[rows]), num_threads=1)
                sketched = clock()
                yield Z, shard.y[rows]  # resumed when the batch has been put
                self._note(number)
                if self._depths is not None:
                    self._depths.add(time.perf_counter(), self.queue.qsize())
                queue.seconds += clock() - sketched
                queue.items += 1
                sketch.seconds += sketched - began
                sketch.items += len(rows)

    def _stream(self, number: int) -> None:
        try:
            for batch in self.batches(number):
                self.queue.put(batch)
        except ShutDown:
            return
        finally:
            with contextlib.suppress(ShutDown):
                if self._shard.config.policy != "block":
                    self.queue.join()  # the end must neither be dropped nor replace a batch
                self.queue.put(_END)  # also after an error, so that the trainer does not wait for ever

    def _note(self, number: int) -> None:
        if number == 0 and self._shard.traced and len(self.trace) < _MAX_TRACE:
            self.trace.append((time.perf_counter(), self.queue.qsize()))
