"""Linearizability of small histories of a bounded queue: a recorder and a Wing-Gong checker.

    history = History()
    q = Recorded(Queue(2), history)          # in every thread: q.put(1), q.get(timeout=0), q.put_many([2, 3]), ...
    assert explain(history.operations, BoundedQueue(maxsize=2)) is None

An operation takes effect at one moment between its call and its return. The checker looks for an order of those
moments that a sequential queue could have produced (Wing and Gong 1993, with Lowe's memory of configurations seen).
A batch is no single moment: put_many and get_many count as their items one after the other, because both promise only
that. A refusal has a moment too: Full needs a full queue, Empty an empty one, ShutDown one that was shut down.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgefast.queues import Empty, Full, ShutDown

__all__ = ["BoundedQueue", "History", "Operation", "Recorded", "explain"]


@dataclass(frozen=True)
class Operation:
    """One atomic step: what was asked for, what came, and the interval in which it took effect."""

    thread: int
    name: str  # put | get | shutdown | qsize
    value: Any  # the item put or got, the size seen, whether a shutdown was immediate
    outcome: str  # ok | Full | Empty | ShutDown
    start: int
    end: int
    after: int = -1  # index of the operation that must come before (the previous item of a batch)

    def __str__(self) -> str:
        return f"thread {self.thread}: {self.name}({self.value!r}) -> {self.outcome} in [{self.start}, {self.end}]"


@dataclass
class History:
    """Operations of all threads. Appending is atomic; the clock is the same for all."""

    operations: list[Operation] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, steps: Sequence[tuple[str, Any, str]], start: int, end: int) -> None:
        thread = threading.get_ident()
        with self._lock:
            previous = -1
            for name, value, outcome in steps:
                self.operations.append(Operation(thread, name, value, outcome, start, end, previous))
                previous = len(self.operations) - 1


def _outcome(function: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "ok", function()
    except Full:
        return "Full", None
    except Empty:
        return "Empty", None
    except ShutDown:
        return "ShutDown", None


class Recorded:
    """A queue whose operations are written down. `decode` turns what get returns into the value that was put."""

    def __init__(self, queue: Any, history: History, decode: Callable[[Any], Any] = lambda item: item) -> None:
        self._queue, self._history, self._decode = queue, history, decode

    def _record(
        self, function: Callable[[], Any], steps: Callable[[str, Any], list[tuple[str, Any, str]]]
    ) -> tuple[str, Any]:
        start = time.perf_counter_ns()
        outcome, result = _outcome(function)
        end = time.perf_counter_ns()
        self._history.add(steps(outcome, result), start, end)
        return outcome, result

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> str:
        return self._record(lambda: self._queue.put(item, block, timeout), lambda outcome, _: [("put", item, outcome)])[
            0
        ]

    def get(self, block: bool = True, timeout: float | None = None) -> str:
        return self._record(
            lambda: self._queue.get(block, timeout),
            lambda outcome, got: [("get", self._decode(got) if outcome == "ok" else None, outcome)],
        )[0]

    def put_many(self, items: Any, block: bool = True, timeout: float | None = None) -> int:
        values = [self._decode(item) for item in items]

        def steps(outcome: str, accepted: Any) -> list[tuple[str, Any, str]]:
            # Fewer than all: refused (Full), or shut down while waiting; which of the two put_many does not tell.
            if outcome != "ok":
                return [("put", values[0], outcome)]
            rest = [("put", values[accepted], "refused")] if accepted < len(values) else []
            return [("put", value, "ok") for value in values[:accepted]] + rest

        return self._record(lambda: self._queue.put_many(items, block, timeout), steps)[1] or 0

    def get_many(self, n: int, block: bool = True, timeout: float | None = None, **options: Any) -> int:
        def steps(outcome: str, got: Any) -> list[tuple[str, Any, str]]:
            if outcome != "ok":
                return [("get", None, outcome)]
            return [("get", self._decode(item), "ok") for item in got]

        result = self._record(lambda: self._queue.get_many(n, block, timeout, **options), steps)[1]
        return 0 if result is None else len(result)

    def shutdown(self, immediate: bool = False) -> None:
        self._record(lambda: self._queue.shutdown(immediate), lambda outcome, _: [("shutdown", immediate, outcome)])

    def qsize(self) -> None:
        self._record(self._queue.qsize, lambda outcome, n: [("qsize", n, outcome)])


class State(NamedTuple):
    items: tuple[Any, ...] = ()
    down: bool = False
    closed: bool = False  # the gate


@dataclass(frozen=True)
class BoundedQueue:
    """The sequential queue: at most maxsize items (0: any number), a gate that closes at high and reopens at low."""

    maxsize: int = 0
    high: int = 0
    low: int = 0
    policy: str = "block"  # block and error refuse alike; drop_newest, drop_oldest and latest accept everything

    def _full(self, state: State) -> bool:
        return state.closed or bool(self.maxsize and len(state.items) >= self.maxsize)

    def _gated(self, items: tuple[Any, ...], state: State) -> State:
        closed = state.closed and len(items) > self.low
        return State(items, state.down, closed or bool(self.high and len(items) >= self.high))

    def after(self, op: Operation, state: State) -> State | None:
        """The state that `op` leaves behind, or None when a queue in `state` could not have answered so."""
        if op.name == "put":
            return self._after_put(op, state)
        if op.name == "get":
            if op.outcome == "ok":
                if not state.items or state.items[0] != op.value:
                    return None
                return self._gated(state.items[1:], state)
            possible = not state.items and (op.outcome == "ShutDown") == state.down
            return state if possible else None
        if op.name == "shutdown":
            return State((), True, False) if op.value else state._replace(down=True)
        if op.name == "qsize":
            return state if len(state.items) == op.value else None
        raise ValueError(f"name: expected put, get, shutdown or qsize, got {op.name!r}")

    def _after_put(self, op: Operation, state: State) -> State | None:
        if op.outcome == "ShutDown":
            return state if state.down else None
        if op.outcome == "refused":
            return state if state.down or self._full(state) else None
        if state.down:
            return None
        if op.outcome == "Full":
            return state if self._full(state) else None
        if self.policy == "latest":
            return State((op.value,), False, False)
        if not self._full(state):
            return self._gated((*state.items, op.value), state)
        if self.policy == "drop_newest":
            return state
        if self.policy == "drop_oldest":
            rest = self._gated(state.items[1:], state)  # dropping is taking: the gate may reopen
            return self._gated((*rest.items, op.value), rest)
        return None


def explain(operations: Sequence[Operation], model: BoundedQueue, *, most: int = 64) -> str | None:
    """None when the history is linearizable, else the history and how far an order could be found.

    Raises:
        ValueError: more than `most` operations: the search is exponential in those that overlap.
    """
    ops = list(operations)
    if len(ops) > most:
        raise ValueError(f"operations: expected at most {most}, got {len(ops)}")
    everything = (1 << len(ops)) - 1
    # Bit sets of what must come before: whatever returned before the call, and the earlier items of a batch.
    before = [
        sum(1 << j for j, other in enumerate(ops) if other.end < op.start) | (1 << op.after if op.after >= 0 else 0)
        for op in ops
    ]
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State, tuple[int, ...]]] = [(0, State(), ())]
    longest: tuple[int, ...] = ()
    while stack:
        done, state, order = stack.pop()
        if done == everything:
            return None
        if len(order) > len(longest):
            longest = order
        for i, op in enumerate(ops):
            if done >> i & 1 or before[i] & ~done:
                continue
            following = model.after(op, state)
            if following is None or (done | 1 << i, following) in seen:
                continue
            seen.add((done | 1 << i, following))
            stack.append((done | 1 << i, following, (*order, i)))
    lines = [f"no order of these {len(ops)} operations fits {model}; the longest that does takes {len(longest)}:"]
    lines += [f"  {n + 1:3d}. {ops[i]}" for n, i in enumerate(longest)]
    lines += [f"    -. {op}" for i, op in enumerate(ops) if i not in longest]
    return "\n".join(lines)
