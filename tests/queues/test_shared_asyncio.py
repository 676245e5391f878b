"""SharedQueue and asyncio: several loops, threads and processes on one queue; cancellation; no thread too many."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import edgefast.queues
from edgefast.queues import Full, ShutDown

if edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux":
    pytest.skip("SharedQueue needs the native backend and Linux", allow_module_level=True)

import shared_workers

from edgefast.queues import SharedQueue

Make = Callable[..., Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def helpers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "edgefast-shared-queue"]


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_nothing_to_wait_for_takes_no_thread(shared: Make) -> None:
    q = shared(8, itemsize=100, serializer="pickle")

    async def main() -> None:
        for i in range(300):
            await q.aput(i)
            assert await q.aget() == i
        await q.aput(1)
        await q.aput(2)
        assert await q.aget_many(5) == [1, 2]

    before = len(helpers())
    run(main())
    assert len(helpers()) == before


def test_waits_for_threads_and_other_tasks(shared: Make) -> None:
    q = shared(1, itemsize=8)

    async def main() -> None:
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(0.02)
        await q.aput(b"1")
        assert await getter == b"1"
        threading.Timer(0.02, q.put, [b"2"]).start()
        assert await q.aget() == b"2"
        q.put(b"3")
        putter = asyncio.create_task(q.aput(b"4"))
        await asyncio.sleep(0.02)
        assert not putter.done()
        assert [await q.aget(), await q.aget()] == [b"3", b"4"]
        await putter

    run(main())


def test_another_process_answers(shared: Make) -> None:
    there, back = shared(2, itemsize=50), shared(2, itemsize=50)

    async def main() -> None:
        async def ask(i: int) -> None:
            await there.aput(b"%d" % i)

        async def hear() -> list[bytes]:
            return [message async for message in back]

        answers = asyncio.create_task(hear())
        await asyncio.gather(*(ask(i) for i in range(60)))
        there.shutdown()
        assert sorted(await answers) == sorted(b"%d" % i for i in range(60))

    process = multiprocessing.get_context("fork").Process(target=shared_workers.echo, args=(there, back), daemon=True)
    process.start()
    try:
        run(main())
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()


def test_many_loops(shared: Make) -> None:
    q = shared(3, dtype="i8")
    before = set(helpers())
    got: list[list[int]] = [[] for _ in range(3)]

    async def consume(mine: list[int]) -> None:
        async def one() -> None:
            async for value in q:
                mine.append(int(value))

        await asyncio.gather(one(), one())

    async def produce(who: int) -> None:
        for i in range(200):
            await q.aput(who * 1000 + i)

    consumers = [threading.Thread(target=run, args=(consume(mine),)) for mine in got]
    producers = [threading.Thread(target=run, args=(produce(who),)) for who in range(2)]
    for t in (*consumers, *producers):
        t.start()
    for t in producers:
        t.join(60)
    q.shutdown()
    for t in consumers:
        t.join(60)
    assert sorted(value for mine in got for value in mine) == [who * 1000 + i for who in range(2) for i in range(200)]
    assert len(set(helpers()) - before) <= 2


def test_cancelled_calls_have_done_nothing(shared: Make) -> None:
    q = shared(1, itemsize=8)

    async def main() -> None:
        for _ in range(20):
            getters = [asyncio.create_task(q.aget()) for _ in range(3)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            getters[0].cancel()
            q.put(b"x")
            getters[1].cancel()
            assert await getters[2] == b"x"
            assert q.empty()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(q.aget(), 0.01)
        await q.aput(b"a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(q.aput(b"b"), 0.01)
        assert q.drain() == [b"a"]

    run(main())


def test_aget_many_lingers(shared: Make) -> None:
    q = shared(8, dtype="i8")

    async def main() -> None:
        q.put(0)
        threading.Timer(0.05, q.put_many, [[1, 2]]).start()
        assert (await q.aget_many(8, min_items=3, linger=30)).tolist() == [0, 1, 2]
        q.put(3)
        start = time.monotonic()
        assert (await q.aget_many(8, min_items=2, linger=0.05)).tolist() == [3]
        assert time.monotonic() - start >= 0.05
        for bad in ({"min_items": 9}, {"linger": -1.0}):
            with pytest.raises(ValueError):
                await q.aget_many(8, **bad)

    run(main())


def test_policies_and_shutdown(shared: Make) -> None:
    full, drops, waits = (
        shared(1, itemsize=8, policy="error"),
        shared(1, itemsize=8, policy="drop_oldest"),
        shared(1, itemsize=8),
    )

    async def main() -> None:
        await full.aput(b"1")
        with pytest.raises(Full):
            await full.aput(b"2")
        await drops.aput(b"1")
        await drops.aput(b"2")
        assert await drops.aget() == b"2"
        getter = asyncio.create_task(waits.aget())
        many = asyncio.create_task(waits.aget_many(3))
        await asyncio.sleep(0.02)
        waits.shutdown()
        for task in (getter, many):
            with pytest.raises(ShutDown):
                await task
        with pytest.raises(ShutDown):
            await waits.aput(b"x")
        with pytest.raises(TypeError, match="item: expected bytes"):
            await full.aput("text")

    run(main())


def test_close_ends_waiting_tasks(shared: Make) -> None:
    q = shared(1, itemsize=8)

    async def main() -> None:
        getter = asyncio.create_task(q.aget())
        await asyncio.sleep(0.02)
        q.close()
        with pytest.raises(ValueError, match="closed"):
            await getter

    run(main())


def test_a_busy_loop_does_not_starve_others(shared: Make) -> None:
    q = shared(1000, dtype="i8")

    async def main() -> int:
        ticks = 0
        done = False

        async def clock() -> None:
            nonlocal ticks
            while not done:
                ticks += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(clock())
        q.put_many(range_of(1000))
        for _ in range(1000):
            await q.aget()
        done = True
        await task
        return ticks

    assert run(main()) >= 10


def range_of(n: int) -> list[int]:
    return list(range(n))


def test_helpers_end_and_keep_nothing_alive() -> None:
    q = SharedQueue.create(1, itemsize=8)

    async def main(queue: Any) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.aget(), 0.01)

    run(main(q))
    gone = weakref.ref(q)
    del q
    end = time.monotonic() + 30
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.05)
        gc.collect()
    assert gone() is None
    while helpers() and time.monotonic() < end:
        time.sleep(0.05)
    assert not helpers()


def test_waiting_costs_no_cpu(shared: Make) -> None:
    q = shared(1, itemsize=8)

    async def main() -> float:
        await asyncio.sleep(0.05)
        before = time.process_time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(q.aget(), 0.6)
        return time.process_time() - before

    assert run(main()) < 0.1
