"""Queue between threads: ours against queue.Queue, SimpleQueue and a bare deque. Items a second, CPU time beside it."""

from __future__ import annotations

import collections
import os
import queue
import resource
import threading
from collections.abc import Callable
from typing import Any

import futex
import pytest

from edgefast.queues import IMPLEMENTATION, Queue, _pure

MAXSIZE = 1024

CONTENDERS: dict[str, tuple[bool, Callable[[], Any]]] = {
    f"edgefast {IMPLEMENTATION}": (True, lambda: Queue(MAXSIZE)),
    "edgefast, gate at 1024/256": (True, lambda: Queue(MAXSIZE, high_watermark=MAXSIZE)),
    "edgefast python": (True, lambda: _pure.Queue(MAXSIZE)),
    "queue.Queue": (False, lambda: queue.Queue(MAXSIZE)),
    "queue.SimpleQueue (unbounded)": (False, queue.SimpleQueue),
}
SLOW = {"edgefast python", "queue.Queue"}

each = pytest.mark.parametrize("name", CONTENDERS)


def usage() -> tuple[float, int]:
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime, r.ru_nvcsw


def run(benchmark: Any, contender: Any, name: str, ours: bool, items: int, work: Callable[[], Any]) -> None:
    """Times `work`, which moves `items`, and notes CPU nanoseconds and context switches per item."""
    work()
    cpu, switches = usage()
    rounds = 5
    benchmark.pedantic(work, rounds=rounds, iterations=1)
    cpu_after, switches_after = usage()
    moved = items * rounds
    contender(
        benchmark,
        name,
        ours=ours,
        items=items,
        cpu_ns_per_item=(cpu_after - cpu) / moved * 1e9,
        switches_per_1000_items=(switches_after - switches) / moved * 1000,
    )


@each
def test_uncontended_put_get(benchmark: Any, contender: Any, name: str) -> None:
    ours, make = CONTENDERS[name]
    benchmark.group = "queue put+get, one thread"
    n = 20_000 if name in SLOW else 200_000
    q = make()

    def work() -> None:
        put, get = q.put, q.get
        for i in range(n):
            put(i)
            get()

    run(benchmark, contender, name, ours, n, work)
    assert q.empty()


def test_uncontended_deque(benchmark: Any, contender: Any) -> None:
    benchmark.group = "queue put+get, one thread"
    d: collections.deque[int] = collections.deque()
    n = 200_000

    def work() -> None:
        put, get = d.append, d.popleft
        for i in range(n):
            put(i)
            get()

    run(benchmark, contender, "collections.deque (no waiting, no bound)", False, n, work)


@each
@pytest.mark.parametrize("pairs", [1, 4])
def test_producers_consumers(benchmark: Any, contender: Any, name: str, pairs: int) -> None:
    ours, make = CONTENDERS[name]
    benchmark.group = f"queue {pairs} producer(s) {pairs} consumer(s), maxsize {MAXSIZE}"
    n = (40_000 if name in SLOW else 400_000) // pairs
    results: list[list[int]] = []

    def work() -> None:
        q = make()
        got: list[list[int]] = [[] for _ in range(pairs)]

        def produce(put: Any, first: int) -> None:
            for i in range(first, first + n):
                put(i)

        def consume(get: Any, keep: Any) -> None:
            for _ in range(n):
                keep(get())

        threads = [threading.Thread(target=produce, args=(q.put, p * n)) for p in range(pairs)]
        threads += [threading.Thread(target=consume, args=(q.get, mine.append)) for mine in got]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        results[:] = got

    run(benchmark, contender, name, ours, n * pairs, work)
    assert sorted(x for mine in results for x in mine) == list(range(n * pairs))
    for mine in results:
        for p in range(pairs):
            part = [x for x in mine if p * n <= x < (p + 1) * n]
            assert part == sorted(part)


@each
@pytest.mark.parametrize("batch", [256])
def test_batches(benchmark: Any, contender: Any, name: str, batch: int) -> None:
    """Fill with put_many, empty with get_many(256); the peers move the same items one by one."""
    ours, make = CONTENDERS[name]
    benchmark.group = f"queue get_many({batch})/put_many, one thread"
    q = make()
    items = list(range(batch))
    repeats = 20 if name in SLOW else 1000

    def batched() -> None:
        put, get = q.put_many, q.get_many
        for _ in range(repeats):
            put(items)
            assert len(get(batch)) == batch

    def singly() -> None:
        put, get = q.put, q.get
        for _ in range(repeats):
            for i in items:
                put(i)
            for _ in items:
                get()

    run(benchmark, contender, name, ours, batch * repeats, batched if ours else singly)
    assert q.empty()


@each
@pytest.mark.parametrize("where", ["one CPU", "two CPUs"])
def test_wake_up_round_trip(benchmark: Any, contender: Any, name: str, where: str) -> None:
    """An item to a waiting thread and one back; beside it a bare futex ping-pong on the same CPUs.

    Pinned: where the kernel puts the two threads decides between 4 and 25 microseconds.
    """
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity")
    everywhere = os.sched_getaffinity(0)
    here = min(everywhere)
    there_cpu = here if where == "one CPU" else max(everywhere)
    if where == "two CPUs" and len(everywhere) < 2:
        pytest.skip("needs two CPUs")
    ours, make = CONTENDERS[name]
    benchmark.group = f"queue blocked wake-up round trip, two threads on {where}"
    trips = 1000

    def work() -> None:
        there, back = make(), make()

        def answer(get: Any = there.get, put: Any = back.put) -> None:
            os.sched_setaffinity(0, {there_cpu})
            for _ in range(trips):
                put(get())

        thread = threading.Thread(target=answer)
        thread.start()
        put, get = there.put, back.get
        for i in range(trips):
            put(i)
            assert get() == i
        thread.join()

    bare = futex.round_trips(trips=5000, rounds=3, cpus=(here, there_cpu))
    os.sched_setaffinity(0, {here})
    try:
        run(benchmark, contender, name, ours, trips, work)
    finally:
        os.sched_setaffinity(0, everywhere)
    if bare:
        benchmark.extra_info["futex_round_trip_ns"] = bare["threads"] * 1e9
        if benchmark.stats:
            benchmark.extra_info["times_futex"] = benchmark.stats.stats.median / trips / bare["threads"]


@pytest.mark.parametrize("batch", [1, 256])
def test_get_many_against_get(benchmark: Any, contender: Any, batch: int) -> None:
    """Only the taking is timed: 100 000 items, in batches or one by one."""
    benchmark.group = "queue taking 100 000 items, one thread"
    n = 100_000
    q: Queue[int] = Queue()
    items = list(range(n))  # kept: not their deallocation is measured

    def fill() -> None:
        q.put_many(items)

    def singly() -> None:
        get = q.get
        for _ in range(n):
            get()

    def batched() -> None:
        get_many = q.get_many
        while get_many(batch, False) and not q.empty():
            pass

    benchmark.pedantic(singly if batch == 1 else batched, setup=fill, rounds=10, iterations=1)
    contender(benchmark, "get" if batch == 1 else f"get_many({batch})", ours=batch > 1, items=n)
    assert q.empty()
