"""The one-item mailbox."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from typing import Any

import pytest

from edgefast.queues import Empty, Latest, ShutDown, Versioned


def test_newest_value_and_version() -> None:
    box: Latest[str] = Latest(name="pose")
    assert box.version == 0
    with pytest.raises(Empty):
        box.get(timeout=0)
    assert [box.set("a"), box.set("b")] == [1, 2]
    assert box.get() == Versioned("b", 2) == ("b", 2)
    assert box.get() == ("b", 2)  # reading takes nothing away
    assert box.get(newer_than=1) == ("b", 2)
    with pytest.raises(Empty):
        box.get(newer_than=2, timeout=0.01)
    assert repr(box) == "<Latest 'pose': version 2>"


def test_every_reader_sees_it_and_none_twice() -> None:
    box: Latest[int] = Latest()
    got: list[list[int]] = [[], [], []]

    def read(mine: list[int]) -> None:
        seen = 0
        while True:
            try:
                value, seen = box.get(newer_than=seen, timeout=20)
            except ShutDown:
                return
            mine.append(value)

    threads = [threading.Thread(target=read, args=(mine,)) for mine in got]
    for t in threads:
        t.start()
    for i in range(500):
        box.set(i)
        if i % 50 == 0:
            time.sleep(0.001)
    box.shutdown()
    for t in threads:
        t.join(20)
        assert not t.is_alive()
    for mine in got:
        assert mine == sorted(set(mine))
        assert mine[-1] == 499


def test_asyncio_and_threads_together() -> None:
    box: Latest[int] = Latest()

    async def read() -> list[int]:
        mine, seen = [], 0
        while True:
            try:
                value, seen = await box.aget(newer_than=seen)
            except ShutDown:
                return mine
            mine.append(value)

    async def main() -> list[list[int]]:
        cancelled = asyncio.create_task(box.aget())
        await asyncio.sleep(0)
        cancelled.cancel()
        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.to_thread(lambda: [box.set(i) for i in range(200)])
        box.shutdown()
        assert not box._waiting
        return await asyncio.gather(*tasks)

    for mine in asyncio.run(main()):
        assert mine == sorted(set(mine))
        assert mine[-1] == 199


def test_shutdown_keeps_the_value() -> None:
    box: Latest[int] = Latest()
    box.set(1)
    box.shutdown()
    assert box.is_shutdown
    assert box.get() == (1, 1)
    with pytest.raises(ShutDown):
        box.get(newer_than=1)
    with pytest.raises(ShutDown):
        box.set(2)
    with pytest.raises(ShutDown):
        asyncio.run(box.aget(newer_than=1))
    assert asyncio.run(box.aget()) == (1, 1)


def test_finalizer_of_the_old_value_may_set() -> None:
    box: Latest[Any] = Latest()

    class Value:
        def __del__(self) -> None:
            if box.version < 3:
                box.set("from a finalizer")

    box.set(Value())
    box.set("new")
    assert box.get() == ("from a finalizer", 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_with_a_waiting_thread() -> None:
    box: Latest[int] = Latest()
    thread = threading.Thread(target=lambda: box.get(timeout=20))
    thread.start()
    while not box._changed._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if box.set(1) == 1 and box.get() == (1, 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    box.set(5)
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda box: Latest(name=3), TypeError, "name: expected a string or None, got int"),  # type: ignore[arg-type]
        (lambda box: box.get(newer_than=-1), ValueError, "newer_than: expected 0 <= newer_than"),
        (lambda box: box.get(newer_than="1"), TypeError, "newer_than: expected an integer, got str"),
        (lambda box: box.get(timeout=-1), ValueError, "'timeout' must be a non-negative number"),
        (lambda box: box.get(timeout="1"), TypeError, "'timeout' must be a number or None, not str"),
        (lambda box: pickle.dumps(box), TypeError, "cannot pickle Latest"),
    ],
)
def test_bad_calls(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call(Latest())
    assert message in str(caught.value)
