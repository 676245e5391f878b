"""The asyncio side of Queue: coroutines over the wait lists of the core.

A waiting task is an entry of the queue's wait list and a future of its loop; no thread waits for it. Whoever wakes it,
in any thread, puts its future on the list of its loop and wakes the loop, once for all futures that gather until it
runs. A woken task takes its item itself, in one step without an await, so that a cancelled one has either taken it or
passes its turn on.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgefast.queues._checks import batch_of, count, seconds
from edgefast.queues._exceptions import Empty, Full, ShutDown

__all__ = ["GETTERS", "JOINERS", "PUTTERS", "WRITERS", "AsyncMethods", "loop_of"]

T = TypeVar("T")

#: What a waiter waits for: an item, room, the last task_done(), an open gate.
GETTERS, PUTTERS, JOINERS, WRITERS = range(4)

#: A task that always finds what it wants gives way to the others of its loop after so many operations.
_STREAK = 64


class _Loop:
    """Wakes futures of one event loop, from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak: the registry must not keep a loop alive through its own value.
        self._loop = weakref.ref(loop)
        self._ready: deque[asyncio.Future[None]] = deque()
        self._armed = False

    def wake(self, future: asyncio.Future[None]) -> bool:
        """False when the loop is gone and the waiter with it."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        self._ready.append(future)
        if not self._armed:
            self._armed = True
            try:
                if asyncio._get_running_loop() is loop:
                    loop.call_soon(self._drain)
                else:
                    loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # closed since
                self._armed = False
                return False
            except BaseException:  # Ctrl-C: the next one does it
                self._armed = False
                raise
        return True

    def _drain(self) -> None:
        self._armed = False  # before the first look: what is added from now on arms again
        ready = self._ready
        while ready:
            future = ready.popleft()
            if not future.done():
                future.set_result(None)


_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Loop] = weakref.WeakKeyDictionary()


def loop_of(loop: asyncio.AbstractEventLoop) -> _Loop:
    """What wakes the futures of a loop."""
    notifier = _loops.get(loop)
    return _loops.setdefault(loop, _Loop(loop)) if notifier is None else notifier


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class AsyncMethods(Generic[T]):
    """Coroutines of Queue, for tasks of any number of event loops and next to threads on the same queue."""

    if TYPE_CHECKING:  # what the cores provide

        def get_nowait(self) -> T: ...
        def get_many(self, max_items: int, block: bool = ..., *, min_items: int = ...) -> list[T]: ...
        @property
        def is_shutdown(self) -> bool: ...
        @property
        def unfinished_tasks(self) -> int: ...
        def qsize(self) -> int: ...
        def _offer(self, item: T, woken: bool, /) -> int: ...
        def _size_of(self, item: T, /) -> int: ...
        def _enlist(
            self, kind: int, need: int, woken: bool, callback: Callable[[Any], bool], future: Any, /
        ) -> object | None: ...
        def _leave(self, waiter: Any, pass_on: bool, /) -> bool: ...
        def _expires_in(self) -> float: ...

    _streak = 0

    def _tired(self) -> bool:
        """Whether the task that calls should give way to others first."""
        self._streak = (self._streak + 1) % _STREAK
        return self._streak == 0

    async def _turn(self, kind: int, need: int, woken: bool, timeout: float | None = None) -> bool:
        """Waits for a turn; False after the time-out. A turn is a chance, not a promise: the caller looks again."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        waiter = self._enlist(kind, need, woken, loop_of(loop).wake, future)
        if waiter is None:
            return woken
        self._streak = 0
        timer = None if timeout is None else loop.call_later(timeout, _resolve, future)
        try:
            await future
        except BaseException:
            self._leave(waiter, True)
            raise
        finally:
            if timer is not None:
                timer.cancel()
        return self._leave(waiter, False)

    async def _await_room(self, need: int, woken: bool) -> bool:
        expires = self._expires_in()
        return await self._turn(PUTTERS, need, woken, None if expires < 0 else expires)

    async def aput(self, item: T) -> None:
        """Put an item by the queue's policy; with "block", wait for room without blocking the event loop.

        A cancelled call has not put the item.

        Raises:
            Full: no room, and the policy is "error".
            ShutDown: the queue was shut down.
            TypeError, ValueError: the item has no size, or is over max_bytes.
        """
        await self._aput(item, self._tired())

    async def _aput(self, item: T, gives_way: bool) -> None:
        if gives_way:
            await asyncio.sleep(0)
        woken = False
        while (need := self._offer(item, woken)) >= 0:
            woken = await self._await_room(need, woken)

    async def aput_many(self, items: Sequence[T]) -> int:
        """Put items in order, waiting for room as aput does; the number accepted.

        The number is less than len(items) when a policy dropped or refused some, or when the queue was shut down while
        waiting. A cancelled call has put a part of them, in order.

        Raises:
            ShutDown: the queue was shut down before the first item.
            TypeError, ValueError: items is no sequence, or an item has no size or is over max_bytes.
        """
        batch = batch_of(items)
        for item in batch:
            self._size_of(item)
        accepted = 0
        for i, item in enumerate(batch):
            woken = False
            try:
                while (need := self._offer(item, woken)) >= 0:
                    woken = await self._await_room(need, woken)
            except Full:
                break
            except ShutDown:
                if i == 0:
                    raise
                break
            accepted += need == -1
        return accepted

    async def aget(self) -> T:
        """Take the oldest item; wait for one without blocking the event loop.

        A cancelled call has not taken an item.

        Raises:
            ShutDown: the queue was shut down and is empty.
        """
        return await self._aget(self._tired())

    async def _aget(self, gives_way: bool) -> T:
        if gives_way:
            await asyncio.sleep(0)
        woken = False
        while True:
            try:
                return self.get_nowait()
            except Empty:
                pass
            woken = await self._turn(GETTERS, 1, woken)

    async def aget_many(self, max_items: int, *, min_items: int = 1, linger: float = 0.0) -> list[T]:
        """Take 1 to max_items of the oldest: wait for the first, then up to `linger` seconds for min_items.

        A cancelled call has taken nothing.

        Raises:
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: max_items or min_items is no integer from 1, min_items above max_items, or linger
                negative.
        """
        most, least, wait = count(max_items, "max_items"), count(min_items, "min_items"), seconds(linger, "linger")
        if least > most:
            raise ValueError(f"min_items: expected at most max_items ({most}), got {least}")
        woken = False
        if self._tired():
            await asyncio.sleep(0)
        while True:
            while not self.qsize():
                if self.is_shutdown:
                    raise ShutDown
                woken = await self._turn(GETTERS, 1, woken)
            if wait > 0:
                until = time.monotonic() + wait
                while self.qsize() < least and not self.is_shutdown and (left := until - time.monotonic()) > 0:
                    await self._turn(GETTERS, least, False, left)
            try:
                return self.get_many(most, False, min_items=least)
            except Empty:  # somebody else took the first item meanwhile
                continue

    async def ajoin(self) -> None:
        """join() without blocking the event loop."""
        while self.unfinished_tasks:
            expires = self._expires_in()
            await self._turn(JOINERS, 0, False, None if expires < 0 else expires)

    async def __aiter__(self) -> AsyncIterator[T]:
        """Items as they come, until the queue is shut down and empty."""
        while True:
            try:
                item = await self.aget()
            except ShutDown:
                return
            yield item
