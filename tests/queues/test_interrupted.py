"""Ctrl-C wherever CPython looks for signals leaves a usable queue of the pure-Python backend, whose counts are right.

Its waiting is the standard library's threading.Condition, whose own code is not asked here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import edgefast as ef
from edgefast.queues import Empty, _latest, _loops, _pure, _record_pure

WAIT = 10.0


def in_thread(work: Callable[[], Any]) -> Any:
    """What work() returns in another thread, which needs the locks that the interrupted one must not hold."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(WAIT)
    assert results, "it is locked, or its counts deceive it"
    return results[0]


def waiting(q: Any, get: Callable[[], object]) -> threading.Thread:
    """A thread that waits for an item of q."""
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    while not q.statistics().tasks_waiting_receive:
        time.sleep(1e-4)
    return thread


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bytes": {"max_bytes": 100, "max_age": 100.0},
    "drop_oldest": {"max_bytes": 6, "policy": "drop_oldest"},
    "gate": {"high_watermark": 3, "low_watermark": 1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_queue(options: dict[str, Any], ctrl_c_at_every_call: Callable[..., Iterator[int]]) -> None:
    q = _pure.Queue(4, **options)

    def work() -> None:
        for _ in range(3):
            q.put(b"ab")
        q.get()
        q.put_many([b"c", b"d"], block=False)
        q.get_many(2)
        q.clear()
        q.put(b"f")
        q.drain()
        with contextlib.suppress(Empty):
            q.get(timeout=1e-3)

    def again() -> Any:
        rest = q.drain()
        q.put(b"xy", timeout=WAIT)
        return len(rest), q.get(timeout=WAIT)

    for n in ctrl_c_at_every_call(work, _pure):
        s, unfinished = q.statistics(), q.unfinished_tasks
        left = s.put_count - s.get_count - s.cleared - s.dropped_oldest - s.expired
        assert left == s.current_buffer_used, n
        assert unfinished == left + s.get_count, n
        assert s.tasks_waiting_receive == 0, n
        assert in_thread(again) == (left, b"xy"), n
        assert q.statistics().bytes_used == 0, n
        q = _pure.Queue(4, **options)
    assert n > 100


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_record_queue(policy: Any, ctrl_c_at_every_call: Callable[..., Iterator[int]]) -> None:
    q = _record_pure.RecordQueue("i4", 4, policy=policy)

    def work() -> None:
        q.put(1)
        q.get()
        q.put_many(np.arange(6, dtype="i4"), block=False)
        q.get_many(2)
        with q.reserve(1) as slots:
            slots[:] = 1
        with contextlib.suppress(ZeroDivisionError), q.reserve(1):
            raise ZeroDivisionError
        with q.view(1):
            pass
        q.clear()
        with contextlib.suppress(Empty):
            q.get(timeout=1e-3)

    def again() -> list[int]:
        q.clear()
        assert q.put_many(np.arange(4, dtype="i4"), timeout=WAIT) == 4  # all slots are free
        return q.get_many(4, timeout=WAIT).tolist()

    for n in ctrl_c_at_every_call(work, _record_pure):
        assert in_thread(again) == [0, 1, 2, 3], n
        s = q.statistics()
        assert s.put_count == s.get_count + s.cleared + s.dropped_oldest, n
        q = _record_pure.RecordQueue("i4", 4, policy=policy)
    assert n > 100


def test_latest(ctrl_c_at_every_call: Callable[..., Iterator[int]]) -> None:
    box = _latest.Latest()

    def work() -> None:
        box.set(1)
        box.get()
        box.set(2)
        with contextlib.suppress(Empty):
            box.get(newer_than=2, timeout=1e-3)

    def again() -> int:
        return box.set(9)

    for n in ctrl_c_at_every_call(work, _latest):
        assert box.version == (box.get().value if box.version else 0), n
        assert in_thread(again) == box.version, n
        box = _latest.Latest()
    assert n > 10


def test_who_waits_is_woken(ctrl_c_at_every_call: Callable[..., Iterator[int]]) -> None:
    """An item that is in the queue when Ctrl-C comes reaches who waits for it."""
    q: Any = None
    waiter = threading.Thread()

    def wait() -> None:
        nonlocal q, waiter
        q = _pure.Queue()
        waiter = waiting(q, q.get)

    wait()
    for n in ctrl_c_at_every_call(lambda: q.put(1), _pure):
        if not q.statistics().put_count:
            q.put(1)
        waiter.join(WAIT)
        assert not waiter.is_alive(), n
        wait()
    assert n > 10
    q.put(1)


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_task_that_waits_is_woken(kind: str, ctrl_c_at_every_call: Callable[..., Iterator[int]]) -> None:
    make: Any = _pure.Queue
    if kind == "native":
        if "native" not in ef.available_backends():
            pytest.skip("backend native is not available")
        from edgefast.queues import _native_queue

        make = _native_queue.Queue
    q: Any = None
    waiter = threading.Thread()

    def wait() -> None:
        nonlocal q, waiter
        q = make()
        waiter = waiting(q, lambda: asyncio.run(q.aget()))

    wait()
    for n in ctrl_c_at_every_call(lambda: q.put(1), _pure, _loops):
        if not q.statistics().put_count:  # which tells whom put() could not tell any more
            q.put(1)
        waiter.join(WAIT)
        assert not waiter.is_alive(), n
        wait()
    assert n > 3
    q.put(1)
