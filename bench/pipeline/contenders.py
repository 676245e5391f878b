"""Everything that runs a workload: our pipeline, fixed sizes, and what others use for the same purpose."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.workloads import STAGES, Meter

from edgefast.pipeline import Decision, Pipeline, Stage, StageSample

SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def _drain(outputs: Any) -> int:
    return sum(1 for _ in outputs)


def fixed(size: int, meter: Meter) -> int:
    """Our runtime with bounded queues of one size, as a person would choose it. No gate: a queue with room takes an
    item, which is the fastest that a size can be."""
    workers = meter.workload.workers
    stages = [Stage(f, workers=workers, maxsize=size, low_watermark=size - 1, ordered=False) for f in meter.stages]
    with Pipeline(stages, adapt="none") as pipeline:
        return _drain(pipeline.map(meter.source()))


def adaptive(meter: Meter, *, moves: bool) -> int:
    """The defaults. `moves`: workers may change stages, as many in all as the others have."""
    workers = meter.workload.workers
    most = workers * STAGES if moves else None
    stages = [Stage(f, workers=workers, max_workers=most, ordered=False) for f in meter.stages]
    with Pipeline(stages) as pipeline:
        return _drain(pipeline.map(meter.source()))


class OnlyGrowing:
    """The rule of tf.data's prefetch autotuner (prefetch_autotuner.cc): a buffer that was full and is found empty later
    doubles; none ever shrinks."""

    period = next_period = 0.05

    def __init__(self) -> None:
        self._full: dict[str, bool] = {}
        self._starved: dict[str, float] = {}

    def step(self, now: float, samples: Sequence[StageSample]) -> list[Decision]:
        decisions = []
        for i, s in enumerate(samples):
            was_full = self._full.get(s.name, False) or s.depth >= s.limit - 1 or (i > 0 and samples[i - 1].blocked > 0)
            found_empty = s.starved > self._starved.get(s.name, s.starved) + 1e-3
            self._starved[s.name] = s.starved
            self._full[s.name] = was_full
            if was_full and found_empty and s.limit < s.max_limit:
                decisions.append(Decision(now, s.name, "limit", s.limit, 2 * s.limit, "was full, is empty"))
                self._full[s.name] = False
        return decisions


def only_growing(meter: Meter) -> int:
    workers = meter.workload.workers
    stages = [Stage(f, workers=workers, ordered=False) for f in meter.stages]
    with Pipeline(stages, adapt=OnlyGrowing(), period=OnlyGrowing.period) as pipeline:
        return _drain(pipeline.map(meter.source()))


def standard_library(size: int, meter: Meter) -> int:
    """What people write by hand: threads and queue.Queue(size)."""
    queues: list[queue.Queue[Any]] = [queue.Queue(size) for _ in range(STAGES + 1)]
    workers = meter.workload.workers

    def feed() -> None:
        for item in meter.source():
            queues[0].put(item)
        for _ in range(workers):
            queues[0].put(None)

    def work(i: int, left: list[int], lock: Any) -> None:
        while (item := queues[i].get()) is not None:
            queues[i + 1].put(meter.stages[i](item))
        with lock:
            left[0] -= 1
            if not left[0]:
                for _ in range(workers if i + 1 < STAGES else 1):
                    queues[i + 1].put(None)

    threads = [threading.Thread(target=feed)]
    for i in range(STAGES):
        left, lock = [workers], threading.Lock()
        threads += [threading.Thread(target=work, args=(i, left, lock)) for _ in range(workers)]
    for thread in threads:
        thread.start()
    got = sum(1 for _ in iter(queues[-1].get, None))
    for thread in threads:
        thread.join()
    return got


def futures(meter: Meter) -> int:
    """An executor for each stage, chained with Executor.map: it submits everything at once, nothing holds it back."""
    workers = meter.workload.workers
    executors = [concurrent.futures.ThreadPoolExecutor(workers) for _ in range(STAGES)]
    try:
        outputs: Any = meter.source()
        for executor, stage in zip(executors, meter.stages, strict=True):
            outputs = executor.map(stage, outputs)
        return _drain(outputs)
    finally:
        for executor in executors:
            executor.shutdown()


def futures_chained(meter: Meter) -> int:
    """An executor for each stage; each item goes to the next one when it is done, at most 64 on their way."""
    workers = meter.workload.workers
    executors = [concurrent.futures.ThreadPoolExecutor(workers) for _ in range(STAGES)]
    room = threading.Semaphore(64)
    done = [0]

    def pass_on(i: int, future: concurrent.futures.Future[Any]) -> None:
        if i == STAGES:
            future.result()
            done[0] += 1
            room.release()
            return
        after = executors[i].submit(meter.stages[i], future.result())
        after.add_done_callback(functools.partial(pass_on, i + 1))

    try:
        for item in meter.source():
            room.acquire()
            executors[0].submit(meter.stages[0], item).add_done_callback(functools.partial(pass_on, 1))
        for _ in range(64):
            room.acquire()
        return done[0]
    finally:
        for executor in executors:
            executor.shutdown()


def pypeln(size: int, meter: Meter) -> int:
    """pypeln.thread with a maxsize for each stage (0, its default, is unbounded)."""
    import pypeln

    outputs: Any = meter.source()
    for stage in meter.stages:
        outputs = pypeln.thread.map(stage, outputs, workers=meter.workload.workers, maxsize=size)
    return _drain(outputs)


def streamz(size: int, meter: Meter) -> int:
    """streamz: map_async over threads, a buffer(size) in front of each stage."""
    import streamz

    workers = meter.workload.workers
    items = len(meter.workload.gaps)
    executors = [concurrent.futures.ThreadPoolExecutor(workers) for _ in range(STAGES)]
    feeder = concurrent.futures.ThreadPoolExecutor(1)

    async def run() -> int:
        loop = asyncio.get_running_loop()
        source = node = streamz.Stream(asynchronous=True)
        done = asyncio.Event()
        got: list[Any] = []

        def collect(item: Any) -> None:
            got.append(item)
            if len(got) == items:
                done.set()

        for executor, stage in zip(executors, meter.stages, strict=True):

            async def call(item: Any, executor: Any = executor, stage: Any = stage) -> Any:
                return await loop.run_in_executor(executor, stage, item)

            node = node.buffer(size).map_async(call, parallelism=workers)
        node.sink(collect)
        iterator = meter.source()
        while (item := await loop.run_in_executor(feeder, next, iterator, None)) is not None:
            await source.emit(item)
        await done.wait()
        return len(got)

    try:
        return asyncio.run(run())
    finally:
        for executor in (*executors, feeder):
            executor.shutdown()


def _all() -> dict[str, tuple[bool, Callable[[Meter], int]]]:
    contenders: dict[str, tuple[bool, Callable[[Meter], int]]] = {
        "edgefast": (True, functools.partial(adaptive, moves=False)),
        "edgefast, workers move": (True, functools.partial(adaptive, moves=True)),
    }
    for size in SIZES:
        contenders[f"fixed {size}"] = (False, functools.partial(fixed, size))
    contenders["only growing (tf.data's rule)"] = (False, only_growing)
    contenders["queue.Queue(2), torch's prefetch_factor"] = (False, functools.partial(standard_library, 2))
    contenders["queue.Queue(100)"] = (False, functools.partial(standard_library, 100))
    contenders["concurrent.futures map"] = (False, futures)
    contenders["concurrent.futures, 64 in flight"] = (False, futures_chained)
    contenders["pypeln(maxsize=100)"] = (False, functools.partial(pypeln, 100))
    contenders["streamz, buffer(100)"] = (False, functools.partial(streamz, 100))
    return contenders


#: name: (ours, function that runs a workload and returns the number of outputs)
CONTENDERS = _all()
