"""SharedQueue against what else passes messages between processes on one machine.

A process of its own sends, this one receives, for the throughput; the other way it is the same. The sender is started
once and waits; a round is timed from the word to begin to the last item received, which with so many items is from the
first to the last. Every message is checked against what was sent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import futex
import numpy as np
import pytest

import edgefast.queues as queues

if queues.IMPLEMENTATION != "native":
    pytest.skip("SharedQueue needs the native backend", allow_module_level=True)
SharedQueue = queues.SharedQueue

fork = multiprocessing.get_context("fork")
OURS = "edgefast SharedQueue"
CAPACITY = 1000  # items the queue may hold, wherever that can be said


def _optional(name: str) -> Any:
    return pytest.importorskip(name)


def several(message: bytes, n: int) -> list[bytes]:
    """Different objects of different content (a pickle holds an object once), the last of them the message itself."""
    return [i.to_bytes(2, "little") + message[2:] for i in range(n - 1)] + [message]


class Ours:
    """Messages one by one."""

    items = 200_000

    def __init__(self, size: int) -> None:
        self.q = SharedQueue.create(CAPACITY, itemsize=size)
        self.send, self.receive = self.q.put, self.q.get

    def close(self) -> None:
        self.q.close()


class OursRecords(Ours):
    """Records in batches, sent from one array and received into another."""

    batch = 256

    def __init__(self, size: int) -> None:
        self.items = 256 * (8000 if size < 100 else 2000)
        self.q = SharedQueue.create(4 * CAPACITY, dtype=f"V{size}")

    def send_all(self, message: bytes, n: int) -> None:
        block = np.frombuffer(b"".join(several(message, self.batch)), self.q.dtype)
        for _ in range(n // self.batch):
            self.q.put_many(block)

    def receive_all(self, n: int) -> bytes:
        out = got = np.empty(self.batch, self.q.dtype)
        while n:
            got = self.q.get_many(min(n, self.batch), out=out)
            n -= len(got)
        return got[-1].tobytes()


class OursMessages(Ours):
    """Byte messages in batches."""

    items = 256 * 1500
    batch = 256

    def send_all(self, message: bytes, n: int) -> None:
        block = several(message, self.batch)
        for _ in range(n // self.batch):
            self.q.put_many(block)

    def receive_all(self, n: int) -> bytes:
        got = [b""]
        while n:
            got = self.q.get_many(min(n, self.batch))
            n -= len(got)
        return got[-1]


class Multiprocessing:
    items = 20_000

    def __init__(self, size: int) -> None:
        self.q = fork.Queue(CAPACITY)
        self.send, self.receive = self.q.put, self.q.get

    def close(self) -> None:
        self.q.close()


class MultiprocessingLists(Multiprocessing):
    """Lists of 256 messages: what a user of multiprocessing.Queue does when it is too slow."""

    items = 256 * 1500
    batch = 256

    def send_all(self, message: bytes, n: int) -> None:
        block = several(message, self.batch)
        for _ in range(n // self.batch):
            self.q.put(block)

    def receive_all(self, n: int) -> bytes:
        got = [b""]
        for _ in range(n // self.batch):
            got = self.q.get()
        return got[-1]


class Simple(Multiprocessing):
    def __init__(self, size: int) -> None:
        self.q = fork.SimpleQueue()
        self.send, self.receive = self.q.put, self.q.get


class Pipe:
    """send_bytes and recv_bytes: one sender, one receiver, no pickling."""

    items = 50_000

    def __init__(self, size: int) -> None:
        self.reader, self.writer = fork.Pipe(False)
        self.send, self.receive = self.writer.send_bytes, self.reader.recv_bytes

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class FasterFifo:
    items = 20_000

    def __init__(self, size: int) -> None:
        faster_fifo = _optional("faster_fifo")
        self.q = faster_fifo.Queue(max_size_bytes=CAPACITY * (size + 40))
        self.send, self.receive = self.q.put, self.q.get

    def close(self) -> None:
        self.q.close()


class FasterFifoMany(FasterFifo):
    items = 256 * 500
    batch = 256

    def send_all(self, message: bytes, n: int) -> None:
        block = several(message, self.batch)
        for _ in range(n // self.batch):
            self.q.put_many(block)

    def receive_all(self, n: int) -> bytes:
        got = [b""]
        while n:
            got = self.q.get_many(max_messages_to_get=min(n, self.batch))
            n -= len(got)
        return got[-1]


class ZeroMQ:
    """PUSH and PULL over ipc, sockets made in the process that uses them."""

    items = 50_000

    def __init__(self, size: int) -> None:
        self.zmq = _optional("zmq")
        self.folder = tempfile.TemporaryDirectory()
        self.socket: Any = None

    def _connected(self, kind: int, bind: bool) -> Any:
        if self.socket is None:
            self.socket = self.zmq.Context().socket(kind)
            self.socket.set_hwm(CAPACITY)
            address = f"ipc://{self.folder.name}/socket"
            self.socket.bind(address) if bind else self.socket.connect(address)
        return self.socket

    def send_all(self, message: bytes, n: int) -> None:
        send = self._connected(self.zmq.PUSH, False).send
        for _ in range(n):
            send(message)

    def receive_all(self, n: int) -> bytes:
        receive = self._connected(self.zmq.PULL, True).recv
        message = b""
        for _ in range(n):
            message = receive()
        return message

    def close(self) -> None:
        if self.socket is not None:
            context = self.socket.context
            self.socket.close(0)
            context.term()
        self.folder.cleanup()


SINGLE: dict[str, Any] = {
    OURS: Ours,
    "multiprocessing.Queue": Multiprocessing,
    "multiprocessing.SimpleQueue": Simple,
    "Pipe, bytes": Pipe,
    "faster-fifo": FasterFifo,
    "pyzmq ipc": ZeroMQ,
}
BATCHES: dict[str, Any] = {
    f"{OURS}, records": OursRecords,
    f"{OURS}, bytes": OursMessages,
    "multiprocessing.Queue, one by one": Multiprocessing,
    "multiprocessing.Queue, lists": MultiprocessingLists,
    "faster-fifo, put_many and get_many": FasterFifoMany,
}


def send_all(channel: Any, message: bytes, n: int) -> None:
    if hasattr(channel, "send_all"):
        channel.send_all(message, n)
        return
    send = channel.send
    for _ in range(n):
        send(message)


def receive_all(channel: Any, n: int) -> bytes:
    if hasattr(channel, "receive_all"):
        return channel.receive_all(n)
    receive, message = channel.receive, b""
    for _ in range(n):
        message = receive()
    return message


@contextlib.contextmanager
def helper(work: Callable[[], Any]) -> Iterator[Callable[[], None]]:
    """A process that calls work() each time what this gives is called."""
    ours, theirs = fork.Pipe()

    def run() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        ours.close()
        with contextlib.suppress(EOFError):
            while theirs.recv_bytes():
                work()
        os._exit(0)

    process = fork.Process(target=run, daemon=True)
    process.start()
    theirs.close()
    try:
        yield lambda: ours.send_bytes(b"go")
    finally:
        ours.close()
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()


def throughput(benchmark: Any, contender: Any, name: str, channel: Any, size: int) -> None:
    message, n = os.urandom(size), channel.items
    answers: set[bytes] = set()
    with contextlib.closing(channel), helper(lambda: send_all(channel, message, n)) as go:

        def work() -> None:
            go()
            answers.add(receive_all(channel, n))

        contender(benchmark, name, ours=name.startswith(OURS), items=n)
        if benchmark.enabled:
            work()
        benchmark.pedantic(work, rounds=3 if benchmark.enabled else 1, iterations=1)
    assert answers == {message}


@pytest.mark.parametrize("size", [16, 1024])
@pytest.mark.parametrize("name", SINGLE)
def test_single_messages(benchmark: Any, contender: Any, name: str, size: int) -> None:
    benchmark.group = f"SharedQueue messages of {size} bytes between two processes, one by one, seconds an item"
    throughput(benchmark, contender, name, SINGLE[name](size), size)


@pytest.mark.parametrize("size", [16, 1024])
@pytest.mark.parametrize("name", BATCHES)
def test_batches(benchmark: Any, contender: Any, name: str, size: int) -> None:
    benchmark.group = f"SharedQueue messages of {size} bytes between two processes, 256 at a time, seconds an item"
    throughput(benchmark, contender, name, BATCHES[name](size), size)


# ---- arrays in place -----------------------------------------------------------------------------------------------

MIB = 1 << 20
RING = 8  # arrays the queue may hold: what a cache holds, too
ARRAYS = ["np.copyto, one copy", OURS, f"{OURS}, pickle", "multiprocessing.Queue", "Pipe, recv_bytes_into"]


class InPlace(Ours):
    """Copied in by the sender, copied out by the receiver, nothing between."""

    items = 2000

    def __init__(self) -> None:
        self.q = SharedQueue.create(RING, dtype="u1", shape=MIB)
        self.out = np.empty(MIB, "u1")

    def send(self, array: np.ndarray) -> None:
        with self.q.reserve() as slots:
            np.copyto(slots[0], array)

    def receive(self) -> np.ndarray:
        with self.q.view() as arrays:
            np.copyto(self.out, arrays[0])
        return self.out


class Pickled(Ours):
    items = 1000

    def __init__(self) -> None:
        self.q = SharedQueue.create(RING, itemsize=MIB + 4096, serializer="pickle")
        self.send, self.receive = self.q.put, self.q.get


class PipeInto(Pipe):
    items = 500

    def __init__(self) -> None:
        super().__init__(MIB)
        self.out = np.empty(MIB, "u1")
        self.receive = self.receive_into

    def receive_into(self) -> np.ndarray:
        self.reader.recv_bytes_into(self.out)
        return self.out


class MultiprocessingArrays(Multiprocessing):
    items = 300

    def __init__(self) -> None:
        super().__init__(MIB)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(benchmark: Any, contender: Any, name: str) -> None:
    """The limit is one copy of each array into as many places as the queue has: sender and receiver overlap."""
    benchmark.group = "SharedQueue arrays of 1 MiB between two processes, seconds an array"
    array = np.random.default_rng(0).integers(0, 255, MIB, np.uint8)
    rounds = 5 if benchmark.enabled else 1
    if name == ARRAYS[0]:
        places, n = np.zeros((RING, MIB), "u1"), 2000

        def copy() -> None:
            for i in range(n):
                np.copyto(places[i % RING], array)

        contender(benchmark, name, items=n, bytes=MIB)
        benchmark.pedantic(copy, rounds=rounds, iterations=1, warmup_rounds=1)
        return
    channel: Any = dict(zip(ARRAYS[1:], (InPlace, Pickled, MultiprocessingArrays, PipeInto), strict=True))[name]()
    received: list[Any] = []

    def send() -> None:
        for _ in range(channel.items):
            channel.send(array)

    with contextlib.closing(channel), helper(send) as go:

        def work() -> None:
            go()
            for _ in range(channel.items):
                received[:] = [channel.receive()]

        contender(benchmark, name, ours=name.startswith(OURS), items=channel.items, bytes=MIB)
        if benchmark.enabled:
            work()
        benchmark.pedantic(work, rounds=rounds, iterations=1)
    assert (received[0] == array).all()


# ---- waiting -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["any CPU", "one CPU"])
def cpus(request: pytest.FixtureRequest) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Where the processes run. On one CPU nobody spins: each hand-over is a sleep and a wake-up."""
    before = os.sched_getaffinity(0)
    first = min(before)
    if request.param == "one CPU":
        os.sched_setaffinity(0, {first})
    yield request.param, (first, first) if request.param == "one CPU" else None
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("name", [OURS, f"{OURS}, records", "multiprocessing.Queue", "Pipe, bytes"])
def test_blocked_round_trip(
    benchmark: Any, contender: Any, name: str, cpus: tuple[str, tuple[int, int] | None]
) -> None:
    """Two processes that wait for each other; the limit is a bare futex handed back and forth, measured before."""
    benchmark.group = f"SharedQueue blocked round trip, two processes, {cpus[0]}"
    trips = 2000
    bare = {}
    if benchmark.enabled and (measured := futex.round_trips(cpus=cpus[1])):
        bare["bare_futex_us"] = measured["processes"] * 1e6
    value: Any = b"x" * 16
    if name == OURS:
        there, back = (SharedQueue.create(8, itemsize=16) for _ in range(2))
    elif name.startswith(OURS):
        there, back = (SharedQueue.create(8, dtype="V16") for _ in range(2))
        value = np.frombuffer(value, "V16")[0]
    else:
        there, back = ((Pipe if name.startswith("Pipe") else Multiprocessing)(16) for _ in range(2))
    put = {True: (lambda c: c.put), False: (lambda c: c.send)}[name.startswith(OURS)]
    get = {True: (lambda c: c.get), False: (lambda c: c.receive)}[name.startswith(OURS)]

    def answer() -> None:
        receive, send = get(there), put(back)
        for _ in range(trips):
            send(receive())

    with contextlib.closing(there), contextlib.closing(back), helper(answer) as go:
        answers: list[Any] = []

        def ask() -> None:
            go()
            send, receive = put(there), get(back)
            for _ in range(trips):
                send(value)
                answers[:] = [receive()]

        contender(benchmark, name, ours=name.startswith(OURS), items=trips, **bare)
        if benchmark.enabled:
            ask()
        benchmark.pedantic(ask, rounds=5 if benchmark.enabled else 1, iterations=1)
    assert answers == [value]


@pytest.mark.parametrize("name", [OURS, "multiprocessing.Queue", "faster-fifo"])
def test_idle(benchmark: Any, contender: Any, name: str) -> None:
    """CPU time of half a second in get() with nothing to get."""
    benchmark.group = "SharedQueue waiting half a second for an item"
    channel = SINGLE[name](16)
    get = channel.receive if name != OURS else channel.q.get
    used: list[float] = []

    def wait() -> None:
        before = time.process_time()
        with pytest.raises(queues.Empty):
            get(timeout=0.5)
        used.append(time.process_time() - before)

    with contextlib.closing(channel):
        wait()
        benchmark.pedantic(wait, rounds=1, iterations=1)
    contender(benchmark, name, ours=name == OURS, cpu_ms_per_second=max(used) * 2000)
