"""The checker must accept what a queue can do and refuse what it cannot; then it judges real queues."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from linearizability import BoundedQueue, History, Operation, Recorded, explain


def op(name: str, value: Any, outcome: str, start: int, end: int, after: int = -1) -> Operation:
    return Operation(0, name, value, outcome, start, end, after)


POSSIBLE = {
    "fifo": (
        2,
        [op("put", 1, "ok", 0, 1), op("put", 2, "ok", 2, 3), op("get", 1, "ok", 4, 5), op("get", 2, "ok", 6, 7)],
    ),
    "overlapping puts, either order": (
        2,
        [op("put", 1, "ok", 0, 9), op("put", 2, "ok", 0, 9), op("get", 2, "ok", 10, 11), op("get", 1, "ok", 12, 13)],
    ),
    "a get that overlaps the put it needs": (1, [op("get", 1, "ok", 0, 9), op("put", 1, "ok", 5, 6)]),
    "full while the get is under way": (
        1,
        [op("put", 1, "ok", 0, 1), op("get", 1, "ok", 2, 9), op("put", 2, "Full", 3, 4)],
    ),
    "empty before the put": (1, [op("get", None, "Empty", 0, 5), op("put", 1, "ok", 3, 9)]),
    "what is left after shutdown": (
        2,
        [
            op("put", 1, "ok", 0, 1),
            op("shutdown", False, "ok", 2, 3),
            op("get", 1, "ok", 4, 5),
            op("get", None, "ShutDown", 6, 7),
        ],
    ),
    "shutdown at once": (
        2,
        [op("put", 1, "ok", 0, 1), op("shutdown", True, "ok", 2, 3), op("get", None, "ShutDown", 4, 5)],
    ),
    "size": (2, [op("put", 1, "ok", 0, 9), op("qsize", 0, "ok", 1, 2), op("qsize", 1, "ok", 3, 4)]),
}

IMPOSSIBLE = {
    "lost": (2, [op("put", 1, "ok", 0, 1), op("get", None, "Empty", 2, 3)]),
    "twice": (2, [op("put", 1, "ok", 0, 1), op("get", 1, "ok", 2, 9), op("get", 1, "ok", 2, 9)]),
    "from nowhere": (2, [op("get", 1, "ok", 0, 1)]),
    "before it was put": (2, [op("get", 1, "ok", 0, 1), op("put", 1, "ok", 2, 3)]),
    "not fifo": (
        2,
        [op("put", 1, "ok", 0, 1), op("put", 2, "ok", 2, 3), op("get", 2, "ok", 4, 5), op("get", 1, "ok", 6, 7)],
    ),
    "over the bound": (1, [op("put", 1, "ok", 0, 1), op("put", 2, "ok", 2, 3)]),
    "full when empty": (1, [op("put", 1, "Full", 0, 1)]),
    "full, though an item left before": (
        1,
        [op("put", 1, "ok", 0, 1), op("get", 1, "ok", 2, 3), op("put", 2, "Full", 4, 5)],
    ),
    "shut down by nobody": (1, [op("put", 1, "ShutDown", 0, 1)]),
    "put after shutdown": (1, [op("shutdown", False, "ok", 0, 1), op("put", 1, "ok", 2, 3)]),
    "a batch out of order": (
        2,
        [op("put", 1, "ok", 0, 9), op("put", 2, "ok", 0, 9, 0), op("get", 2, "ok", 10, 11), op("get", 1, "ok", 12, 13)],
    ),
    "a batch cut short for nothing": (3, [op("put", 1, "ok", 0, 9), op("put", 2, "refused", 0, 9, 0)]),
    "wrong size": (2, [op("put", 1, "ok", 0, 1), op("qsize", 0, "ok", 2, 3)]),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible_histories_pass(name: str) -> None:
    maxsize, ops = POSSIBLE[name]
    assert explain(ops, BoundedQueue(maxsize)) is None


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_histories_fail(name: str) -> None:
    maxsize, ops = IMPOSSIBLE[name]
    reason = explain(ops, BoundedQueue(maxsize))
    assert reason is not None
    assert "no order of these" in reason


def test_policies_and_gate() -> None:
    full = [op("put", i, "ok", 2 * i, 2 * i + 1) for i in range(3)]
    take = lambda *values: [op("get", v, "ok", 10 + 2 * i, 11 + 2 * i) for i, v in enumerate(values)]  # noqa: E731
    for policy, left in (("drop_newest", (0, 1)), ("drop_oldest", (1, 2)), ("latest", (2,))):
        for other in ("drop_newest", "drop_oldest", "latest"):
            answer = explain([*full, *take(*left)], BoundedQueue(2, policy=other))
            assert (answer is None) == (policy == other), (policy, other, answer)
    closed = [op("put", 1, "ok", 0, 1), op("put", 2, "ok", 2, 3), op("get", 1, "ok", 4, 5), op("put", 3, "Full", 6, 7)]
    assert explain(closed, BoundedQueue(8, high=2, low=0)) is None
    assert explain(closed, BoundedQueue(8, high=2, low=1)) is not None


def test_too_long_a_history_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 2, got 3"):
        explain([op("put", 1, "ok", 0, 1)] * 3, BoundedQueue(), most=2)


def random_history(
    make: Callable[[], Any], encode: Callable[[int], Any], decode: Any, seed: int, singly: bool = False
) -> History:
    """Three threads, five random operations each, on one queue; singly: no put_many."""
    rng = random.Random(seed)
    history = History()
    q = Recorded(make(), history, decode)
    numbers = iter(range(1, 1000))
    start = threading.Barrier(3)

    def actions() -> list[Callable[[], Any]]:
        chosen: list[Callable[[], Any]] = []
        for _ in range(5):
            item, items = encode(next(numbers)), [encode(next(numbers)) for _ in range(2)]
            timeout, now = rng.choice([0.0, 0.0, 0.0005]), rng.random() < 0.5
            chosen.append(
                rng.choices(
                    [
                        lambda item=item, t=timeout: q.put(item, True, t),
                        lambda t=timeout: q.get(True, t),
                        lambda items=items, t=timeout: q.put_many(items, True, t),
                        lambda t=timeout: q.get_many(2, True, t),
                        q.qsize,
                        lambda now=now: q.shutdown(now),
                    ],
                    [6, 6, 0 if singly else 2, 2, 1, 0.3],
                )[0]
            )
        return chosen

    def run(mine: list[Callable[[], Any]]) -> None:
        start.wait()
        for act in mine:
            act()

    threads = [threading.Thread(target=run, args=(actions(),)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return history


@pytest.mark.parametrize(("maxsize", "high", "low"), [(1, 0, 0), (2, 0, 0), (3, 2, 0)])
def test_queue_is_linearizable(queue_class: Any, maxsize: int, high: int, low: int) -> None:
    gate = {"high_watermark": high, "low_watermark": low} if high else {}
    model = BoundedQueue(maxsize, high, low)
    for seed in range(60):
        history = random_history(lambda: queue_class(maxsize, **gate), int, int, seed)
        assert explain(history.operations, model) is None
