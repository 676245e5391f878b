"""A pipeline at work: its stages with their queues, what they share, and how it ends.

No object here refers to the Pipeline: a pipeline that is forgotten is collected, and its finalizer stops the workers.

How it ends. shutdown() closes the first queue; the workers of a stage end when its queue is closed and empty; the last
of them closes the next queue, and the last stage the reader's. A failure discards what is in the queues up to the
failed stage and closes the one behind it, so that what has passed is still done, in order, before the error shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from edgefast.pipeline._errors import PipelineError
from edgefast.pipeline._order import Order
from edgefast.pipeline._types import Decision, PipelineStatistics, StageSample, StageStatistics, State
from edgefast.pipeline.stage import Stage
from edgefast.queues import Full, Queue, ShutDown
from edgefast.queues._loops import loop_of

__all__ = ["OUTPUT", "Core", "Reader", "StageRuntime", "Worker"]

log = logging.getLogger("edgefast.pipeline")
clock = time.monotonic

#: What a worker does at a moment; idle ones of a pool serve other stages.
BUSY, BLOCKED, STARVED, IDLE = range(4)

#: Name of the queue in front of whoever reads the outputs, among the samples and decisions.
OUTPUT = "output"

#: Limits without a controller; where a controller begins and ends.
FIXED_LIMIT, FIRST_LIMIT, LAST_LIMIT = 128, 2, 1 << 16

#: A worker takes so many items at once as it needs so many seconds for, but at most _CHUNK. Small: the others of the
#: stage could have worked on them, and their outputs wait for the last one.
_CHUNK_SECONDS, _CHUNK = 100e-6, 256

#: Outputs of a generator wait for each other no longer than this, and no more of them than that.
FLUSH_SECONDS, MOST_WAITING = 1e-3, 64

_DECISIONS = 1024

#: Whoever waits is told of all it waits for. A net under that: it looks by itself after so many seconds.
LOOK_AGAIN = 0.5


class Event:
    """threading.Event, but set() is never left half done. That one is Python code under a lock, which a Ctrl-C in it
    may leave locked, with all who wait."""

    def __init__(self) -> None:
        self._set = False
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        if self._tokens.empty():
            self._tokens.put(None)

    def clear(self) -> None:
        self._set = False
        while not self._tokens.empty():
            with contextlib.suppress(Empty):
                self._tokens.get_nowait()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set, if need be after so many seconds."""
        if not self._set:
            with contextlib.suppress(Empty):
                self._tokens.get(timeout=timeout)
                if self._set:
                    self._tokens.put(None)  # for the next one
        return self._set


class Stop(BaseException):
    """An item failed for good, and the pipeline with it. No Exception: it is not for on_error any more."""

    def __init__(self, error: BaseException, item: Any) -> None:
        super().__init__()
        self.error = error
        self.item = item
        self.passed = 0  # outputs that were passed on, or refused, when it was one of them that failed


class Over(BaseException):
    """The stage was stopped: the worker ends. No Exception, so that nobody takes it for an error of the function."""


def batch_result(result: Any, n: int) -> list[Any]:
    """What a function with batch above 1 returned, as n outputs."""
    advice = "; use a generator function for another number of outputs"
    if isinstance(result, (str, bytes)) or not hasattr(result, "__len__"):
        raise TypeError(f"expected a sequence of {n} outputs, got {type(result).__name__}{advice}")
    if len(result) != n:
        raise ValueError(f"expected {n} outputs, one for each item of the batch, got {len(result)}{advice}")
    return result if type(result) is list else list(result)


class Worker:
    """One of those who serve a stage: a thread, a task, a thread with its process. Counts for itself, without locks."""

    def __init__(self, stage: StageRuntime) -> None:
        self.stage = stage
        self.state = STARVED
        self.since = clock()
        self.spent = [0.0, 0.0, 0.0, 0.0]
        self.running = False
        self.hand = 0  # items taken and not accounted for
        self.completed = self.emitted = self.failed = self.retried = self.lost = 0
        self.restarts = self.redelivered = self.unread = 0

    def switch(self, state: int) -> float:
        """The worker does something else from now on; the seconds it did what it did."""
        now = clock()
        elapsed = now - self.since
        self.spent[self.state] += elapsed
        self.since = now
        self.state = state
        return elapsed

    def give_up(self, item: Any, error: Exception, n: int) -> None:
        """An item failed for good, or n as one.

        Raises:
            Stop: the pipeline is to end.
        """
        self.failed += n
        self.hand -= n
        on_error = self.stage.spec.on_error
        if on_error == "stop":
            raise Stop(error, item)
        if callable(on_error):
            try:
                on_error(item, error)
            except Exception as its_own:
                its_own.__cause__ = its_own.__cause__ or error
                raise Stop(its_own, item) from None

    def refused(self, output: Any, error: Exception) -> None:
        """An output cannot be queued, having no size or too much of it."""
        if self.stage.spec.kind in ("plain", "coroutine"):
            self.completed -= 1  # its item counts as failed, and as completed by who passes on the batch
            self.hand += 1
            self.give_up(output, error, 1)
        else:
            self.give_up(output, error, 0)

    def let_go(self) -> None:
        """The worker ends: what is in its hands is lost."""
        self.lost += self.hand
        self.hand = 0


_COUNTS = ("completed", "emitted", "failed", "retried", "lost", "restarts", "redelivered", "unread")


class Edge:
    """A queue with an adaptable limit, and what a controller wants to know of it."""

    def __init__(
        self,
        name: str,
        adapts: bool,
        *,
        maxsize: int | None = None,
        low: int | None = None,
        least: int = 1,
        first: int = FIRST_LIMIT,
        floor: int = 0,
        policy: Any = "block",
        max_bytes: int | None = None,
        sizer: Callable[[Any], int] | None = None,
        max_age: float | None = None,
    ) -> None:
        self.name = name
        self.max_limit = maxsize or (LAST_LIMIT if adapts else FIXED_LIMIT)
        self.min_limit = min(least, self.max_limit)
        if policy == "latest":
            self.max_limit = self.min_limit = 1
        self.limit = min(self.max_limit, max(self.min_limit, first)) if adapts else self.max_limit
        self.policy = policy
        self.floor = floor
        if low is not None:
            self.ratio = low / self.max_limit
        elif policy in ("block", "error"):
            self.ratio = 0.5
        else:
            self.ratio = 1.0  # dropping needs no runs: accept again as soon as there is room
        self.queue: Queue[Any] = Queue(
            max_bytes=max_bytes, sizer=sizer, policy=policy, max_age=max_age, name=name, **self._marks()
        )
        self.chunk = 1
        self.single = False
        self.budget = _CHUNK_SECONDS
        self.pace = 0.0  # seconds an item takes: rises at once, falls slowly
        self.low_seen: float = math.inf  # fewest items left behind by who took some, in this period
        self.item_bytes = 0.0
        self._sampled = (clock(), 0)
        self._reported = (clock(), 0, 0)

    def _marks(self) -> dict[str, int]:
        if self.policy == "latest":
            return {}
        low = max(int(self.limit * self.ratio), self.floor)
        return {"high_watermark": self.limit, "low_watermark": min(self.limit - 1, low)}

    @property
    def low(self) -> int:
        """Where the queue accepts again."""
        return self._marks().get("low_watermark", 0)

    def set_limit(self, limit: int) -> None:
        """Close the queue at another number of items."""
        self.limit = max(self.min_limit, min(limit, self.max_limit))
        self.chunk = min(self.chunk, self._most())
        self._apply()

    def set_low(self, low: int) -> None:
        """Reopen the queue at another number of items."""
        self.ratio = max(0, min(low, self.limit - 1)) / self.limit
        self._apply()

    def _apply(self) -> None:
        marks = self._marks()
        if marks:
            self.queue.set_watermarks(marks["high_watermark"], marks["low_watermark"])

    def _most(self) -> int:
        return 1 if self.single else max(1, min(_CHUNK, self.limit // 4))

    def measured(self, seconds: float, items: int) -> None:
        """So many items took so long: how many to take at once from now on."""
        each = seconds / items
        pace = self.pace
        self.pace = pace = each if each > pace else pace + 0.25 * (each - pace)
        n = self.budget / pace if pace > 0 else _CHUNK
        self.chunk = 1 if n < 2 else min(int(n), self._most())

    def observe(self, counters: tuple[Any, ...], now: float) -> tuple[float | None, int]:
        """(min_sojourn, served) of the period that ends now."""
        then, served_then = self._sampled
        served = counters[4]
        self._sampled = (now, served)
        fewest, self.low_seen = self.low_seen, math.inf
        if counters[0] and counters[17]:
            size = counters[17] / counters[0]
            self.item_bytes += (size - self.item_bytes) * (0.25 if self.item_bytes else 1.0)
        if served == served_then or fewest is math.inf:
            return None, served
        # By Little's law: the queue was never shorter than this, and moved at this rate.
        return fewest * max(now - then, 1e-9) / (served - served_then), served

    def rates(self, counters: tuple[Any, ...], now: float) -> tuple[float, float]:
        """Items per second put and taken since the previous call."""
        then, puts, gets = self._reported
        self._reported = (now, counters[3], counters[4])
        elapsed = max(now - then, 1e-9)
        return (counters[3] - puts) / elapsed, (counters[4] - gets) / elapsed


class StageRuntime(Edge):
    """A stage at work: its queue and its workers."""

    def __init__(self, core: Core, index: int, spec: Stage, backend: str, adapts: bool) -> None:
        self.core = core
        self.index = index
        self.spec = spec
        self.backend = backend
        self.next: StageRuntime | None = None
        self.lock = threading.RLock()
        self.workers: set[Worker] = set()
        self.target = spec.workers
        self.min_workers, self.max_workers = spec.min_workers, spec.max_workers
        self.order = Order() if spec.ordered else None
        #: Set when the stage is to end at once: waits between attempts end.
        self.stopping = Event()
        self.started = 0
        self._past: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._past_spent = [0.0, 0.0, 0.0, 0.0]
        #: With scheduler="max_weight": threads that serve it now, and when one began last.
        self.active = 0
        self.served_at = clock()
        super().__init__(
            spec.name,
            adapts,
            maxsize=spec.maxsize,
            low=spec.low_watermark,
            least=spec.batch,
            # Who waits for a full batch must not wait for a closed queue.
            floor=spec.batch - 1 if spec.linger else 0,
            # Threads that go from stage to stage do so less often with longer queues.
            first=FIXED_LIMIT if core.scheduler == "max_weight" else FIRST_LIMIT,
            policy=spec.policy,
            max_bytes=spec.max_bytes or core.max_bytes,
            sizer=spec.sizer or (core.sizer if core.max_bytes else None),
            max_age=spec.max_age,
        )

    @property
    def window(self) -> int:
        """How many tickets may be ahead of the one at the head."""
        return max(4, 2 * self.target)

    # ---- workers -----------------------------------------------------------------------------------------------------

    def staff(self) -> None:
        """Start the workers that are missing."""
        while True:
            worker = None
            try:
                with self.lock:
                    if len(self.workers) >= self.target or self.queue.is_shutdown:
                        return
                    worker = self.core.new_worker(self)
                    self.workers.add(worker)
                    self.started += 1
                    name = f"{self.core.name}-{self.name}-{self.started}"
                self.core.launch(worker, name)
            except BaseException:
                with self.lock:
                    if worker is not None and not worker.running:  # Ctrl-C may come when it runs already
                        self.workers.discard(worker)
                self.core.close_if_idle()
                raise

    def begins(self, worker: Worker) -> bool:
        """Whether the worker is to run: not when it was given up before it began."""
        with self.lock:
            worker.running = worker in self.workers
            return worker.running

    def set_workers(self, n: int) -> None:
        """So many workers from now on; those too many end after what they are at."""
        self.target = n
        if self.core.state != "idle" and self.core.scheduler != "max_weight":  # a pool has its threads
            self.staff()

    def retires(self, worker: Worker) -> bool:
        """Whether the worker is one too many; it is gone then."""
        if len(self.workers) <= self.target:
            return False
        with self.lock:
            if len(self.workers) <= self.target:
                return False
            self._dismiss(worker)
            return True

    def _dismiss(self, worker: Worker) -> None:
        worker.let_go()
        worker.switch(STARVED)
        self.workers.discard(worker)
        for name in _COUNTS:
            self._past[name] += getattr(worker, name)
        for i in range(4):
            self._past_spent[i] += worker.spent[i]

    def ended(self, worker: Worker) -> None:
        """The worker is gone; the last one of a closed queue closes the next."""
        with self.lock:
            if worker in self.workers:
                self._dismiss(worker)
            last = not self.workers and self.queue.is_shutdown
        if last:
            self.close_behind()

    def close_behind(self) -> None:
        """Nothing comes from this stage any more."""
        if self.order is not None:
            self.order.stop()
        if self.next is not None:
            self.next.queue.shutdown()
        else:
            self.core.close_output()
        self.core.stage_closed()

    def halt(self) -> None:
        """Discard what is in the queue; workers end after the call they are in."""
        self.stopping.set()
        self.queue.shutdown(immediate=True)
        if self.order is not None:
            self.order.stop()
        for worker in tuple(self.workers):
            kill = getattr(worker, "kill", None)
            if kill is not None and self.core.immediate:
                kill()

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        with self.lock:
            total = dict(self._past)
            for worker in self.workers:
                for name in _COUNTS:
                    total[name] += getattr(worker, name)
        if self.order is not None:
            total["lost"] += self.order.lost
        return total

    def settled(self, counters: tuple[Any, ...]) -> bool:
        """Whether everything that was put has been dealt with."""
        if counters[0]:
            return False
        total = self.counts()
        return total["completed"] + total["failed"] + total["lost"] >= counters[4]

    def spent(self) -> list[float]:
        """Worker-seconds busy, blocked, starved, with what goes on now."""
        now = clock()
        with self.lock:
            total = list(self._past_spent)
            for worker in self.workers:
                for i in range(4):
                    total[i] += worker.spent[i]
                total[worker.state] += max(0.0, now - worker.since)
        return total[:3]

    def sample(self, now: float) -> StageSample:
        counters = self.queue._counters()
        sojourn, served = self.observe(counters, now)
        busy, blocked, starved = self.spent()
        return StageSample(
            name=self.name,
            depth=counters[0],
            bytes=counters[17],
            arrived=counters[3],
            served=served,
            min_sojourn=sojourn,
            busy=busy,
            blocked=blocked,
            starved=starved,
            workers=self.target,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            limit=self.limit,
            min_limit=self.min_limit,
            max_limit=self.max_limit,
            item_bytes=self.item_bytes,
        )

    def statistics(self, now: float) -> StageStatistics:
        counters = self.queue._counters()
        arrival, service = self.rates(counters, now)
        total = self.counts()
        busy, blocked, starved = self.spent()
        depth, sojourn = counters[0], counters[19]
        return StageStatistics(
            name=self.name,
            backend=self.backend,
            workers=self.target,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            depth=depth,
            limit=self.limit,
            low=self.low,
            writable=not counters[13],
            bytes=counters[17],
            max_bytes=self.queue.max_bytes or math.inf,
            peak=counters[11],
            peak_bytes=counters[18],
            arrived=counters[3],
            served=counters[4],
            completed=total["completed"],
            emitted=total["emitted"],
            failed=total["failed"],
            retried=total["retried"],
            restarts=total["restarts"],
            redelivered=total["redelivered"],
            lost=total["lost"],
            dropped_newest=counters[14],
            dropped_oldest=counters[15],
            expired=counters[16],
            cleared=counters[5],
            refused=counters[6],
            full_waits=counters[7],
            closings=counters[10],
            arrival_rate=arrival,
            service_rate=service,
            sojourn=None if sojourn < 0 else sojourn,
            time_to_drain=0.0 if depth == 0 else depth / service if service > 0 else math.inf,
            busy=busy,
            blocked=blocked,
            starved=starved,
        )


#: What a controller sees where nobody reads the outputs.
NO_OUTPUT = StageSample(OUTPUT, 0, 0, 0, 0, None, 0.0, 0.0, 0.0, 1, 1, 1, FIRST_LIMIT, 1, LAST_LIMIT, 0.0)


class Reader(Edge):
    """The queue of outputs in front of whoever reads them; several may follow each other."""

    def __init__(self, core: Core, limit: int | None, adapts: bool) -> None:
        super().__init__(OUTPUT, adapts, max_bytes=core.max_bytes, sizer=core.sizer if core.max_bytes else None)
        if limit is not None:
            self.set_limit(limit)
        self.state = STARVED
        self.since = clock()
        self.spent = [0.0, 0.0, 0.0]

    def switch(self, state: int) -> float:
        now = clock()
        elapsed = now - self.since
        self.spent[self.state] += elapsed
        self.since, self.state = now, state
        return elapsed

    def lift(self) -> None:
        """No limit any more: nobody may be left to read while the rest is done."""
        self.queue.set_watermarks(None)

    def sample(self, now: float) -> StageSample:
        counters = self.queue._counters()
        sojourn, served = self.observe(counters, now)
        spent = list(self.spent)
        spent[self.state] += max(0.0, clock() - self.since)
        return NO_OUTPUT._replace(
            depth=counters[0],
            bytes=counters[17],
            arrived=counters[3],
            served=served,
            min_sojourn=sojourn,
            busy=spent[BUSY],
            blocked=spent[BLOCKED],
            starved=spent[STARVED],
            limit=self.limit,
            min_limit=self.min_limit,
            max_limit=self.max_limit,
            item_bytes=self.item_bytes,
        )


class Core:
    """What the stages of one pipeline share."""

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        name: str,
        backend: str,
        scheduler: str,
        target_delay: float,
        period: float,
        max_bytes: int | None,
        sizer: Callable[[Any], int],
        controller: Any,
        on_progress: Callable[[PipelineStatistics], object] | None,
    ) -> None:
        self.name = name
        self.backend = backend
        self.scheduler = scheduler
        self.target_delay = target_delay
        self.period = period
        self.max_bytes = max_bytes
        self.sizer = sizer
        #: Has step(now, samples) -> decisions, and may have next_period, the seconds until the next step.
        self.controller = controller
        #: Called with the statistics by the control thread, once a period.
        self.observers: list[Callable[[PipelineStatistics], object]] = [] if on_progress is None else [on_progress]
        self.state: State = "idle"
        self.error: PipelineError | None = None
        self.immediate = False
        # Reentrant, as those of the stages: the collector may finalize this pipeline in any thread, wherever that is.
        self.lock = threading.RLock()
        self.reader: Reader | None = None
        self.reader_limit: int | None = None
        #: Outputs of an abandoned map() are dropped wherever they come out.
        self.discarding = False
        self._abandoned: Any = None  # its Feed
        self.error_seen = False
        #: Seconds that whoever puts into the first queue waited for room.
        self.source_blocked = 0.0
        self._source_since = 0.0
        self._observed = 0.0
        self._output_sample = NO_OUTPUT
        self.watchers: list[Callable[[], object]] = []
        self.closed = Event()
        self.on_started: list[Callable[[], object]] = []
        self.on_closed: list[Callable[[], object]] = []
        self.decisions: deque[Decision] = deque(maxlen=_DECISIONS)
        self.context = contextvars.Context()
        self.began = 0.0
        self.ended = 0.0
        self._delivered = 0  # by readers that are gone
        self._emitted_before = (clock(), 0)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.own_loop: Any = None  # LoopThread
        self.pool: Any = None  # Pool
        self.pool_size: int | None = None
        self.start_method: Any = None
        self.mapping = False
        self.threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._control: threading.Thread | None = None
        self.stages = [
            StageRuntime(self, i, spec, _backend_of(spec, backend), controller is not None)
            for i, spec in enumerate(stages)
        ]
        for one, following in zip(self.stages, self.stages[1:], strict=False):
            one.next = following

    # ---- start -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers, once."""
        ours = False
        try:
            with self.lock:
                if self.state != "idle":
                    return
                ours = True
                self.context = contextvars.copy_context()
                self.began = clock()
                self._emitted_before = (self.began, 0)
                self.state = "running"
            if self.scheduler == "max_weight":
                from edgefast.pipeline._pool import Pool

                self.pool = Pool(self)
                self.pool.start()
            else:
                # The last first: a stage that has workers may end, and then the next one must have some.
                for stage in reversed(self.stages):
                    stage.staff()
            if self.controller is not None or self.observers:
                self._control = threading.Thread(target=self._control_loop, name=f"{self.name}-control", daemon=True)
                self._control.start()
            for call in self.on_started:
                call()
        except BaseException as error:
            if ours:
                self.fail(self.stages[0], error)
            raise

    def new_worker(self, stage: StageRuntime) -> Worker:
        if stage.backend == "asyncio":
            from edgefast.pipeline._tasks import TaskWorker

            return TaskWorker(stage)
        if stage.backend == "process":
            from edgefast.pipeline._processes import ProcessWorker

            return ProcessWorker(stage)
        from edgefast.pipeline._threads import ThreadWorker

        return ThreadWorker(stage)

    def launch(self, worker: Worker, name: str) -> None:
        if worker.stage.backend == "asyncio":
            from edgefast.pipeline._tasks import LoopThread

            with self.lock:
                if self.loop is None:
                    own = LoopThread(f"{self.name}-loop")
                    try:
                        self.own_loop = own
                        own.thread.start()
                        self.loop = own.loop
                    except BaseException:
                        own.give_up()
                        raise
            try:
                self.loop.call_soon_threadsafe(worker.begin, name)  # type: ignore[attr-defined]
            except RuntimeError as error:  # the caller's loop is closed
                self.fail(worker.stage, error)
                worker.stage.ended(worker)
            return
        # Context variables of who started the pipeline hold in its workers, such as the backend of array kernels.
        run = self.context.copy().run
        thread = threading.Thread(target=run, args=(worker.run,), name=name, daemon=True)  # type: ignore[attr-defined]
        self.threads.add(thread)
        thread.start()

    # ---- the end -----------------------------------------------------------------------------------------------------

    def fail(self, stage: StageRuntime, error: BaseException, item: Any = None) -> None:
        """A stage ends the pipeline: nothing more gets in; what has passed the stage is still done."""
        with self.lock:
            if self.error is None and self.state not in ("closed", "failed"):
                self.error = error if isinstance(error, PipelineError) else PipelineError.of(stage.name, error, item)
                if not self.immediate:
                    self.state = "failed"
        for one in self.stages[: stage.index + 1]:
            one.halt()
        if stage.next is not None:
            stage.next.queue.shutdown()
        self.close_if_idle()

    def shutdown(self, immediate: bool) -> None:
        with self.lock:
            if self.state == "idle":
                self.state = "closed"
                self.ended = self.began = clock()
            elif self.state == "running":
                self.state = "draining"
            self.immediate = self.immediate or immediate
        if immediate:
            for stage in self.stages:
                stage.halt()
            reader = self.reader
            if reader is not None:
                reader.queue.shutdown(immediate=True)
        else:
            self.stages[0].queue.shutdown()
        self.close_if_idle()
        self.notify()

    def close_if_idle(self) -> None:
        """Stages that have no worker to do it are closed here."""
        for stage in self.stages:
            with stage.lock:
                gone = not stage.workers and stage.queue.is_shutdown
            if not gone:
                break
            stage.close_behind()
        self.stage_closed()

    def abandon_reader(self) -> None:
        """The with block of a map() that is still open is left: what is on its way is dropped."""
        reader = self.reader
        self.discarding = True
        for stage in self.stages:
            stage.queue.clear()
        if reader is not None:
            reader.queue.shutdown(immediate=True)

    def collect(self, timeout: float | None = None) -> None:
        """Wait for the threads themselves, after the end."""
        until = None if timeout is None else clock() + timeout
        threads = list(self.threads)
        if self._control is not None:
            threads.append(self._control)
        if self.own_loop is not None:
            threads.append(self.own_loop.thread)
        for thread in threads:
            if thread is not threading.current_thread() and thread.is_alive():  # one may not have been started
                thread.join(None if until is None else max(0.0, until - clock()))

    def forked(self) -> None:
        """In a forked child: there are no workers."""
        # Whoever held the locks does not exist here.
        self.lock = threading.RLock()
        self.closed = Event()
        self.watchers = []
        for stage in self.stages:
            stage.lock = threading.RLock()
            if stage.order is not None:
                stage.order = Order()
            stage.workers.clear()
        if self.state != "idle":
            self.state = "closed"
            self.closed.set()

    def close_output(self) -> None:
        reader = self.reader
        if reader is not None:
            reader.queue.shutdown()

    def stage_closed(self) -> None:
        if self.closed.is_set():
            return
        for stage in self.stages:
            with stage.lock:
                if stage.workers or not stage.queue.is_shutdown:
                    self.notify()
                    return
        with self.lock:
            if self.closed.is_set():
                return
            if self.state != "failed":
                self.state = "closed"
            self.ended = clock()
        if self.own_loop is not None:
            self.own_loop.stop()
        for call in self.on_closed:  # they have locks of their own
            call()
        with self.lock:
            self.close_output()
            self.closed.set()  # the last: after a Ctrl-C all of it is done again
        self.notify()

    def check(self) -> None:
        """Raise what makes the pipeline unusable.

        Raises:
            PipelineError: a stage failed.
            ShutDown: it was shut down.
        """
        if self.error is not None:
            self.error_seen = True
            raise self.error
        if self.state not in ("idle", "running"):
            raise ShutDown(f"pipeline {self.name!r} was shut down")

    # ---- waiting until something is done -----------------------------------------------------------------------------

    def notify(self) -> None:
        for wake in tuple(self.watchers):
            wake()

    def moved(self) -> None:
        """Items left a queue or came into one: the byte budget and the threads of a pool wait for that, too."""
        if self.watchers and (self.max_bytes is not None or self.pool is not None):
            self.notify()

    def _pause(self) -> float:
        """How long who waits may sleep: nobody tells when an item in a queue becomes too old."""
        pause = LOOK_AGAIN
        for stage in self.stages:
            if stage.spec.max_age is not None and (expires := stage.queue._expires_in()) >= 0:
                pause = min(pause, expires)
        return pause

    def all_done(self) -> bool:
        """Whether everything that got in is dealt with: stage by stage, as what is done arrives at the next."""
        return all(stage.settled(stage.queue._counters()) for stage in self.stages)

    def wait(self, done: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait in this thread until done(), which is looked at whenever something happened."""
        if self.loop is not None and asyncio._get_running_loop() is self.loop:
            raise RuntimeError("this would block the event loop the pipeline runs on; use the coroutine instead")
        event = Event()
        wake = event.set
        deadline = None if timeout is None else clock() + timeout
        try:
            self.watchers.append(wake)
            while not done():
                pause = self._pause()
                if deadline is not None:
                    left = deadline - clock()
                    if left <= 0:
                        return False
                    pause = min(pause, left)
                event.wait(pause)
                event.clear()
            return True
        finally:
            if wake in self.watchers:
                self.watchers.remove(wake)

    async def await_(self, done: Callable[[], bool]) -> None:
        """Wait in this task until done()."""
        loop = asyncio.get_running_loop()
        notifier = loop_of(loop)
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            notifier.wake(future)

        self.watchers.append(wake)
        try:
            while not done():
                await asyncio.wait((future,), timeout=self._pause())
                if future.done():
                    future = loop.create_future()
        finally:
            self.watchers.remove(wake)

    def idle_or_over(self) -> bool:
        return self.closed.is_set() or self.error is not None or (self.state == "running" and self.all_done())

    # ---- the source --------------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item into the first queue, within the byte budget."""
        queue = self.stages[0].queue
        if self.max_bytes is not None:
            began = clock()
            size = queue._size_of(item)
            if not self.has_bytes(size) and not (block and self.wait(lambda: self.has_bytes(size), timeout)):
                raise Full
            if timeout is not None:
                timeout = max(0.0, timeout - (clock() - began))
        if block and queue.full():
            began = clock()
            try:
                self._source_since = began
                queue.put(item, True, timeout)
            finally:
                self._source_since = 0.0
                self.source_blocked += clock() - began
        else:
            queue.put(item, block, timeout)
        self.moved()

    async def aput(self, item: Any) -> None:
        """put() without blocking the event loop."""
        queue = self.stages[0].queue
        if self.max_bytes is not None:
            size = queue._size_of(item)
            if not self.has_bytes(size):
                await self.await_(lambda: self.has_bytes(size))
        await queue.aput(item)
        self.moved()

    def abandon(self, feed: Any) -> None:
        """A map() was closed early: what is on its way is dropped."""
        with self.lock:
            if self.state != "running":
                return
            self.discarding = True
            self._abandoned = feed
        for stage in self.stages:
            stage.queue.clear()
        self.notify()

    def quiet(self) -> bool:
        """Whether nothing is left of an abandoned map(); drops what is in the queues."""
        with self.lock:  # who comes second must not drop what the first one puts
            feed = self._abandoned
            if feed is None:
                return True
            if self.state == "running" and self.error is None:
                for stage in self.stages:
                    stage.queue.clear()
                if feed.active() or not self.all_done():
                    return False
            self.discarding = False
            self._abandoned = None
            return True

    def new_reader(self) -> Reader:
        return Reader(self, self.reader_limit, self.controller is not None)

    def open_reader(self, reader: Reader, mapping: bool) -> None:
        """From now on outputs wait for a reader."""
        with self.lock:
            if self.reader is not None:
                raise RuntimeError("another map() or results() of this pipeline is open; close it first")
            self.reader, self.mapping = reader, mapping
            over = self.closed.is_set()
        if over:  # since the caller looked; nobody else would tell the reader
            reader.queue.shutdown()

    # ---- the byte budget ---------------------------------------------------------------------------------------------

    def bytes_used(self) -> int:
        reader = self.reader
        total = sum(stage.queue._counters()[17] for stage in self.stages)
        return total + (reader.queue._counters()[17] if reader is not None else 0)

    def has_bytes(self, size: int) -> bool:
        """Whether the budget lets the source put so many bytes; always into an empty pipeline."""
        assert self.max_bytes is not None
        if self.state != "running" or self.error is not None:
            return True  # put tells
        used = self.bytes_used()
        return used == 0 or used + size <= self.max_bytes

    # ---- control -----------------------------------------------------------------------------------------------------

    def _control_loop(self) -> None:
        pause = min(self.period, getattr(self.controller, "next_period", self.period))
        while not self.closed.wait(pause):
            pause = self.control()
        self._observe()

    def control(self) -> float:
        """One period: measure, decide, act, tell. The seconds until the next one."""
        now = clock()
        if self.controller is not None:
            try:
                for decision in self.controller.step(now, self.samples(now)):
                    self.apply(decision)
            except Exception:
                log.exception("pipeline %r: the controller failed and is switched off", self.name)
                self.controller = None
        if now - self._observed >= 0.9 * self.period:
            self._observed = now
            self._observe()
        return min(self.period, getattr(self.controller, "next_period", self.period))

    def samples(self, now: float) -> list[StageSample]:
        """Of the stages and of whoever reads the outputs."""
        samples = [stage.sample(now) for stage in self.stages]
        reader = self.reader
        if reader is not None:
            self._output_sample = reader.sample(now)
        return [*samples, self._output_sample]

    def source_waited(self, now: float) -> float:
        """Seconds that whoever puts into the first queue waited for room, until now."""
        since = self._source_since
        return self.source_blocked + (max(0.0, now - since) if since else 0.0)

    def _observe(self) -> None:
        for observer in tuple(self.observers):
            try:
                observer(self.statistics())
            except Exception:
                log.exception("pipeline %r: an observer failed and is not called again", self.name)
                self.observers.remove(observer)

    def apply(self, decision: Decision) -> None:
        """Do what was decided, and remember it."""
        edge: StageRuntime | Reader | None = next((s for s in self.stages if s.name == decision.stage), None)
        if decision.stage == OUTPUT:
            edge = self.reader
        if edge is None:
            return
        if decision.what == "limit":
            edge.set_limit(int(decision.new))
            if edge is self.reader:
                self.reader_limit = edge.limit
        elif decision.what == "gate":
            edge.set_low(int(decision.new))
        elif isinstance(edge, StageRuntime):
            edge.set_workers(max(edge.min_workers, min(int(decision.new), edge.max_workers)))
        self.decisions.append(decision)
        self.moved()

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def forget_reader(self, reader: Reader) -> None:
        with self.lock:
            if self.reader is reader:
                delivered = self._delivered + reader.queue._counters()[4]
                self._delivered, self.mapping, self.reader = delivered, False, None

    def statistics(self) -> PipelineStatistics:
        now = clock()
        stages = tuple(stage.statistics(now) for stage in self.stages)
        last = self.stages[-1].counts()
        reader = self.reader
        counters = None if reader is None else reader.queue._counters()
        then, emitted = self._emitted_before
        self._emitted_before = (now, last["emitted"])
        return PipelineStatistics(
            name=self.name,
            state=self.state,
            backend=self.backend,
            scheduler=self.scheduler,
            target_delay=self.target_delay,
            elapsed=(self.ended or now) - self.began if self.began else 0.0,
            submitted=stages[0].arrived,
            delivered=self._delivered + (counters[4] if counters else 0),
            unread=last["unread"],
            output_depth=counters[0] if counters else 0,
            output_limit=reader.limit if reader is not None else 0,
            throughput=(last["emitted"] - emitted) / max(now - then, 1e-9),
            bytes=sum(stage.bytes for stage in stages) + (counters[17] if counters else 0),
            max_bytes=self.max_bytes or math.inf,
            stages=stages,
            decisions=tuple(self.decisions),
        )


def _backend_of(spec: Stage, backend: str) -> str:
    if spec.kind in ("coroutine", "async generator"):
        return "asyncio"
    return spec.backend or backend
