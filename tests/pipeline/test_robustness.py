"""What goes wrong at bad moments: it is told, counted and cleaned up, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pipeline_functions as f
import pytest

from edgefast.pipeline import Pipeline, PipelineError, Stage
from edgefast.queues import Queue, ShutDown

WAIT = 30.0


def in_thread(call: Callable[[], Any]) -> Any:
    """call() in a thread: a wait that never ends fails the test instead of holding it up."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(WAIT)
    assert not thread.is_alive(), "waits for ever"
    return results[0]


@pytest.mark.parametrize("kind", ["thread", "asyncio", "process"])
def test_an_error_without_a_message_ends_the_pipeline(kind: Any) -> None:
    p = Pipeline([f.raise_unspeakable], backend=kind)
    error = in_thread(lambda: list(p.map([1])))
    assert isinstance(error, PipelineError)
    assert "Unspeakable" in str(error)
    p.shutdown(immediate=True)
    in_thread(lambda: p._core.wait(p._core.closed.is_set))


def test_an_item_that_cannot_be_shown_ends_the_pipeline() -> None:
    def fail(x: int) -> int:
        raise ValueError("too long")

    p = Pipeline([fail])
    item = 10**5000  # more digits than Python prints
    error = in_thread(lambda: list(p.map([item])))
    assert isinstance(error, PipelineError)
    assert error.item is item
    assert "too long" in str(error)


# ---- the source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_shutdown_of_the_sources_own_queue_is_the_sources_error(kind: Any) -> None:
    source: Queue[int] = Queue()
    source.put_many(range(50))
    source.shutdown()

    def items() -> Iterator[int]:
        while True:
            yield source.get()

    with Pipeline([Stage(f.uneven, workers=2)], backend=kind) as p:
        outputs = p.map(items())
        got = [next(outputs) for _ in range(50)]  # all that came before it
        assert got == list(range(50))
        with pytest.raises(ShutDown) as caught:
            next(outputs)
        assert "pipeline" not in str(caught.value)
        assert list(p.map([1])) == [1]


def test_shutdown_of_an_asynchronous_sources_queue_is_the_sources_error() -> None:
    async def main() -> None:
        source: Queue[int] = Queue()
        source.put_many(range(50))
        source.shutdown()

        async def items() -> AsyncIterator[int]:
            while True:
                yield await source.aget()

        async with Pipeline([Stage(f.uneven, backend="thread", workers=2)]) as p, asyncio.timeout(WAIT):
            outputs = p.amap(items())
            assert [await anext(outputs) for _ in range(50)] == list(range(50))
            with pytest.raises(ShutDown) as caught:
                await anext(outputs)
            assert "pipeline" not in str(caught.value)

    asyncio.run(main())


def test_an_amap_that_is_dropped_stops_its_source() -> None:
    closed = False

    async def endless() -> AsyncIterator[int]:
        nonlocal closed
        try:
            for x in itertools.count():
                yield x
                await asyncio.sleep(0)
        finally:
            closed = True

    async def main() -> None:
        async with asyncio.timeout(WAIT), Pipeline([f.adouble]) as p:
            async for x in p.amap(endless()):
                if x > 10:
                    break
            assert [x async for x in p.amap([1, 2])] == [2, 4]
            while not closed:
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_an_amap_that_is_dropped_stops_a_source_that_waits() -> None:
    async def silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1000)

    async def main() -> None:
        async with asyncio.timeout(WAIT), Pipeline([f.adouble]) as p:
            async for _ in p.amap(silent()):
                break
            assert [x async for x in p.amap([1, 2])] == [2, 4]

    asyncio.run(main())


@pytest.mark.parametrize("method", ["map", "results"])
def test_a_pipeline_that_ends_while_a_reader_comes(method: str) -> None:
    p = Pipeline([f.double])
    real = p._core.open_reader

    def late(*args: Any) -> None:
        p.shutdown()
        assert p.join(WAIT)
        real(*args)

    p._core.open_reader = late  # type: ignore[method-assign]
    p.submit(1)

    def read() -> list[int]:
        return list(p.map([1]) if method == "map" else p.results())

    result = in_thread(read)
    assert isinstance(result, ShutDown) if method == "map" else result == []


def test_two_threads_that_submit_after_an_abandoned_map_lose_nothing() -> None:
    go = threading.Event()

    def hold(x: int) -> int:
        if x < 0:
            go.wait(WAIT)
        return x

    with Pipeline([hold], adapt="none") as p:
        stage = p._core.stages[0]
        queue = stage.queue
        main = threading.current_thread()
        reached = threading.Event()

        class Slow:
            """The other thread stands still before it clears the queue."""

            def __getattr__(self, name: str) -> Any:
                return getattr(queue, name)

            def clear(self) -> int:
                if threading.current_thread() is not main and not reached.is_set():
                    reached.set()
                    time.sleep(0.1)
                return queue.clear()

        outputs = p.map(itertools.count())
        next(outputs)
        outputs.close()
        stage.queue = Slow()  # type: ignore[assignment]
        other = threading.Thread(target=p.submit, args=(1,), daemon=True)
        other.start()
        assert reached.wait(WAIT)
        before = queue.statistics().cleared
        p.submit_many([-1, -2, -3])
        time.sleep(0.2)
        go.set()
        other.join(WAIT)
        in_thread(p.join)
        assert queue.statistics().cleared == before


# ---- outputs that cannot be queued -----------------------------------------------------------------------------------


def picky(x: int) -> int:
    """3 has no size, 5 is too large."""
    if x == 3:
        raise KeyError("no size")
    return 1000 if x == 5 else 1


@pytest.mark.parametrize("kind", ["thread", "asyncio", "process", "max_weight"])
@pytest.mark.parametrize("first", ["plain", "generator"])
def test_outputs_without_a_size_fail_alone(kind: str, first: str, queues: str) -> None:
    options: dict[str, Any] = {"scheduler": "max_weight", "pool": 1} if kind == "max_weight" else {"backend": kind}
    one = Stage(f.same if first == "plain" else f.each_of, name="one", on_error="skip")
    two = Stage(f.double, maxsize=1, max_bytes=100, sizer=picky)
    with Pipeline([one, two], adapt="none", **options) as p:
        outputs = in_thread(lambda: list(p.map(range(20) if first == "plain" else [20, 20])))
        good = [2 * x for x in range(20) if x not in (3, 5)]
        assert outputs == (good if first == "plain" else 2 * good)
        stage = p.statistics().stages[0]
        if first == "plain":
            assert (stage.completed, stage.failed, stage.lost, stage.emitted) == (18, 2, 0, 18)
        else:
            assert (stage.completed, stage.lost, stage.emitted) == (2, 0, 36)


@pytest.mark.parametrize("kind", ["thread", "asyncio", "process", "max_weight"])
@pytest.mark.parametrize("first", ["plain", "generator"])
def test_an_output_without_a_size_stops_the_pipeline_behind_those_before_it(kind: str, first: str, queues: str) -> None:
    options: dict[str, Any] = {"scheduler": "max_weight", "pool": 1} if kind == "max_weight" else {"backend": kind}
    one = Stage(f.same if first == "plain" else f.each_of, name="one")
    two = Stage(f.double, max_bytes=100, sizer=picky)
    p = Pipeline([one, two], adapt="none", **options)
    got: list[int] = []

    def read() -> None:
        for x in p.map(range(20) if first == "plain" else [20]):
            got.append(x)

    error = in_thread(read)
    p.shutdown()
    in_thread(lambda: p._core.wait(p._core.closed.is_set))
    assert isinstance(error, PipelineError)
    assert isinstance(error.__cause__, KeyError)
    assert got == [0, 2, 4]
    stage = p.statistics().stages[0]
    assert stage.emitted == 3
    assert stage.completed == (3 if first == "plain" else 0)
    assert stage.completed + stage.failed + stage.lost == stage.served


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_while_a_with_block_waits_for_its_end() -> None:
    go = threading.Event()

    def hold(x: int) -> int:
        go.wait(WAIT)
        return x

    p = Pipeline([Stage(hold, maxsize=64)], adapt="none")
    real = p._core.wait

    def interrupted(*args: Any) -> bool:
        p._core.wait = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    def use() -> None:
        with p:
            p.submit_many(range(20))
            p._core.wait = interrupted  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        use()
    go.set()
    in_thread(lambda: p._core.wait(p._core.closed.is_set))
    stage = p.statistics().stages[0]
    assert stage.cleared >= 18  # nobody is left to want them
    in_thread(lambda: p._core.collect())


def test_an_async_block_cancelled_at_its_end_leaves_nothing() -> None:
    async def main() -> None:
        async def hang(x: int) -> None:
            await asyncio.sleep(1000)

        async def use() -> None:
            async with Pipeline([hang]) as p:
                await p.asubmit(1)

        task = asyncio.create_task(use())
        while len(asyncio.all_tasks()) < 3:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(WAIT):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.001)

    asyncio.run(main())


# ---- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "asyncio", "process", "max_weight"])
def test_threads_that_cannot_be_started(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"scheduler": "max_weight"} if kind == "max_weight" else {"backend": kind}
    p = Pipeline([f.double, f.minus], **options)
    with monkeypatch.context() as patch:

        def start(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            p.submit(1)
    with pytest.raises(PipelineError):
        p.submit(1)
    p.shutdown()
    in_thread(lambda: p._core.wait(p._core.closed.is_set))


# ---- processes -------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_unpickled_leaves_the_next_items_alone() -> None:
    with Pipeline([Stage(f.spell_unreadable, on_error="skip")], backend="process") as p:
        got = in_thread(lambda: list(p.map([1, 2, 3])))
    assert got[:301] == [1] * 301
    assert got[-301:] == [3] * 301
    assert set(got[301:-301]) == {2}
    assert p.statistics().stages[0].failed == 1


def test_a_generator_that_is_not_wanted_any_more_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgefast.pipeline import _processes

    monkeypatch.setattr(_processes, "_PATIENCE", 1e6)
    p = Pipeline([Stage(f.endless, backend="process"), f.fail_on_7])
    error = in_thread(lambda: list(p.map([0])))
    assert isinstance(error, PipelineError)
    p.shutdown()
    in_thread(lambda: p._core.collect())


def test_a_worker_that_cannot_read_from_its_process_ends_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgefast.pipeline import _processes

    real = _processes.open_channel

    def broken(context: Any) -> Any:
        ours, theirs = real(context)

        def receive(alive: Callable[[], bool]) -> Any:
            raise OSError("no such queue")

        ours.receive = receive  # type: ignore[method-assign]
        return ours, theirs

    monkeypatch.setattr(_processes, "open_channel", broken)
    p = Pipeline([f.double], backend="process")
    error = in_thread(lambda: list(p.map([0])))
    assert isinstance(error, PipelineError)
    assert "no such queue" in str(error)
    p.shutdown()
    in_thread(lambda: p._core.collect())


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_a_forked_worker_has_no_end_of_another() -> None:
    done = run(
        "import os, time\n"
        "from edgefast.pipeline import Pipeline, Stage, _processes\n"
        "real = _processes.open_channel\n"
        "def slow(context):\n"
        "    pair = real(context); time.sleep(0.05); return pair\n"
        "_processes.open_channel = slow\n"
        "def sockets(x):\n"
        "    time.sleep(0.02)\n"
        "    ends = []\n"
        "    for fd in os.listdir('/proc/self/fd'):\n"
        "        try: ends.append(os.readlink('/proc/self/fd/' + fd))\n"
        "        except OSError: pass\n"
        "    return sum(end.startswith('socket:') for end in ends)\n"
        "before = sockets(0)\n"
        "with Pipeline([Stage(sockets, workers=4, ordered=False)], backend='process', start_method='fork') as p:\n"
        "    print(set(p.map(range(40))) == {before + 1})\n"
    )
    assert done.stdout.strip() == "True", done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_leaves_the_with_block_whoever_held_a_lock() -> None:
    done = run(
        "import os, sys, threading\n"
        "from edgefast.pipeline import Pipeline\n"
        "with Pipeline([abs]) as p:\n"
        "    outputs = p.results()\n"
        "    p.submit(1)\n"
        "    order = p._core.stages[0].order\n"
        "    held, go = threading.Event(), threading.Event()\n"
        "    def hold():\n"
        "        with order._lock: held.set(); go.wait()\n"
        "    thread = threading.Thread(target=hold); thread.start(); held.wait()\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        import signal; signal.alarm(20)\n"
        "        sys.exit(7)\n"
        "    go.set(); thread.join()\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        "    p.shutdown(); print(list(outputs))\n"
    )
    assert done.stdout.split("\n")[0] == "7", done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_may_have_processes_of_its_own_whoever_started_one() -> None:
    done = run(
        "import os, sys, signal\n"
        "from edgefast.pipeline import Pipeline, _processes\n"
        "_processes._starting.acquire()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.alarm(20)\n"
        "    with Pipeline([abs], backend='process', start_method='fork') as p:\n"
        "        os._exit(7 if list(p.map([-1])) == [1] else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert done.stdout.split("\n")[0] == "7", done.stdout + done.stderr


def test_how_a_process_ended_is_told_right(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while another thread starts a process, whereby multiprocessing asks for the status of all."""
    from multiprocessing import forkserver, process

    from edgefast.pipeline import _processes

    real = forkserver.read_signed  # type: ignore[attr-defined]

    def slow(fd: int) -> int:
        time.sleep(0.02)
        return real(fd)

    monkeypatch.setattr(forkserver, "read_signed", slow)
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            with _processes._starting:
                process._cleanup()  # type: ignore[attr-defined]
            time.sleep(0.0005)

    other = threading.Thread(target=others)
    other.start()
    try:
        with Pipeline([Stage(f.same, retries=5)], backend="process", start_method="forkserver") as p:
            outputs = p.map(itertools.count())
            next(outputs)
            (worker,) = p._core.stages[0].workers
            for n in range(1, 6):
                pid = worker.pid  # type: ignore[attr-defined]
                os.kill(pid, signal.SIGKILL)
                while p.statistics().stages[0].restarts < n or worker.pid in (None, pid):  # type: ignore[attr-defined]
                    next(outputs)
            outputs.close()
    finally:
        stop.set()
        other.join()
    said = [record.getMessage() for record in caplog.records if "is replaced" in record.getMessage()]
    assert len(said) == 5
    assert all("was killed by SIGKILL" in one for one in said), said


def test_a_pipeline_may_be_finalized_in_the_middle_of_anything() -> None:
    def collected(p: Pipeline, lock: Any) -> None:
        with lock:
            p._core.shutdown(immediate=True)

    for which in range(3):
        p = Pipeline([f.double])
        p.submit(1)
        stage = p._core.stages[0]
        assert stage.order is not None
        lock = (p._core.lock, stage.lock, stage.order._lock)[which]
        in_thread(functools.partial(collected, p, lock))
        in_thread(p._core.collect)
        p.shutdown()


def test_resize_starts_no_threads_beside_a_pool() -> None:
    """They would wait for items with the turn of the stage, and the pool for the turn."""
    with Pipeline([f.double, f.minus], scheduler="max_weight", pool=1, adapt="none") as p:
        outputs = p.map(range(200))
        assert next(outputs) == 0
        p.resize("double", workers=4)
        p.resize("minus", workers=4)
        assert len(p._core.threads) == 1
        assert in_thread(lambda: list(outputs)) == [-2 * x for x in range(1, 200)]
