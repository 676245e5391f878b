"""Functions that processes can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any


def double(x: int) -> int:
    return 2 * x


def square(x: int) -> int:
    return x * x


def minus(x: int) -> int:
    return -x


def uneven(x: int) -> int:
    """Every third item takes longer than those behind it."""
    time.sleep(0.004 if x % 3 == 0 else 0.0)
    return x


def repeat(x: int) -> Iterator[int]:
    """0 to 2 outputs."""
    for _ in range(x % 3):
        yield x


def fail_on_7(x: int) -> int:
    if x == 7:
        raise ValueError("seven")
    return x


def spell(x: int) -> Iterator[int]:
    yield x
    if x == 3:
        raise ValueError("three")
    yield -x


def sums(batch: list[int]) -> Iterator[int]:
    yield sum(batch)


def double_all(batch: list[int]) -> list[int]:
    return [2 * x for x in batch]


async def adouble(x: int) -> int:
    return 2 * x


async def arepeat(x: int) -> AsyncIterator[int]:
    for _ in range(x % 3):
        yield x


def kill_once(work: tuple[int, str]) -> int:
    """Kills its process at an item, the first time."""
    x, path = work
    if x == 5 and not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def exit_on_5(x: int) -> int:
    if x == 5:
        os._exit(3)
    return x


def spell_then_exit(x: int) -> Iterator[int]:
    yield x
    if x == 2:
        time.sleep(0.05)  # the first output is on its way
        yield -x
        os._exit(3)


def pid_of(x: int) -> int:
    return os.getpid()


def function_of(x: int) -> Any:
    """Cannot be pickled for x = 2."""
    return (lambda: x) if x == 2 else x


def sleep_for_ever(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(1000)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raise_unspeakable(x: int) -> int:
    raise Unspeakable


def same(x: int) -> int:
    return x


def each_of(n: int) -> Iterator[int]:
    yield from range(n)


def endless(x: int) -> Iterator[int]:
    while True:
        yield x
        x += 1


def _here_only(pid: int) -> HereOnly:
    if os.getpid() != pid:
        raise ValueError("not here")
    return HereOnly()


class HereOnly:
    """Can be pickled, and unpickled in the same process only."""

    def __reduce__(self) -> Any:
        return _here_only, (os.getpid(),)


def spell_unreadable(x: int) -> Iterator[Any]:
    yield x
    if x == 2:
        time.sleep(0.01)
        yield HereOnly()
    for _ in range(300):
        yield x
