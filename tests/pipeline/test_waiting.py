"""Whoever waits is woken by what happens, not by its next look: conftest.py lets nobody look by himself."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pipeline_functions as f
import pytest

from edgefast.pipeline import Pipeline, Stage, _pool, _runtime

WAIT = 30.0


def in_thread(call: Callable[[], Any]) -> Any:
    """call() in a thread: a wait that never ends fails the test instead of holding it up."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "waits for ever"
    return results[0]


def test_join_ends_when_items_nobody_takes_are_too_old(queues: str) -> None:
    # The stage waits for a full batch, and meanwhile what it has expires.
    with Pipeline([Stage(f.double_all, batch=3, linger=0.5, max_age=0.02)], adapt="none") as p:
        p.submit_many([1, 2])
        in_thread(p.join)
        assert p.statistics().stages[0].expired == 2


def test_bytes_that_a_worker_took_let_the_source_go_on(queues: str) -> None:
    go = threading.Event()

    def hold(x: bytes) -> None:
        go.wait(WAIT)

    with Pipeline([hold], max_bytes=100, adapt="none") as p:
        p.submit(b"x" * 60)

        def second() -> None:
            p.submit(b"x" * 60, timeout=WAIT)

        try:
            in_thread(second)
            in_thread(lambda: p._core.stages[0].queue.clear())
        finally:
            go.set()


@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_bytes_that_the_reader_took_let_the_source_go_on(kind: Any, queues: str) -> None:
    with Pipeline([Stage(lambda x: x, name="same")], backend=kind, max_bytes=100, adapt="none") as p:
        outputs = p.map(b"x" * 60 for _ in range(20))
        assert in_thread(lambda: sum(1 for _ in outputs)) == 20


def test_bytes_that_a_task_took_let_the_source_go_on(queues: str) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def hold(x: bytes) -> None:
            await go.wait()

        async with Pipeline([hold], max_bytes=100, adapt="none") as p, asyncio.timeout(WAIT):
            await p.asubmit(b"x" * 60)
            await p.asubmit(b"x" * 60)
            go.set()

    asyncio.run(main())


def test_bytes_that_a_task_read_let_the_source_go_on(queues: str) -> None:
    async def main() -> None:
        async with Pipeline([Stage(lambda x: x, name="same")], max_bytes=100, adapt="none") as p:
            async with asyncio.timeout(WAIT):
                assert [len(x) async for x in p.amap(b"x" * 60 for _ in range(20))] == [60] * 20

    asyncio.run(main())


def test_bytes_of_outputs_nobody_reads_any_more_let_the_source_go_on(queues: str) -> None:
    with Pipeline([Stage(lambda x: x, name="same")], max_bytes=100, adapt="none") as p:
        outputs = p.results()
        p.submit(b"x" * 60)
        while not p.statistics().output_depth:
            time.sleep(0.001)
        waiting = threading.Thread(target=p.submit, args=(b"x" * 60,), daemon=True)
        waiting.start()
        while not p._core.watchers:
            time.sleep(0.001)
        outputs.close()
        waiting.join(WAIT)
        assert not waiting.is_alive()


def test_the_next_map_waits_for_a_source_in_another_loop() -> None:
    """The task that fed an abandoned amap() tells of its end when it has ended, not before."""
    started = threading.Event()

    async def source() -> AsyncIterator[int]:
        for x in itertools.count():
            yield x
            await asyncio.sleep(0)

    p = Pipeline([f.double])

    async def main() -> None:
        outputs = p.amap(source())
        assert await anext(outputs) == 0
        loop = asyncio.get_running_loop()
        task = outputs._session._feed._task
        # Between the last statement of the task and its end.
        real = p._core.notify

        def slow() -> None:
            real()
            if asyncio._get_running_loop() is loop and asyncio.current_task() is task:
                started.set()
                time.sleep(0.05)

        p._core.notify = slow  # type: ignore[method-assign]
        await outputs.aclose()
        await asyncio.sleep(0.2)

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    with p:
        thread.start()
        assert started.wait(WAIT)
        assert in_thread(lambda: list(p.map([1, 2]))) == [2, 4]
        thread.join(WAIT)


def test_an_idle_thread_of_the_pool_is_woken_when_a_queue_accepts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pool, "_LOOK_AGAIN", 1e6)
    real = _pool._Hand.switch

    def slow(hand: _pool._Hand, state: int) -> float:
        if state == _runtime.IDLE:
            time.sleep(0.01)  # the other thread looks before this one has left the stage
        return real(hand, state)

    monkeypatch.setattr(_pool._Hand, "switch", slow)
    monkeypatch.setattr(_runtime.StageRuntime, "measured", lambda *_: None)  # items one by one: 8 and 9 never together
    together = threading.Barrier(2)

    def first(x: int) -> int:
        if x == 9:
            together.wait(WAIT)  # needs the other thread to be in second()
        return x

    def second(x: int) -> int:
        if x == 7:
            while not p.statistics().stages[1].depth:
                time.sleep(0.001)
            time.sleep(0.02)  # the other thread finds its queue closed and sleeps
        if x == 8:
            together.wait(WAIT)
        return x

    stages = [Stage(first, maxsize=16), Stage(second, maxsize=1)]
    with Pipeline(stages, scheduler="max_weight", pool=2, adapt="none") as p:
        p.submit_many(range(10))
        in_thread(p.join)
        assert p.statistics().stages[1].completed == 10


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "latest"])
def test_join_with_items_dropped_on_the_way(how: dict[str, Any], queues: str, policy: Any) -> None:
    options: dict[str, Any] = {} if policy == "latest" else {"maxsize": 2}
    with Pipeline([f.double, Stage(f.uneven, policy=policy, **options)], adapt="none", **how) as p:
        for _ in range(3):
            for x in range(20):
                p.submit(x)
            in_thread(p.join)
        last = p.statistics().stages[1]
        assert last.completed + last.dropped_oldest + last.dropped_newest == 60
