"""Semantics of Queue: queue.Queue's interface, batches, the gate, statistics, bad input."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
import queue
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from edgefast.queues import Empty, Full, QueueStatistics, ShutDown


def start(*functions: Any) -> list[threading.Thread]:
    threads = [threading.Thread(target=f, daemon=True) for f in functions]
    for t in threads:
        t.start()
    return threads


def finish(threads: list[threading.Thread]) -> None:
    for t in threads:
        t.join(20)
        assert not t.is_alive()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- queue.Queue ---------------------------------------------------------------------------------------------------


def test_exceptions_are_the_standard_ones() -> None:
    assert Full is queue.Full
    assert Empty is queue.Empty
    if sys.version_info >= (3, 13):
        assert ShutDown is queue.ShutDown


def test_fifo_and_sizes(queue_class: Any) -> None:
    q = queue_class(3)
    assert q.empty()
    for i in range(3):
        q.put(i)
    assert (q.qsize(), q.full(), q.empty()) == (3, True, False)
    with pytest.raises(Full):
        q.put_nowait(3)
    with pytest.raises(Full):
        q.put(3, timeout=0.01)
    with pytest.raises(Full):
        q.put(3, False)
    assert [q.get(), q.get_nowait(), q.get(True, 1)] == [0, 1, 2]
    with pytest.raises(Empty):
        q.get_nowait()
    with pytest.raises(Empty):
        q.get(timeout=0.01)
    with pytest.raises(Empty):
        q.get(block=False)


def test_the_item_may_be_named_as_in_the_standard_library(queue_class: Any) -> None:
    q = queue_class(4)
    q.put(item=1)
    q.put_nowait(item=2)
    asyncio.run(q.aput(item=3))
    assert q.drain() == [1, 2, 3]
    for put in (q.put, q.put_nowait, q.aput):
        for arguments, named in (((), {}), ((1,), {"item": 2}), ((1, 2, 3, 4), {}), ((), {"thing": 1})):
            with pytest.raises(TypeError):
                put(*arguments, **named)
    assert q.empty()


def test_unbounded_grows_and_gives_memory_back(queue_class: Any) -> None:
    q = queue_class()
    for i in range(200_000):
        q.put(i)
    assert not q.full()
    assert q.get_many(200_000) == list(range(200_000))
    q.put("again")
    assert q.get() == "again"


def test_wraps_around(queue_class: Any) -> None:
    q = queue_class(7)
    expected = []
    for i in range(500):
        q.put(i)
        expected.append(i)
        if q.qsize() == 7 or i % 3 == 0:
            assert q.get() == expected.pop(0)


def test_timeouts_are_kept(queue_class: Any) -> None:
    q = queue_class(1)
    for call, error in ((lambda: q.get(timeout=0.05), Empty), (lambda: q.put(0, timeout=0.05), Full)):
        begin = time.monotonic()
        with pytest.raises(error):
            call()
        took = time.monotonic() - begin
        assert 0.049 <= took < 5
        q.put(1) if q.empty() else None


def test_put_wakes_get_and_get_wakes_put(queue_class: Any) -> None:
    q = queue_class(1)
    seen: list[Any] = []
    threads = start(lambda: seen.append(q.get()))
    until(lambda: q.statistics().tasks_waiting_receive == 1)
    q.put("a")
    finish(threads)
    assert seen == ["a"]
    q.put("b")
    threads = start(lambda: q.put("c"))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    assert q.get() == "b"
    finish(threads)
    assert q.get() == "c"
    s = q.statistics()
    assert (s.full_waits, s.empty_waits) == (1, 1)


def test_join_and_task_done(queue_class: Any) -> None:
    q = queue_class()
    q.join()
    q.put_many([1, 2])
    assert q.unfinished_tasks == 2
    threads = start(q.join)
    q.get()
    q.task_done()
    time.sleep(0.02)
    assert threads[0].is_alive()
    q.get()
    q.task_done()
    finish(threads)
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        q.task_done()


def test_shutdown(queue_class: Any) -> None:
    q = queue_class(4)
    q.put_many([1, 2])
    q.shutdown()
    assert q.is_shutdown
    with pytest.raises(ShutDown):
        q.put(3)
    with pytest.raises(ShutDown):
        q.put_nowait(3)
    with pytest.raises(ShutDown):
        q.put_many([3])
    assert q.peek() == 1
    assert q.get() == 1
    assert q.get_many(5) == [2]
    for call in (q.get, q.get_nowait, q.peek, lambda: q.get_many(1)):
        with pytest.raises(ShutDown):
            call()
    q.shutdown()


def test_shutdown_immediate_discards_and_releases_join(queue_class: Any) -> None:
    q = queue_class()
    q.put_many([1, 2, 3])
    threads = start(q.join)
    q.shutdown(immediate=True)
    finish(threads)
    assert q.empty()
    assert q.statistics().cleared == 3
    with pytest.raises(ShutDown):
        q.get()


def test_shutdown_wakes_everybody(queue_class: Any) -> None:
    empty, full = queue_class(1), queue_class(4, high_watermark=2, low_watermark=1)
    full.put_many([1, 2])
    ended: list[str] = []

    def expect(call: Any) -> None:
        with pytest.raises(ShutDown):
            call()
        ended.append("x")

    calls = [
        empty.get,
        lambda: empty.get(timeout=60),
        lambda: empty.get_many(3),
        lambda: full.put(3),
        full.wait_writable,
    ]
    threads = start(*[lambda c=c: expect(c) for c in calls])
    until(lambda: empty.statistics().tasks_waiting_receive == 3 and full.statistics().tasks_waiting_send == 1)
    empty.shutdown()
    full.shutdown()
    finish(threads)
    assert len(ended) == 5


def test_iteration_ends_with_shutdown(queue_class: Any) -> None:
    q = queue_class()
    q.put_many([1, 2, 3])
    q.shutdown()
    assert list(q) == [1, 2, 3]


# ---- batches -------------------------------------------------------------------------------------------------------


def test_put_many_takes_what_fits(queue_class: Any) -> None:
    q = queue_class(5)
    assert q.put_many([]) == 0
    assert q.put_many((1, 2, 3)) == 3
    assert q.put_many(range(10, 20), block=False) == 2
    assert q.put_many([1], block=False) == 0
    assert q.put_many([1], timeout=0.01) == 0
    assert q.drain() == [1, 2, 3, 10, 11]
    assert q.drain() == []


def test_put_many_blocks_until_all_are_in(queue_class: Any) -> None:
    q = queue_class(3)
    threads = start(lambda: q.put_many(list(range(20))))
    assert [q.get() for _ in range(20)] == list(range(20))
    finish(threads)
    assert q.statistics().peak == 3


def test_put_many_cut_short_by_shutdown(queue_class: Any) -> None:
    q = queue_class(3)
    accepted: list[int] = []
    threads = start(lambda: accepted.append(q.put_many(list(range(20)))))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    q.shutdown()
    finish(threads)
    assert accepted == [3]
    assert q.drain() == [0, 1, 2]


def test_get_many(queue_class: Any) -> None:
    q = queue_class()
    with pytest.raises(Empty):
        q.get_many(3, block=False)
    with pytest.raises(Empty):
        q.get_many(3, timeout=0.01)
    q.put_many([1, 2, 3, 4])
    assert q.get_many(3) == [1, 2, 3]
    assert q.get_many(3, min_items=3, linger=0.01) == [4]
    threads = start(lambda: [q.put(i) for i in range(5)])
    got = q.get_many(5, min_items=5, linger=10)
    finish(threads)
    assert got == [0, 1, 2, 3, 4]


def test_clear_and_peek(queue_class: Any) -> None:
    q = queue_class(2)
    with pytest.raises(Empty):
        q.peek()
    q.put_many([1, 2])
    assert q.peek() == 1
    threads = start(lambda: q.put(3))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    assert q.clear() == 2
    finish(threads)
    assert q.get() == 3
    assert q.clear() == 0
    q.task_done()
    q.join()


# ---- the gate ------------------------------------------------------------------------------------------------------


def test_gate_closes_at_high_and_reopens_at_low(queue_class: Any) -> None:
    q = queue_class(10, high_watermark=6, low_watermark=2)
    assert q.watermarks == (6, 2)
    assert q.put_many(list(range(10)), block=False) == 6
    assert (q.writable, q.full(), q.qsize()) == (False, True, 6)
    for left in (5, 4, 3):
        q.get()
        assert q.qsize() == left
        assert not q.writable
        with pytest.raises(Full):
            q.put_nowait(0)
    q.get()
    assert q.writable
    assert not q.full()
    assert q.put_many(list(range(10)), block=False) == 4
    assert not q.writable


def test_default_low_watermark_is_a_quarter(queue_class: Any) -> None:
    assert queue_class(high_watermark=9).watermarks == (9, 2)
    assert queue_class(high_watermark=1).watermarks == (1, 0)
    assert queue_class(5).watermarks is None
    assert queue_class(5).wait_writable()


def test_blocked_producer_waits_for_low(queue_class: Any) -> None:
    q = queue_class(high_watermark=4, low_watermark=1)
    q.put_many([0, 1, 2, 3])
    threads = start(lambda: q.put(4))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    q.get()
    q.get()
    time.sleep(0.02)
    assert threads[0].is_alive()
    q.get()
    finish(threads)
    assert q.drain() == [3, 4]


def test_wait_writable(queue_class: Any) -> None:
    q = queue_class(high_watermark=2, low_watermark=0)
    q.put_many([1, 2])
    assert not q.wait_writable(timeout=0.01)
    seen: list[bool] = []
    threads = start(lambda: seen.append(q.wait_writable(20)))
    time.sleep(0.01)
    q.drain()
    finish(threads)
    assert seen == [True]


def test_listeners_run_after_the_operation(queue_class: Any) -> None:
    q = queue_class(high_watermark=2, low_watermark=0)
    events: list[Any] = []

    def listener(which: Any, event: str) -> None:
        events.append((which is q, event, which.qsize()))
        if event == "high":
            assert which.get() == 1  # may use the queue

    q.add_watermark_listener(listener)
    q.put(1)
    q.put(2)
    assert events == [(True, "high", 2)]
    q.get()
    assert events[-1] == (True, "low", 0)
    q.remove_watermark_listener(listener)
    q.put_many([1, 2])
    assert len(events) == 2
    with pytest.raises(ValueError, match="listener: expected one that was added"):
        q.remove_watermark_listener(listener)


def test_failing_listener_changes_nothing(queue_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: caught.append(u.exc_value))
    q = queue_class(high_watermark=1)
    heard: list[str] = []
    q.add_watermark_listener(lambda _, __: 1 / 0)
    q.add_watermark_listener(lambda _, event: heard.append(event))
    q.put(1)
    assert q.get() == 1
    assert [type(e) for e in caught] == [ZeroDivisionError, ZeroDivisionError]
    assert heard == ["high", "low"]


def test_limits_may_change_while_running(queue_class: Any) -> None:
    q = queue_class(2)
    q.put_many([1, 2])
    threads = start(lambda: q.put(3))
    until(lambda: q.statistics().tasks_waiting_send == 1)
    q.maxsize = 3
    finish(threads)
    q.maxsize = 1
    assert (q.maxsize, q.qsize(), q.full()) == (1, 3, True)
    q.get()
    q.get()
    assert q.full()
    q.get()
    assert not q.full()
    q.maxsize = 10
    q.set_watermarks(4, 3)
    assert q.put_many(range(9), block=False) == 4
    q.set_watermarks(None)
    assert q.writable
    assert q.put_many(range(9), block=False) == 6
    with pytest.raises(ValueError, match="high_watermark: expected 1 <= high_watermark <= 10, got 11"):
        q.set_watermarks(11)
    assert q.watermarks is None


# ---- statistics and value semantics --------------------------------------------------------------------------------


def test_statistics(queue_class: Any) -> None:
    q = queue_class(100, high_watermark=80, low_watermark=10, name="uplink")
    s = q.statistics()
    assert isinstance(s, QueueStatistics)
    assert (s.current_buffer_used, s.max_buffer_size, s.sojourn, s.time_to_drain) == (0, 100, None, 0.0)
    q.put_many(range(80))
    with pytest.raises(Full):
        q.put_nowait(1)
    s = q.statistics()
    assert (s.put_count, s.get_count, s.refused, s.peak, s.high_events, s.writable) == (80, 0, 1, 80, 1, False)
    assert (s.high_watermark, s.low_watermark, s.unfinished_tasks) == (80, 10, 80)
    assert s.time_to_drain == math.inf
    assert s.put_rate > 0
    q.get_many(70)
    s = q.statistics()
    assert (s.get_count, s.writable, s.current_buffer_used) == (70, True, 10)
    assert s.sojourn is not None
    assert s.sojourn >= 0
    assert 0 < s.time_to_drain < math.inf
    assert queue_class().statistics().max_buffer_size == math.inf
    assert "uplink" in repr(q)
    assert "10 of 100" in repr(q)


def test_counts_do_not_drift(queue_class: Any) -> None:
    q = queue_class(50)
    for i in range(1000):
        q.put(i)
        if i % 3:
            q.get()
        if i % 100 == 99:
            q.clear()
    s = q.statistics()
    assert s.put_count == s.get_count + s.cleared + s.current_buffer_used


def test_subclass_weakref_and_generic(queue_class: Any) -> None:
    class Mine(queue_class):  # type: ignore[misc]
        pass

    q = Mine(3)
    q.extra = 1
    q.put(1)
    assert Mine.__mro__[1] is queue_class
    ref = weakref.ref(q)
    del q
    gc.collect()
    assert ref() is None
    assert queue_class[int] is not None


def test_pickling_refuses_clearly(queue_class: Any) -> None:
    with pytest.raises(TypeError, match=r"cannot pickle Queue: its items and waiters belong to this process"):
        pickle.dumps(queue_class())


# ---- memory --------------------------------------------------------------------------------------------------------


def test_references_are_neither_lost_nor_kept(queue_class: Any) -> None:
    class Item:
        pass

    item = Item()
    before = sys.getrefcount(item)
    q = queue_class(4)
    for _ in range(1000):
        q.put(item)
        q.get()
        q.put_many([item, item])
        q.get_many(2)
        q.put_many([item, item])
        q.peek()
        q.clear()
        q.put(item)
        q.drain()
        with pytest.raises(Empty):
            q.get_nowait()
    assert sys.getrefcount(item) == before
    q.put_many([item] * 4)
    assert sys.getrefcount(item) == before + 4
    del q
    gc.collect()
    assert sys.getrefcount(item) == before


def test_cycles_through_items_are_collected(queue_class: Any) -> None:
    class Item:
        pass

    item: Any = Item()
    item.queue = queue_class()
    item.queue.put(item)
    ref = weakref.ref(item)
    del item
    gc.collect()
    assert ref() is None


def test_finalizers_may_use_the_queue(queue_class: Any) -> None:
    q = queue_class()

    class Item:
        def __del__(self) -> None:
            q.put("finalized")

    q.put_many([Item(), Item()])
    assert q.clear() == 2
    gc.collect()
    assert q.drain() == ["finalized", "finalized"]


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"maxsize": -1}, ValueError, "maxsize: expected 0 <= maxsize"),
        ({"maxsize": 1.5}, TypeError, "maxsize: expected an integer, got float"),
        ({"maxsize": True}, TypeError, "maxsize: expected an integer, got bool"),
        ({"maxsize": None}, TypeError, "maxsize: expected an integer, got NoneType"),
        ({"maxsize": 5, "high_watermark": 6}, ValueError, "high_watermark: expected 1 <= high_watermark <= 5, got 6"),
        ({"high_watermark": 0}, ValueError, "high_watermark: expected 1 <= high_watermark"),
        ({"high_watermark": "8"}, TypeError, "high_watermark: expected an integer, got str"),
        (
            {"high_watermark": 4, "low_watermark": 4},
            ValueError,
            "low_watermark: expected 0 <= low_watermark <= 3, got 4",
        ),
        ({"high_watermark": 4, "low_watermark": -1}, ValueError, "low_watermark: expected 0 <= low_watermark <= 3"),
        ({"low_watermark": 1}, ValueError, "low_watermark: expected None without a high_watermark, got 1"),
        (
            {"policy": "drop"},
            ValueError,
            "policy: expected one of block, drop_newest, drop_oldest, latest, error, got 'drop'",
        ),
        ({"policy": 3}, TypeError, "policy: expected a string, got int"),
        ({"max_bytes": 0}, ValueError, "max_bytes: expected 1 <= max_bytes"),
        ({"max_bytes": 1.0}, TypeError, "max_bytes: expected an integer, got float"),
        ({"sizer": 3}, TypeError, "sizer: expected a callable or None, got int"),
        ({"max_age": 0}, ValueError, "max_age: expected seconds above 0 or None, got 0"),
        ({"max_age": -1.0}, ValueError, "'max_age' must be a non-negative number"),
        ({"max_age": math.nan}, ValueError, "'max_age' must be a non-negative number"),
        ({"max_age": "1"}, TypeError, "'max_age' must be a number or None, not str"),
        ({"name": 3}, TypeError, "name: expected a string or None, got int"),
    ],
)
def test_bad_arguments(queue_class: Any, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        queue_class(**kwargs)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: q.put(1, timeout=-1), ValueError, "'timeout' must be a non-negative number"),
        (lambda q: q.get(timeout=-0.1), ValueError, "'timeout' must be a non-negative number"),
        (lambda q: q.get(timeout=float("nan")), ValueError, "'timeout' must be a non-negative number"),
        (lambda q: q.get(timeout="1"), TypeError, "'timeout' must be a number or None, not str"),
        (lambda q: q.get_many(0), ValueError, "max_items: expected at least 1, got 0"),
        (lambda q: q.get_many(1.0), TypeError, "max_items: expected an integer, got float"),
        (lambda q: q.get_many(True), TypeError, "max_items: expected an integer, got bool"),
        (lambda q: q.get_many(2, min_items=3), ValueError, "min_items: expected at most max_items (2), got 3"),
        (lambda q: q.get_many(2, min_items=0), ValueError, "min_items: expected at least 1, got 0"),
        (lambda q: q.get_many(2, linger=-1), ValueError, "'linger' must be a non-negative number"),
        (lambda q: q.put_many(iter([1])), TypeError, "items: expected a sequence such as a list, got list_iterator"),
        (lambda q: q.put_many("ab"), TypeError, "items: expected a sequence such as a list, got str"),
        (lambda q: q.put_many(3), TypeError, "items: expected a sequence such as a list, got int"),
        (lambda q: q.put_many({1: 2}), TypeError, "items: expected a sequence such as a list, got dict"),
        (lambda q: q.wait_writable(timeout=-1), ValueError, "'timeout' must be a non-negative number"),
        (lambda q: q.add_watermark_listener(3), TypeError, "listener: expected a callable, got int"),
        (lambda q: setattr(q, "maxsize", -2), ValueError, "maxsize: expected 0 <= maxsize"),
        (lambda q: q.put(), TypeError, ""),
        (lambda q: q.put(1, 2, 3, 4), TypeError, ""),
        (lambda q: q.put(1, blocking=True), TypeError, "blocking"),
        (lambda q: q.put(1, item=2), TypeError, "item"),
    ],
)
def test_bad_calls_change_nothing(queue_class: Any, call: Any, error: type[Exception], message: str) -> None:
    q = queue_class(5)
    q.put("there")
    with pytest.raises(error) as caught:
        call(q)
    assert message in str(caught.value)
    assert q.drain() == ["there"]
    assert q.maxsize == 5


def test_timeout_is_not_looked_at_without_blocking(queue_class: Any) -> None:
    # As in queue.Queue.
    q = queue_class(1)
    q.put(1, False, -1)
    assert q.get(False, -1) == 1
