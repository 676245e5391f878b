"""SharedQueue in one process: every method, serializer, policy and refusal."""

from __future__ import annotations

import copy
import gc
import math
import mmap
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgefast.queues
from edgefast.queues import CorruptedError, Empty, Full, ShutDown
from edgefast.queues._record_base import POLICIES

if edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux":
    pytest.skip("SharedQueue needs the native backend and Linux", allow_module_level=True)

PAIR = np.dtype([("number", "i4"), ("value", "f8")])
Make = Callable[..., Any]

#: Each with the items it carries: a queue by options, and what makes the i-th item.
KINDS: dict[str, tuple[dict[str, Any], Callable[[int], Any]]] = {
    "bytes": ({"itemsize": 40}, lambda i: b"message %d" % i),
    "pickle": ({"itemsize": 400, "serializer": "pickle"}, lambda i: {"number": i}),
    "records": ({"dtype": "i8"}, lambda i: i),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


# ---- moving items --------------------------------------------------------------------------------------------------


def test_first_in_first_out(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(5, **options)
    for i in range(200):
        q.put(item(2 * i))
        q.put_nowait(item(2 * i + 1))
        assert q.qsize() == 2
        assert q.get() == item(2 * i)
        assert q.get_nowait() == item(2 * i + 1)
    assert q.empty()
    assert q.statistics().put_count == q.statistics().get_count == 400


def test_batches(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(131, **options)
    done, got = 0, []
    for n in [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 131]:
        assert q.put_many([item(i) for i in range(done, done + n)]) == n
        done += n
        if n:
            got += list(q.get_many(n))
    assert got == [item(i) for i in range(done)]
    assert q.put_many([item(i) for i in range(200)], block=False) == 131
    assert q.full()
    assert list(q.drain()) == [item(i) for i in range(131)]
    assert len(q.drain()) == 0
    q.put_many([item(i) for i in range(9)])
    assert q.clear() == 9
    assert q.empty()
    assert q.statistics().cleared == 9


def test_a_second_handle_is_the_same_queue(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(5, **options)
    with edgefast.queues.SharedQueue.attach(q.name) as other:
        q.put(item(1))
        other.put(item(2))
        assert other.get() == item(1)
        assert q.get() == item(2)
        assert (other.maxsize, other.itemsize, other.serializer, other.dtype) == (5, q.itemsize, kind, q.dtype)
        assert q.statistics().participants == 2
        assert {p.pid for p in q.participants()} == {os.getpid()}
        assert all(p.alive for p in q.participants())
        for got in (pickle.loads(pickle.dumps(other)), copy.copy(other)):
            got.put(item(3))
            assert q.get() == item(3)
            got.close()
    assert q.statistics().participants == 1
    q.put(item(4))
    assert q.get() == item(4)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 4096, 70_000])
def test_messages_of_every_length(shared: Make, size: int) -> None:
    q = shared(3, itemsize=size)
    for length in {0, 1, size // 2, size - 1, size}:
        message = os.urandom(length)
        for put in (message, bytearray(message), memoryview(message), np.frombuffer(message, "u1")):
            q.put(put)
            got = q.get()
            assert type(got) is bytes
            assert got == message
        q.put_many([message, b"", message])
        assert q.get_many(3) == [message, b"", message]
    with pytest.raises(ValueError, match=f"expected at most {size} bytes, got {size + 1}"):
        q.put(bytes(size + 1))
    with pytest.raises(ValueError, match=f"expected at most {size} bytes, got {size + 2}"):
        q.put_many([b"", bytes(size + 2)])
    assert q.empty()


@pytest.mark.parametrize(
    "dtype",
    [
        "f8",
        ">i2",
        "?",
        "c16",
        "M8[us]",
        "m8[s]",
        "S5",
        "U3",
        "V7",
        PAIR,
        [("a", "u1", 3)],
        [("a b", "u1"), ("ab", "u2"), ("größe", "f4")],
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_every_dtype_and_shape_comes_back(shared: Make, dtype: Any, shape: tuple[int, ...]) -> None:
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, (7, *shape, dtype.itemsize), np.uint8)
    if dtype.kind == "U":
        raw[..., 1::4] = raw[..., 2::4] = raw[..., 3::4] = 0  # code points
    records = np.ascontiguousarray(raw).view(dtype).reshape((7, *shape))
    q = shared(5, dtype=dtype, shape=shape)
    with edgefast.queues.SharedQueue.attach(q.name, dtype=dtype, shape=shape) as other:
        assert (other.dtype, other.shape, other.itemsize) == (dtype, shape, records[:1].nbytes)
        assert q.put_many(records[:5]) == 5
        assert np.asarray(other.get(), dtype).tobytes() == records[:1].tobytes()
        q.put(records[5])
        out = np.zeros((5, *shape), dtype)
        assert other.get_many(out=out) is out
        assert out.tobytes() == records[1:6].tobytes()
        q.put(records[6])
        one = np.zeros(shape, dtype)
        assert other.get(out=one) is one
        assert one.tobytes() == records[6:].tobytes()


def test_records_from_strided_and_foreign_memory(shared: Make) -> None:
    grid = np.arange(48).reshape(6, 8)
    q = shared(20, dtype=grid.dtype, shape=4)
    q.put_many(grid[::2, ::2])
    q.put(grid[1, ::-2])
    frozen = grid[:, :4].copy()
    frozen.flags.writeable = False
    q.put_many(frozen)
    assert q.put_many([[1, 2, 3, 4]]) == 1
    assert q.get_many(3).tolist() == grid[::2, ::2].tolist()
    assert q.get().tolist() == [15, 13, 11, 9]
    assert q.get_many(12).tolist() == [*grid[:, :4].tolist(), [1, 2, 3, 4]]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        [1, (2, {3})],
        np.arange(5.0),
        np.arange(12).reshape(3, 4).T,
        np.arange(10)[::2],
        np.zeros((0, 3)),
        {"a": np.ones(3, "f4"), "b": [np.zeros((2, 2), "c16"), b"bytes" * 20]},
        [np.full(3, i) for i in range(40)],
    ],
    ids=repr,
)
def test_pickles(shared: Make, value: Any) -> None:
    q = shared(3, itemsize=8000, serializer="pickle")
    q.put(value)
    q.put_many([value, value])
    with q.view(2) as items:
        for got in items:
            assert pickle.dumps(got) == pickle.dumps(copy.deepcopy(value))
            del got
        del items
    for got in q.get_many(2):
        assert pickle.dumps(got) == pickle.dumps(copy.deepcopy(value))


def test_arrays_in_pickles_are_aligned_writable_and_their_own(shared: Make) -> None:
    q = shared(2, itemsize=5000, serializer="pickle")
    arrays = [np.arange(9, dtype="u1"), np.arange(5.0), np.arange(100, dtype="c16")]
    frozen = np.arange(7)
    frozen.flags.writeable = False
    q.put([*arrays, frozen])
    got = q.get()
    q.put([np.zeros(300)])
    for mine, theirs in zip(got, [*arrays, frozen], strict=True):
        assert (mine == theirs).all()
        assert mine.flags.aligned
        assert mine.flags.writeable == theirs.flags.writeable
    got[1][:] = 7
    with q.view() as [inside]:
        assert not inside[0].flags.writeable
        assert not inside[0].any()
        del inside


def slot_of(q: Any, message: bytes) -> tuple[Any, int]:
    """The segment, mapped, and where a message is in it."""
    with open(f"/dev/shm/edgefast-{os.geteuid()}-{q.name}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    at = memory.find(message)
    assert at >= 0
    return memory, at


#: A pickle with one buffer of three bytes: version, buffers, bytes of the stream; bytes of the buffer; stream; padding.
GOLDEN_FRAME = bytes.fromhex("01 00 0100 04000000 0300000000000000 8005972e" + "00" * 12) + b"abc"


def test_golden_frame(shared: Make) -> None:
    q = shared(1, itemsize=100, serializer="pickle")
    q.put(pickle.PickleBuffer(bytearray(b"abc")))
    memory, _ = slot_of(q, GOLDEN_FRAME)
    assert bytes(q.get()) == b"abc"
    memory.close()


@pytest.mark.parametrize(
    ("offset", "value", "match"),
    [
        (0, b"\x02", r"version 1, got \(2, 0\)"),
        (1, b"\x01", r"version 1, got \(1, 1\)"),
        (2, b"\xff\xff", "lengths inside its message, got 65535 buffers"),
        (4, b"\xff\xff\xff\xff", "lengths inside its message"),
        (4, b"\x20", "lengths inside its message"),
        (8, b"\x04", "buffer 0 of 4 bytes at 32 of 35"),
        (8, b"\xff" * 8, "buffer 0 of 4611686018427387904 bytes"),
        (8, b"\x00" * 7 + b"\x80", "buffer 0 of 4611686018427387904 bytes"),
    ],
)
def test_lengths_of_frames_are_bounded(shared: Make, offset: int, value: bytes, match: str) -> None:
    for take in (lambda q: q.get(), lambda q: q.get_many(1), lambda q: q.view().__enter__()):
        for itemsize in (100, 10_000):
            q = shared(1, itemsize=itemsize, serializer="pickle")
            q.put(pickle.PickleBuffer(bytearray(b"abc")))
            memory, at = slot_of(q, bytes.fromhex("0100010004000000"))
            memory[at + offset : at + offset + len(value)] = value
            memory.close()
            with pytest.raises(CorruptedError, match=match):
                take(q)
            assert q.empty()


def test_a_pickle_that_does_not_fit(shared: Make) -> None:
    q = shared(2, itemsize=200, serializer="pickle")
    with pytest.raises(ValueError, match=r"item: expected at most 200 bytes pickled, got \d\d\d"):
        q.put(np.zeros(100))
    with pytest.raises(ValueError, match="expected at most 200 bytes pickled"):
        q.put_many([1, "x" * 500])
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        q.put(lambda: 0)
    assert q.empty()
    assert q.put_many([1, 2]) == 2


class Unreadable:
    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise KeyError("refused")


def test_an_item_that_does_not_unpickle_is_gone(shared: Make) -> None:
    q = shared(2, itemsize=200, serializer="pickle")
    q.put(Unreadable())
    q.put(5)
    with pytest.raises(KeyError, match="refused"):
        q.get()
    assert q.get() == 5
    q.put(Unreadable())
    with pytest.raises(KeyError, match="refused"), q.view():
        pass
    assert q.empty()
    assert q.put_many([1, 2], timeout=1) == 2  # both slots are free


# ---- in place ------------------------------------------------------------------------------------------------------


def test_reserve_and_view_records(shared: Make) -> None:
    q = shared(8, dtype=PAIR)
    for _ in range(30):
        with q.reserve(3) as slots:
            assert 1 <= len(slots) <= 3
            n = len(slots)
            slots["number"] = range(n)
        with pytest.raises(ValueError, match="read-only"):
            slots["number"] = 1
        with pytest.raises(KeyError), q.reserve(2):
            raise KeyError
        assert q.qsize() == n
        seen = 0
        while seen < n:
            with q.view(8) as records:
                assert records["number"].tolist() == list(range(seen, seen + len(records)))
                assert not records.flags.writeable
                seen += len(records)
    assert q.empty()
    assert q.put_many(np.zeros(8, PAIR), timeout=5) == 8
    with pytest.raises(KeyError), q.view():
        raise KeyError
    assert q.qsize() == 7


def test_reserve_and_view_messages(shared: Make) -> None:
    q = shared(4, itemsize=10)
    with q.reserve() as [slot]:
        slot[:] = b"0123456789"
    with q.reserve(3, size=4) as slots:
        assert [len(slot) for slot in slots] == [4] * len(slots)
        for slot in slots:
            slot[:] = b"abcd"
    with q.view() as [message]:
        assert message.readonly
        assert bytes(message) == b"0123456789"
    with q.view(8 // 2) as messages:
        assert [bytes(m) for m in messages] == [b"abcd"] * len(messages)
    with pytest.raises(ValueError, match="released"):
        bytes(message)
    with pytest.raises(ValueError, match="size: expected 0 <= size <= 10, got 11"):
        q.reserve(size=11)
    with pytest.raises(TypeError, match="serializer 'pickle'"):
        shared(1, itemsize=100, serializer="pickle").reserve()
    with pytest.raises(TypeError, match="size"):
        shared(1, dtype="i8").reserve(size=3)


def test_others_fill_the_queue_while_a_reservation_is_open(shared: Make) -> None:
    q = shared(2, itemsize=8)

    def late(messages: list[bytes]) -> None:
        with q.reserve(2, timeout=0.02, size=1) as slots:
            for slot in slots:
                slot[:] = b"x"
            assert len(slots) == 2
            assert q.put_many(messages) == len(messages)  # passes the open reservation

    for messages, accepted in (([b"a", b"b"], 0), ([b"a"], 1)):
        with pytest.raises(Full) as caught:
            late(messages)
        assert caught.value.accepted == accepted  # type: ignore[attr-defined]
        assert q.drain() == messages + [b"x"] * accepted
    with q.reserve(2, size=1) as slots:
        slots[0][:] = slots[1][:] = b"x"
        q.put_many([b"a", b"b"])
        threading.Timer(0.03, q.get_many, [2]).start()
    assert q.get_many(2) == [b"x", b"x"]
    q.shutdown()
    q = shared(2, itemsize=8)
    with pytest.raises(ShutDown), q.reserve(size=1):
        q.shutdown()
    assert q.drain() == []


def test_blocks_left_open_by_collected_generators(shared: Make) -> None:
    q = shared(2, itemsize=8)
    q.put(b"x")

    def leak() -> Any:
        with q.view() as [message]:
            yield bytes(message)

    generator = leak()
    assert next(generator) == b"x"
    del generator
    gc.collect()
    assert q.put_many([b"a", b"b"], timeout=5) == 2


def test_close_inside_a_block_is_refused(shared: Make) -> None:
    q = shared(2, itemsize=8)
    with q.reserve(size=1) as [slot]:
        with pytest.raises(BufferError, match="expected no open reserve"):
            q.close()
        slot[:] = b"x"
    assert q.get() == b"x"


# ---- waiting, policies, gate ---------------------------------------------------------------------------------------


def test_full_empty_and_timeouts(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(2, **options)
    for call in (
        lambda: q.get(block=False),
        q.get_nowait,
        lambda: q.get(timeout=0),
        lambda: q.get_many(3, timeout=0.01),
    ):
        with pytest.raises(Empty):
            call()
    start = time.monotonic()
    with pytest.raises(Empty):
        q.get(timeout=0.05)
    assert time.monotonic() - start >= 0.05
    assert q.put_many([item(i) for i in range(3)], block=False) == 2
    assert q.full()
    for call in (
        lambda: q.put(item(3), block=False),
        lambda: q.put_nowait(item(3)),
        lambda: q.put(item(3), timeout=0.02),
    ):
        with pytest.raises(Full):
            call()
    assert q.put_many([item(3)], timeout=0.02) == 0
    assert [q.get(), q.get()] == [item(0), item(1)]
    with pytest.raises(Empty), q.view(timeout=0.01):
        pass
    threading.Timer(0.05, q.put, [item(7)]).start()
    assert q.get(timeout=30) == item(7)
    with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
        q.get(timeout=-1)
    with pytest.raises(TypeError, match="'timeout' must be a number or None, not str"):
        q.put(item(1), timeout="1")


def test_min_items_and_linger(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(8, **options)
    q.put(item(0))
    threading.Timer(0.05, q.put_many, [[item(1), item(2)]]).start()
    assert list(q.get_many(8, min_items=3, linger=30)) == [item(0), item(1), item(2)]
    q.put(item(3))
    start = time.monotonic()
    assert list(q.get_many(8, min_items=2, linger=0.05)) == [item(3)]
    assert time.monotonic() - start >= 0.05
    for bad in ({"min_items": 9}, {"min_items": 0}, {"linger": -1.0}):
        with pytest.raises(ValueError):
            q.get_many(8, **bad)
    with pytest.raises(ValueError, match="max_items"):
        q.get_many(0)
    with pytest.raises(TypeError, match="max_items"):
        q.get_many()


def test_policies(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    items = [item(i) for i in range(5)]
    q = shared(3, policy="error", **options)
    q.put_many(items[:3])
    with pytest.raises(Full):
        q.put(items[3], timeout=100)
    assert q.put_many(items[3:]) == 0
    assert q.statistics().refused >= 1

    q = shared(3, policy="drop_newest", **options)
    assert q.put_many(items) == 3
    q.put(items[4])
    assert q.statistics().dropped_newest == 3
    assert list(q.drain()) == items[:3]

    q = shared(3, policy="drop_oldest", **options)
    assert q.put_many(items[:4]) == 4
    q.put(items[4])
    assert q.statistics().dropped_oldest == 2
    assert list(q.drain()) == items[2:]

    q = shared(3, policy="latest", **options)
    for i in items:
        q.put(i)
    assert q.put_many(items) == 5
    assert q.qsize() == 1
    assert list(q.drain()) == items[4:]


def test_gate(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(8, high_watermark=4, low_watermark=1, **options)
    assert q.watermarks == (4, 1)
    assert q.writable
    assert q.put_many([item(i) for i in range(8)], block=False) == 4
    assert not q.writable
    assert q.full()
    assert not q.wait_writable(timeout=0.01)
    q.get_many(2)
    with pytest.raises(Full):
        q.put_nowait(item(0))
    threading.Timer(0.03, q.get).start()
    assert q.wait_writable(timeout=30)
    assert q.statistics().high_events == 1
    q.set_watermarks(None)
    assert q.watermarks is None
    assert q.put_many([item(i) for i in range(8)], block=False) == 7
    q.clear()
    q.set_watermarks(8)
    assert q.watermarks == (8, 2)
    with edgefast.queues.SharedQueue.attach(q.name) as other:
        assert other.watermarks == (8, 2)
        with pytest.raises(ValueError, match="maxsize"):
            other.maxsize = 7
        other.set_watermarks(None)
        other.maxsize = 2
        assert q.maxsize == 2
        assert q.put_many([item(i) for i in range(8)], block=False) == 2
        with pytest.raises(ValueError, match="expected 1 <= maxsize <= 8, got 9"):
            q.maxsize = 9
    waiter = threading.Thread(target=q.put, args=(item(2),))
    waiter.start()
    time.sleep(0.02)
    q.maxsize = 3  # more room wakes who waits
    waiter.join(30)
    assert not waiter.is_alive()


def test_shutdown(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(2, **options)
    q.put_many([item(0), item(1)])
    with edgefast.queues.SharedQueue.attach(q.name) as other:
        ended: list[str] = []

        def blocked() -> None:
            try:
                other.put(item(2))
            except ShutDown:
                ended.append("put")

        thread = threading.Thread(target=blocked)
        thread.start()
        time.sleep(0.02)
        q.shutdown()
        thread.join(30)
        assert ended == ["put"]
        assert other.is_shutdown
        for call in (lambda: other.put(item(3)), lambda: other.put_many([item(3)]), lambda: other.wait_writable()):
            with pytest.raises(ShutDown):
                call()
        if kind != "pickle":
            with pytest.raises(ShutDown), other.reserve():
                pass
        assert list(other) == [item(0), item(1)]
        for call in (other.get, other.get_nowait, lambda: other.get_many(2), lambda: other.view().__enter__()):
            with pytest.raises(ShutDown):
                call()
    q = shared(2, **options)
    q.put(item(0))
    q.shutdown(immediate=True)
    with pytest.raises(ShutDown):
        q.get()
    assert q.statistics().cleared == 1


def test_ctrl_c_interrupts_a_blocked_call(shared: Make) -> None:
    q = shared(1, itemsize=8)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(call: Callable[[], Any]) -> None:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            call()
        assert time.monotonic() - start < 30
        timer.join()

    try:
        for call in (q.get, lambda: q.get_many(3, min_items=2, linger=30), lambda: q.view(1).__enter__()):
            interrupted(call)
        q.put(b"1")
        for call in (lambda: q.put(b"2"), lambda: q.put_many([b"2"]), lambda: q.reserve(1).__enter__()):
            interrupted(call)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert q.get() == b"1"
    assert q.empty()


def test_threads(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(7, **options)
    got: list[list[Any]] = [[], []]

    def produce(who: int) -> None:
        for i in range(300):
            q.put(item(who * 1000 + i))

    def consume(mine: list[Any]) -> None:
        while True:
            try:
                mine.extend(q.get_many(3))
            except ShutDown:
                return

    producers = [threading.Thread(target=produce, args=(i,)) for i in range(2)]
    consumers = [threading.Thread(target=consume, args=(mine,)) for mine in got]
    for t in (*producers, *consumers):
        t.start()
    for t in producers:
        t.join(60)
    q.shutdown()
    for t in consumers:
        t.join(60)
    everything = got[0] + got[1]
    assert len(everything) == 600
    for who in range(2):
        for mine in got:
            numbers = [x for x in (item(who * 1000 + i) for i in range(300)) if x in mine]
            assert numbers == [x for x in mine if x in numbers]


def test_a_blocked_call_costs_no_cpu(shared: Make) -> None:
    q = shared(1, itemsize=8)
    before = time.process_time()
    with pytest.raises(Empty):
        q.get(timeout=0.5)
    assert time.process_time() - before < 0.1  # a loop that spins would use 0.5


# ---- handles -------------------------------------------------------------------------------------------------------


def test_use_after_close(shared: Make) -> None:
    q = shared(2, itemsize=8)
    q.close()
    q.close()
    assert q.closed
    assert "closed" in repr(q)
    calls: list[Callable[[], Any]] = [
        lambda: q.put(b"x"),
        q.get,
        lambda: q.put_many([b"x"]),
        lambda: q.get_many(1),
        lambda: q.reserve().__enter__(),
        lambda: q.view().__enter__(),
        q.qsize,
        q.empty,
        q.full,
        q.clear,
        q.drain,
        q.shutdown,
        q.statistics,
        q.participants,
        q.recover,
        lambda: q.writable,
        lambda: q.maxsize,
        lambda: q.wait_writable(),
        lambda: q.set_watermarks(1),
        lambda: pickle.dumps(q),
        lambda: next(iter(q)),
        lambda: q.__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


def test_close_ends_the_calls_of_other_threads(shared: Make) -> None:
    q = shared(1, itemsize=8)
    ended: list[str] = []

    def blocked() -> None:
        try:
            q.get()
        except ValueError as error:
            ended.append(str(error))

    threads = [threading.Thread(target=blocked) for _ in range(3)]
    for t in threads:
        t.start()
    time.sleep(0.05)
    q.close()
    for t in threads:
        t.join(30)
    assert len(ended) == 3
    assert all("closed" in e for e in ended)


def test_names_and_lifetime(shared: Make) -> None:
    attach = edgefast.queues.SharedQueue.attach
    q = shared(1, itemsize=8)
    path = f"/dev/shm/edgefast-{os.geteuid()}-{q.name}"
    assert os.stat(path).st_mode & 0o777 == 0o600
    q.close()
    assert not os.path.exists(path)

    name = f"test-{os.getpid()}"
    q = shared(1, itemsize=8, name=name)
    assert q.name == name
    with pytest.raises(FileExistsError, match=name):
        shared(1, itemsize=8, name=name)
    q.put(b"kept")
    q.close()
    with attach(name) as other:
        assert other.get() == b"kept"
    with attach(name) as other:  # leaving the block of who did not make it removes nothing
        other.unlink()
        other.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            attach(name)
        newer = shared(1, itemsize=8, name=name)
        other.unlink()  # the name is another queue's by now
        with attach(name):
            pass
        with pytest.raises(FileNotFoundError, match="expected the queue that was pickled"):
            pickle.loads(pickle.dumps(other))
        newer.unlink()
    with shared(1, itemsize=8, name=name) as q:
        pass
    with pytest.raises(FileNotFoundError):
        attach(name)
    q = shared(1, itemsize=8)
    path = f"/dev/shm/edgefast-{os.geteuid()}-{q.name}"
    assert os.path.exists(path)


def test_a_collected_queue_is_gone() -> None:
    q = edgefast.queues.SharedQueue.create(1, itemsize=8)
    path = f"/dev/shm/edgefast-{os.geteuid()}-{q.name}"
    assert os.path.exists(path)
    del q
    gc.collect()
    assert not os.path.exists(path)


def test_max_participants(shared: Make) -> None:
    q = shared(1, itemsize=8, max_participants=2)
    with edgefast.queues.SharedQueue.attach(q.name) as other:
        with pytest.raises(RuntimeError, match="expected at most 2 participants"):
            edgefast.queues.SharedQueue.attach(q.name)
        other.put(b"x")
    with edgefast.queues.SharedQueue.attach(q.name):
        assert q.get() == b"x"


def test_repr_and_properties(shared: Make) -> None:
    q = shared(9, dtype=PAIR, high_watermark=8, name=f"repr-{os.getpid()}", on_consumer_death="drop")
    q.put((1, 2.5))
    assert repr(q) == f"<SharedQueue 'repr-{os.getpid()}': 1 of 9 records of {PAIR}, gate 8/2>"
    assert repr(shared(9, itemsize=64)).endswith(": 0 of 9 messages of up to 64 bytes>")
    assert repr(shared(9, itemsize=64, serializer="pickle")).endswith(": 0 of 9 pickles of up to 64 bytes>")
    assert (q.policy, q.on_consumer_death, q.max_participants, q.is_shutdown) == ("block", "drop", 64, False)
    assert (q.serializer, q.dtype, q.shape, q.itemsize) == ("records", PAIR, (), PAIR.itemsize)
    assert shared(1, itemsize=3).dtype is None


def test_statistics(shared: Make, kind: str) -> None:
    options, item = KINDS[kind]
    q = shared(4, **options)
    q.put_many([item(i) for i in range(3)])
    q.get()
    s = q.statistics()
    assert (s.current_buffer_used, s.put_count, s.get_count, s.peak) == (2, 3, 1, 3)
    assert (s.max_buffer_size, s.limit, s.writable) == (4, 4, True)
    assert (s.lost, s.redelivered, s.participants) == (0, 0, 1)
    assert s.put_rate > 0
    assert s.bytes_used == 2 * q.itemsize
    assert s.time_to_drain > 0
    q.drain()
    assert q.statistics().time_to_drain == 0
    with pytest.raises(Empty):
        q.get(timeout=0.01)
    assert q.statistics().empty_waits == 1
    assert q.statistics().max_bytes == math.inf


def test_recover_finds_nothing_among_the_living(shared: Make) -> None:
    q = shared(2, itemsize=8)
    with q.reserve():
        assert q.recover() == edgefast.queues.RecoveryReport(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"maxsize": 0, "itemsize": 1}, ValueError, "maxsize"),
        ({"maxsize": 1.5, "itemsize": 1}, TypeError, "maxsize"),
        ({"maxsize": 2**40, "itemsize": 1}, ValueError, "maxsize"),
        ({"maxsize": 1}, TypeError, "expected one of both, got neither"),
        ({"maxsize": 1, "itemsize": 1, "dtype": "i8"}, TypeError, "expected one of both, got both"),
        ({"maxsize": 1, "itemsize": 0}, ValueError, "itemsize"),
        ({"maxsize": 1, "itemsize": "8"}, TypeError, "itemsize"),
        ({"maxsize": 1, "itemsize": 2**40}, ValueError, "itemsize"),
        ({"maxsize": 1, "dtype": "O"}, TypeError, "dtype"),
        ({"maxsize": 1, "dtype": "no such"}, TypeError, "dtype"),
        ({"maxsize": 1, "dtype": "S0"}, ValueError, "at least one byte"),
        ({"maxsize": 1, "dtype": [(f"column {i}", "f8") for i in range(200)]}, ValueError, "description of at most"),
        ({"maxsize": 1, "dtype": "i8", "serializer": "pickle"}, TypeError, "serializer"),
        ({"maxsize": 1, "itemsize": 8, "shape": 3}, TypeError, "shape"),
        ({"maxsize": 1, "dtype": "i8", "shape": 0}, ValueError, "shape"),
        ({"maxsize": 1, "itemsize": 8, "serializer": "json"}, ValueError, "serializer"),
        ({"maxsize": 1, "itemsize": 8, "policy": "wait"}, ValueError, "policy"),
        ({"maxsize": 1, "itemsize": 8, "policy": None}, TypeError, "policy"),
        ({"maxsize": 1, "itemsize": 8, "policy": "latest", "high_watermark": 1}, ValueError, "high_watermark"),
        ({"maxsize": 2, "itemsize": 8, "high_watermark": 3}, ValueError, "high_watermark"),
        ({"maxsize": 2, "itemsize": 8, "low_watermark": 1}, ValueError, "low_watermark"),
        ({"maxsize": 1, "itemsize": 8, "name": "a/b"}, ValueError, "name"),
        ({"maxsize": 1, "itemsize": 8, "name": ""}, ValueError, "name"),
        ({"maxsize": 1, "itemsize": 8, "name": "x" * 101}, ValueError, "name"),
        ({"maxsize": 1, "itemsize": 8, "name": 3}, TypeError, "name"),
        ({"maxsize": 1, "itemsize": 8, "mode": 0o400}, ValueError, "mode"),
        ({"maxsize": 1, "itemsize": 8, "mode": "rw"}, TypeError, "mode"),
        ({"maxsize": 1, "itemsize": 8, "serializer": "pickle", "mode": 0o660}, ValueError, "can run code"),
        ({"maxsize": 1, "itemsize": 8, "max_participants": 0}, ValueError, "max_participants"),
        ({"maxsize": 1, "itemsize": 8, "on_consumer_death": "panic"}, ValueError, "on_consumer_death"),
        ({"maxsize": 2**20, "itemsize": 2**30}, ValueError, "size in bytes"),
        ({"maxsize": 2**14, "itemsize": 2**30}, OSError, "edgefast-"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_arguments(shared: Make, options: dict[str, Any], error: type[Exception], match: str) -> None:
    name = f"bad-{os.getpid()}"
    with pytest.raises(error, match=match):
        shared(**{"name": name, **options})
    assert not os.path.exists(f"/dev/shm/edgefast-{os.geteuid()}-{name}")


def test_bad_items(shared: Make) -> None:
    messages = shared(2, itemsize=8)
    for bad in ("text", None, 3, [1], object()):
        with pytest.raises(TypeError, match="item: expected bytes"):
            messages.put(bad)
        with pytest.raises(TypeError, match="item: expected bytes"):
            messages.put_many([b"", bad])
    for bad in (b"xy", "xy", iter([b"x"]), {b"x": 1}):
        with pytest.raises(TypeError, match="items: expected a sequence"):
            messages.put_many(bad)
    with pytest.raises((TypeError, ValueError, BufferError)):
        messages.put(np.arange(8, dtype="u1")[::2])
    with pytest.raises(TypeError, match="out"):
        messages.get(out=np.zeros(8, "u1"))
    records = shared(2, dtype="i8", shape=2)
    for bad, error in (
        (np.zeros(2), TypeError),
        (np.zeros(3, "i8"), ValueError),
        ("x", TypeError),
        ([0.5, 1], TypeError),
    ):
        with pytest.raises(error, match="value: expected"):
            records.put(bad)
    with pytest.raises(ValueError, match="records: expected shape"):
        records.put_many(np.zeros((2, 3), "i8"))
    with pytest.raises(TypeError, match="out: expected dtype int64"):
        records.get(out=np.zeros(2))
    with pytest.raises(ValueError, match="out: expected"):
        records.get_many(out=np.zeros((2, 3), "i8"))
    for q in (messages, records):
        assert q.empty()
        for n in (0, 3):
            with pytest.raises(ValueError, match="expected 1 <= n <= 2"):
                q.view(n)


def test_attach_checks_what_is_asked_for(shared: Make) -> None:
    attach = edgefast.queues.SharedQueue.attach
    messages, pickles, records = (
        shared(1, itemsize=8),
        shared(1, itemsize=8, serializer="pickle"),
        shared(1, dtype="i4"),
    )
    attach(messages.name, serializer="bytes").close()
    attach(records.name, dtype="i4").close()
    with pytest.raises(ValueError, match="serializer: expected a queue of pickle, got one of bytes"):
        attach(messages.name, serializer="pickle")
    with pytest.raises(ValueError, match="serializer: expected a queue of bytes, got one of pickle"):
        attach(pickles.name, serializer="bytes")
    with pytest.raises(ValueError, match="serializer: expected a queue of records, got one of pickle"):
        attach(pickles.name, dtype="i4")
    with pytest.raises(ValueError, match="dtype: expected a queue of int64 of shape"):
        attach(records.name, dtype="i8")
    with pytest.raises(ValueError, match="dtype: expected a queue of int32 of shape"):
        attach(records.name, dtype="i4", shape=2)
    for bad, error in (("../x", ValueError), (None, TypeError), ("", ValueError)):
        with pytest.raises(error, match="name"):
            attach(bad)
    with pytest.raises(FileNotFoundError, match="never-made"):
        attach("never-made")
    with pytest.raises(TypeError, match="shape"):
        attach(messages.name, shape=3)
    with pytest.raises(TypeError, match=r"SharedQueue\.create"):
        edgefast.queues.SharedQueue()
    for q in (messages, pickles, records):
        assert q.statistics().participants == 1


# ---- properties ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(messages=st.lists(st.binary(max_size=70), max_size=30), batch=st.integers(1, 9))
def test_messages_round_trip(messages: list[bytes], batch: int) -> None:
    with edgefast.queues.SharedQueue.create(32, itemsize=70) as q:
        assert q.put_many(messages) == len(messages)
        got: list[bytes] = []
        while not q.empty():
            got += q.get_many(batch)
        assert got == messages


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(value=VALUES, sizes=st.lists(st.integers(0, 200), max_size=5))
def test_pickles_round_trip(value: Any, sizes: list[int]) -> None:
    arrays = [np.arange(n, dtype="f4") for n in sizes]
    with edgefast.queues.SharedQueue.create(2, itemsize=1 << 16, serializer="pickle") as q:
        q.put((value, arrays))
        got, got_arrays = q.get()
    assert got == value
    assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(got_arrays, arrays, strict=True))


OPERATIONS = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 6)),
    st.tuples(st.just("get"), st.integers(1, 6)),
    st.tuples(st.just("reserve"), st.integers(1, 4)),
    st.tuples(st.just("abort"), st.integers(1, 4)),
    st.tuples(st.just("view"), st.integers(1, 4)),
    st.tuples(st.just("clear"), st.just(0)),
    st.tuples(st.just("limit"), st.integers(1, 8)),
)


@settings(max_examples=150)
@given(policy=st.sampled_from(POLICIES), gate=st.booleans(), operations=st.lists(OPERATIONS, max_size=40))
def test_model(policy: str, gate: bool, operations: list[tuple[str, int]]) -> None:
    """Against a deque: what comes out, how much goes in, the counts."""
    gate = gate and policy in ("block", "error", "drop_newest")
    marks = {"high_watermark": 6, "low_watermark": 2} if gate else {}
    with edgefast.queues.SharedQueue.create(8, dtype="i8", policy=policy, **marks) as q:
        model: deque[int] = deque()
        limit, closed, next_number, taken, put = 8, False, 0, 0, 0

        def room() -> int:
            bound = 1 if policy == "latest" else limit
            bound = min(bound, 6) if gate else bound
            return 0 if closed else max(0, bound - len(model))

        for name, n in operations:
            if name == "put":
                numbers = list(range(next_number, next_number + n))
                next_number += n
                accepted = q.put_many(numbers, block=False)
                if policy in ("drop_oldest", "latest"):
                    assert accepted == n
                    model.extend(numbers)
                    while len(model) > (1 if policy == "latest" else limit):
                        model.popleft()
                else:
                    assert accepted == min(n, room())
                    model.extend(numbers[:accepted])
                put += accepted
            elif name in ("reserve", "abort"):
                if room() == 0 or policy in ("drop_oldest", "latest"):
                    continue
                try:
                    with q.reserve(n, timeout=0) as slots:
                        assert 1 <= len(slots) <= min(n, room())
                        slots[:] = range(next_number, next_number + len(slots))
                        if name == "abort":
                            raise KeyError
                    model.extend(range(next_number, next_number + len(slots)))
                    put += len(slots)
                    next_number += n
                except KeyError:
                    pass
            elif name in ("get", "view"):
                try:
                    if name == "get":
                        got = q.get_many(n, block=False).tolist()
                        assert len(got) == min(n, len(model))
                    else:
                        with q.view(n, timeout=0) as records:
                            got = records.tolist()
                except Empty:
                    assert not model
                    continue
                assert got == [model.popleft() for _ in got]
                taken += len(got)
            elif name == "clear":
                assert q.clear() == len(model)
                model.clear()
            else:
                if gate and n < 6:
                    continue
                q.maxsize = limit = n
            if gate:
                closed = len(model) > 2 if closed else len(model) >= 6
            assert q.qsize() == len(model)
            assert q.full() == (room() == 0)
        s = q.statistics()
        assert s.put_count == put
        assert s.get_count == taken
        assert s.put_count == s.get_count + s.dropped_oldest + s.cleared + s.current_buffer_used
        assert q.drain().tolist() == list(model)
