"""How a pipeline adapts: limits of its queues and workers of its stages, decided from samples. No clocks, no threads.

The runtime calls `step` once a period with what it measured and carries out the decisions; so does the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from edgefast.pipeline._types import Decision, StageSample
from edgefast.queues._checks import count, integer

__all__ = ["Controller", "WorkerController", "fair_shares", "low_watermark"]

Array = np.ndarray[Any, Any]

# A queue grows by at most this factor a step, the first while it is shorter than _FEWEST_ITEMS.
_FASTEST_START, _FASTEST_GROWTH = 3.0, 2.0
# So many items show what a short limit does, and so many times the limit what a longer one does.
_FEWEST_ITEMS, _ITEMS_A_LIMIT = 8, 4
# Growing after a shrink was a mistake of the shrink: each doubles the time the next one has to wait, up to this factor.
_MOST_PATIENCE = 64
# Share of a window in which workers had to be at work for a rate to be more than noise.
_LEAST_WORK = 0.02
# The machine counts as the bottleneck from this share of its processors on.
_CPU_BOUND = 0.95
# A move of a worker that is taken back within so many pauses was a mistake.
_SOON = 4


def low_watermark(limit: int, rate: float, switch_time: float = 5e-4) -> int:
    """Items at which a queue that closed at `limit` reopens.

    A producer that was stopped goes on when `switch_time` seconds of work have left the queue, at least one item and at
    most three quarters of it: a wake-up then moves that much work, so that its cost stays small, and what is left keeps
    the consumer busy while the producer wakes up. Slow items (`rate * switch_time` below 1) are handed over one by one,
    which keeps the longest possible reserve in front of the consumer.

    Args:
        limit: items at which the queue closes, from 1.
        rate: items per second that leave it.
        switch_time: seconds of work a wake-up should be worth.

    Returns:
        0 to limit - 1.

    Examples:
        >>> low_watermark(16, rate=200.0)
        15
        >>> low_watermark(1000, rate=200_000.0)
        900
        >>> low_watermark(16, rate=200_000.0)
        4
    """
    return int(_low_watermarks(np.array([limit]), np.array([rate]), switch_time)[0])


def _low_watermarks(limits: Array, rates: Array, switch_time: float) -> Array:
    run = np.clip(np.ceil(np.nan_to_num(rates) * switch_time), 1, np.maximum(np.ceil(0.75 * limits), 1))
    return (limits - run).astype(np.int64)


def fair_shares(demands: Array, total: float) -> Array:
    """Max-min fair division: nobody gets more than he demands, and what is left goes to the others in equal parts.

    Args:
        demands: what each wants, (n,), from 0.
        total: what there is to divide.

    Returns:
        (n,) float64, `demands` where their sum is at most `total`, else of sum `total`.

    Examples:
        >>> fair_shares(np.array([1.0, 10.0, 10.0]), 9.0)
        array([1., 4., 4.])
    """
    demands = np.asarray(demands, np.float64)
    if demands.sum() <= total:
        return demands.copy()
    order = np.sort(demands)
    before = np.concatenate(([0.0], np.cumsum(order)[:-1]))
    # The level of the water if the k smallest demands are met in full and the others share what is left.
    level = (total - before) / np.arange(len(order), 0, -1)
    return np.minimum(demands, level[np.argmax(order >= level)])


class _Window:
    """Sums that forget: a moment counts for exp(-age / span)."""

    def __init__(self, n: int, span: float) -> None:
        self.span = span
        self.time = np.zeros(n)
        self.sums: dict[str, Array] = {}

    def add(self, elapsed: float, **amounts: Array) -> None:
        keep = math.exp(-elapsed / self.span)
        self.time *= keep
        self.time += elapsed
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0.0) * keep + amount

    def share(self, name: str) -> Array:
        """The sum by the time it was collected in; 0 before there is any."""
        return np.divide(self.sums[name], self.time, out=np.zeros_like(self.time), where=self.time > 0)

    def forget(self, where: Array) -> None:
        self.time[where] = 0.0
        for amounts in self.sums.values():
            amounts[where] = 0.0


def _columns(samples: Sequence[StageSample]) -> dict[str, tuple[Any, ...]]:
    return dict(zip(StageSample._fields, zip(*samples, strict=True), strict=True))


def _number(value: object, name: str, *, above: float = 0.0, below: float = math.inf) -> float:
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(cast(Any, value))
    if not above < number < below:
        raise ValueError(f"{name}: expected a number between {above:g} and {below:g}, got {number!r}")
    return number


class Controller:
    """Chooses how many items each queue of a pipeline may hold.

    A queue is there to keep its consumer busy while its producer is late, and the other way round. It is too short when
    both wait for each other in turn, and too long when part of it is never used. So a limit

    - grows, up to doubling a step, while a stage waited for input although its producer waited for room, each for more
      than `tolerance` of the time, and neither the busiest stage nor the machine is working all the time already; of
      queues in a row the one that loses most goes first;
    - shrinks when every item of an interval waited longer than `standing_delay` (the standing queue of CoDel:
      K. Nichols and V. Jacobson, "Controlling queue delay", ACM Queue 10(5), 2012; RFC 8289): to what was in use and a
      quarter, at most by half, again after interval / sqrt(k) while it stands;
    - never exceeds `rate * target_delay`, what the stage takes out of it in that time (as Flink's buffer debloating),
      nor the stage's maximum, nor its max-min fair share of `max_bytes`;
    - otherwise stays: growth is at least `dead_band`, and a rate that fell by less than that changes nothing.

    A shrink that growth undoes doubles the interval of that queue, so that a steady load ends in steady limits.

    Args:
        target_delay: the longest time in seconds an item should wait in one queue.
        max_bytes: bytes that all queues may hold together; None for no limit.
        period: seconds between steps when nothing grows; see `next_period`.
        dead_band: relative change below which a limit stays, 0 to 1.
        tolerance: share of the time that may be lost to waiting before a queue grows, 0 to 1.
        interval: seconds for which a queue has to stand before it shrinks, and the memory of the measurements; None for
            five times target_delay.
        standing_delay: seconds that every item may wait without the queue counting as standing; None for a tenth of
            target_delay.
        switch_time: seconds of work that a producer's wake-up should be worth, see `low_watermark`.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.

    Examples:
        >>> from edgefast.pipeline import StageSample
        >>> controller = Controller(target_delay=0.2)
        >>> def sample(name, taken, blocked, starved):
        ...     return StageSample(name, 0, 0, taken, taken, 0.0, 0.0, blocked, starved, 1, 1, 1, 4, 1, 1000, 0.0)
        >>> controller.step(0.0, [sample("read", 0, 0.0, 0.0), sample("send", 0, 0.0, 0.0)])
        []
        >>> decisions = controller.step(0.2, [sample("read", 100, 0.06, 0.0), sample("send", 100, 0.0, 0.05)])
        >>> [(d.stage, d.what, d.old, d.new) for d in decisions if d.what == "limit"]
        [('send', 'limit', 4, 12)]
        >>> decisions[0].reason
        'waited for input 25% of the time although its producer waited for room 30%'
    """

    def __init__(
        self,
        *,
        target_delay: float = 0.2,
        max_bytes: int | None = None,
        period: float = 0.2,
        dead_band: float = 0.25,
        tolerance: float = 0.02,
        interval: float | None = None,
        standing_delay: float | None = None,
        switch_time: float = 5e-4,
    ) -> None:
        self.target_delay: float = _number(target_delay, "target_delay")
        self.max_bytes: int | None = None if max_bytes is None else integer(max_bytes, "max_bytes", low=1, high=2**62)
        self.period: float = _number(period, "period")
        self.dead_band: float = _number(dead_band, "dead_band", below=1.0)
        self.tolerance: float = _number(tolerance, "tolerance", below=1.0)
        self.interval: float = 5 * self.target_delay if interval is None else _number(interval, "interval")
        self.standing_delay: float = (
            self.target_delay / 10 if standing_delay is None else _number(standing_delay, "standing_delay")
        )
        self.switch_time: float = _number(switch_time, "switch_time", above=-1.0)
        self._names: tuple[str, ...] = ()
        self._then = 0.0
        self._wait = self.period / 8

    @property
    def next_period(self) -> float:
        """Seconds until the next step is worth while: an eighth of the period while limits grow, and then up to it."""
        return self._wait

    @property
    def rates(self) -> Array:
        """Items per second each stage takes while it has any, (n,); nan before the first."""
        return self._rate.copy()

    @property
    def losses(self) -> Array:
        """Share of the time lately lost at each queue by both sides waiting in turn, (n,)."""
        return self._loss.copy()

    @property
    def low_watermarks(self) -> Array:
        """Items at which each queue reopens, (n,) of int64, by the newest decisions."""
        return self._low.copy()

    def step(
        self, now: float, samples: Sequence[StageSample], *, source_blocked: float = 0.0, cpu: float = 0.0
    ) -> list[Decision]:
        """Decides once. The first call, and one with other stages than before, only notes where the counters stand.

        Args:
            now: seconds on any clock that does not go back.
            samples: the stages in their order.
            source_blocked: seconds since the start that those who put into the first queue waited for room.
            cpu: share of the processors this process may use that was in use since the last step, 0 to 1; where
                that is above 0.95 on average no limit grows, since longer queues make no processor faster.

        Returns:
            The changes: "limit" and "gate" (the low watermark), in the order of the stages.

        Raises:
            ValueError: `now` before that of the last step.
        """
        names = tuple(s.name for s in samples)
        if names != self._names:
            self._start(now, names, samples, source_blocked)
            return self._decide(now, samples, _columns(samples), None, None) if samples else []
        elapsed = now - self._then
        if elapsed < 0:
            raise ValueError(f"now: expected at least {self._then!r}, the time of the last step, got {now!r}")
        if elapsed == 0 or not samples:
            return []
        self._then = now
        columns = _columns(samples)
        self._measure(elapsed, columns, source_blocked, cpu)
        grow = self._growth(np.asarray(columns["limit"], np.int64))
        shrink = self._standing(now, columns)
        return self._decide(now, samples, columns, grow, shrink)

    # State ----------------------------------------------------------------------------------------------------------

    def _start(self, now: float, names: tuple[str, ...], samples: Sequence[StageSample], source_blocked: float) -> None:
        n = len(names)
        self._names, self._then = names, now
        self._wait, self._hurry_until = self.period / 8, now + self.period
        columns = _columns(samples) if samples else dict.fromkeys(StageSample._fields, ())
        self._before = self._counters(columns, source_blocked)
        self._rate = np.full(n, np.nan)
        self._loss = np.zeros(n)
        self._low = np.full(n, -1, np.int64)
        self._saturated = False
        self._since_change = _Window(n, self.interval)
        self._work = _Window(n, self.interval)
        self._machine = _Window(1, self.interval)
        self._served = np.zeros(n)  # since the limit changed
        self._standing_since = np.full(n, np.nan)
        self._lowest_wait = np.full(n, np.inf)
        self._shrinks = np.zeros(n, np.int64)
        self._patience = np.ones(n)
        self._shrunk = np.zeros(n, bool)

    @staticmethod
    def _counters(columns: dict[str, tuple[Any, ...]], source_blocked: float) -> dict[str, Array]:
        counters = {f: np.asarray(columns[f], np.float64) for f in ("served", "busy", "blocked", "starved")}
        # Who puts into a queue waits for it: the stage before, and the source before the first.
        counters["producer"] = np.concatenate(([source_blocked], counters["blocked"][:-1]))
        return counters

    def _measure(self, elapsed: float, columns: dict[str, tuple[Any, ...]], source_blocked: float, cpu: float) -> None:
        workers = np.maximum(np.asarray(columns["workers"], np.float64), 1.0)
        producers = np.concatenate(([1.0], workers[:-1]))
        now = self._counters(columns, source_blocked)
        # A counter that went back belongs to a queue or worker that was replaced: nothing is known about this period.
        moved = {name: np.maximum(value - self._before[name], 0.0) for name, value in now.items()}
        self._before = now
        starved = np.minimum(moved["starved"] / workers, elapsed)
        blocked = np.minimum(moved["producer"] / producers, elapsed)
        self._since_change.add(elapsed, starved=starved, blocked=blocked)
        busy = np.minimum(moved["busy"] / workers, elapsed)
        self._work.add(elapsed, busy=busy, active=elapsed - starved, served=moved["served"])
        self._machine.add(elapsed, cpu=np.array([cpu * elapsed]))
        self._served += moved["served"]
        self._loss = np.minimum(self._since_change.share("starved"), self._since_change.share("blocked"))
        active = self._work.sums["active"]
        known = active > _LEAST_WORK * self._work.time
        rate = np.divide(self._work.sums["served"], active, out=np.zeros_like(active), where=known)
        self._rate = np.where(known & (rate > 0), rate, self._rate)

    # Rules ----------------------------------------------------------------------------------------------------------

    def _lossy(self) -> Array:
        # The wait for one item is chance.
        return self._loss > self.tolerance + 1 / np.maximum(self._served, 1.0)

    def _growth(self, limit: Array) -> Array:
        """The factor by which each queue should grow; 1 for none."""
        busiest, cpu = self._work.share("busy").max(), self._machine.share("cpu")[0]
        self._saturated = bool(busiest >= 1 - self.tolerance or cpu >= _CPU_BOUND)
        if self._saturated:
            return np.ones(len(self._loss))
        lost = np.where(self._lossy(), self._loss, 0.0)
        # Queues in a row often lose for the same reason: room in one of them helps the others, so the worst goes first.
        worst = (lost > 0) & (lost >= np.append(0.0, lost[:-1])) & (lost > np.append(lost[1:], 0.0))
        # With random times loss falls as 1 / limit, with bursts faster: the root stays below what is needed.
        most = np.where(limit < _FEWEST_ITEMS, _FASTEST_START, _FASTEST_GROWTH)
        factor = np.clip(np.sqrt(self._loss / self.tolerance), 1 + self.dead_band, most)
        return np.where(worst, factor, 1.0)

    def _standing(self, now: float, columns: dict[str, tuple[Any, ...]]) -> Array:
        """The longest time by which all items of an interval waited too long where a queue shrinks; 0 elsewhere."""
        wait = np.array([np.nan if w is None else w for w in columns["min_sojourn"]], np.float64)
        measured = ~np.isnan(wait)
        stands = (wait > self.standing_delay) & (self._since_change.share("starved") <= self.tolerance / 4)
        calm = measured & ~stands
        self._standing_since[calm] = np.nan
        self._lowest_wait[calm] = np.inf
        self._shrinks[calm] = 0
        self._standing_since = np.where(measured & stands & np.isnan(self._standing_since), now, self._standing_since)
        np.fmin(self._lowest_wait, wait, out=self._lowest_wait, where=stands)
        pause = self.interval * self._patience / np.sqrt(self._shrinks + 1.0)
        due = measured & stands & (now - self._standing_since >= pause)
        return np.where(due, self._lowest_wait, 0.0)

    def _decide(
        self,
        now: float,
        samples: Sequence[StageSample],
        columns: dict[str, tuple[Any, ...]],
        grow: Array | None,
        standing: Array | None,
    ) -> list[Decision]:
        limit = np.asarray(columns["limit"], np.int64)
        least = np.maximum(np.asarray(columns["min_limit"], np.int64), 1)
        most = np.maximum(np.asarray(columns["max_limit"], np.int64), least)
        item_bytes = np.asarray(columns["item_bytes"], np.float64)
        delay_limit = np.where(np.isnan(self._rate), np.inf, np.ceil(np.nan_to_num(self._rate) * self.target_delay))
        ceiling = np.clip(delay_limit, least, most)
        wanted = limit.astype(np.float64)
        grown = shrunk = np.zeros(len(limit), bool)
        if grow is not None and standing is not None:
            # One stall lasts for a few queues' worth of items: what it cost is not what the stage loses on average.
            enough = self._served >= np.where(limit < _FEWEST_ITEMS, _FEWEST_ITEMS, _ITEMS_A_LIMIT * limit)
            grown = (grow > 1) & enough & (limit < ceiling)
            wanted = np.where(grown, np.minimum(np.ceil(limit * grow), ceiling), wanted)
            shrunk = (standing > 0) & ~grown & (limit > least)
            used = np.maximum(limit - np.nan_to_num(self._rate) * standing, 1)
            wanted = np.where(shrunk, np.maximum(np.ceil(limit / 2), np.floor(1.25 * used + 0.5)), wanted)
            shrunk &= wanted < limit
        outside = (limit < least) | (limit > most)
        # More than the target delay's worth, beyond what the noise of a rate explains.
        late = ~grown & ~shrunk & ~outside & (limit > (1 + self.dead_band) * ceiling)
        wanted = np.where(late, ceiling, wanted)
        wanted = np.clip(wanted, least, most)
        over = np.zeros(len(limit), bool)
        if self.max_bytes is not None and item_bytes.any():
            demand = wanted * item_bytes
            if demand.sum() > self.max_bytes:
                # Every queue holds its least before the rest is divided: a pipeline without room stands still.
                floor = least * item_bytes
                extra = fair_shares(demand - floor, max(self.max_bytes - floor.sum(), 0.0))
                allowed = np.floor((floor + extra) / np.where(item_bytes > 0, item_bytes, 1.0) * (1 + 1e-12))
                allowed = np.where(item_bytes > 0, np.maximum(allowed, least), wanted)
                over = allowed < wanted
                wanted = np.minimum(wanted, allowed)
        new = wanted.astype(np.int64)
        # What the byte budget takes away is taken at once, however little.
        change = (new != limit) & (outside | grown | shrunk | late | (over & (new < limit)))
        new = np.where(change, new, limit)
        low = _low_watermarks(new, self._rate, self.switch_time)
        regate = change | (self._low < 0) | (np.abs(low - self._low) > self.dead_band * new)
        decisions = []
        for i in map(int, np.flatnonzero(change | regate)):
            if change[i]:
                reason = self._reason(i, samples[i], grown[i], shrunk[i], over[i], late[i], standing)
                decisions.append(Decision(now, samples[i].name, "limit", int(limit[i]), int(new[i]), reason))
            if self._low[i] >= 0 and low[i] != self._low[i]:
                run = new[i] - low[i]
                reason = f"goes on when {run} of {new[i]} items have left"
                decisions.append(Decision(now, samples[i].name, "gate", int(self._low[i]), int(low[i]), reason))
        self._low = np.where(regate, low, self._low)
        self._note(now, limit, new, ceiling, change, grown, shrunk)
        return decisions

    def _note(
        self, now: float, limit: Array, new: Array, ceiling: Array, change: Array, grown: Array, shrunk: Array
    ) -> None:
        """Keeps what the next steps need to know about this one."""
        # What the neighbours of a queue lost before it grew says nothing about what they lose now.
        beside = grown.copy()
        beside[1:] |= grown[:-1]
        beside[:-1] |= grown[1:]
        self._since_change.forget(change | beside)
        self._served[beside] = 0.0
        self._served[change] = 0.0
        rose = change & (new > limit)
        fell = change & (new < limit)
        self._patience[rose & self._shrunk] = np.minimum(self._patience[rose & self._shrunk] * 2, _MOST_PATIENCE)
        self._shrunk = np.where(rose, False, self._shrunk | (fell & shrunk))
        self._shrinks[fell & shrunk] += 1
        self._standing_since[change] = np.where(fell[change], now, np.nan)
        self._lowest_wait[change] = np.inf
        pending = self._lossy() & ~change & (limit < ceiling)
        if rose.any() or (pending.any() and not self._saturated):
            self._hurry_until = now + self.period
        self._wait = self.period / 8 if now < self._hurry_until else min(2 * self._wait, self.period)

    def _reason(
        self, i: int, sample: StageSample, grown: bool, shrunk: bool, over: bool, late: bool, standing: Array | None
    ) -> str:
        if over:
            return f"its share of the byte budget of {self.max_bytes}, at {sample.item_bytes:.4g} bytes an item"
        if grown:
            starved, blocked = self._since_change.share("starved")[i], self._since_change.share("blocked")[i]
            return f"waited for input {starved:.0%} of the time although its producer waited for room {blocked:.0%}"
        if shrunk and standing is not None:
            return (
                f"no item waited less than {standing[i]:.3g} s for {self.interval * self._patience[i]:.3g} s: "
                "part of the queue is never used"
            )
        if late:
            return f"{self._rate[i]:.4g} items/s leave it: this many are {self.target_delay:.3g} s of work"
        return f"outside its bounds of {sample.min_limit} to {sample.max_limit}"


class WorkerController:
    """Moves workers, one at a time, to the stage that limits the pipeline.

    The capacity of a stage is its workers over the worker-seconds an item takes. The stage with the least capacity
    gets a worker when it is at work at least `busy_share` of the time: a free one while fewer than `total` are
    employed, else one of the stage that misses it least, if that stage without it still has more capacity than the
    first one has now. Seconds an item are a moving average (level) that follows a rise faster than a fall, beside one
    of its deviation, and a move needs the bands level - k deviation of the taker and level + k deviation of the giver
    to be apart (the controller shape of Ray Data's resource manager). So each move raises the pipeline's capacity, and
    with steady service times they end. A move that is soon taken back doubles the pause before the next one of that
    stage.

    Args:
        total: most workers of all stages together; None for as many as at the first step.
        band: k, deviations on each side.
        rise, fall: weights of a new sample above and below the average, 0 to 1.
        busy_share: share of the time the workers of the slowest stage are at work from which it counts as the limit.
        settle: steps a stage rests after a move.

    Raises:
        TypeError, ValueError: an argument of the wrong type or outside its range.
    """

    def __init__(
        self,
        *,
        total: int | None = None,
        band: float = 0.5,
        rise: float = 0.6,
        fall: float = 0.4,
        busy_share: float = 0.8,
        settle: int = 1,
    ) -> None:
        self.total: int | None = None if total is None else count(total, "total")
        self.band: float = _number(band, "band", above=-1.0)
        self.rise: float = _number(rise, "rise", below=1.0 + 1e-9)
        self.fall: float = _number(fall, "fall", below=1.0 + 1e-9)
        self.busy_share: float = _number(busy_share, "busy_share", below=1.0 + 1e-9)
        self.settle: int = count(settle, "settle")
        self._names: tuple[str, ...] = ()
        self._then = 0.0

    def step(self, now: float, samples: Sequence[StageSample]) -> list[Decision]:
        """Decides once; the first call, and one with other stages than before, only notes where the counters stand.

        A step moves at most one worker in eight stages, and none of a stage that still rests.

        Raises:
            ValueError: `now` before that of the last step.
        """
        names = tuple(s.name for s in samples)
        columns = _columns(samples) if samples else dict.fromkeys(StageSample._fields, ())
        counters = {f: np.asarray(columns[f], np.float64) for f in ("served", "busy")}
        workers = np.asarray(columns["workers"], np.int64)
        if names != self._names:
            n = len(names)
            self._names, self._then, self._before = names, now, counters
            self._most = int(workers.sum()) if self.total is None else self.total
            self._level, self._deviation = np.full(n, np.nan), np.zeros(n)
            self._use = np.zeros(n)
            self._rest, self._pause = np.zeros(n, np.int64), np.full(n, self.settle, np.int64)
            self._direction = np.zeros(n, np.int64)
            self._since_move = np.zeros(n, np.int64)
            return []
        elapsed = now - self._then
        if elapsed < 0:
            raise ValueError(f"now: expected at least {self._then!r}, the time of the last step, got {now!r}")
        if elapsed == 0 or not samples:
            return []
        served = counters["served"] - self._before["served"]
        busy = np.maximum(counters["busy"] - self._before["busy"], 0.0)
        self._then, self._before = now, counters
        self._learn(served, busy, np.minimum(busy / (np.maximum(workers, 1) * elapsed), 1.0))
        self._rest = np.maximum(self._rest - 1, 0)
        self._since_move += 1
        return self._moves(now, samples, columns, workers)

    def _learn(self, served: Array, busy: Array, use: Array) -> None:
        known = (served > 0) & (busy > 0)
        cost = np.divide(busy, served, out=np.full(len(served), np.nan), where=known)
        fresh = known & np.isnan(self._level)
        self._level = np.where(fresh, cost, self._level)
        weight = np.where(cost > self._level, self.rise, self.fall)
        step = np.where(known & ~fresh, cost - self._level, 0.0)
        self._level = self._level + weight * step
        self._deviation = np.where(known & ~fresh, 0.8 * self._deviation + 0.2 * np.abs(step), self._deviation)
        self._use += 0.5 * (use - self._use)

    def _moves(
        self, now: float, samples: Sequence[StageSample], columns: dict[str, tuple[Any, ...]], workers: Array
    ) -> list[Decision]:
        least = np.maximum(np.asarray(columns["min_workers"], np.int64), 1)
        most = np.maximum(np.asarray(columns["max_workers"], np.int64), least)
        known = ~np.isnan(self._level)
        spread = self.band * self._deviation
        # Seconds between two items of a stage: the largest limits the pipeline.
        pace = np.where(known, self._level / np.maximum(workers, 1), -np.inf)
        moves = max(1, len(samples) // 8)
        takers = np.argsort(-pace, kind="stable")[:moves]
        takes = known & (self._rest == 0) & (workers < most) & (self._use >= self.busy_share)
        takers = takers[takes[takers]]
        free = max(self._most - int(workers.sum()), 0)
        # What a stage would be like without one of its workers, at worst, and with those it has, at best.
        gives = known & (self._rest == 0) & (workers > least)
        without = np.where(gives, (self._level + spread) / np.maximum(workers - 1, 1e-9), np.inf)
        sure = (self._level - spread) / np.maximum(workers, 1)
        givers = np.argsort(without, kind="stable")[: max(len(takers) - free, 0)]
        # A giver is never one of the takers before it: without one of its workers it would be slower than they are.
        givers = givers[without[givers] < sure[takers[free:]]]
        decisions: list[Decision] = []
        for k, i in enumerate(map(int, takers[: free + len(givers)])):
            if k >= free:
                j = int(givers[k - free])
                reason = (
                    f"{samples[i].name} needs it more: an item every {pace[i] * 1e3:.3g} ms there, "
                    f"{pace[j] * 1e3:.3g} ms here"
                )
                decisions.append(self._move(now, samples[j], -1, reason))
            reason = f"slowest stage: an item every {pace[i] * 1e3:.3g} ms, at work {self._use[i]:.0%} of the time"
            decisions.append(self._move(now, samples[i], 1, reason))
            self._settle(i, 1, int(workers[i]))
            if k >= free:
                self._settle(int(givers[k - free]), -1, int(workers[givers[k - free]]))
        return decisions

    @staticmethod
    def _move(now: float, sample: StageSample, step: int, reason: str) -> Decision:
        return Decision(now, sample.name, "workers", sample.workers, sample.workers + step, reason)

    def _settle(self, i: int, step: int, workers: int) -> None:
        """After a move a stage rests: the longer, the sooner the move took back another one."""
        back = self._direction[i] == -step and self._since_move[i] <= _SOON * self._pause[i]
        self._pause[i] = min(2 * self._pause[i], _MOST_PATIENCE * self.settle) if back else self.settle
        self._direction[i], self._since_move[i] = step, 0
        self._rest[i] = self._pause[i]
        self._use[i] = min(self._use[i] * workers / (workers + step), 1.0)
