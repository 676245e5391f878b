"""Soak: everything at once on one queue, for EDGEFAST_SOAK_SECONDS seconds (1.5 by default; `make soak`: minutes).

Threads, asyncio tasks, time-outs, cancellations, batches, changes of the limits, policies; then a shutdown at a random
moment. What must hold whatever happens: nothing is lost, nothing is duplicated, every producer's items come in order,
the bounds are never exceeded, and nobody is left waiting.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from edgefast.queues import Empty, Full, ShutDown

SECONDS = float(os.environ.get("EDGEFAST_SOAK_SECONDS", "1.5"))

Item = tuple[int, int]  # producer, number


class Round:
    """One queue from its creation to its shutdown."""

    def __init__(self, queue_class: Any, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.policy = dice.choice(["block", "block", "block", "drop_newest", "drop_oldest", "latest", "error"])
        self.maxsize = dice.choice([1, 2, 7, 64, 300])
        self.max_bytes = dice.choice([None, None, 40, 4000])
        gate = dice.random() < 0.4
        high = dice.randint(1, self.maxsize)
        self.q = queue_class(
            self.maxsize,
            policy=self.policy,
            max_bytes=self.max_bytes,
            sizer=(lambda item: 1 + item[1] % 9) if self.max_bytes else None,
            max_age=dice.choice([None, None, None, 0.002]),
            high_watermark=high if gate else None,
            low_watermark=dice.randint(0, high - 1) if gate else None,
        )
        self.each = dice.randint(200, 1500)
        self.stops_early = dice.random() < 0.4
        self.got: list[list[Item]] = []
        self.accepted: list[list[Item]] = []
        self.errors: list[BaseException] = []
        self.lock = threading.Lock()

    # ---- producers -------------------------------------------------------------------------------------------------

    def produce(self, who: int, dice: random.Random) -> None:
        accepted: list[Item] = []
        with self.lock:
            self.accepted.append(accepted)
        i = 0
        try:
            while i < self.each:
                choice = dice.random()
                item = (who, i)
                if choice < 0.2:
                    batch = [(who, j) for j in range(i, min(self.each, i + dice.randint(1, 9)))]
                    n = self.q.put_many(batch, timeout=dice.choice([0, 0.0005, None]))
                    # What is not accepted was dropped, or stays to be tried again.
                    if self.policy in ("block", "error"):
                        accepted += batch[:n]
                        i += n
                    else:
                        accepted += batch  # which of them is not said
                        i += len(batch)
                    continue
                try:
                    if choice < 0.4:
                        self.q.put_nowait(item)
                    elif choice < 0.6:
                        self.q.put(item, timeout=0.0005)
                    else:
                        self.q.put(item)
                except Full:
                    time.sleep(0)
                    continue
                accepted.append(item)
                i += 1
        except ShutDown:
            pass

    async def aproduce(self, who: int, dice: random.Random) -> None:
        accepted: list[Item] = []
        with self.lock:
            self.accepted.append(accepted)
        i = 0
        try:
            while i < self.each:
                try:
                    await attempt(self.q.aput((who, i)), dice.choice([0, 0.0005, None]))
                except Full:
                    await asyncio.sleep(0)
                    continue
                except asyncio.CancelledError:
                    continue
                accepted.append((who, i))
                i += 1
        except ShutDown:
            pass

    # ---- consumers -------------------------------------------------------------------------------------------------

    def consume(self, dice: random.Random) -> None:
        mine: list[Item] = []
        with self.lock:
            self.got.append(mine)
        while True:
            try:
                choice = dice.random()
                if choice < 0.3:
                    n = dice.randint(1, 9)
                    taken = self.q.get_many(
                        n, timeout=dice.choice([0, 0.0005, None]), min_items=dice.randint(1, n), linger=0.0005
                    )
                elif choice < 0.35:
                    taken = self.q.drain()
                elif choice < 0.5:
                    taken = [self.q.get_nowait()]
                else:
                    taken = [self.q.get(timeout=dice.choice([0.0005, None]))]
            except Empty:
                time.sleep(0)
                continue
            except ShutDown:
                return
            mine += taken
            for _ in taken:
                self.q.task_done()
            if dice.random() < 0.01:
                time.sleep(0.001)

    async def aconsume(self, dice: random.Random) -> None:
        mine: list[Item] = []
        with self.lock:
            self.got.append(mine)
        while True:
            try:
                if dice.random() < 0.5:
                    taken = [await attempt(self.q.aget(), dice.choice([0, 0.0005, None]))]
                else:
                    call = self.q.aget_many(5, min_items=dice.randint(1, 5), linger=0.001)
                    taken = await attempt(call, dice.choice([0, 0.0005, None]))
            except asyncio.CancelledError:
                continue
            except ShutDown:
                return
            mine += taken
            for _ in taken:
                self.q.task_done()

    def meddle(self, stop: threading.Event, dice: random.Random) -> None:
        """Changes limits, looks, waits for the gate."""
        while not stop.wait(0.001):
            choice = dice.random()
            if choice < 0.3:
                self.q.maxsize = dice.randint(max(1, (self.q.watermarks or (0, 0))[0]), self.maxsize)
            elif choice < 0.5:
                s = self.q.statistics()
                assert s.current_buffer_used <= self.maxsize, s
                assert not self.max_bytes or s.bytes_used <= self.max_bytes, s
                drained = s.get_count + s.dropped_oldest + s.expired + s.cleared
                assert s.put_count == drained + s.current_buffer_used, s
            elif choice < 0.7:
                try:
                    self.q.wait_writable(timeout=0.0005)
                except ShutDown:
                    return
            elif self.q.watermarks and choice < 0.8:
                self.q.set_watermarks(dice.randint(1, self.q.maxsize))

    # ---- the whole -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        dice = self.dice
        stop = threading.Event()

        def thread(function: Callable[..., Any], *args: Any) -> threading.Thread:
            def call() -> None:
                try:
                    function(*args)
                except BaseException as error:
                    self.errors.append(error)

            t = threading.Thread(target=call, daemon=True)
            t.start()
            return t

        def fresh() -> random.Random:
            return random.Random(dice.random())

        async def several(function: Any, *args: Any) -> None:
            await asyncio.gather(*(function(*a) for a in args))

        makers = [thread(self.produce, who, fresh()) for who in range(dice.randint(1, 3))]
        names = [(100 + who, fresh()) for who in range(dice.randint(0, 2))]
        makers.append(thread(lambda: asyncio.run(several(self.aproduce, *names))))
        takers = [thread(self.consume, fresh()) for _ in range(dice.randint(1, 3))]
        dices = [(fresh(),) for _ in range(dice.randint(0, 2))]
        takers.append(thread(lambda: asyncio.run(several(self.aconsume, *dices))))
        meddler = thread(self.meddle, stop, fresh())
        if self.stops_early:
            time.sleep(dice.random() * 0.1)
        else:
            self.wait(makers)
        self.q.shutdown(immediate=dice.random() < 0.3)
        self.wait(makers)
        self.wait(takers)
        stop.set()
        self.wait([meddler])
        self.check()

    def wait(self, threads: list[threading.Thread]) -> None:
        for t in threads:
            t.join(60)
            assert not t.is_alive(), (self.q, self.q.statistics(), self.policy)

    def check(self) -> None:
        assert not self.errors, self.errors
        s = self.q.statistics()
        got = Counter(item for mine in self.got for item in mine)
        assert not got or max(got.values()) == 1, "an item came twice"
        accepted = {item for mine in self.accepted for item in mine}
        if self.policy in ("block", "error"):
            # A put that was cut short by the shutdown may have put a part of its batch.
            assert all(item in accepted or self.stops_early for item in got)
            gone = s.expired + s.cleared
            assert len(accepted - set(got)) <= gone, "items were lost"
        assert s.put_count == s.get_count + s.dropped_oldest + s.expired + s.cleared
        assert s.get_count == sum(got.values())
        for mine in self.got:
            for who in {w for w, _ in mine}:
                numbers = [i for w, i in mine if w == who]
                assert numbers == sorted(numbers), "a producer's items came out of order"
        assert s.peak <= self.maxsize
        assert not self.max_bytes or s.peak_bytes <= self.max_bytes
        assert (s.tasks_waiting_send, s.tasks_waiting_receive, s.unfinished_tasks) == (0, 0, 0)


async def attempt(coroutine: Any, patience: float | None) -> Any:
    """The result of the call, cancelled after a while."""
    task = asyncio.ensure_future(coroutine)
    done, _ = await asyncio.wait([task], timeout=patience)
    if not done:
        task.cancel()
    return await task


@pytest.mark.timeout(SECONDS * 2 + 300)
def test_soak(queue_class: Any) -> None:
    seed = int(os.environ.get("EDGEFAST_SOAK_SEED", "0"))
    end = time.monotonic() + SECONDS
    interval = sys.getswitchinterval()
    try:
        while time.monotonic() < end:
            sys.setswitchinterval([interval, 1e-5][seed % 2])
            try:
                Round(queue_class, seed).run()
            except BaseException as error:
                error.add_note(f"EDGEFAST_SOAK_SEED={seed}")
                raise
            seed += 1
    finally:
        sys.setswitchinterval(interval)
