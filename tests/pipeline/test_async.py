"""Pipelines under asyncio."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pipeline_functions as f
import pytest

from edgefast.pipeline import Pipeline, PipelineError, Stage
from edgefast.queues import ShutDown

WAIT = 30.0


def run(main: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(WAIT):
            return await main()

    return asyncio.run(bounded())


async def count(n: int) -> AsyncIterator[int]:
    for x in range(n):
        await asyncio.sleep(0)
        yield x


@pytest.mark.parametrize("kind", ["asyncio", "thread"])
def test_amap_over_either_kind_of_iterable(kind: Any, queues: str) -> None:
    async def main() -> None:
        async with Pipeline([f.adouble, Stage(f.minus, workers=2)], backend=kind) as p:
            assert [x async for x in p.amap(range(50))] == [-2 * x for x in range(50)]
            assert [x async for x in p.amap(count(50))] == [-2 * x for x in range(50)]
        assert p.statistics().state == "closed"

    run(main)


def test_tasks_run_in_the_loop_of_the_async_with_block() -> None:
    async def main() -> None:
        here = asyncio.get_running_loop()

        async def check(x: int) -> bool:
            return asyncio.get_running_loop() is here

        async with Pipeline([Stage(check, workers=4)]) as p:
            assert all([x async for x in p.amap(range(20))])
        with_block = Pipeline([check])
        assert list(await asyncio.to_thread(lambda: list(with_block.map(range(3))))) == [False] * 3
        with_block.shutdown()
        await with_block.ajoin()

    run(main)


def test_the_loop_is_not_blocked() -> None:
    async def main() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        async with Pipeline([Stage(f.uneven, maxsize=2, backend="thread")], adapt="none") as p:
            for x in range(30):  # waits for room without blocking
                await p.asubmit(x)
            await p.ajoin()
            assert p.statistics().stages[0].completed == 30
        ticking.cancel()
        assert ticks > 50

    run(main)


def test_early_close_and_the_next_map() -> None:
    async def main() -> None:
        async with Pipeline([f.adouble, Stage(f.minus, workers=2)]) as p:
            async with p.amap(itertools.count()) as outputs:
                async for x in outputs:
                    if x < -20:
                        break
            assert [x async for x in p.amap(count(5))] == [0, -2, -4, -6, -8]
            outputs = p.amap(count(10**9))
            assert await anext(outputs) == 0
            await outputs.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(outputs)
            await p.asubmit(1)
            await p.ajoin()

    run(main)


def test_results_and_shutdown() -> None:
    async def main() -> None:
        async with Pipeline([Stage(f.arepeat, workers=3)]) as p:
            outputs = p.aresults()

            async def produce() -> None:
                for x in range(30):
                    await p.asubmit(x)
                p.shutdown()
                with pytest.raises(ShutDown):
                    await p.asubmit(1)

            task = asyncio.create_task(produce())
            assert [x async for x in outputs] == [x for x in range(30) for _ in range(x % 3)]
            await task

    run(main)


def test_errors() -> None:
    async def fail(x: int) -> int:
        if x == 7:
            raise ValueError("seven")
        return x

    async def broken() -> AsyncIterator[int]:
        yield 1
        raise KeyError("broken")

    async def main() -> None:
        got = []

        async def read() -> None:
            async with Pipeline([Stage(fail, workers=3)]) as p:
                async for x in p.amap(itertools.count()):
                    got.append(x)

        async def submit() -> None:
            async with Pipeline([fail]) as p:
                await p.asubmit(7)
                await p.ajoin()

        with pytest.raises(PipelineError, match="stage 'fail' failed on 7: ValueError: seven"):
            await read()
        assert got == list(range(7))
        with pytest.raises(PipelineError, match="seven"):
            await submit()
        async with Pipeline([fail]) as p:
            outputs = p.amap(broken())
            assert await anext(outputs) == 1
            with pytest.raises(KeyError, match="broken"):
                await anext(outputs)

    run(main)


def test_a_cancelled_block_ends_its_tasks() -> None:
    started = False

    async def hang(x: int) -> None:
        nonlocal started
        started = True
        await asyncio.sleep(1000)

    async def main() -> None:
        async def use() -> None:
            async with Pipeline([hang]) as p:
                await p.asubmit(1)
                await asyncio.sleep(1000)

        task = asyncio.create_task(use())
        while not started:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    run(main)


def test_a_blocking_call_in_the_pipelines_loop_is_refused() -> None:
    async def main() -> None:
        async with Pipeline([f.adouble]) as p:
            await p.asubmit(1)
            with pytest.raises(RuntimeError, match="use the coroutine instead"):
                p.join()

    run(main)


def test_immediate_shutdown_cancels_what_is_awaited() -> None:
    cancelled = False

    async def hang(x: int) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled = True
            raise

    p = Pipeline([Stage(hang, workers=2)])
    p.submit(1)
    while not p.statistics().stages[0].served:
        pass
    p.shutdown(immediate=True)
    assert p.join(WAIT)
    assert cancelled
    assert p.statistics().stages[0].lost == 1
