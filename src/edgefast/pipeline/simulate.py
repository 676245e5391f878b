"""A pipeline in virtual time: what a controller does to throughput, delay and memory, in milliseconds of real time.

    >>> from edgefast.pipeline import simulate
    >>> from edgefast.pipeline.control import Controller
    >>> stages = [simulate.Stage(name, simulate.exponential(2e-3)) for name in ("decode", "send")]
    >>> fixed = simulate.Simulation(stages, limit=1, seed=1).run(20.0)
    >>> adaptive = simulate.Simulation(stages, limit=1, controller=Controller(), seed=1).run(20.0)
    >>> adaptive.throughput > 1.25 * fixed.throughput
    True

A discrete-event simulation of stages in line: worker pools, bounded queues with a hysteresis gate in front of each
stage, sources that are stopped when the first gate closes. It drives the same controllers as the threads do.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgefast.pipeline._types import Decision, StageSample
from edgefast.pipeline.control import Controller, WorkerController, low_watermark
from edgefast.pipeline.schedule import max_weight

__all__ = ["Result", "Simulation", "Stage", "bursts", "exponential", "gamma", "phases", "spikes"]

#: Seconds an item takes, or until the next one is offered: a number, or (random numbers, time) -> seconds.
Times = float | Callable[[random.Random, float], float]


def exponential(mean: float) -> Times:
    """Independent times with an exponential distribution of that mean in seconds, above 0: as variable as a Poisson
    process."""
    return lambda rng, now: rng.expovariate(1 / mean)


def gamma(mean: float, cv: float) -> Times:
    """Independent times with a gamma distribution of that mean in seconds; `cv` is the standard deviation over the
    mean. Both are above 0."""
    shape = 1 / (cv * cv)
    return lambda rng, now: rng.gammavariate(shape, mean / shape)


def spikes(usual: float, rare: float, share: float) -> Times:
    """`rare` seconds for a `share` of the items, `usual` for the others."""
    return lambda rng, now: rare if rng.random() < share else usual


def phases(*parts: tuple[float, Times]) -> Times:
    """Times that change: (seconds, times) after one another, and again from the start."""
    cycle = sum(seconds for seconds, _ in parts)

    def draw(rng: random.Random, now: float) -> float:
        at = now % cycle
        part = 0
        while at >= parts[part][0] and part + 1 < len(parts):
            at -= parts[part][0]
            part += 1
        times = parts[part][1]
        return times if isinstance(times, (int, float)) else times(rng, now)

    return draw


def bursts(size: int, pause: float, gap: float = 0.0) -> Times:
    """For one source: `size` items `gap` seconds apart, then `pause` seconds of nothing."""
    position = 0

    def draw(rng: random.Random, now: float) -> float:
        nonlocal position
        position = (position + 1) % size
        return gap if position else pause

    return draw


class Stage(NamedTuple):
    """A stage of a simulation.

    Attributes:
        name: of the stage.
        service: seconds an item takes one worker.
        workers, min_workers, max_workers: how many there are at the start, at least, at most (None: no bound).
        limit: items its queue may hold at the start; None for the simulation's.
        min_limit, max_limit: bounds of the limit.
        item_bytes: bytes of an item in its queue: a number, or (random numbers, time) -> number.
    """

    name: str
    service: Times
    workers: int = 1
    min_workers: int = 1
    max_workers: int | None = None
    limit: int | None = None
    min_limit: int = 1
    max_limit: int = 1_000_000
    item_bytes: Times = 0.0


class Result(NamedTuple):
    """What a simulation saw, from its start to `time`.

    Attributes:
        time: virtual seconds.
        completed: items that left the last stage.
        latencies: seconds from the moment a source offered an item until it left the last stage, (completed,).
        peak_items, peak_bytes: most items and bytes in all queues together.
        limits, workers: of the stages at the end.
        depths: items in the queues at the end.
        busy, blocked, starved: worker-seconds of the stages.
        source_blocked: seconds the sources waited for room.
        decisions: all of them.
    """

    time: float
    completed: int
    latencies: np.ndarray[Any, np.dtype[np.float64]]
    peak_items: int
    peak_bytes: float
    limits: tuple[int, ...]
    workers: tuple[int, ...]
    depths: tuple[int, ...]
    busy: tuple[float, ...]
    blocked: tuple[float, ...]
    starved: tuple[float, ...]
    source_blocked: float
    decisions: tuple[Decision, ...]

    @property
    def throughput(self) -> float:
        """Items per virtual second."""
        return self.completed / self.time if self.time else 0.0

    def latency(self, quantile: float) -> float:
        """Quantile 0 to 1 of the latencies in seconds; nan when nothing was completed."""
        return float(np.quantile(self.latencies, quantile)) if len(self.latencies) else math.nan


_FINISH, _OFFER, _RESUME, _STEP = range(4)


class _State:
    """One stage while the simulation runs."""

    __slots__ = (
        "arrived",
        "blocked",
        "blocked_n",
        "busy",
        "busy_n",
        "bytes",
        "closed",
        "done",
        "idle",
        "item_bytes",
        "limit",
        "low",
        "min_wait",
        "putters",
        "queue",
        "served",
        "since",
        "spent",
        "starved",
        "waiting_since",
        "workers",
    )

    def __init__(self, stage: Stage, limit: int, low: int) -> None:
        self.queue: deque[tuple[float, float, float]] = deque()  # offered, bytes, put
        self.putters: deque[tuple[int, float, float]] = deque()  # stage or source, offered, since
        self.workers = self.idle = stage.workers
        self.limit, self.low, self.closed = limit, low, False
        self.busy_n = self.blocked_n = 0
        self.busy = self.blocked = self.starved = self.since = 0.0
        self.arrived = self.served = self.done = 0
        self.bytes = self.item_bytes = self.spent = 0.0
        self.min_wait: float | None = None
        self.waiting_since = 0.0

    def account(self, now: float) -> None:
        """Adds up what the workers did since the last change."""
        elapsed = now - self.since
        self.since = now
        self.busy += self.busy_n * elapsed
        self.blocked += self.blocked_n * elapsed
        self.starved += self.idle * elapsed


class Simulation:
    """A pipeline of stages in virtual time.

    Args:
        stages: in their order.
        source: seconds from the moment a source's item is accepted until it offers the next; 0 for a source that always
            has one. A sequence for several sources (devices), each stopped by itself.
        controller, worker_controller: what decides on limits and on workers; None for neither.
        limit: items a queue may hold at the start where the stage does not say.
        low: (limit, items per second) -> items at which a queue reopens; None for `low_watermark`.
        period: virtual seconds between steps; None for the controller's own.
        cores: processors shared by all stages: a free one serves the stage that `max_weight` names, and pools of
            workers do not exist. None for pools.
        split: with `cores`, the stages each core serves instead, as it is done without a scheduler.
        wake_time: seconds from the moment a waiting worker or source could go on until it does.
        seed: of the random numbers.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        source: Times | Sequence[Times] = 0.0,
        *,
        controller: Controller | None = None,
        worker_controller: WorkerController | None = None,
        limit: int = 2,
        low: Callable[[int, float], int] | None = None,
        period: float | None = None,
        cores: int | None = None,
        split: Sequence[Sequence[int]] | None = None,
        wake_time: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        self.stages: tuple[Stage, ...] = tuple(stages)
        self.sources: tuple[Times, ...] = tuple(source) if isinstance(source, Sequence) else (source,)
        self.controller: Controller | None = controller
        self.worker_controller: WorkerController | None = worker_controller
        self._low = low_watermark if low is None else low
        self._period = period
        self._workers_due = 0.0
        self._wake = wake_time
        self._rng = random.Random(seed)
        self.now: float = 0.0
        self._events: list[tuple[float, int, int, int, float]] = []
        self._sequence = 0
        self._states = [_State(s, n := limit if s.limit is None else s.limit, self._low(n, 0.0)) for s in self.stages]
        self._open: deque[int] = deque()
        self._cores = cores
        self._split = None if split is None else [tuple(part) for part in split]
        if cores is not None:
            for state in self._states:
                state.workers = state.idle = 0
            self._free = list(range(cores))
            self._core_of: dict[tuple[int, int], int] = {}
        self._serving: dict[int, int] = {}
        self._latencies: list[float] = []
        self._items = 0
        self._bytes = 0.0
        self.peak_items: int = 0
        self.peak_bytes: float = 0.0
        self._source_blocked = 0.0
        self._source_waiting = 0
        self._source_since = 0.0
        self.decisions: list[Decision] = []
        for k in range(len(self.sources)):
            self._push(self._draw(self.sources[k]) if len(self.sources) > 1 else 0.0, _OFFER, k, 0.0)
        if controller is not None or worker_controller is not None:
            self._control()

    # Events ---------------------------------------------------------------------------------------------------------

    def _push(self, delay: float, kind: int, who: int, offered: float) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay, self._sequence, kind, who, offered))

    def _draw(self, times: Times) -> float:
        return times if isinstance(times, (int, float)) else times(self._rng, self.now)

    def run(self, seconds: float) -> Result:
        """Goes on for so many virtual seconds.

        Returns:
            What was seen since the start of the simulation.
        """
        end = self.now + seconds
        events = self._events
        while events and events[0][0] <= end:
            self.now, sequence, kind, who, offered = heapq.heappop(events)
            if kind == _FINISH:
                self._finish(who, offered, sequence)
            elif kind == _OFFER:
                self._offer(who)
            elif kind == _RESUME:
                self._admit(who)
            else:
                self._control()
            while self._open:
                self._admit(self._open.popleft())
            if self._cores is not None:
                self._dispatch()
        self.now = end
        return self.result()

    def _offer(self, k: int) -> None:
        state = self._states[0]
        if state.closed or state.putters:
            self._account_sources()
            self._source_waiting += 1
            state.putters.append((-1 - k, self.now, self.now))
        else:
            self._put(0, self.now)
            self._push(self._draw(self.sources[k]), _OFFER, k, 0.0)

    def _put(self, i: int, offered: float) -> None:
        state = self._states[i]
        size = self._draw(self.stages[i].item_bytes)
        state.queue.append((offered, size, self.now))
        state.arrived += 1
        state.bytes += size
        state.item_bytes = size if state.arrived == 1 else state.item_bytes + 0.05 * (size - state.item_bytes)
        if len(state.queue) >= state.limit:
            state.closed = True
        if state.idle:
            state.account(self.now)
            state.idle -= 1
            self._items += 1
            self._bytes += size
            self._take(i, self._wake)
        else:
            self._items += 1
            self._bytes += size
            self.peak_items = max(self.peak_items, self._items)
            self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _take(self, i: int, delay: float = 0.0) -> None:
        """A worker that is neither idle nor busy takes the oldest item."""
        state = self._states[i]
        offered, size, put = state.queue.popleft()
        wait = self.now - put
        if state.min_wait is None or wait < state.min_wait:
            state.min_wait = wait
        state.served += 1
        state.bytes -= size
        self._items -= 1
        self._bytes -= size
        if state.closed and len(state.queue) <= state.low:
            state.closed = False
            self._reopen(i)
        state.account(self.now)
        state.busy_n += 1
        seconds = self._draw(self.stages[i].service)
        state.spent += seconds
        self._push(delay + seconds, _FINISH, i, offered)

    def _reopen(self, i: int) -> None:
        if self._states[i].putters:
            if self._wake:
                self._push(self._wake, _RESUME, i, 0.0)
            else:
                self._open.append(i)

    def _admit(self, i: int) -> None:
        """Those who wait to put into queue i go on, in turn, until it closes."""
        state = self._states[i]
        while state.putters and not state.closed:
            who, offered, _ = state.putters.popleft()
            self._put(i, offered)
            if who < 0:
                self._account_sources()
                self._source_waiting -= 1
                self._push(self._draw(self.sources[-1 - who]), _OFFER, -1 - who, 0.0)
            else:
                before = self._states[who]
                before.account(self.now)
                before.blocked_n -= 1
                self._next(who)

    def _finish(self, i: int, offered: float, sequence: int) -> None:
        state = self._states[i]
        state.account(self.now)
        state.busy_n -= 1
        state.done += 1
        if self._cores is not None:
            self._free.append(self._serving.pop(sequence))
        if i + 1 == len(self._states):
            self._latencies.append(self.now - offered)
        else:
            after = self._states[i + 1]
            if (after.closed or after.putters) and self._cores is None:
                state.blocked_n += 1
                after.putters.append((i, offered, self.now))
                return
            self._put(i + 1, offered)
        self._next(i)

    def _next(self, i: int) -> None:
        """A worker of stage i is free."""
        state = self._states[i]
        if self._cores is not None or state.busy_n + state.blocked_n + state.idle >= state.workers:
            return  # shared cores choose for themselves; a pool that shrank lets its worker go
        if state.queue:
            self._take(i)
        else:
            state.account(self.now)
            state.idle += 1

    def _account_sources(self) -> None:
        self._source_blocked += self._source_waiting * (self.now - self._source_since)
        self._source_since = self.now

    # Shared cores ---------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        states = self._states
        while self._free:
            depths = [len(s.queue) for s in states]
            room = [not s.closed for s in states[1:]] + [True]
            if self._split is None:
                rates = [s.done / s.spent if s.done else math.nan for s in states]
                i = max_weight(depths, [*depths[1:], 0], rates, eligible=room)
                core = self._free[-1] if i is not None else None
            else:
                i = core = None
                for candidate in self._free:
                    waiting = [j for j in self._split[candidate] if depths[j] and room[j]]
                    if waiting:
                        i, core = waiting[-1], candidate
                        break
            if i is None or core is None:
                return
            self._free.remove(core)
            self._take(i)
            self._serving[self._sequence] = core
            while self._open:
                self._admit(self._open.popleft())

    # Control --------------------------------------------------------------------------------------------------------

    def samples(self) -> list[StageSample]:
        """What a controller sees now."""
        samples = []
        for stage, s in zip(self.stages, self._states, strict=True):
            s.account(self.now)
            samples.append(
                StageSample(
                    stage.name,
                    len(s.queue),
                    int(s.bytes),
                    s.arrived,
                    s.served,
                    s.min_wait,
                    s.busy,
                    s.blocked,
                    s.starved,
                    s.workers,
                    stage.min_workers,
                    stage.workers if self.worker_controller is None else (stage.max_workers or 2**31),
                    s.limit,
                    stage.min_limit,
                    stage.max_limit,
                    s.item_bytes,
                )
            )
            s.min_wait = None
        return samples

    def _control(self) -> None:
        samples = self.samples()
        wait = self._period or 0.2
        decisions: list[Decision] = []
        if self.controller is not None:
            self._account_sources()
            decisions += self.controller.step(self.now, samples, source_blocked=self._source_blocked)
            wait = self._period or self.controller.next_period
        # Workers are looked at once a period, however often the limits are.
        if self.worker_controller is not None and self.now >= self._workers_due:
            self._workers_due = self.now + 0.9 * (self._period or getattr(self.controller, "period", 0.2))
            decisions += self.worker_controller.step(self.now, samples)
        if decisions:
            index = {stage.name: i for i, stage in enumerate(self.stages)}
            for decision in decisions:
                self._carry_out(index[decision.stage], decision)
        self.decisions += decisions
        self._push(wait, _STEP, 0, 0.0)

    def _carry_out(self, i: int, decision: Decision) -> None:
        state = self._states[i]
        if decision.what == "workers":
            state.account(self.now)
            state.workers = int(decision.new)
            employed = state.busy_n + state.blocked_n + state.idle
            state.idle -= min(max(employed - state.workers, 0), state.idle)
            for _ in range(state.workers - employed):
                self._next(i)
            return
        if decision.what == "limit":
            rate = math.nan if self.controller is None else self.controller.rates[i]
            state.limit = int(decision.new)
            state.low = low_watermark(state.limit, rate)
        else:
            state.low = int(decision.new)
        was_closed = state.closed
        state.closed = len(state.queue) >= state.limit or (state.closed and len(state.queue) > state.low)
        if was_closed and not state.closed:
            self._reopen(i)

    def result(self) -> Result:
        """What was seen so far."""
        self._account_sources()
        for s in self._states:
            s.account(self.now)
        return Result(
            self.now,
            len(self._latencies),
            np.array(self._latencies, np.float64),
            self.peak_items,
            self.peak_bytes,
            tuple(s.limit for s in self._states),
            tuple(s.workers for s in self._states),
            tuple(len(s.queue) for s in self._states),
            tuple(s.busy for s in self._states),
            tuple(s.blocked for s in self._states),
            tuple(s.starved for s in self._states),
            self._source_blocked,
            tuple(self.decisions),
        )
