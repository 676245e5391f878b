"""Policies, bytes and ages of Queue, with threads that wait for them."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgefast.queues import Empty, Full, ShutDown


def start(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def finish(thread: threading.Thread) -> None:
    thread.join(20)
    assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- policies ------------------------------------------------------------------------------------------------------


def test_drop_newest(queue_class: Any) -> None:
    q = queue_class(2, policy="drop_newest")
    assert [q.put(i) for i in range(4)] == [None] * 4
    assert q.put_many([7, 8]) == 0
    assert q.full()
    assert q.drain() == [0, 1]
    assert q.put_many([1, 2, 3]) == 2
    s = q.statistics()
    assert (s.dropped_newest, s.put_count, s.refused, s.full_waits) == (5, 4, 0, 0)
    assert q.unfinished_tasks == 4


def test_drop_oldest(queue_class: Any) -> None:
    q = queue_class(2, policy="drop_oldest")
    for i in range(5):
        q.put_nowait(i)
    assert q.put_many([5, 6, 7]) == 3
    assert q.drain() == [6, 7]
    s = q.statistics()
    assert (s.dropped_oldest, s.put_count, s.get_count, s.peak) == (6, 8, 2, 2)
    assert q.unfinished_tasks == 2  # dropped items count as done


def test_latest(queue_class: Any) -> None:
    q = queue_class(10, policy="latest")
    assert q.put_many([1, 2, 3]) == 3
    q.put(4)
    assert q.qsize() == 1
    assert q.get() == 4
    assert q.statistics().dropped_oldest == 3
    assert q.statistics().peak == 1


def test_error_never_waits(queue_class: Any) -> None:
    q = queue_class(1, policy="error")
    q.put(1)
    begin = time.monotonic()
    with pytest.raises(Full):
        q.put(2)
    with pytest.raises(Full):
        q.put(2, timeout=60)
    assert q.put_many([2, 3]) == 0
    assert time.monotonic() - begin < 30
    assert q.policy == "error"
    assert q.statistics().full_waits == 0


@pytest.mark.parametrize(("policy", "left"), [("drop_newest", [2, 3, 4]), ("drop_oldest", [3, 4, 9])])
def test_a_closed_gate_lets_in_only_what_replaces_something(queue_class: Any, policy: str, left: list[int]) -> None:
    q = queue_class(10, policy=policy, high_watermark=4, low_watermark=1)
    q.put_many([1, 2, 3, 4])
    assert q.get() == 1
    assert q.full()
    q.put(9)
    assert not q.writable
    assert q.statistics().high_events == 1
    assert q.drain() == left


def test_dropped_items_release_join(queue_class: Any) -> None:
    q = queue_class(1, policy="drop_oldest")
    q.put(1)
    thread = start(q.join)
    q.put(2)  # 1 is dropped, and done
    assert q.get() == 2
    assert q.unfinished_tasks == 1
    q.task_done()
    finish(thread)


def test_after_shutdown_policies_refuse(queue_class: Any) -> None:
    for policy in ("drop_newest", "drop_oldest", "latest", "error"):
        q = queue_class(1, policy=policy)
        q.put(1)
        q.shutdown()
        with pytest.raises(ShutDown):
            q.put(2)
        with pytest.raises(ShutDown):
            q.put_many([2])
        assert q.get() == 1


def test_victims_are_released_after_the_operation(queue_class: Any) -> None:
    """Finalizers see a consistent queue and may use it."""
    q = queue_class(2, policy="drop_oldest")
    seen: list[Any] = []

    class Item:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            seen.append((self.number, q.qsize()))
            if self.number == 0:
                q.put("from a finalizer")

    for i in range(3):
        q.put(Item(i))
    gc.collect()
    assert seen[0] == (0, 2)
    assert [getattr(x, "number", x) for x in q.drain()] == [2, "from a finalizer"]


def test_references_of_dropped_and_expired_items(queue_class: Any) -> None:
    class Item:
        nbytes = 4

    item = Item()
    before = sys.getrefcount(item)
    for kwargs in (
        {"policy": "drop_newest"},
        {"policy": "drop_oldest"},
        {"policy": "latest"},
        {"policy": "drop_oldest", "max_bytes": 9},
        {"max_age": 1, "policy": "drop_oldest"},
        {"sizer": lambda _: 1, "policy": "drop_newest"},
    ):
        q = queue_class(8, **kwargs)
        for round_ in range(50):
            q._freeze(round_ * 10**9)
            q.put_many([item] * 20, block=False)
            q.get()
            q.put_nowait(item)
            q.peek()
            q.drain() if round_ % 3 else None
        q.clear()
        assert sys.getrefcount(item) == before, kwargs
    with pytest.raises(ValueError):
        queue_class(max_bytes=3).put(item)
    assert sys.getrefcount(item) == before


# ---- bytes ---------------------------------------------------------------------------------------------------------


def test_bytes_are_limited(queue_class: Any) -> None:
    q = queue_class(max_bytes=10)
    q.put(b"12345")
    q.put(np.zeros(4, np.uint8))
    assert not q.full()
    q.put(bytearray(1))
    assert q.full()
    assert (q.statistics().bytes_used, q.max_bytes) == (10, 10)
    with pytest.raises(Full):
        q.put_nowait(memoryview(b"x"))
    q.put_nowait(b"")  # no bytes, no limit of items
    assert q.get() == b"12345"
    assert q.statistics().bytes_used == 5
    assert q.put_many([b"abc", b"def", b"g"], block=False) == 1
    s = q.statistics()
    assert (s.bytes_used, s.peak_bytes, s.max_bytes, s.max_buffer_size) == (8, 10, 10, math.inf)


def test_all_limits_hold_together(queue_class: Any) -> None:
    q = queue_class(3, max_bytes=10, high_watermark=2, low_watermark=0)
    assert q.put_many([b"123456", b"12345"], block=False) == 1  # bytes
    q.get()
    assert q.put_many([b"", b"", b""], block=False) == 2  # the gate
    assert q.statistics().limit == 2


@pytest.mark.parametrize(
    ("kwargs", "item", "error", "message"),
    [
        ({}, b"12345", ValueError, "item: expected at most max_bytes (4), got 5 bytes"),
        ({}, [1], TypeError, "item: expected bytes or an object with nbytes, got list; pass sizer= for others"),
        ({}, "text", TypeError, "item: expected bytes or an object with nbytes, got str"),
        ({"sizer": lambda _: -1}, 1, ValueError, "sizer: expected at least 0 bytes, got -1"),
        ({"sizer": lambda _: 1.0}, 1, TypeError, "sizer: expected an integer number of bytes, got float"),
        ({"sizer": lambda _: True}, 1, TypeError, "sizer: expected an integer number of bytes, got bool"),
        ({"sizer": lambda _: 5}, 1, ValueError, "item: expected at most max_bytes (4), got 5 bytes"),
        ({"sizer": lambda _: 1 // 0}, 1, ZeroDivisionError, "division"),
    ],
)
def test_bad_sizes_change_nothing(
    queue_class: Any, kwargs: dict[str, Any], item: Any, error: type[Exception], message: str
) -> None:
    q = queue_class(max_bytes=4, policy="drop_oldest", **kwargs)
    for call in (q.put, q.put_nowait, lambda item: q.put_many([item])):
        with pytest.raises(error) as caught:
            call(item)
        assert message in str(caught.value)
    assert q.statistics().put_count == 0
    if not kwargs:
        q.put(b"12")
        with pytest.raises(error):
            q.put_many([b"1", item])
        assert q.drain() == [b"12"]


def test_a_large_item_is_not_starved_by_small_ones(queue_class: Any) -> None:
    q = queue_class(max_bytes=10, sizer=lambda item: item[0])
    q.put((6, "first"))
    large = start(lambda: q.put((9, "large")))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    small = start(lambda: q.put((1, "small")))  # fits now, but waits in turn
    until(lambda: q.statistics().tasks_waiting_send == 2)
    q.put_nowait((2, "at once"))  # a put that does not wait takes what room there is
    assert q.get()[1] == "first"
    time.sleep(0.02)
    assert q.qsize() == 1
    assert q.get()[1] == "at once"
    finish(large)
    finish(small)
    assert sorted(name for _, name in q.drain()) == ["large", "small"]


def test_a_putter_that_gives_up_lets_the_next_one_in(queue_class: Any) -> None:
    q = queue_class(max_bytes=10, sizer=lambda item: item)
    q.put(6)
    caught: list[bool] = []

    def large() -> None:
        with pytest.raises(Full):
            q.put(9, timeout=0.2)
        caught.append(True)

    first = start(large)
    until(lambda: q.statistics().tasks_waiting_send == 1)
    second = start(lambda: q.put(2))
    finish(first)
    finish(second)
    assert caught == [True]
    assert q.drain() == [6, 2]


def test_drop_oldest_makes_room_in_bytes(queue_class: Any) -> None:
    q = queue_class(max_bytes=10, policy="drop_oldest")
    q.put_many([bytes(1)] * 30)
    assert (q.qsize(), q.statistics().dropped_oldest) == (10, 20)
    q.put(bytes(9))
    assert [len(x) for x in q.drain()] == [1, 9]
    assert q.statistics().peak_bytes == 10


def test_bytes_are_counted_without_a_limit(queue_class: Any) -> None:
    q = queue_class(sizer=len)
    q.put_many(["abc", "de"])
    assert q.statistics().bytes_used == 5
    assert q.max_bytes is None


# ---- age -----------------------------------------------------------------------------------------------------------


def test_old_items_are_never_got(queue_class: Any) -> None:
    q = queue_class(4, max_age=1.5)
    assert q.max_age == 1.5
    q._freeze(10**9)
    q.put_many(["a", "b"])
    q._freeze(2 * 10**9)
    q.put("c")
    q._freeze(2_499_999_999)
    assert q.peek() == "a"
    q._freeze(2_500_000_000)
    assert q.get() == "c"
    assert q.empty()
    with pytest.raises(Empty):
        q.get_nowait()
    s = q.statistics()
    assert (s.expired, s.get_count, s.put_count) == (2, 1, 3)
    assert s.sojourn == pytest.approx(0.5)
    assert q.unfinished_tasks == 1


def test_expired_items_make_room(queue_class: Any) -> None:
    q = queue_class(1, max_age=0.05)
    q.put(1)
    q.put(2, timeout=20)  # nobody gets 1: it expires
    assert q.get() == 2
    assert q.statistics().expired == 1
    q.task_done()
    q.put(3)
    q.join()  # also ends when the last item expires
    assert q.statistics().expired == 2
    gate = queue_class(max_age=0.05, high_watermark=1)
    gate.put(1)
    assert not gate.writable
    assert gate.wait_writable(timeout=20)


def test_get_many_skips_what_expired(queue_class: Any) -> None:
    q = queue_class(max_age=1)
    q._freeze(0)
    q.put_many(range(100))
    q._freeze(10**9)
    q.put_many([100, 101])
    assert q.get_many(50) == [100, 101]
    assert q.drain() == []
    assert q.statistics().expired == 100


def test_infinite_age_is_no_limit(queue_class: Any) -> None:
    assert queue_class(max_age=math.inf).max_age is None


# ---- the sizer may do anything -------------------------------------------------------------------------------------


def test_sizer_may_use_the_queue(queue_class: Any) -> None:
    q: Any = None

    def sizer(item: int) -> int:
        if item == 3:
            q.get()
        return 1

    q = queue_class(max_bytes=2, sizer=sizer, policy="error")
    q.put_many([1, 2])
    q.put(3)
    assert q.drain() == [2, 3]


def test_sizer_in_a_cycle_is_collected(queue_class: Any) -> None:
    class Sizer:
        def __call__(self, item: object) -> int:
            return 1

    sizer: Any = Sizer()
    sizer.queue = queue_class(sizer=sizer)
    ref = weakref.ref(sizer)
    del sizer
    gc.collect()
    assert ref() is None
