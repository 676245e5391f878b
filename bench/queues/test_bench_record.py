"""RecordQueue against numpy's own copies, and against queues of objects that carry the same records.

The limit of put_many and get_many is np.copyto of the same bytes between the same three places: source, an array as big
as the queue, destination.
"""

from __future__ import annotations

import queue
import resource
import threading
from collections.abc import Callable
from typing import Any

import futex
import numpy as np
import pytest

from edgefast.queues import IMPLEMENTATION, Queue, RecordQueue, _record_pure

PURE = "edgefast python"
OURS = f"edgefast {IMPLEMENTATION}"


class ArrayRing:
    """What people write by hand: a numpy ring under a lock, no waiting, no bound check that others could use."""

    def __init__(self, dtype: Any, maxsize: int) -> None:
        self.slots, self.head, self.tail = np.empty(maxsize, dtype), 0, 0
        self.lock = threading.Lock()

    def put(self, record: Any) -> None:
        with self.lock:
            if self.tail - self.head == len(self.slots):
                raise queue.Full
            self.slots[self.tail % len(self.slots)] = record
            self.tail += 1

    def get(self) -> Any:
        with self.lock:
            if self.tail == self.head:
                raise queue.Empty
            record = self.slots[self.head % len(self.slots)].copy()
            self.head += 1
            return record


def run(
    benchmark: Any, contender: Any, name: str, ours: bool, items: int, work: Callable[[], Any], **extra: Any
) -> None:
    """Times `work`, which moves `items`, and notes CPU nanoseconds and context switches per item."""

    def usage() -> tuple[float, int]:
        r = resource.getrusage(resource.RUSAGE_SELF)
        return r.ru_utime + r.ru_stime, r.ru_nvcsw

    work()
    cpu, switches = usage()
    rounds = 5
    benchmark.pedantic(work, rounds=rounds, iterations=1)
    cpu_after, switches_after = usage()
    extra["cpu_ns_per_item"] = (cpu_after - cpu) / items / rounds * 1e9
    extra["switches_per_1000_items"] = (switches_after - switches) / items / rounds * 1000
    contender(benchmark, name, ours=ours, items=items, **extra)


def make(name: str, dtype: Any, maxsize: int) -> Any:
    return {OURS: RecordQueue, PURE: _record_pure.RecordQueue}[name](dtype, maxsize)


def random_records(itemsize: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, n * itemsize, np.uint8).view(f"V{itemsize}")


@pytest.mark.parametrize("side", ["put_many", "get_many(out=)"])
@pytest.mark.parametrize(("itemsize", "batch"), [(64, 4096), (1 << 20, 8), (1 << 20, 1)])
@pytest.mark.parametrize("name", ["np.copyto", OURS, PURE])
def test_batches(benchmark: Any, contender: Any, name: str, itemsize: int, batch: int, side: str) -> None:
    benchmark.group = f"RecordQueue {side} of {batch} records of {itemsize} bytes"
    source, out = random_records(itemsize, batch), np.zeros(batch, f"V{itemsize}")
    if name == "np.copyto":
        middle = np.zeros(batch, source.dtype)
        put: Callable[[], Any] = lambda: np.copyto(middle, source)  # noqa: E731
        get: Callable[[], Any] = lambda: np.copyto(out, middle)  # noqa: E731
    else:
        q = make(name, source.dtype, batch)
        put = lambda: q.put_many(source)  # noqa: E731
        get = lambda: q.get_many(out=out)  # noqa: E731
    # Both are done each time, one of them is timed: the caches see the same traffic everywhere.
    timed, before, after = (put, None, get) if side == "put_many" else (get, put, None)

    def setup() -> None:
        if before:
            before()

    def teardown() -> None:
        if after:
            after()

    put()
    get()
    assert out.tobytes() == source.tobytes()
    contender(benchmark, name, ours=name != "np.copyto", bytes=2 * itemsize * batch)
    benchmark.pedantic(timed, setup=setup, teardown=teardown, rounds=400 if itemsize == 64 else 100)


SINGLE = [
    OURS,
    f"{OURS}, get(out=)",
    PURE,
    "edgefast Queue of objects",
    "queue.Queue of objects",
    "numpy ring and a lock",
]


@pytest.mark.parametrize("name", SINGLE)
def test_single_records(benchmark: Any, contender: Any, name: str) -> None:
    benchmark.group = "RecordQueue put+get of one record of 64 bytes, one thread"
    record, out = random_records(64, 1)[0], np.zeros((), "V64")
    array = np.array(record)
    n = 2000 if name == PURE or name.startswith("queue") else 20_000
    makers: dict[str, Callable[[], Any]] = {
        "edgefast Queue of objects": lambda: Queue(1024),
        "queue.Queue of objects": lambda: queue.Queue(1024),
        "numpy ring and a lock": lambda: ArrayRing("V64", 1024),
    }
    q = makers[name]() if name in makers else make(name.split(",")[0], "V64", 1024)
    copies = "objects" in name  # a queue of objects must copy to be independent of the sender

    def work() -> None:
        put, get = q.put, q.get
        for _ in range(n):
            put(array.copy() if copies else array)
            get()

    def in_place() -> None:
        put, get = q.put, q.get
        for _ in range(n):
            put(array)
            get(out=out)

    into_out = name.endswith("get(out=)")
    run(benchmark, contender, name, name.startswith("edgefast"), n, in_place if into_out else work)
    q.put(array)
    assert np.asarray(q.get()).tobytes() == record.tobytes()


@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("name", [OURS, PURE, "queue.Queue of arrays"])
def test_two_threads(benchmark: Any, contender: Any, name: str, batch: int) -> None:
    """One producer, one consumer; the peer passes arrays of `batch` records."""
    benchmark.group = f"RecordQueue 1 producer 1 consumer, 64 bytes, {batch} at a time"
    source = random_records(64, batch)
    repeats = 4000 if name == OURS else 500
    ends: list[bytes] = []

    def work() -> None:
        peer = name not in (OURS, PURE)
        q = queue.Queue(4096 // batch) if peer else make(name, "V64", 4096)

        def produce() -> None:
            for _ in range(repeats):
                if peer:
                    q.put(source.copy())
                else:
                    q.put_many(source)

        thread = threading.Thread(target=produce)
        thread.start()
        out, left, last = np.empty(batch, "V64"), repeats * batch, source
        while left:
            last = q.get() if peer else q.get_many(out=out)
            left -= len(last)
        thread.join()
        ends.append(last[-1].tobytes())

    run(benchmark, contender, name, name in (OURS, PURE), repeats * batch, work)
    assert set(ends) == {source[-1].tobytes()}


@pytest.mark.parametrize("name", [OURS, PURE, "queue.Queue"])
def test_blocked_round_trip(benchmark: Any, contender: Any, name: str) -> None:
    """Two threads that wait for each other; the limit is a bare futex handed back and forth, measured before."""
    benchmark.group = "RecordQueue blocked round trip, two threads"
    trips = 2000
    bare = {}
    if benchmark.enabled and (measured := futex.round_trips()):
        bare["bare_futex_us"] = measured["threads"] * 1e6
    pair = [queue.Queue(1), queue.Queue(1)] if name == "queue.Queue" else [make(name, "i8", 1), make(name, "i8", 1)]
    value = np.zeros((), "i8")
    answers: list[Any] = []

    def answer() -> None:
        for _ in range(trips):
            pair[0].get()
            pair[1].put(value)

    def ask() -> None:
        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(trips):
            pair[0].put(value)
            answers[:] = [pair[1].get()]
        thread.join()

    run(benchmark, contender, name, name != "queue.Queue", trips, ask, **bare)
    assert answers == [0]
