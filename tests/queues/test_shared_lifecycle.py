"""SharedQueue and what happens around a call: signal handlers, close(), garbage collection, other threads, forks."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import math
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edgefast.queues

if edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux":
    pytest.skip("SharedQueue needs the native backend and Linux", allow_module_level=True)

from edgefast.queues import Full, RecordQueue, SharedQueue, ShutDown, _shared_base, list_shared

Make = Callable[..., Any]

# The pytest process has threads of other tests (hypothesis, timeouts): CPython 3.12 warns when it forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.002)


def in_child(work: Callable[[], Any]) -> int:
    """The wait status of a forked child that did it: 0 when nothing was raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


class Struck(Exception):
    pass


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], Any]], None]]:
    before = signal.getsignal(signal.SIGUSR1)

    def install(handler: Callable[[], Any]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: handler())

    yield install
    signal.signal(signal.SIGUSR1, before)


def strike_when(condition: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        until(condition)
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_ctrl_c_in_create_leaves_no_segment(ctrl_c_at_every_line: Callable[..., Iterator[int]]) -> None:
    name = f"interrupted-{os.getpid()}"

    def work() -> None:
        q = SharedQueue.create(4, itemsize=16, name=name)
        sys.settrace(None)
        q.unlink()
        q.close()

    steps = 0
    for steps in ctrl_c_at_every_line(work, _shared_base):
        assert name not in [segment.name for segment in list_shared()], steps
    assert steps > 30


# ---- signal handlers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "get_big", "get_records", "put", "view", "reserve", "commit", "wait_writable"])
def test_a_signal_handler_may_close_the_queue_that_waits(shared: Make, on_signal: Any, call: str) -> None:
    options: dict[str, Any] = {"dtype": "f4"} if call == "get_records" else {"itemsize": 8}
    if call == "get_big":
        options["itemsize"] = 5000
    if call == "wait_writable":
        options.update(high_watermark=1, low_watermark=0)
    q = shared(1, **options)
    watcher = SharedQueue.attach(q.name)
    if call in {"put", "reserve", "wait_writable"}:
        q.put(b"x")
    on_signal(q.close)
    statistics = watcher.statistics
    striker = strike_when(lambda: statistics().tasks_waiting_receive or statistics().tasks_waiting_send)

    def reserve(then: Callable[[], Any]) -> None:
        with q.reserve(timeout=60):
            then()

    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: q.put(b"x", timeout=60),
        "reserve": lambda: reserve(lambda: None),
        "commit": lambda: reserve(lambda: watcher.put(b"x")),
        "view": lambda: q.view(timeout=60).__enter__(),
        "wait_writable": lambda: q.wait_writable(60),
        "get_records": lambda: q.get_many(1, timeout=60),
    }
    with pytest.raises(ValueError, match="expected an open queue, got a closed one"):
        calls.get(call, lambda: q.get(timeout=60))()
    striker.join()
    assert q.closed
    assert len(watcher.participants()) == 1
    watcher.close()


def test_a_signal_handler_may_use_the_queue_that_waits(shared: Make, on_signal: Any) -> None:
    q = shared(4, itemsize=8)
    on_signal(lambda: q.put(b"handler"))
    striker = strike_when(lambda: q.statistics().tasks_waiting_receive)
    assert q.get(timeout=60) == b"handler"
    striker.join()
    assert q.statistics().empty_waits <= 1  # however often it was interrupted


@pytest.mark.parametrize("side", ["get", "put"])
def test_a_signal_that_does_not_end_the_sleep_is_handled_soon(shared: Make, on_signal: Any, side: str) -> None:
    # As one that comes between the last look and the sleep: here it goes to another thread.
    q = shared(1, itemsize=8)
    if side == "put":
        q.put(b"x")

    def handler() -> None:
        raise Struck

    on_signal(handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            until(lambda: q.statistics().tasks_waiting_receive or q.statistics().tasks_waiting_send)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.5)

        thread = threading.Thread(target=run)
        thread.start()
        begin = time.monotonic()
        with pytest.raises(Struck):
            q.get(timeout=30) if side == "get" else q.put(b"y", timeout=30)
        assert time.monotonic() - begin < 10
        thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_a_long_wait_counts_once(shared: Make) -> None:
    q = shared(1, itemsize=8)
    threading.Timer(0.7, q.put, [b"x"]).start()
    assert q.get(timeout=60) == b"x"
    assert q.statistics().empty_waits == 1


# ---- close() ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [True, False])
def test_close_while_a_block_is_being_opened(shared: Make, writes: bool) -> None:
    q = shared(1, itemsize=8)
    other = SharedQueue.attach(q.name)
    if writes:
        other.put(b"old")
    entered: list[bool] = []
    errors: list[BaseException] = []

    def open_block() -> None:
        try:
            with q.reserve(timeout=60) if writes else q.view(timeout=60):
                entered.append(True)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=open_block)
    thread.start()
    until(lambda: other.statistics().tasks_waiting_send or other.statistics().tasks_waiting_receive)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60)  # the thread gets its slot, but not the GIL, before close() has begun
    try:
        if writes:
            assert other.get() == b"old"
        else:
            other.put(b"new")
        end = time.perf_counter() + 0.05
        while time.perf_counter() < end:
            pass
        q.close()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert not entered
    assert "closed" in str(errors[0])
    s = other.statistics()
    assert (s.put_count, s.get_count, s.lost) == ((1, 1, 0) if writes else (1, 0, 0))
    if not writes:
        assert other.get(timeout=60) == b"new"
    other.close()


@pytest.mark.parametrize("cls", [SharedQueue, type("Sub", (SharedQueue,), {"__init__": lambda self: None})])
def test_an_object_without_a_queue_is_a_closed_one(cls: Any) -> None:
    q = cls.__new__(cls)
    if cls is not SharedQueue:
        q.__init__()
    assert q.closed
    for call in (
        q.qsize, q.get_nowait, q.clear, q.recover, q.participants, q.shutdown, q.drain, q.empty, q.full,
        lambda: q.is_shutdown, lambda: q.writable, lambda: q.maxsize, lambda: q.put_nowait(b""),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected an open queue, got a closed one"):
            call()


# ---- garbage collection -------------------------------------------------------------------------------------------


class Cycle:
    pass


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("kind", ["shared", "record"])
def test_an_open_block_in_garbage_is_given_up(shared: Make, kind: str, writes: bool) -> None:
    q: Any = shared(4, dtype="f4") if kind == "shared" else RecordQueue("f4", 4)
    q.put(1.0)
    # Older than the rest of the cycle, so that the collector comes to it first.
    block = q.reserve(2) if writes else q.view()
    block.__enter__()
    cycle: Any = Cycle()
    cycle.itself, cycle.block = cycle, block
    del block, cycle
    gc.collect()
    if writes:
        assert q.get(False) == 1.0
    for _ in range(4):
        q.put(2.0, False)
    assert len(q.get_many(4, False)) == 4
    if kind == "shared":
        q.close()  # no block is open


# ---- statistics ---------------------------------------------------------------------------------------------------


def test_the_sum_of_the_counts_holds_at_every_moment(shared: Make) -> None:
    q = shared(1000, itemsize=8)
    stop = shared(1, itemsize=1)

    def work() -> None:
        batch = [b"x"] * 100
        while not stop.is_shutdown:
            q.put_many(batch, False)
            q.get_many(50)
            q.clear()

    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        until(lambda: q.statistics().cleared)
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            s = q.statistics()
            assert s.put_count == s.get_count + s.cleared + s.current_buffer_used
    finally:
        stop.shutdown()
        os.waitpid(pid, 0)


# ---- the dead -----------------------------------------------------------------------------------------------------


def test_what_the_dead_hold_comes_back_to_those_who_never_wait(shared: Make) -> None:
    q = shared(8, itemsize=8)
    q.put(b"held")

    def die() -> None:
        with q.view():
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(die)) == signal.SIGKILL
    q.put(b"other")
    end = time.monotonic() + 60
    while (item := q.get()) != b"held":
        q.put(item)
        assert time.monotonic() < end, "never redelivered"
    assert q.statistics().redelivered == 1


# ---- create and attach --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o777, 0o277, 0o177, 0])
def test_no_umask_matters(umask: int) -> None:
    def work() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # whom modes keep out
        os.umask(umask)
        with SharedQueue.create(2, itemsize=8) as q, SharedQueue.attach(q.name) as other:
            q.put(b"x")
            assert other.get() == b"x"
            path = f"/dev/shm/edgefast-{os.geteuid()}-{q.name}"
            assert os.stat(path).st_mode & 0o777 == 0o600
        assert not Path(path).exists()

    assert in_child(work) == 0


def test_no_shared_memory_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgefast.queues._shared_base.FOLDER", str(tmp_path / "missing"))
    with pytest.raises(OSError, match=r"create .*missing.*: No such file or directory"):
        SharedQueue.create(2, itemsize=8)
    with pytest.raises(FileNotFoundError, match="no SharedQueue of that name"):
        SharedQueue.attach("x")


def test_attach_waits_for_a_cleanup_to_make_up_its_mind(shared: Make) -> None:
    q = shared(2, itemsize=8)
    name = q.name
    path = f"/dev/shm/edgefast-{os.geteuid()}-{name}"
    other = SharedQueue.attach(name)
    fd = os.open(path, os.O_RDWR)
    try:
        # All locks of entries not in use, for a moment.
        used = len(other.participants())
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, (1 << 62) + used, 1023 - used, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        timer = threading.Timer(
            0.03, lambda: fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("h", fcntl.F_UNLCK) + lock[2:])
        )
        timer.start()
        third = SharedQueue.attach(name)
        assert len(third.participants()) == 3
        third.close()
        timer.join()
    finally:
        os.close(fd)
        other.close()


# ---- asyncio ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linger", [math.inf, 1e12, 60])
def test_a_batch_lingers_as_long_as_it_is_told(shared: Make, linger: float) -> None:
    q = shared(4, itemsize=8)
    q.put(b"a")

    async def main() -> Any:
        threading.Timer(0.3, q.put, [b"b"]).start()
        return await asyncio.wait_for(q.aget_many(4, min_items=2, linger=linger), 60)

    assert asyncio.run(main()) == [b"a", b"b"]


def test_a_cancelled_batch_keeps_no_thread(shared: Make) -> None:
    q = shared(4, itemsize=8)
    q.put(b"a")

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(q.aget_many(4, min_items=2, linger=30), 0.05)

    begin = time.monotonic()
    asyncio.run(main())  # waits for the threads of the executor
    assert time.monotonic() - begin < 10
    assert q.drain() == [b"a"]


def test_shutdown_while_a_batch_lingers(shared: Make) -> None:
    q = shared(4, itemsize=8)
    q.put(b"a")

    async def main() -> Any:
        threading.Timer(0.1, q.shutdown).start()
        return await q.aget_many(4, min_items=2, linger=60)

    assert asyncio.run(main()) == [b"a"]
    with pytest.raises(ShutDown):
        asyncio.run(q.aget_many(1))


def test_a_full_queue_in_a_fork_of_a_signal_handler(shared: Make, on_signal: Any) -> None:
    # The child comes back into the call that waited, as a participant of its own.
    q = shared(1, itemsize=8)
    q.put(b"x")
    children: list[int] = []
    on_signal(lambda: children.append(os.fork()))
    striker = strike_when(lambda: q.statistics().tasks_waiting_send)
    try:
        q.put(b"y", timeout=1)
        code = 1
    except Full:
        code = 0
    finally:
        if children and children[0] == 0:
            if code == 0:
                q.close()
            os._exit(code)
    striker.join()
    assert len(children) == 1
    assert os.waitpid(children[0], 0)[1] == 0
    assert q.statistics().participants == 1
