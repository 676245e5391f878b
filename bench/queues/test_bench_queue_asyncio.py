"""Queue between threads and asyncio tasks: ours against janus, culsans and asyncio.Queue."""

from __future__ import annotations

import asyncio
import importlib
import resource
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from edgefast.queues import IMPLEMENTATION, Queue, _pure

MAXSIZE = 1024


class Ends(NamedTuple):
    """The four operations of a queue; None where it has none."""

    put: Callable[[Any], None] | None
    get: Callable[[], Any] | None
    aput: Callable[[Any], Awaitable[None]]
    aget: Callable[[], Awaitable[Any]]


def ours(make: Callable[[int], Any]) -> Callable[[], Ends]:
    def ends() -> Ends:
        q = make(MAXSIZE)
        return Ends(q.put, q.get, q.aput, q.aget)

    return ends


def proxies(module: str) -> Callable[[], Ends]:
    def ends() -> Ends:
        q = importlib.import_module(module).Queue(MAXSIZE)
        return Ends(q.sync_q.put, q.sync_q.get, q.async_q.put, q.async_q.get)

    return ends


def standard() -> Ends:
    q: asyncio.Queue[Any] = asyncio.Queue(MAXSIZE)
    return Ends(None, None, q.put, q.get)


#: name: (ours, the ends, items of a round)
CONTENDERS: dict[str, tuple[bool, Callable[[], Ends], int]] = {
    f"edgefast {IMPLEMENTATION}": (True, ours(Queue), 100_000),
    "edgefast python": (True, ours(_pure.Queue), 10_000),
    "janus": (False, proxies("janus"), 5_000),
    "culsans": (False, proxies("culsans"), 10_000),
    "asyncio.Queue": (False, standard, 50_000),
}


def available(name: str) -> None:
    if name in ("janus", "culsans"):
        pytest.importorskip(name)


async def aproduce(aput: Any, n: int) -> None:
    for i in range(n):
        await aput(i)


async def aconsume(aget: Any, n: int) -> int:
    total = 0
    for _ in range(n):
        total += await aget()
    return total


async def thread_to_asyncio(ends: Ends, n: int) -> int:
    assert ends.put is not None

    def produce(put: Any = ends.put) -> None:
        for i in range(n):
            put(i)

    thread = threading.Thread(target=produce)
    thread.start()
    total = await aconsume(ends.aget, n)
    thread.join()
    return total


async def asyncio_to_thread(ends: Ends, n: int) -> int:
    assert ends.get is not None
    total = 0
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def consume(get: Any = ends.get) -> None:
        nonlocal total
        for _ in range(n):
            total += get()
        loop.call_soon_threadsafe(done.set)

    thread = threading.Thread(target=consume)
    thread.start()
    await aproduce(ends.aput, n)
    await done.wait()
    thread.join()
    return total


async def asyncio_to_asyncio(ends: Ends, n: int) -> int:
    return (await asyncio.gather(aproduce(ends.aput, n), aconsume(ends.aget, n)))[1]


@pytest.mark.parametrize("way", [thread_to_asyncio, asyncio_to_thread, asyncio_to_asyncio], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", CONTENDERS)
def test_asyncio(benchmark: Any, contender: Any, name: str, way: Any) -> None:
    available(name)
    mine, make, n = CONTENDERS[name]
    if name == "asyncio.Queue" and way is not asyncio_to_asyncio:
        pytest.skip("for one loop only")
    benchmark.group = f"queue {way.__name__.replace('_to_', ' to ')}, maxsize {MAXSIZE}"

    async def work() -> int:
        return await way(make(), n)

    def run() -> None:
        assert asyncio.run(work()) == n * (n - 1) // 2

    run()
    before = resource.getrusage(resource.RUSAGE_SELF)
    rounds = 5
    benchmark.pedantic(run, rounds=rounds, iterations=1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    contender(benchmark, name, ours=mine, items=n, cpu_ns_per_item=cpu / (rounds * n) * 1e9)
