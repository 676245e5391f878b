"""Stages joined by bounded queues."""

from __future__ import annotations

import atexit
import functools
import itertools
import multiprocessing.util  # noqa: F401 - before atexit.register below, see _at_exit
import os
import sys
import time
import warnings
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, get_args

from edgefast._threads import available_cpus
from edgefast.pipeline import _publish, _runtime
from edgefast.pipeline._results import AsyncResults, Feed, Results, Session, iterator_of
from edgefast.pipeline._runtime import OUTPUT, Core, clock
from edgefast.pipeline._types import Decision, PipelineStatistics, StageSample
from edgefast.pipeline.control import Controller, WorkerController
from edgefast.pipeline.stage import Backend, Stage
from edgefast.queues import ShutDown
from edgefast.queues._checks import batch_of, check_choice, integer, seconds

__all__ = ["Adapt", "Pipeline", "Scheduler", "SupportsStep", "size_of"]

Scheduler = Literal["threads", "max_weight"]
Adapt = Literal["debloat", "none"]

_numbers = itertools.count(1)
_cores: weakref.WeakSet[Core] = weakref.WeakSet()


class SupportsStep(Protocol):
    """A controller; it may also have `next_period`, the seconds until its next step at most."""

    def step(self, now: float, samples: Sequence[StageSample], /) -> Sequence[Decision]: ...


def size_of(item: Any) -> int:
    """Bytes of an item as the byte budget counts them: `nbytes`, or the length of bytes and strings; of a tuple, list
    or dict those of what is in it; of anything else sys.getsizeof().

    Examples:
        >>> from edgefast.pipeline import size_of
        >>> size_of((b"abc", {"k": bytearray(4)}))
        8
    """
    nbytes = getattr(item, "nbytes", None)
    if isinstance(nbytes, int):
        return nbytes
    if isinstance(item, (bytes, bytearray, str)):
        return len(item)
    if isinstance(item, (tuple, list)):
        return sum(map(size_of, item))
    if isinstance(item, dict):
        return sum(map(size_of, item)) + sum(map(size_of, item.values()))
    return sys.getsizeof(item)


class Pipeline:
    """Runs items through stages, each with workers and a bounded queue of its own.

    Every queue closes when it reaches its limit and accepts again when it is down to its low watermark. A stage whose
    successor is closed stops, its own queue fills and closes, and so on up to the source: submit() waits, map() reads
    no further. Workers start with the first item.

    Args:
        stages: Stage objects or plain callables, at least one, with different names.
        target_delay: seconds an item should spend in a queue at most, for the controller.
        max_bytes: byte budget of all queues together. The source waits while it is used up, and the controller keeps
            the limits within it. No queue takes an item above it.
        sizer: sizer(item) is its bytes, for stages without their own; None takes size_of.
        adapt: "debloat" moves limits to rate x target_delay and workers to the stage that needs them; "none" leaves
            everything as given; or a function step(now, samples) -> decisions, or an object that has it, called once a
            period. The last sample is named "output": the queue in front of whoever reads the outputs.
        scheduler: "threads" gives each stage workers of its own. "max_weight" has `pool` threads serve whatever stage
            has the largest weight (Tassiulas and Ephremides 1992), a stage by at most its `workers` at once; for plain
            and generator functions on threads.
        pool: number of threads of "max_weight"; None takes as many as there are CPUs for this process.
        backend: what workers are, unless a stage says otherwise: threads, processes, or tasks of one event loop, in
            which plain functions are called as well. In an `async with` block that is the running loop, else one in a
            thread of its own.
        start_method: how processes start, as in multiprocessing; None takes "forkserver", or "spawn" where there is
            none. "fork" takes functions that cannot be pickled, and is safe only while no other thread runs.
        name: shown in errors, thread names and statistics.
        on_progress: on_progress(statistics), called by the control thread once a period and at the end.
        period: seconds between two looks of the controller.
        publish: show the pipeline in `edgefast top`, from its first item to its end; None asks the environment variable
            EDGEFAST_PUBLISH (1 or 0). Where that cannot be, the log says why.

    Leaving the with block finishes what was submitted, or drops it if an exception leaves it. A pipeline that is
    dropped without is stopped, with a ResourceWarning.

    Raises:
        TypeError, ValueError: an argument is not of its type or out of range, or arguments contradict each other.

    Examples:
        >>> from edgefast.pipeline import Pipeline, Stage
        >>> with Pipeline([Stage(int), Stage(abs, workers=2)]) as p:
        ...     list(p.map(["-1", "2", "-3"]))
        [1, 2, 3]
    """

    def __init__(
        self,
        stages: Iterable[Stage | Callable[..., Any]],
        *,
        target_delay: float = 0.2,
        max_bytes: int | None = None,
        sizer: Callable[[Any], int] | None = None,
        adapt: Adapt | SupportsStep | Callable[[float, Sequence[StageSample]], Sequence[Decision]] = "debloat",
        scheduler: Scheduler = "threads",
        pool: int | None = None,
        backend: Backend = "thread",
        start_method: Literal["fork", "forkserver", "spawn"] | None = None,
        name: str | None = None,
        on_progress: Callable[[PipelineStatistics], object] | None = None,
        period: float = 0.2,
        publish: bool | None = None,
    ) -> None:
        specs = [stage if isinstance(stage, Stage) else Stage(stage) for stage in stages]
        if not specs:
            raise ValueError("stages: expected at least one, got none")
        _check_names(specs)
        check_choice(scheduler, "scheduler", get_args(Scheduler))
        check_choice(backend, "backend", get_args(Backend))
        if start_method is not None:
            check_choice(start_method, "start_method", ("fork", "forkserver", "spawn"))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        if on_progress is not None and not callable(on_progress):
            raise TypeError(f"on_progress: expected a callable or None, got {type(on_progress).__name__}")
        if sizer is not None and not callable(sizer):
            raise TypeError(f"sizer: expected a callable or None, got {type(sizer).__name__}")
        delay, every = _positive(target_delay, "target_delay"), _positive(period, "period")
        budget = None if max_bytes is None else integer(max_bytes, "max_bytes", low=1, high=1 << 62)
        for spec in specs[1:]:
            if spec.policy == "error":
                raise ValueError(f'stage {spec.name!r}: expected policy="error" for the first stage only')
        core = Core(
            specs,
            name=name or f"pipeline-{next(_numbers)}",
            backend=backend,
            scheduler=scheduler,
            target_delay=delay,
            period=every,
            max_bytes=budget,
            sizer=sizer or size_of,
            controller=_controller_of(adapt, delay, budget, every),
            on_progress=on_progress,
        )
        core.pool_size = None if pool is None else integer(pool, "pool", low=1, high=10_000)
        core.start_method = start_method
        if _publish.wanted(publish):
            core.on_started.append(lambda: _publish.publish(core))
            core.on_closed.append(lambda: _publish.unpublish(core))
        if isinstance(core.controller, _Debloat):
            core.controller.core = core
        if scheduler == "max_weight":
            for stage in core.stages:
                if stage.backend != "thread":
                    raise ValueError(
                        f'stage {stage.name!r}: expected backend "thread" with scheduler="max_weight", '
                        f"got {stage.backend!r}"
                    )
        elif pool is not None:
            raise ValueError('pool: expected None unless scheduler="max_weight"')
        if any(stage.backend == "process" for stage in core.stages):
            from edgefast.pipeline import _processes

            _processes.prepare(core)
        self._core = core
        _cores.add(core)
        self._finalizer = weakref.finalize(self, _forgotten, core)
        self._finalizer.atexit = False  # _at_exit does it

    # ---- putting in --------------------------------------------------------------------------------------------------

    def submit(self, item: Any, timeout: float | None = None) -> None:
        """Put an item in; wait while the first queue is closed. Outputs go to results(), or nowhere.

        Raises:
            Full: no room within `timeout` seconds, or none and the first stage's policy is "error".
            PipelineError: a stage failed.
            ShutDown: the pipeline was shut down.
            RuntimeError: a map() is open.
            TypeError, ValueError: the item has no size, or is over a byte limit.
        """
        core = self._ready(submitting=True)
        try:
            core.put(item, True, timeout)
        except ShutDown:
            core.check()
            raise

    def submit_many(self, items: Sequence[Any], timeout: float | None = None) -> int:
        """Put items in, in order, as submit() does; how many: less than all after the time-out.

        Raises:
            As submit(), but for Full.
        """
        batch = batch_of(items)
        core = self._ready(submitting=True)
        if core.max_bytes is None:
            try:
                accepted = core.stages[0].queue.put_many(batch, True, timeout)
            except ShutDown:
                core.check()
                raise
            core.notify()
            if accepted < len(batch):
                core.check()
            return accepted
        deadline = None if timeout is None else clock() + timeout
        for i, item in enumerate(batch):
            try:
                self.submit(item, None if deadline is None else max(0.0, deadline - clock()))
            except _runtime.Full:
                return i
        return len(batch)

    async def asubmit(self, item: Any) -> None:
        """submit() without blocking the event loop.

        Raises:
            As submit(); Full with the policy "error" only.
        """
        core = self._ready(settle=False, submitting=True)
        if core._abandoned is not None:
            await core.await_(core.quiet)
        try:
            await core.aput(item)
        except ShutDown:
            core.check()
            raise

    def _ready(self, settle: bool = True, submitting: bool = False) -> Core:
        core = self._core
        if core.error is not None or core.state != "running":
            core.check()
            core.start()
        if submitting and core.mapping:
            raise RuntimeError("a map() of this pipeline is open; close it before submitting")
        if settle and core._abandoned is not None:
            core.wait(core.quiet)
        return core

    # ---- getting out -------------------------------------------------------------------------------------------------

    def map(self, iterable: Iterable[Any]) -> Results:
        """Iterator over the outputs for the items of an iterable, in order when every stage is ordered.

        A thread reads the iterable as far as there is room, and no further than that: it may be infinite, and what is
        held at a time is bounded by the queues. Closing the iterator, or dropping it, stops the reading and drops what
        is on its way. One map() or results() at a time.

        Raises, when called:
            TypeError: no iterable.
            RuntimeError: another map() or results() is open.
            PipelineError, ShutDown: as submit().
        Raises, when iterated, after all outputs before:
            PipelineError: a stage failed.
            ShutDown: the pipeline was shut down before everything was done.
            whatever the iterable raises.
        """
        iterator = iterator_of(iterable)
        core = self._ready()
        feed = Feed(core)
        session = Session(self, core, feed)
        session.open(functools.partial(feed.start, iterator))
        return Results(session)

    def amap(self, iterable: Iterable[Any] | AsyncIterable[Any]) -> AsyncResults:
        """map() for asyncio: an asynchronous iterator, over a plain or an asynchronous iterable. To be called with a
        running event loop, in which an asynchronous iterable is read; a plain one is read by a thread.

        Raises:
            As map().
        """
        asynchronous = hasattr(iterable, "__aiter__")
        iterator: Any = iterable.__aiter__() if asynchronous else iterator_of(iterable)  # type: ignore[union-attr]
        core = self._ready(settle=False)
        feed = Feed(core)
        session = Session(self, core, feed)
        start = functools.partial(feed.start_task if asynchronous else feed.start, iterator)
        session.open(start, later=core._abandoned is not None)
        return AsyncResults(session)

    def results(self) -> Results:
        """Iterator over the outputs of what is submitted, from now on until shutdown(). Outputs that nobody reads are
        dropped and counted; while this is open the last stage waits for its reader.

        Raises, when called:
            RuntimeError: a map() or another results() is open.
            PipelineError, ShutDown: as submit().
        Raises, when iterated: as map().
        """
        session = Session(self, self._ready(), None)
        session.open()
        return Results(session)

    def aresults(self) -> AsyncResults:
        """results() for asyncio."""
        session = Session(self, self._ready(settle=False), None)
        session.open()
        return AsyncResults(session)

    # ---- looking and steering ----------------------------------------------------------------------------------------

    def statistics(self) -> PipelineStatistics:
        """The pipeline at this moment. Rates are over the time since the previous call."""
        return self._core.statistics()

    @property
    def name(self) -> str:
        """What `edgefast top` and metrics call it."""
        return self._core.name

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in their order."""
        return tuple(stage.name for stage in self._core.stages)

    def resize(self, stage: str, *, workers: int) -> None:
        """Have another number of workers serve a stage. More start at once; those too many end after their next call.
        Moves the stage's min_workers and max_workers when the number is outside.

        Raises:
            ValueError: no stage of that name, or fewer than 1 worker.
            TypeError: workers is no integer.
        """
        core = self._core
        n = integer(workers, "workers", low=1, high=10_000)
        for one in core.stages:
            if one.name == stage:
                break
        else:
            raise ValueError(f"stage: expected one of {', '.join(self.stages)}, got {stage!r}")
        one.min_workers, one.max_workers = min(one.min_workers, n), max(one.max_workers, n)
        core.apply(Decision(clock(), stage, "workers", one.target, n, "resize()"))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def join(self, timeout: float | None = None) -> bool:
        """Wait until everything that was submitted is done; after shutdown(), until the workers have ended as well.

        Returns:
            False after the time-out.

        Raises:
            PipelineError: a stage failed.
        """
        core = self._core
        if core.state == "idle":
            return True
        done = core.wait(core.idle_or_over, timeout)
        return self._joined(done)

    async def ajoin(self) -> None:
        """join() without blocking the event loop."""
        core = self._core
        if core.state != "idle":
            await core.await_(core.idle_or_over)
            self._joined(True)

    def _joined(self, done: bool) -> bool:
        core = self._core
        if core.error is not None:
            core.error_seen = True
            raise core.error
        return done

    def shutdown(self, immediate: bool = False) -> None:
        """Accept nothing more, and end when everything is done; join() waits for that.

        Args:
            immediate: drop what is in the queues. Calls in progress are finished, those in processes are not.
        """
        self._core.shutdown(immediate)
        self._finalizer.detach()

    def _leave(self, failed: bool) -> None:
        core = self._core
        reader = core.reader
        if core.mapping and not failed and core.state == "running":
            core.abandon_reader()
        elif reader is not None:
            reader.lift()  # nobody might read while the rest is done
        self.shutdown(immediate=failed)

    def __enter__(self) -> Pipeline:
        self._core.check()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        core = self._core
        try:
            self._leave(kind is not None)
            core.wait(core.closed.is_set)
            core.collect()
        except BaseException:  # such as Ctrl-C: nobody waits for the rest any more
            core.shutdown(immediate=True)
            raise
        if kind is None and core.error is not None and not core.error_seen:
            raise core.error

    async def __aenter__(self) -> Pipeline:
        import asyncio

        self._core.check()
        if self._core.loop is None:
            self._core.loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        core = self._core
        try:
            self._leave(kind is not None)
            await core.await_(core.closed.is_set)
        except BaseException:  # such as a cancellation
            core.shutdown(immediate=True)
            raise
        core.collect()
        if kind is None and core.error is not None and not core.error_seen:
            raise core.error

    def __repr__(self) -> str:
        core = self._core
        return f"<Pipeline {core.name!r}: {' -> '.join(self.stages)}, {core.state}>"

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle Pipeline: its workers belong to this process")


def _positive(value: Any, name: str) -> float:
    number = seconds(value, name)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name}: expected seconds above 0, got {value!r}")
    return number


def _check_names(specs: list[Stage]) -> None:
    seen: dict[str, int] = {}
    for spec in specs:
        seen[spec.name] = seen.get(spec.name, 0) + 1
    if OUTPUT in seen:
        raise ValueError(f"stage {OUTPUT!r}: the name is the pipeline's own; pass Stage(name=)")
    twice = [name for name, n in seen.items() if n > 1]
    if twice:
        raise ValueError(f"stage {twice[0]!r}: the name is used twice; pass Stage(name=)")


class _Debloat:
    """Limits and workers together."""

    def __init__(self, target_delay: float, max_bytes: int | None, period: float) -> None:
        self._limits = Controller(target_delay=target_delay, max_bytes=max_bytes, period=period)
        self._workers = WorkerController()
        self._period = period
        self._moved = 0.0
        self._cpus = available_cpus()
        self._used = (0.0, 0.0)
        self.core: Core | None = None

    def step(self, now: float, samples: Sequence[StageSample]) -> list[Decision]:
        blocked = 0.0 if self.core is None else self.core.source_waited(now)
        (then, before), self._used = self._used, (now, used := time.process_time())
        cpu = (used - before) / (max(now - then, 1e-9) * self._cpus) if then else 0.0
        decisions = self._limits.step(now, samples, source_blocked=blocked, cpu=cpu)
        if now - self._moved >= 0.9 * self._period:
            self._moved = now
            decisions += self._workers.step(now, samples)
        return decisions

    @property
    def next_period(self) -> float:
        return self._limits.next_period


class _Steps:
    """A controller that is only a function."""

    def __init__(self, step: Any) -> None:
        self.step = step


def _controller_of(adapt: Any, target_delay: float, max_bytes: int | None, period: float) -> Any:
    if isinstance(adapt, str):
        check_choice(adapt, "adapt", get_args(Adapt))
        return None if adapt == "none" else _Debloat(target_delay, max_bytes, period)
    if callable(getattr(adapt, "step", None)):
        return adapt
    if callable(adapt):
        return _Steps(adapt)
    raise TypeError(f'adapt: expected "debloat", "none", a controller or a callable, got {type(adapt).__name__}')


def _forgotten(core: Core) -> None:
    if core.state in ("idle", "closed"):
        return
    if core.state == "running":
        warnings.warn(f"pipeline {core.name!r} was not shut down", ResourceWarning, stacklevel=2)
    core.shutdown(immediate=True)


def _at_exit() -> None:
    """Workers are daemons: they must not be in the middle of something while the interpreter goes away.

    Before the exit function of multiprocessing, which was registered earlier: it terminates daemonic processes, whose
    workers would replace them, and then waits for all there are.
    """
    for core in tuple(_cores):
        if core.state in ("running", "draining", "failed") and not core.closed.is_set():
            core.shutdown(immediate=True)
    until = clock() + 1.0
    for core in tuple(_cores):
        core.closed.wait(max(0.0, until - clock()))
        core.collect(max(0.0, until - clock()))


def _after_fork_in_child() -> None:
    """The workers do not exist in the child."""
    for core in tuple(_cores):
        core.forked()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
