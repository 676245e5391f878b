"""Queue between asyncio tasks, event loops and threads."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import random
import sys
import threading
import time
import weakref
from typing import Any

import pytest

from edgefast.queues import Empty, Full, ShutDown


def finish(threads: list[threading.Thread]) -> None:
    for t in threads:
        t.join(30)
        assert not t.is_alive()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_put_and_get(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class(1)
        getter = asyncio.create_task(q.aget())
        await settle()
        assert q.statistics().tasks_waiting_receive == 1
        q.put("from the same thread")
        assert await getter == "from the same thread"
        await q.aput("a")
        putter = asyncio.create_task(q.aput("b"))
        await settle()
        assert q.statistics().tasks_waiting_send == 1
        assert [q.get(), await q.aget()] == ["a", "b"]
        await putter
        s = q.statistics()
        assert (s.full_waits, s.empty_waits) == (1, 2)
        assert s.tasks_waiting_send == s.tasks_waiting_receive == 0

    asyncio.run(main())


def test_batches(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class(3)
        putter = asyncio.create_task(q.aput_many(range(10)))
        got: list[int] = []
        while len(got) < 10:
            got += await q.aget_many(4)
        assert got == list(range(10))
        assert await putter == 10
        assert q.statistics().peak == 3
        q.put(1)
        begin = time.monotonic()
        assert await q.aget_many(5, min_items=2, linger=0.05) == [1]
        assert time.monotonic() - begin >= 0.049
        waiting = asyncio.create_task(q.aget_many(5, min_items=3, linger=20))
        for i in range(3):
            await settle()
            q.put(i)
        assert await waiting == [0, 1, 2]
        for kwargs, error in (
            ({"max_items": 0}, ValueError),
            ({"max_items": 1.0}, TypeError),
            ({"max_items": 2, "min_items": 3}, ValueError),
            ({"max_items": 2, "linger": -1}, ValueError),
        ):
            with pytest.raises(error):
                await q.aget_many(**kwargs)
        with pytest.raises(TypeError, match="items: expected a sequence"):
            await q.aput_many(iter([1]))

    asyncio.run(main())


def test_policies_and_limits(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class(2, policy="drop_oldest")
        assert await q.aput_many([1, 2, 3]) == 3
        assert q.drain() == [2, 3]
        q = queue_class(2, policy="drop_newest")
        assert await q.aput_many([1, 2, 3]) == 2
        q = queue_class(1, policy="error")
        assert await q.aput_many([1, 2]) == 1
        with pytest.raises(Full):
            await q.aput(2)
        q = queue_class(max_bytes=4)
        with pytest.raises(ValueError, match="max_bytes"):
            await q.aput(b"12345")
        with pytest.raises(ValueError, match="max_bytes"):
            await q.aput_many([b"1", b"12345"])
        assert q.empty()
        await q.aput(b"123")
        putter = asyncio.create_task(q.aput(b"45"))
        await settle()
        assert not putter.done()
        assert await q.aget() == b"123"
        await putter
        q = queue_class(1, max_age=0.05)
        await q.aput(1)
        await asyncio.wait_for(q.aput(2), 20)  # 1 expires
        await asyncio.wait_for(q.ajoin(), 20)  # so does 2
        assert q.statistics().expired == 2

    asyncio.run(main())


def test_shutdown_wakes_tasks(queue_class: Any) -> None:
    async def main() -> None:
        empty, full = queue_class(), queue_class(1)
        full.put(1)
        tasks = [asyncio.create_task(c) for c in (empty.aget(), empty.aget_many(3), full.aput(2), full.aput_many([2]))]
        await settle()
        empty.shutdown()
        full.shutdown()
        for task in tasks:
            with pytest.raises(ShutDown):
                await asyncio.wait_for(task, 20)
        assert [x async for x in full] == [1]

    asyncio.run(main())


def test_join(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        await q.ajoin()
        q.put_many([1, 2])
        task = asyncio.create_task(q.ajoin())
        await settle()
        q.task_done()
        await settle()
        assert not task.done()
        threading.Thread(target=q.task_done).start()
        await asyncio.wait_for(task, 20)

    asyncio.run(main())


def test_waiting_tasks_and_threads_are_served_in_turn(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        order: list[Any] = []

        async def take(name: str) -> None:
            order.append((name, await q.aget()))

        first = asyncio.create_task(take("task 1"))
        await settle()
        thread = threading.Thread(target=lambda: order.append(("thread", q.get())))
        thread.start()
        while q.statistics().tasks_waiting_receive < 2:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(take("task 2"))
        await settle()
        for i in range(3):
            q.put(i)
            while len(order) <= i:
                await asyncio.sleep(0.001)
        thread.join(20)
        await asyncio.gather(first, second)
        assert order == [("task 1", 0), ("thread", 1), ("task 2", 2)]

    asyncio.run(main())


def test_a_busy_task_gives_way(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        q.put_many(range(1000))
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for i in range(1000):
            assert await q.aget() == i
        assert others >= 5
        task.cancel()

    asyncio.run(main())


def test_many_wake_ups_of_a_loop_are_one(queue_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        q = queue_class()
        loop = asyncio.get_running_loop()
        calls: list[Any] = []
        real = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda f, *args: (calls.append(f), real(f, *args))[1])
        tasks = [asyncio.create_task(q.aget()) for _ in range(20)]
        await settle()
        thread = threading.Thread(target=lambda: q.put_many(range(20)))
        thread.start()
        thread.join()  # the loop does not run meanwhile
        assert len(calls) == 1
        assert sorted(await asyncio.gather(*tasks)) == list(range(20))

    asyncio.run(main())


# ---- what aput and aget return ---------------------------------------------------------------------------------------


def test_calls_are_coroutines(queue_class: Any) -> None:
    q = queue_class(1)
    call = q.aput(1)
    assert asyncio.iscoroutine(call)
    assert inspect.isawaitable(call)
    assert q.empty()  # nothing happens before the first step
    with pytest.raises(StopIteration) as stop:
        call.send(None)
    assert stop.value.value is None
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        call.send(None)
    with pytest.raises(StopIteration) as stop:
        q.aget().send(None)
    assert stop.value.value == 1
    q.put((1, 2))  # a tuple must not become the arguments of StopIteration
    with pytest.raises(StopIteration) as stop:
        q.aget().send(None)
    assert stop.value.value == (1, 2)


def test_a_call_that_is_stopped_before_it_begins_does_nothing(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        q.put(1)
        task = asyncio.create_task(q.aget())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        call = q.aput(2)
        with pytest.raises(LookupError, match="no"):
            call.throw(LookupError("no"))
        call = q.aput(3)
        call.close()
        call.close()
        with pytest.raises(RuntimeError, match="cannot reuse"):
            call.send(None)
        assert q.drain() == [1]

    asyncio.run(main())


def test_a_waiting_call_is_closed(queue_class: Any) -> None:
    q = queue_class()
    loop = asyncio.new_event_loop()

    async def step() -> None:
        call = q.aget()
        call.send(None)
        assert q.statistics().tasks_waiting_receive == 1
        call.close()
        assert q.statistics().tasks_waiting_receive == 0

    loop.run_until_complete(step())
    loop.close()


def test_a_forgotten_call_warns(queue_class: Any) -> None:
    q = queue_class()
    for name, arguments in (("aget", ()), ("aput", (1,))):
        call = getattr(q, name)(*arguments)
        with pytest.warns(RuntimeWarning, match=rf"coroutine '.*{name}' was never awaited"):
            del call


def test_references_of_calls(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class(2)
        item = object()
        before = sys.getrefcount(item)
        for _ in range(100):
            await q.aput(item)
            assert await q.aget() is item
            await q.aput_many([item, item])
            task = asyncio.create_task(q.aput(item))
            await settle()
            task.cancel()
            assert await asyncio.wait([task])
            assert task.cancelled()
            del task
            await q.aget_many(2)
        gc.collect()
        assert sys.getrefcount(item) == before

    asyncio.run(main())


# ---- cancellation --------------------------------------------------------------------------------------------------


def test_a_woken_and_cancelled_task_passes_its_turn_on(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class(1)
        first, second = asyncio.create_task(q.aget()), asyncio.create_task(q.aget())
        await settle()
        q.put("x")  # wakes the first
        first.cancel()
        assert await asyncio.wait_for(second, 20) == "x"
        with pytest.raises(asyncio.CancelledError):
            await first
        q.put("full")
        first, second = asyncio.create_task(q.aput(1)), asyncio.create_task(q.aput(2))
        await settle()
        assert q.get() == "full"
        first.cancel()
        await asyncio.wait_for(second, 20)
        assert q.get() == 2
        assert q.empty()

    asyncio.run(main())


def test_a_lingering_and_cancelled_task_passes_its_turns_on(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        lingering = asyncio.create_task(q.aget_many(9, min_items=9, linger=60))
        await settle()
        other = asyncio.create_task(q.aget())
        await settle()
        q.put(1)  # wakes the first, which waits for more
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        lingering.cancel()
        assert await asyncio.wait_for(other, 20) == 1

    asyncio.run(main())


def test_time_outs_lose_nothing(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(q.aget(), 0.01)
        q.put(1)
        assert await asyncio.wait_for(q.aget(), 20) == 1
        assert q.statistics().tasks_waiting_receive == 0

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_random_cancellations_lose_and_duplicate_nothing(queue_class: Any, seed: int) -> None:
    """Tasks of two loops and a thread on each side; half of the calls are cancelled at a random moment."""
    q = queue_class(4)
    each, rng = 150, random.Random(seed)
    got: list[Any] = []
    lock = threading.Lock()

    async def attempt(coroutine: Any, patience: float) -> Any:
        task = asyncio.ensure_future(coroutine)
        done, _ = await asyncio.wait([task], timeout=patience)
        if not done:
            task.cancel()
        return await task

    async def produce(name: str, dice: random.Random) -> None:
        for i in range(each):
            while True:
                try:
                    await attempt(q.aput((name, i)), dice.choice([0, 0, 0.0005, 30]))
                    break
                except asyncio.CancelledError:
                    await asyncio.sleep(0)

    async def consume(dice: random.Random) -> None:
        mine: list[Any] = []
        try:
            while True:
                call = q.aget() if dice.random() < 0.5 else q.aget_many(3, min_items=2, linger=0.001)
                try:
                    item = await attempt(call, dice.choice([0, 0, 0.0005, 30]))
                    mine += item if isinstance(item, list) else [item]
                except asyncio.CancelledError:
                    await asyncio.sleep(0)
        except ShutDown:
            with lock:
                got.append(mine)

    def run(role: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: asyncio.run(role(*args)))
        thread.start()
        return thread

    def take() -> None:
        mine = []
        try:
            while True:
                with contextlib.suppress(Empty):
                    mine.append(q.get(timeout=0.001))
        except ShutDown:
            with lock:
                got.append(mine)

    async def two(role: Any, names: Any) -> None:
        await asyncio.gather(*(role(*name) for name in names))

    makers = [run(two, produce, [(f"{loop}{task}", random.Random(rng.random())) for task in "ab"]) for loop in range(2)]
    takers = [run(two, consume, [(random.Random(rng.random()),) for _ in range(2)]) for _ in range(2)]
    takers.append(threading.Thread(target=take))
    takers[-1].start()
    finish(makers)
    q.shutdown()
    finish(takers)
    assert sorted(x for mine in got for x in mine) == [
        (f"{p}{t}", i) for p in range(2) for t in "ab" for i in range(each)
    ]
    for mine in got:
        for name in {x[0] for x in mine}:
            order = [i for who, i in mine if who == name]
            assert order == sorted(order)
    s = q.statistics()
    assert s.peak <= 4
    assert (s.put_count, s.get_count, s.tasks_waiting_receive, s.tasks_waiting_send) == (4 * each, 4 * each, 0, 0)


# ---- loops ---------------------------------------------------------------------------------------------------------


def test_many_loops_and_threads_at_once(queue_class: Any) -> None:
    q = queue_class(8, high_watermark=8, low_watermark=2)
    each = 300
    got: list[list[Any]] = []

    async def produce(name: int) -> None:
        for i in range(each):
            await q.aput((name, i))

    async def consume() -> None:
        got.append([x async for x in q])

    makers = [threading.Thread(target=lambda n=n: asyncio.run(produce(n))) for n in range(2)]
    makers.append(threading.Thread(target=lambda: q.put_many([(2, i) for i in range(each)])))
    takers = [threading.Thread(target=lambda: asyncio.run(consume())) for _ in range(2)]
    takers.append(threading.Thread(target=lambda: got.append(list(q))))
    for t in makers + takers:
        t.start()
    finish(makers)
    q.shutdown()
    finish(takers)
    assert sorted(x for mine in got for x in mine) == [(n, i) for n in range(3) for i in range(each)]
    assert q.statistics().peak <= 8


def test_no_thread_waits_for_a_task(queue_class: Any) -> None:
    async def main() -> None:
        q = queue_class()
        before = threading.active_count()
        tasks = [asyncio.create_task(q.aget()) for _ in range(100)]
        await settle()
        assert threading.active_count() == before
        q.put_many(range(100))
        assert await asyncio.gather(*tasks) == list(range(100))

    asyncio.run(main())


def test_a_closed_loop_is_passed_over(queue_class: Any) -> None:
    q = queue_class()
    dead = asyncio.new_event_loop()
    coroutine = q.aget()
    task = dead.create_task(coroutine)
    dead.run_until_complete(asyncio.sleep(0))
    assert q.statistics().tasks_waiting_receive == 1
    dead.close()  # without cancelling its task

    async def main() -> None:
        other = asyncio.create_task(q.aget())
        await settle()
        q.put("x")  # the turn of the dead loop's task goes to the next
        assert await asyncio.wait_for(other, 20) == "x"

    asyncio.run(main())
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine.close()
    assert q.statistics().tasks_waiting_receive == 0
    q.put("y")
    assert q.get() == "y"


def test_without_a_loop(queue_class: Any) -> None:
    q = queue_class()
    with pytest.raises(RuntimeError, match="no running event loop"):
        q.aget().send(None)
    assert q.statistics().tasks_waiting_receive == 0


def test_forgotten_waiters_are_collected(queue_class: Any) -> None:
    q = queue_class()
    loop = asyncio.new_event_loop()
    task = loop.create_task(q.aget())
    loop.run_until_complete(asyncio.sleep(0))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    ref, loop_ref = weakref.ref(q), weakref.ref(loop)
    loop.close()
    del q, task, loop
    gc.collect()
    assert ref() is None
    assert loop_ref() is None
