"""The asyncio side of SharedQueue.

A futex of another process cannot wake an event loop, so a thread sleeps on it: one for the tasks of this process that
wait for items of a queue and one for those that wait for room, whatever the number of loops, started with the first
task that has to wait. It never takes an item. It sleeps on the queue only while a task waits, and ends after a
second without any. A task that finds what it wants involves no thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from edgefast.queues._checks import count, seconds
from edgefast.queues._exceptions import Empty, ShutDown
from edgefast.queues._loops import loop_of

__all__ = ["SharedAsyncMethods"]

_NOT_YET = object()
_STREAK = 64  # a task that always finds what it wants gives way to the others of its loop after so many operations
_SLICE = 0.25  # seconds after which a sleeping thread looks whether any task still waits
_IDLE = 1.0  # seconds without a task after which it ends
_ANSWER = 0.05  # seconds it waits for a woken task to have had its turn: its loop may be busy


class _Waiter(NamedTuple):
    loop: Any
    future: asyncio.Future[None]


class _Watcher:
    """Wakes tasks in turn, as many as there are items (or as there is room)."""

    def __init__(self, queue: Any, wait: str) -> None:
        self._queue = weakref.ref(queue)
        self._wait = wait
        self._changed = threading.Condition(threading.Lock())
        self._waiters: deque[_Waiter] = deque()
        self._unsettled = 0  # tasks woken that have not had their turn yet
        self._thread: threading.Thread | None = None

    def add(self, waiter: _Waiter) -> None:
        with self._changed:
            self._waiters.append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgefast-shared-queue", daemon=True)
                self._thread.start()
            self._changed.notify()

    def leave(self, waiter: _Waiter) -> None:
        """The task has been woken, or does not wait any longer."""
        with self._changed:
            try:
                self._waiters.remove(waiter)
            except ValueError:
                self._unsettled -= 1
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiters and not self._changed.wait_for(lambda: self._waiters, _IDLE):
                    self._thread = None
                    return
                self._changed.wait_for(lambda: self._unsettled <= 0, _ANSWER)
                self._unsettled = max(0, self._unsettled)
            queue = self._queue()
            try:
                turns = 0 if queue is None else getattr(queue, self._wait)(_SLICE)
            except Exception:  # shut down, closed, damaged: each task finds out for itself
                turns = len(self._waiters)
            if queue is None:
                turns = len(self._waiters)
            del queue
            with self._changed:
                while turns > 0 and self._waiters:
                    waiter = self._waiters.popleft()
                    self._unsettled += 1
                    if waiter.loop.wake(waiter.future):
                        turns -= 1
                    else:  # its loop is closed
                        self._unsettled -= 1


class SharedAsyncMethods:
    """Coroutines of SharedQueue, for tasks of any number of event loops, next to threads and other processes."""

    if TYPE_CHECKING:  # what the core provides

        def get(self, block: bool = ..., timeout: float | None = ...) -> Any: ...
        def get_many(self, max_items: int | None = ..., block: bool = ..., *, min_items: int = ...) -> Any: ...
        def qsize(self) -> int: ...
        @property
        def is_shutdown(self) -> bool: ...
        def _offer(self, item: Any, /) -> bool: ...
        def _await_items(self, timeout: float, wanted: int = ..., /) -> int: ...
        def _await_room(self, timeout: float, /) -> int: ...

    _streak = 0
    _watchers: dict[str, _Watcher]

    def _forget_watchers(self) -> None:
        self._watchers = {}

    async def _give_way(self) -> None:
        self._streak = (self._streak + 1) % _STREAK
        if self._streak == 0:
            await asyncio.sleep(0)

    async def _when(self, side: str, attempt: Callable[[], Any]) -> Any:
        """What attempt() returns as soon as that is not _NOT_YET, tried anew whenever there is a chance."""
        if (result := attempt()) is not _NOT_YET:
            return result
        loop = asyncio.get_running_loop()
        watcher = self._watchers.get(side) or self._watchers.setdefault(side, _Watcher(self, side))
        self._streak = 0
        while True:
            waiter = _Waiter(loop_of(loop), loop.create_future())
            watcher.add(waiter)
            try:
                await waiter.future
                if (result := attempt()) is not _NOT_YET:
                    return result
            finally:
                watcher.leave(waiter)  # after its turn: the thread then looks whether something is left for the next

    async def aput(self, item: Any) -> None:
        """put() for asyncio: waits for room without blocking the event loop. A cancelled call has not put the item.

        Raises:
            Full: no room, and the policy is "error".
            ShutDown: the queue was shut down.
            TypeError, ValueError: as for put.
        """
        await self._give_way()
        await self._when("_await_room", lambda: None if self._offer(item) else _NOT_YET)

    async def aget(self) -> Any:
        """get() for asyncio: waits for an item without blocking the event loop. A cancelled call has not taken one.

        Raises:
            ShutDown: the queue was shut down and is empty.
        """
        await self._give_way()
        return await self._when("_await_items", self._get_or_not_yet)

    def _get_or_not_yet(self) -> Any:
        try:
            return self.get(False)
        except Empty:
            return _NOT_YET

    async def aget_many(self, max_items: int, *, min_items: int = 1, linger: float = 0.0) -> Any:
        """get_many() for asyncio. A cancelled call has taken nothing.

        Raises:
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: as for get_many.
        """
        most, least, wait = count(max_items, "max_items"), count(min_items, "min_items"), seconds(linger, "linger")
        if least > most:
            raise ValueError(f"min_items: expected at most max_items ({most}), got {least}")
        await self._give_way()
        while True:
            await self._when("_await_items", self._items_or_not_yet)
            end = time.monotonic() + wait
            with contextlib.suppress(ShutDown):  # what is there is for this call
                while self.qsize() < least and not self.is_shutdown and (left := end - time.monotonic()) > 0:
                    # A thread waits without taking anything, a slice at a time: one that nobody awaits any more ends.
                    await asyncio.get_running_loop().run_in_executor(None, self._await_items, min(left, _SLICE), least)
            try:
                return self.get_many(most, False)
            except Empty:  # somebody else took the first item meanwhile
                continue

    def _items_or_not_yet(self) -> Any:
        if self.qsize():
            return True
        if self.is_shutdown:
            raise ShutDown
        return _NOT_YET

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Items as they come, until the queue is shut down and empty."""
        while True:
            try:
                item = await self.aget()
            except ShutDown:
                return
            yield item
