"""Queue against a model: random operations, one thread, every policy and every limit, ages by a clock of our own."""

from __future__ import annotations

import collections
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgefast.queues import Empty, Full, ShutDown

SECOND = 1_000_000_000


class Model(RuleBasedStateMachine):
    """A deque of (item, bytes, stamp) with the rules of the limits, the gate and the policies, nothing else."""

    queue_class: Any = None

    @initialize(
        maxsize=st.integers(0, 6),
        gate=st.none() | st.tuples(st.integers(1, 6), st.integers(0, 5)),
        policy=st.sampled_from(["block", "drop_newest", "drop_oldest", "latest", "error"]),
        max_bytes=st.none() | st.integers(5, 12),
        max_age=st.none() | st.integers(1, 4),
    )
    def create(
        self, maxsize: int, gate: tuple[int, int] | None, policy: str, max_bytes: int | None, max_age: int | None
    ) -> None:
        if gate and ((maxsize and gate[0] > maxsize) or gate[1] >= gate[0]):
            gate = None
        self.maxsize, self.high, self.low = maxsize, *(gate or (0, 0))
        self.policy, self.max_bytes, self.max_age = policy, max_bytes, max_age
        self.q = self.queue_class(
            maxsize,
            policy=policy,
            max_bytes=max_bytes,
            sizer=(lambda item: item % 6) if max_bytes else None,
            max_age=max_age,
            high_watermark=self.high or None,
            low_watermark=self.low if self.high else None,
        )
        self.now = 5 * SECOND
        self.q._freeze(self.now)
        self.model: collections.deque[tuple[int, int, int]] = collections.deque()
        self.closed = self.down = False
        self.unfinished = self.next = 0
        self.puts = self.gets = self.newest = self.oldest = self.expired = self.cleared = self.refused = 0
        self.high_events = self.peak = self.peak_bytes = 0

    # ---- the rules -------------------------------------------------------------------------------------------------

    def size(self, item: int) -> int:
        return item % 6 if self.max_bytes else 0

    def used(self) -> int:
        return sum(size for _, size, _ in self.model)

    def fits(self, size: int) -> bool:
        return (
            not self.closed
            and (not self.maxsize or len(self.model) < self.maxsize)
            and (not self.max_bytes or self.used() + size <= self.max_bytes)
        )

    def settle(self) -> None:
        if self.high and not self.closed and len(self.model) >= self.high:
            self.closed = True
            self.high_events += 1
        elif self.closed and len(self.model) <= self.low:
            self.closed = False

    def done(self, n: int) -> None:
        self.unfinished -= min(n, self.unfinished)

    def expire(self) -> None:
        n = 0
        while self.max_age and self.model and self.now - self.model[0][2] >= self.max_age * SECOND:
            self.model.popleft()
            n += 1
        self.expired += n
        self.done(n)
        self.settle()

    def model_put(self, item: int) -> str:
        self.expire()
        if self.down:
            return "down"
        size, gone = self.size(item), 0
        if self.policy == "latest":
            gone = len(self.model)
            self.model.clear()
        elif not self.fits(size):
            if self.policy in ("block", "error"):
                return "full"
            if self.policy == "drop_newest":
                self.newest += 1
                return "dropped"
            closed, self.closed = self.closed, False
            while (closed and not gone) or not self.fits(size) or (self.high and len(self.model) >= self.high):
                self.model.popleft()
                gone += 1
            self.closed = closed
        self.model.append((item, size, self.now))
        self.oldest += gone
        self.puts += 1
        self.unfinished += 1
        self.done(gone)
        self.settle()
        self.peak = max(self.peak, len(self.model))
        self.peak_bytes = max(self.peak_bytes, self.used())
        return "accepted"

    def model_take(self, n: int) -> list[int]:
        self.expire()
        taken = [self.model.popleft()[0] for _ in range(min(n, len(self.model)))]
        self.settle()
        return taken

    def new(self) -> int:
        self.next += 1
        return self.next

    # ---- the operations --------------------------------------------------------------------------------------------

    @rule()
    def put(self) -> None:
        item = self.new()
        outcome = self.model_put(item)
        if outcome == "full":
            self.refused += 1
            with pytest.raises(Full):
                self.q.put_nowait(item)
        elif outcome == "down":
            with pytest.raises(ShutDown):
                self.q.put(item)
        else:
            self.q.put(item, block=self.policy != "block")

    @rule(n=st.integers(0, 9))
    def put_many(self, n: int) -> None:
        items = [self.new() for _ in range(n)]
        if self.down and n:
            with pytest.raises(ShutDown):
                self.q.put_many(items, block=False)
            self.expire()
            return
        accepted = 0
        for item in items:
            outcome = self.model_put(item)
            accepted += outcome == "accepted"
            if outcome == "full":
                self.refused += 1
                break
        assert self.q.put_many(items, block=False) == accepted

    @precondition(lambda self: self.max_bytes)
    @rule()
    def put_too_large(self) -> None:
        with pytest.raises(ValueError, match="item: expected at most max_bytes"):
            self.queue_class.put(self.q, 6 * self.max_bytes + 5 if self.max_bytes < 5 else Huge(self.max_bytes + 1))

    @rule()
    def get(self) -> None:
        taken = self.model_take(1)
        if taken:
            self.gets += 1
            assert self.q.get_nowait() == taken[0]
        else:
            with pytest.raises(ShutDown if self.down else Empty):
                self.q.get_nowait()

    @rule(n=st.integers(1, 9))
    def get_many(self, n: int) -> None:
        taken = self.model_take(n)
        self.gets += len(taken)
        if taken:
            assert self.q.get_many(n, block=False) == taken
        else:
            with pytest.raises(ShutDown if self.down else Empty):
                self.q.get_many(n, block=False)

    @rule()
    def drain(self) -> None:
        taken = self.model_take(len(self.model))
        self.gets += len(taken)
        assert self.q.drain() == taken

    @rule()
    def clear(self) -> None:
        n = len(self.model_take(len(self.model)))
        self.cleared += n
        self.done(n)
        assert self.q.clear() == n

    @rule()
    def task_done(self) -> None:
        self.expire()
        assert self.q.empty() == (not self.model)
        if self.unfinished:
            self.q.task_done()
            self.unfinished -= 1
        else:
            with pytest.raises(ValueError, match="too many times"):
                self.q.task_done()

    @rule(size=st.integers(0, 8))
    def resize(self, size: int) -> None:
        if size and self.high > size:
            with pytest.raises(ValueError, match="high_watermark"):
                self.q.maxsize = size
        else:
            self.q.maxsize = self.maxsize = size

    @rule(tenths=st.integers(1, 30))
    def wait(self, tenths: int) -> None:
        self.now += tenths * SECOND // 10
        self.q._freeze(self.now)

    @precondition(lambda self: self.next > 12)
    @rule(immediate=st.booleans())
    def shutdown(self, immediate: bool) -> None:
        self.q.shutdown(immediate=immediate)
        self.down = True
        if immediate:
            n = len(self.model_take(len(self.model)))
            self.cleared += n
            self.done(n)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "q"):
            return
        self.expire()
        q = self.q
        assert q.qsize() == len(self.model)
        assert q.full() == (not self.fits(1 if self.max_bytes else 0))
        assert q.writable == (not self.closed)
        assert (q.unfinished_tasks, q.is_shutdown) == (self.unfinished, self.down)
        if self.model:
            assert q.peek() == self.model[0][0]
        s = q.statistics()
        assert (s.put_count, s.get_count, s.cleared) == (self.puts, self.gets, self.cleared)
        assert (s.dropped_newest, s.dropped_oldest, s.expired) == (self.newest, self.oldest, self.expired)
        assert (s.bytes_used, s.peak, s.peak_bytes) == (self.used(), self.peak, self.peak_bytes)
        assert (s.refused, s.high_events) == (self.refused, self.high_events)
        assert s.put_count == s.get_count + s.dropped_oldest + s.expired + s.cleared + s.current_buffer_used


class Huge(int):
    """An item whose size is its value."""

    def __mod__(self, other: int) -> int:
        return int(self)


def test_against_a_model(queue_class: Any) -> None:
    machine = type("QueueModel", (Model,), {"queue_class": queue_class})
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=40, deadline=None))
