"""RecordQueue: every method, policy and refusal, on the native queue and on its pure-Python twin."""

from __future__ import annotations

import gc
import pickle
import threading
import time
import weakref
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.queues import Empty, Full, RecordQueue, ShutDown
from edgefast.queues._record_base import POLICIES

PAIR = np.dtype([("number", "i4"), ("value", "f8")])


def pairs(*numbers: int) -> np.ndarray:
    return np.array([(n, n / 2) for n in numbers], PAIR)


def numbers_of(records: np.ndarray) -> list[int]:
    assert (records["value"] == records["number"] / 2).all()
    return records["number"].tolist()


# ---- copies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["f8", ">i2", "?", "c16", "M8[us]", "m8[s]", "S5", "U3", "V7", PAIR, [("a", "u1", 3)]]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_every_dtype_and_shape_comes_back(record_class: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    dtype = np.dtype(dtype)
    raw = rng.integers(0, 2 if dtype.kind == "b" else 100, (7, *shape, dtype.itemsize), np.uint8)
    if dtype.kind == "U":
        raw[..., 1::4] = raw[..., 2::4] = raw[..., 3::4] = 0  # code points
    records = np.ascontiguousarray(raw).view(dtype).reshape((7, *shape))
    q = record_class(dtype, 5, shape=shape)
    assert q.dtype == dtype
    assert q.shape == shape
    assert q.itemsize == records[:1].nbytes
    assert q.put_many(records[:5]) == 5
    first = q.get()
    assert np.asarray(first).dtype == (dtype if shape else dtype.newbyteorder("=") if dtype.names is None else dtype)
    assert np.asarray(first, dtype).tobytes() == records[:1].tobytes()
    q.put(records[5])  # wraps around
    out = np.zeros((5, *shape), dtype)
    assert q.get_many(out=out) is out
    assert out.tobytes() == records[1:6].tobytes()
    q.put(records[6])
    one = np.zeros(shape, dtype)
    assert q.get(out=one) is one
    assert one.tobytes() == records[6:].tobytes()


def test_subarray_dtype_is_a_shape(record_class: Any) -> None:
    q = record_class(("f4", (2, 2)), 3, shape=5)
    assert q.dtype == np.dtype("f4")
    assert q.shape == (5, 2, 2)
    q.put(np.ones((5, 2, 2), "f4"))
    assert q.get().sum() == 20


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 131])
def test_batches_of_all_sizes_wrap(record_class: Any, n: int) -> None:
    q = record_class("i8", 131)
    values, done, got = np.arange(1000), 0, []
    while done < 1000 - n:
        assert q.put_many(values[done : done + n]) == n
        done += n
        if n == 0:
            break
        got += q.get_many(n).tolist() if n % 2 else q.get_many(131, min_items=1).tolist()
        if n > 131:
            break
    assert got == list(range(len(got)))


def test_python_values(record_class: Any) -> None:
    q = record_class(PAIR, 4)
    q.put((1, 0.5))
    assert q.put_many([(2, 1.0), (3, 1.5)]) == 2
    assert numbers_of(q.get_many(4)) == [1, 2, 3]
    f = record_class("f4", 4)
    f.put(1)
    f.put(2.5)
    assert f.put_many([3, 4.5]) == 2
    assert f.put_many([]) == 0
    assert f.get_many(9).tolist() == [1, 2.5, 3, 4.5]


def test_strided_and_read_only_sources(record_class: Any) -> None:
    grid = np.arange(48).reshape(6, 8)
    q = record_class(grid.dtype, 20, shape=4)
    q.put_many(grid[::2, ::2])
    q.put(grid[1, ::-2])
    frozen = grid[:, :4].copy()
    frozen.flags.writeable = False
    q.put_many(frozen)
    q.put_many(np.asfortranarray(grid[:, 4:]))
    assert q.get_many(3).tolist() == grid[::2, ::2].tolist()
    assert q.get().tolist() == [15, 13, 11, 9]
    assert q.get_many(12).tolist() == [*grid[:, :4].tolist(), *grid[:, 4:].tolist()]


def test_big_records_without_the_gil(record_class: Any) -> None:
    q = record_class("u1", 3, shape=(1 << 20,))
    images = np.repeat(np.arange(8, dtype="u1")[:, None], 1 << 20, axis=1)
    feeder = threading.Thread(target=q.put_many, args=(images,))
    feeder.start()
    for i in range(8):
        image = q.get()
        assert (image == i).all()
    feeder.join()


# ---- waiting -------------------------------------------------------------------------------------------------------


def test_full_empty_and_timeouts(record_class: Any) -> None:
    q = record_class("i8", 2)
    with pytest.raises(Empty):
        q.get(block=False)
    with pytest.raises(Empty):
        q.get_many(3, timeout=0.01)
    start = time.monotonic()
    with pytest.raises(Empty):
        q.get(timeout=0.05)
    assert time.monotonic() - start >= 0.05
    assert q.put_many([1, 2, 3], block=False) == 2
    assert q.full()
    with pytest.raises(Full):
        q.put(3, block=False)
    with pytest.raises(Full):
        q.put(3, timeout=0.01)
    assert q.put_many([3], timeout=0.01) == 0
    assert q.get_many(5).tolist() == [1, 2]
    assert q.empty()


def test_put_waits_for_get_and_get_for_put(record_class: Any) -> None:
    q = record_class("i8", 1)
    got: list[int] = []
    consumer = threading.Thread(target=lambda: got.extend(int(q.get()) for _ in range(100)))
    consumer.start()
    assert q.put_many(np.arange(100)) == 100
    consumer.join()
    assert got == list(range(100))


def test_min_items_and_linger(record_class: Any) -> None:
    q = record_class("i8", 10)
    q.put(0)
    start = time.monotonic()
    assert q.get_many(5, min_items=3, linger=0.05).tolist() == [0]
    assert time.monotonic() - start >= 0.05
    q.put(1)
    late = threading.Timer(0.05, q.put_many, ([2, 3],))
    late.start()
    assert q.get_many(5, min_items=3, linger=30).tolist() == [1, 2, 3]
    late.join()
    q.put(4)
    assert q.get_many(5, min_items=3).tolist() == [4]  # no linger, no waiting
    threading.Timer(0.02, q.shutdown).start()
    with pytest.raises(ShutDown):
        q.get_many(5, min_items=3, linger=30)


def test_a_lingering_getter_does_not_eat_a_wake_up(record_class: Any) -> None:
    q = record_class("i8", 10)
    q.put(0)
    lingering = threading.Thread(target=lambda: q.get_many(10, min_items=10, linger=0.3))
    lingering.start()
    time.sleep(0.05)
    q.put(1)  # wakes the lingering one; whoever waits for room or records must not be forgotten
    lingering.join()
    waiting = threading.Thread(target=q.get)
    waiting.start()
    q.put(2)
    waiting.join(10)
    assert not waiting.is_alive()


def test_shutdown(record_class: Any) -> None:
    q = record_class("i8", 2)
    q.put_many([1, 2])
    errors: list[type] = []

    def blocked(call: Any) -> None:
        try:
            call()
        except Exception as error:
            errors.append(type(error))

    threads = [threading.Thread(target=blocked, args=(lambda: q.put(3),)) for _ in range(3)]
    for t in threads:
        t.start()
    time.sleep(0.02)
    q.shutdown()
    for t in threads:
        t.join()
    assert errors == [ShutDown] * 3
    assert q.is_shutdown
    with pytest.raises(ShutDown):
        q.put(3)
    with pytest.raises(ShutDown):
        q.put_many([3])
    with pytest.raises(ShutDown), q.reserve():
        pass
    with pytest.raises(ShutDown):
        q.wait_writable()
    assert list(q) == [1, 2]
    for call in (q.get, lambda: q.get(block=False), lambda: q.get_many(2), lambda: q.get_many(2, block=False)):
        with pytest.raises(ShutDown):
            call()
    with pytest.raises(ShutDown), q.view():
        pass


def test_shutdown_immediate_discards(record_class: Any) -> None:
    q = record_class("i8", 4)
    q.put_many([1, 2])
    waiting = record_class("i8", 4)
    got: list[str] = []
    threads = [threading.Thread(target=lambda: got.extend(map(str, waiting))) for _ in range(2)]
    for t in threads:
        t.start()
    q.shutdown(immediate=True)
    waiting.shutdown(immediate=True)
    for t in threads:
        t.join()
    assert got == []
    assert q.qsize() == 0
    assert q.statistics().cleared == 2
    with pytest.raises(ShutDown):
        q.get()


# ---- policies and the gate ------------------------------------------------------------------------------------------


def test_drop_newest(record_class: Any) -> None:
    q = record_class("i8", 2, policy="drop_newest")
    q.put(1)
    assert q.put_many([2, 3, 4]) == 1
    q.put(5)
    assert q.get_many(5).tolist() == [1, 2]
    assert q.statistics().put_count == 2


def test_drop_oldest(record_class: Any) -> None:
    q = record_class("i8", 2, policy="drop_oldest")
    assert q.put_many([1, 2, 3, 4, 5]) == 5
    q.put(6)
    assert q.get_many(5).tolist() == [5, 6]
    assert q.statistics().put_count == 6
    assert q.statistics().get_count == 2


def test_latest(record_class: Any) -> None:
    q = record_class("i8", 4, policy="latest")
    assert q.put_many([1, 2, 3]) == 3
    q.put(4)
    assert q.qsize() == 1
    assert q.get() == 4
    with pytest.raises(Empty):
        q.get(block=False)


def test_error(record_class: Any) -> None:
    q = record_class("i8", 1, policy="error")
    q.put(1)
    with pytest.raises(Full):
        q.put(2)
    assert q.put_many([2]) == 0
    assert q.statistics().refused == 2


def test_drop_policies_do_not_wait_for_open_slots(record_class: Any) -> None:
    for policy in ("drop_oldest", "latest"):
        q = record_class("i8", 1, policy=policy)
        q.put(1)
        with q.view() as held:
            q.put(2)  # its place is being read: dropped, not waited for
            assert held.tolist() == [1]
        assert q.qsize() == 0
        with q.reserve() as slots:
            q.put(3)  # the oldest is being written
            slots[:] = 4
        assert q.get() == 4


def test_gate(record_class: Any) -> None:
    q = record_class("i8", 10, high_watermark=4, low_watermark=1)
    assert q.watermarks == (4, 1)
    assert q.put_many(np.arange(10), block=False) == 4
    assert q.full()
    assert not q.writable
    assert not q.wait_writable(0.01)
    q.get_many(2)
    with pytest.raises(Full):
        q.put(9, block=False)
    q.get()
    assert q.writable
    assert q.wait_writable()
    q.put(9)
    assert q.statistics().high_events == 1
    assert record_class("i8", 8, high_watermark=8).watermarks == (8, 2)
    q.set_watermarks(None)
    assert q.put_many(np.arange(10), block=False) == 8


def test_blocked_producer_waits_for_low(record_class: Any) -> None:
    q = record_class("i8", 10, high_watermark=4, low_watermark=0)
    producer = threading.Thread(target=q.put_many, args=(np.arange(8),))
    watcher_saw: list[bool] = []
    producer.start()
    while q.qsize() < 4:
        time.sleep(0.001)
    watcher = threading.Thread(target=lambda: watcher_saw.append(q.wait_writable(10)))
    watcher.start()
    assert [int(q.get()) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.02)
    assert q.qsize() == 1
    assert [int(q.get()) for _ in range(5)] == [3, 4, 5, 6, 7]
    producer.join()
    watcher.join()
    assert watcher_saw == [True]


def test_maxsize_may_change(record_class: Any) -> None:
    q = record_class("i8", 5)
    q.put_many(np.arange(5))
    q.maxsize = 2
    assert q.maxsize == 2
    assert q.full()
    q.get_many(4)
    q.put(9)
    assert q.full()
    blocked = threading.Thread(target=q.put, args=(10,))
    blocked.start()
    time.sleep(0.02)
    assert blocked.is_alive()
    q.maxsize = 5
    blocked.join(10)
    assert q.get_many(9).tolist() == [4, 9, 10]
    with pytest.raises(ValueError, match=r"maxsize: expected 1 <= maxsize <= 5, got 6"):
        q.maxsize = 6


# ---- in place --------------------------------------------------------------------------------------------------------


def test_reserve_and_view(record_class: Any) -> None:
    q = record_class(PAIR, 4)
    with q.reserve(3) as slots:
        assert slots.shape == (3,)
        slots[:] = pairs(1, 2, 3)
        with pytest.raises(Empty):
            q.get(block=False)
        q.put((4, 2.0))  # behind the reservation
        with pytest.raises(Empty):
            q.get(block=False)
    with pytest.raises(ValueError, match="read-only"):
        slots["number"] = 9
    with q.view(2) as records:
        assert numbers_of(records) == [1, 2]
        with pytest.raises(ValueError, match="read-only"):
            records["number"] = 9
        with pytest.raises(Full):
            q.put((5, 2.5), block=False)  # the slots are still being read
    with q.view(4) as records:
        assert numbers_of(records) == [3, 4]
    with q.reserve(4) as slots:
        slots[:] = pairs(5, 6, 7, 8)
    assert numbers_of(q.get_many(9)) == [5, 6, 7, 8]


def test_pieces_end_where_the_memory_ends(record_class: Any) -> None:
    q = record_class("i8", 4, shape=2)
    q.put_many(np.zeros((3, 2), "i8"))
    q.get_many(3)
    with q.reserve(3) as slots:
        assert slots.shape == (1, 2)
        slots[:] = 1
    with q.reserve(3) as slots:
        assert slots.shape == (3, 2)
        slots[:] = 2
    with q.view(4) as records:
        assert records.tolist() == [[1, 1]]
    with q.view(4) as records:
        assert records.tolist() == [[2, 2]] * 3


def test_an_exception_aborts_a_reservation(record_class: Any) -> None:
    q = record_class("i8", 3)
    q.put(1)
    with pytest.raises(ValueError, match="broadcast"), q.reserve(2) as slots:
        slots[:] = [7, 7, 7]
    assert q.get() == 1
    assert q.put_many([2, 3, 4], block=False) == 3  # the aborted places are free again
    assert q.get_many(5).tolist() == [2, 3, 4]
    statistics = q.statistics()
    assert (statistics.put_count, statistics.get_count) == (4, 4)


def test_an_exception_in_a_view_frees_the_slots(record_class: Any) -> None:
    q = record_class("i8", 1)
    q.put(1)
    with pytest.raises(ValueError, match="read-only"), q.view() as records:
        records[:] = 0
    q.put(2, block=False)
    assert q.get() == 2


def test_an_aborted_reservation_lets_producers_go(record_class: Any) -> None:
    q = record_class("i8", 2)
    producer = threading.Thread(target=q.put, args=(5,))

    def fail() -> None:
        with q.reserve(2):
            producer.start()
            time.sleep(0.02)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    producer.join(10)
    assert q.get() == 5


def test_a_forgotten_reservation_is_aborted(record_class: Any) -> None:
    q = record_class("i8", 1)
    opened = q.reserve()
    opened.__enter__()
    with pytest.raises(RuntimeError, match="got one that is open"):
        opened.__enter__()
    del opened
    gc.collect()
    q.put(1, block=False)
    viewed = q.view()
    viewed.__enter__()
    del viewed
    gc.collect()
    q.put(2, block=False)
    assert q.get() == 2


def test_the_memory_outlives_the_queue(record_class: Any) -> None:
    q = record_class("i8", 4)
    q.put_many([1, 2, 3])
    with q.view(3) as records:
        alive = weakref.ref(q)
        del q
        gc.collect()
        assert records.sum() == 6
    del records
    gc.collect()
    assert alive() is None


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_clear_and_statistics(record_class: Any) -> None:
    q = record_class("u1", 4, shape=16, high_watermark=3, name="frames")
    q.put_many(np.zeros((2, 16), "u1"))
    assert q.clear() == 2
    q.put(np.zeros(16, "u1"))
    s = q.statistics()
    assert (s.current_buffer_used, s.max_buffer_size, s.high_watermark, s.low_watermark) == (1, 4, 3, 0)
    assert (s.put_count, s.get_count, s.cleared, s.peak, s.unfinished_tasks) == (3, 0, 2, 2, 0)
    assert s.writable
    assert s.time_to_drain == float("inf")
    assert "frames" in repr(q)
    assert "1 of 4 records of (16,) of uint8, gate 3/0" in repr(q)
    q.get()
    assert q.statistics().time_to_drain == 0


def test_sojourn_is_sampled(record_class: Any) -> None:
    q = record_class("i8", 100)
    q.put_many(np.arange(100))
    time.sleep(0.02)
    q.get_many(100)
    sojourn = q.statistics().sojourn
    assert sojourn is not None
    assert sojourn >= 0.02


def test_weak_references_subclasses_pickling(record_class: Any) -> None:
    class Mine(record_class):
        extra = 1

    q = Mine("i8", 3)
    q.tag = "x"
    assert weakref.ref(q)() is q
    q.put(1)
    assert q.get() == 1
    with pytest.raises(TypeError, match="cannot pickle Mine"):
        pickle.dumps(q)


BAD_QUEUES: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (("O", 3), {}, TypeError, "dtype: expected one of plain values"),
    (([("a", "O")], 3), {}, TypeError, "dtype: expected one of plain values"),
    (("nonsense", 3), {}, TypeError, "dtype: expected a numpy dtype"),
    (("S0", 3), {}, ValueError, "expected records of at least one byte"),
    (("i8", 0), {}, ValueError, "maxsize: expected 1 <= maxsize"),
    (("i8", -1), {}, ValueError, "maxsize: expected 1 <= maxsize"),
    (("i8", 1.5), {}, TypeError, "maxsize: expected an integer, got float"),
    (("i8", True), {}, TypeError, "maxsize: expected an integer, got bool"),
    (("i8", 3), {"shape": (0,)}, ValueError, "shape: expected 1 <= shape"),
    (("i8", 3), {"shape": "x"}, TypeError, "shape: expected an integer, got str"),
    (("i8", 3), {"policy": "spill"}, ValueError, "policy: expected one of block, drop_newest"),
    (("i8", 3), {"policy": 1}, TypeError, "policy: expected a string, got int"),
    (("i8", 3), {"high_watermark": 4}, ValueError, "high_watermark: expected 1 <= high_watermark <= 3, got 4"),
    (("i8", 3), {"high_watermark": 2, "low_watermark": 2}, ValueError, "low_watermark: expected 0 <= low"),
    (("i8", 3), {"low_watermark": 2}, ValueError, "low_watermark: expected None without"),
    (("i8", 3), {"policy": "latest", "high_watermark": 2}, ValueError, "expected None with policy 'latest'"),
    (("i8", 3), {"name": 7}, TypeError, "name: expected a string or None, got int"),
    (("V4096", 2**47), {}, MemoryError, "maxsize: expected room for"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "message"), BAD_QUEUES, ids=lambda v: str(v)[:40])
def test_bad_queues(record_class: Any, args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        record_class(*args, **kwargs)


BAD_CALLS: list[tuple[Any, type[Exception], str]] = [
    (lambda q: q.put(np.int16(1)), TypeError, "value: expected dtype int32, got int16"),
    (lambda q: q.put(np.zeros(2, "f4")), TypeError, "value: expected dtype int32, got float32"),
    (lambda q: q.put(np.zeros(3, "i4")), ValueError, r"value: expected a record of shape \(2,\), got \(3,\)"),
    (lambda q: q.put([1.5, 2]), TypeError, "value: expected values for int32, got float64"),
    (lambda q: q.put([1, 2**40]), ValueError, "value: expected values for int32"),
    (lambda q: q.put(["a", "b"]), TypeError, "value: expected values for int32"),
    (lambda q: q.put(object()), TypeError, "value: expected values for int32"),
    (lambda q: q.put_many(np.zeros((2, 2), ">i4")), TypeError, "records: expected dtype int32, got >i4"),
    (lambda q: q.put_many(np.zeros((2, 3), "i4")), ValueError, r"records: expected shape \(n, 2\), got \(2, 3\)"),
    (lambda q: q.put_many(np.zeros((), "i4")), ValueError, r"records: expected shape \(n, 2\), got \(\)"),
    (lambda q: q.put_many(iter([[1, 2]])), TypeError, "records: expected an array or a list, got list_iterator"),
    (lambda q: q.put_many("ab"), TypeError, "records: expected an array or a list, got str"),
    (lambda q: q.put([1, 2], timeout=-1), ValueError, "'timeout' must be a non-negative number"),
    (lambda q: q.put([1, 2], timeout="x"), TypeError, "'timeout' must be a number or None"),
    (lambda q: q.get(timeout=float("nan")), ValueError, "'timeout' must be a non-negative number"),
    (lambda q: q.get(out=np.zeros(2, "i8")), TypeError, "out: expected dtype int32, got int64"),
    (lambda q: q.get(out=np.zeros(3, "i4")), ValueError, r"out: expected shape \(2,\), got \(3,\)"),
    (lambda q: q.get(out=np.zeros(4, "i4")[::2]), ValueError, "out: expected a writable C-contiguous array"),
    (lambda q: q.get(out=np.frombuffer(b"12345678", "i4")), ValueError, "out: expected a writable C-contiguous array"),
    (lambda q: q.get(out=[0, 0]), TypeError, "out: expected an array, got list"),
    (lambda q: q.get_many(), TypeError, "max_items: expected an integer, or an array for out, got neither"),
    (lambda q: q.get_many(0), ValueError, "max_items: expected 1 <= max_items"),
    (lambda q: q.get_many(2.0), TypeError, "max_items: expected an integer, got float"),
    (lambda q: q.get_many(3, out=np.zeros((2, 2), "i4")), ValueError, r"max_items: expected at most len\(out\) = 2"),
    (lambda q: q.get_many(out=np.zeros((2, 3), "i4")), ValueError, r"out: expected shape \(2, 2\), got \(2, 3\)"),
    (lambda q: q.get_many(out=np.zeros((), "i4")), ValueError, "out: expected at least one dimension"),
    (lambda q: q.get_many(2, min_items=3), ValueError, "min_items: expected 1 <= min_items <= 2, got 3"),
    (lambda q: q.get_many(2, linger=-1), ValueError, "'linger' must be a non-negative number"),
    (lambda q: q.reserve(0), ValueError, "n: expected 1 <= n <= 5, got 0"),
    (lambda q: q.reserve(6), ValueError, "n: expected 1 <= n <= 5, got 6"),
    (lambda q: q.view("1"), TypeError, "n: expected an integer, got str"),
    (lambda q: q.reserve(1, timeout=-1), ValueError, "'timeout' must be a non-negative number"),
    (lambda q: q.set_watermarks(9), ValueError, "high_watermark: expected 1 <= high_watermark <= 5, got 9"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD_CALLS)
def test_bad_calls_change_nothing(record_class: Any, call: Any, error: type[Exception], message: str) -> None:
    q = record_class("i4", 5, shape=2)
    q.put([7, 8])
    with pytest.raises(error, match=message):
        call(q)
    assert q.statistics().put_count == 1
    assert q.get().tolist() == [7, 8]
    assert q.empty()


def test_the_public_class_is_one_of_the_two() -> None:
    from edgefast.queues import IMPLEMENTATION

    assert RecordQueue.__module__.startswith("edgefast.queues")
    assert (RecordQueue.__name__, IMPLEMENTATION in ("native", "python")) == ("RecordQueue", True)


# ---- against a deque -----------------------------------------------------------------------------------------------

OPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 6)),
        st.tuples(st.just("get"), st.integers(1, 6)),
        st.tuples(st.just("reserve"), st.integers(1, 3)),
        st.tuples(st.just("view"), st.integers(1, 3)),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=60)
@given(ops=OPS, maxsize=st.sampled_from([1, 2, 3, 5, 63, 64, 65]), policy=st.sampled_from(POLICIES))
def test_model(record_class: Any, ops: list[tuple[str, int]], maxsize: int, policy: str) -> None:
    q = record_class(PAIR, maxsize, policy=policy)
    model: deque[int] = deque()
    bound, counter, dropped = 1 if policy == "latest" else maxsize, 0, 0
    for op, n in ops:
        n = min(n, maxsize)
        if op == "put":
            numbers = list(range(counter, counter + n))
            counter += n
            accepted = q.put_many(pairs(*numbers), block=False)
            fits = n if policy in ("drop_oldest", "latest") else min(n, bound - len(model))
            assert accepted == fits
            model.extend(numbers[:fits])
            while len(model) > bound:
                model.popleft()
                dropped += 1
        elif op == "get":
            if not model:
                with pytest.raises(Empty):
                    q.get_many(n, block=False)
            else:
                got = numbers_of(q.get_many(n, block=False))
                assert got == [model.popleft() for _ in range(min(n, len(model)))]
        elif op == "reserve" and len(model) < bound:
            with q.reserve(n, timeout=0) as slots:
                assert 1 <= len(slots) <= min(n, bound - len(model))
                numbers = list(range(counter, counter + len(slots)))
                counter += len(slots)
                slots[:] = pairs(*numbers)
            model.extend(numbers)
        elif op == "view" and model:
            with q.view(n, timeout=0) as records:
                assert numbers_of(records) == [model.popleft() for _ in range(len(records))]
        elif op == "clear":
            assert q.clear() == len(model)
            model.clear()
        assert q.qsize() == len(model)
        assert q.full() == (len(model) >= bound)
    if hasattr(q.statistics(), "dropped_oldest"):
        assert q.statistics().dropped_oldest == dropped
