"""Queue in pure Python: a deque under one lock. The same semantics, exceptions and statistics as the native one.

Type checkers read this module for both.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edgefast.queues._checks import batch_of, count, seconds
from edgefast.queues._loops import GETTERS, JOINERS, PUTTERS, WRITERS
from edgefast.queues._types import (
    HOOKS,
    POLICIES,
    Empty,
    Full,
    Policy,
    QueueBase,
    ShutDown,
    call_listeners,
)

__all__ = ["Queue"]

T = TypeVar("T")

_SAMPLE_EVERY = 64
_FOREVER = float("inf")
_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The threads that held or awaited the locks do not exist in the child."""
    for queue in tuple(_instances):
        queue._reset_waiting()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _deadline(block: Any, timeout: Any) -> float | None:
    """None for "do not block", infinity for "for ever", else a time.monotonic()."""
    if not block:
        return None
    if timeout is None:
        return _FOREVER
    limit = seconds(timeout, "timeout")
    return _FOREVER if limit > 3e9 else time.monotonic() + limit


def _past(deadline: float | None) -> bool:
    return deadline is None or (deadline != _FOREVER and time.monotonic() >= deadline)


class _Waiter:
    """A thread (with a condition) or an asyncio task (with a callback) on a wait list."""

    __slots__ = ("callback", "condition", "future", "kind", "listed", "need")

    def __init__(self, kind: int, need: int) -> None:
        self.kind = kind
        self.need = need
        self.listed = False
        self.condition: threading.Condition | None = None
        self.callback: Callable[[Any], bool] | None = None
        self.future: Any = None


class Queue(QueueBase[T]):
    """A bounded FIFO queue for threads and asyncio: queue.Queue with backpressure, batches and statistics.

    Everything queue.Queue has means the same here, except that a negative maxsize is an error and that `mutex` and
    `queue` are absent. All limits hold together; the first one reached is the one that counts. With a high watermark
    the queue closes when it holds that many items - put waits, is refused or drops by the policy - and reopens when it
    is down to the low one, so that producers run in bursts instead of one item at a time.

    Safe to use from any number of threads and event loops. FIFO for all, in the order in which puts got their room.
    Cannot be pickled.

    Args:
        maxsize: most items held at once; 0 for no limit.
        max_bytes: most bytes held at once; None for no limit. A put of a larger item is a ValueError.
        sizer: sizer(item) is its number of bytes, asked in put. None takes `nbytes`, or the length of bytes, when
            there is a max_bytes.
        policy: what put does when there is no room: "block" waits, "error" raises Full at once, "drop_newest" drops the
            item, "drop_oldest" makes room by dropping the oldest ones, "latest" always replaces what is there.
            Dropped items count as done for join().
        high_watermark: number of items at which the queue closes, 1 to maxsize; None for no gate.
        low_watermark: number at which it reopens, below high; None for high // 4.
        max_age: seconds after which an item is dropped instead of got; None for no limit.
        name: shown by repr and in reports.

    A subclass may override `_init(maxsize)`, `_qsize()`, `_put(item)` and `_get()` as with queue.Queue, which makes it
    slower. They run under the queue's lock, which is not part of the interface.

    Raises:
        TypeError: an argument is not of its type, or does not go with an overridden `_init`, `_qsize`, `_put`, `_get`.
        ValueError: negative sizes, low not below high, high above maxsize, an unknown policy.

    Examples:
        >>> from edgefast.queues import Queue
        >>> q = Queue(8, high_watermark=4, low_watermark=1)
        >>> q.put_many(list("abcdef"), block=False)
        4
        >>> q.full(), q.writable
        (True, False)
        >>> q.get_many(3)
        ['a', 'b', 'c']
        >>> q.writable
        True
        >>> frames = Queue(2, policy="drop_oldest")
        >>> frames.put_many([1, 2, 3, 4])
        4
        >>> frames.drain(), frames.statistics().dropped_oldest
        ([3, 4], 2)
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        max_bytes: int | None = None,
        sizer: Callable[[T], int] | None = None,
        policy: Policy = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        max_age: float | None = None,
        name: str | None = None,
    ) -> None:
        self._reset_waiting()
        self._closed = False
        self._is_shutdown = False
        self._unfinished = 0
        self._listening = False
        self._went_high = self._went_low = False
        self._puts = self._gets = self._cleared = self._refused = 0
        self._dropped_newest = self._dropped_oldest = self._expired = 0
        self._full_waits = self._empty_waits = self._wakeups = self._high_events = self._peak = 0
        self._bytes = self._peak_bytes = 0
        self._sampled_position = 0
        self._sampled_at = 0
        self._sojourn = -1.0
        self._frozen_at = -1
        self._limit = self._high_mark = self._low_mark = 0
        super().__init__(
            maxsize,
            max_bytes=max_bytes,
            sizer=sizer,
            policy=policy,
            high_watermark=high_watermark,
            low_watermark=low_watermark,
            max_age=max_age,
            name=name,
        )
        self._init(maxsize)
        _instances.add(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._overridden = tuple(name for name in HOOKS if getattr(cls, name) is not getattr(Queue, name))

    def _setup(self, policy: int, counts_bytes: bool, max_bytes: int, sizer: Any, max_age: int, engine: Any, /) -> None:
        self._rule = POLICIES[policy]
        self._counts_bytes = counts_bytes
        self._byte_limit = max_bytes
        self._sizer = sizer
        self._age = max_age  # nanoseconds; 0: no limit
        self._meters: deque[tuple[int, int]] | None = deque() if counts_bytes or max_age else None

    def _reset_waiting(self) -> None:
        # Reentrant: a finalizer may run inside an operation and use the queue.
        self._lock = threading.RLock()
        self._lists: tuple[deque[_Waiter], ...] = (deque(), deque(), deque(), deque())
        self._told: deque[_Waiter] = deque()

    # ---- storage, as in queue.Queue ------------------------------------------------------------------------------

    def _init(self, maxsize: int) -> None:
        self._items: deque[T] = deque()

    def _qsize(self) -> int:
        return len(self._items)

    def _put(self, item: T) -> None:
        self._items.append(item)

    def _get(self) -> T:
        return self._items.popleft()

    # ---- parts, under the lock -----------------------------------------------------------------------------------

    def _clock(self) -> int:
        return time.monotonic_ns() if self._frozen_at < 0 else self._frozen_at

    def _room(self) -> float:
        if self._closed:
            return 0
        room = _FOREVER
        size = self._qsize()
        if self._limit > 0:
            room = self._limit - size
        if self._high_mark > 0:
            room = min(room, self._high_mark - size)
        return max(room, 0)

    def _fits(self, size: int) -> bool:
        return self._room() > 0 and (not self._byte_limit or size <= self._byte_limit - self._bytes)

    def _excess(self, size: int) -> int:
        """How many of the oldest must go before an item of so many bytes may be put."""
        here = self._qsize()
        n = 1 if self._closed else 0
        if self._limit > 0:
            n = max(n, here + 1 - self._limit)
        if self._high_mark > 0:
            n = max(n, here + 1 - self._high_mark)
        if not self._byte_limit:
            return min(n, here)
        assert self._meters is not None
        gone, left = 0, self._bytes
        while gone < here and (gone < n or size > self._byte_limit - left):
            left -= self._meters[gone][0]
            gone += 1
        return gone

    def _settle(self) -> None:
        """The gate, after the whole of an operation."""
        if not self._high_mark:
            return
        size = self._qsize()
        if not self._closed and size >= self._high_mark:
            self._closed = self._went_high = True
            self._high_events += 1
        elif self._closed and size <= self._low_mark:
            self._closed = False
            self._went_low = True

    def _push(self, item: T, size: int) -> None:
        position = self._puts
        if self._meters is not None:
            self._meters.append((size, self._clock() if self._age else 0))
        self._put(item)
        if self._meters is not None:
            self._bytes += size
            self._peak_bytes = max(self._peak_bytes, self._bytes)
        if position % _SAMPLE_EVERY == 0 and not self._sampled_at and not self._age:
            self._sampled_position, self._sampled_at = position, time.monotonic_ns()
        self._puts += 1
        self._unfinished += 1
        self._peak = max(self._peak, self._qsize())

    def _remove(self, sampled: bool) -> T:
        position = self._gets + self._cleared + self._dropped_oldest + self._expired
        item = self._get()
        if self._meters is not None:
            size, stamp = self._meters.popleft()
            self._bytes -= size
            if self._age and sampled:
                self._stayed(self._clock() - stamp)
        if self._sampled_at and position >= self._sampled_position:
            if sampled and position == self._sampled_position:
                self._stayed(time.monotonic_ns() - self._sampled_at)
            self._sampled_at = 0
        return item

    def _stayed(self, nanoseconds: int) -> None:
        spent = nanoseconds * 1e-9
        self._sojourn = spent if self._sojourn < 0 else self._sojourn + 0.125 * (spent - self._sojourn)

    def _expire(self) -> None:
        """Drops the items that are too old."""
        meters = self._meters
        if not self._age or not meters:
            return
        now = self._clock()
        gone = []
        try:
            while meters and now - meters[0][1] >= self._age:
                gone.append(self._remove(False))
                self._count_gone("_expired", 1)
            if gone:
                self._settle()
                self._finish(0)
                self._after_take()
        except BaseException:
            self._mend("_expired")
            raise

    def _next_expiry(self, deadline: float) -> float:
        if not self._age or not self._meters or self._frozen_at >= 0:
            return deadline
        return min(deadline, (self._meters[0][1] + self._age) * 1e-9)

    def _wake_first(self, waiters: deque[_Waiter]) -> None:
        waiter = waiters[0]
        if waiter.condition is None:
            self._told.append(waiter)
        else:
            waiter.condition.notify()
        self._wakeups += 1
        waiter.listed = False
        waiters.popleft()  # the last: who is not told stays in the list

    def _wake(self, kind: int, n: float = _FOREVER) -> None:
        waiters = self._lists[kind]
        while waiters and n > 0:
            self._wake_first(waiters)
            n -= 1

    def _wake_putters(self) -> None:
        waiters = self._lists[PUTTERS]
        if not waiters:
            return
        room = self._room()
        left = self._byte_limit - self._bytes if self._byte_limit else _FOREVER
        while waiters and room > 0 and waiters[0].need <= left:
            left -= waiters[0].need
            room -= 1
            self._wake_first(waiters)

    def _after_take(self) -> None:
        self._wake_putters()
        if not self._closed:
            self._wake(WRITERS)

    def _finish(self, n: int) -> None:
        self._unfinished -= min(n, self._unfinished)
        if self._unfinished == 0:
            self._wake(JOINERS)

    def _count_gone(self, how: str, n: int) -> None:
        """So many items left the queue, and are done unless somebody got them."""
        unfinished = self._unfinished if how == "_gets" else max(0, self._unfinished - n)
        self.__dict__.update({how: getattr(self, how) + n, "_unfinished": unfinished})  # both or none

    def _mend(self, how: str) -> None:
        """After Ctrl-C within a change: the counts follow what is in the queue, and who waits looks again.

        Args:
            how: the count of the change: "_puts", or of those that leave "_gets" and the others.
        """
        size = self._qsize()
        missing = size - (self._puts - self._gets - self._cleared - self._dropped_oldest - self._expired)
        if missing > 0:
            self._puts += missing
            self._unfinished += missing
            self._peak = max(self._peak, size)
        elif missing < 0:
            self._count_gone(how, -missing)
        if self._meters is not None:
            while len(self._meters) > size:
                self._meters.pop() if how == "_puts" else self._meters.popleft()
            self._bytes = sum(bytes for bytes, _ in self._meters)
            self._peak_bytes = max(self._peak_bytes, self._bytes)
        self._sampled_at = 0
        self._settle()
        self._finish(0)
        self._wake(GETTERS, size)
        self._after_take()

    def _pass_on(self, kind: int) -> None:
        """Whoever was woken does not take what it was woken for: the next one may."""
        if kind == PUTTERS:
            self._wake_putters()
        elif kind == GETTERS:
            self._wake(GETTERS, self._qsize())

    def _owner(self) -> Any:
        """Whom the listeners hear of."""
        return self

    def _report(self) -> None:
        """Tells the loops of asyncio waiters and calls the listeners, outside of the operation and the lock."""
        while self._told or self._went_high or self._went_low:
            told: deque[_Waiter] = deque()
            try:
                with self._lock:
                    told, self._told = self._told, deque()
                    high, low = self._went_high, self._went_low
                    self._went_high = self._went_low = False
                self._tell(told)
            except BaseException:  # Ctrl-C: nobody else tells them
                self._tell(told)
                raise
            if self._listening and (high or low):
                call_listeners(self._owner(), high, low)

    def _tell(self, told: deque[_Waiter]) -> None:
        for waiter in told:
            assert waiter.callback is not None
            if not waiter.callback(waiter.future):
                with self._lock:
                    self._pass_on(waiter.kind)

    def _sleep(self, kind: int, deadline: float, need: int = 0, keeps_place: bool = False) -> bool:
        """Waits for a turn; False after the deadline. Lets the lock go meanwhile, and tells who was woken so far."""
        waiter = _Waiter(kind, need)
        waiter.condition = threading.Condition(self._lock)
        waiters = self._lists[kind]
        waiter.listed = True
        try:
            waiters.appendleft(waiter) if keeps_place else waiters.append(waiter)
            waiter.condition.wait(None if deadline == _FOREVER else max(0.0, deadline - time.monotonic()))
            return not self._unlist(waiter)
        except BaseException:
            self._unlist(waiter)
            self._pass_on(kind)
            raise

    def _unlist(self, waiter: _Waiter) -> bool:
        if not waiter.listed:
            return False
        with contextlib.suppress(ValueError):  # Ctrl-C came first
            self._lists[waiter.kind].remove(waiter)
        waiter.listed = False
        return True

    def _wait_for_room(self, size: int, deadline: float | None) -> None:
        counted = woken = False
        while True:
            self._expire()
            if self._is_shutdown:
                raise ShutDown
            fits = self._fits(size)
            # Small items must not starve a large one that waits.
            if fits and (woken or not self._byte_limit or not self._lists[PUTTERS]):
                return
            if self._rule == "error" or deadline is None or _past(deadline):
                if fits:
                    return
                self._refused += 1
                raise Full
            if not counted:
                self._full_waits += 1
                counted = True
            if self._told:
                self._report()
                continue
            woken = self._sleep(PUTTERS, self._next_expiry(deadline), size, woken)
            if not woken:
                self._pass_on(PUTTERS)

    def _wait_for_items(self, wanted: int, deadline: float | None) -> None:
        counted = woken = False
        while True:
            self._expire()
            here = self._qsize()
            if here >= wanted:
                return
            if self._is_shutdown:
                if here:
                    return
                raise ShutDown
            if deadline is None or _past(deadline):
                if here:
                    return
                raise Empty
            if not counted:
                self._empty_waits += 1
                counted = True
            if self._told:
                self._report()
                continue
            # Who wants several must not stand before those who want one.
            woken = self._sleep(GETTERS, deadline, 0, woken and wanted == 1)

    def _size_of(self, item: T, /) -> int:
        if not self._counts_bytes:
            return 0
        size: Any
        if self._sizer is not None:
            size = self._sizer(item)
        elif isinstance(item, (bytes, bytearray)):
            size = len(item)
        else:
            try:
                size = item.nbytes  # type: ignore[attr-defined]
            except AttributeError:
                raise TypeError(
                    f"item: expected bytes or an object with nbytes, got {type(item).__name__}; pass sizer= for others"
                ) from None
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"sizer: expected an integer number of bytes, got {type(size).__name__}")
        size = size.__index__()
        if size < 0:
            raise ValueError(f"sizer: expected at least 0 bytes, got {size}")
        if self._byte_limit and size > self._byte_limit:
            raise ValueError(f"item: expected at most max_bytes ({self._byte_limit}), got {size} bytes")
        return size

    def _put_by_policy(self, item: T, size: int, deadline: float | None) -> bool:
        """Puts one item by the queue's policy; False when it was dropped."""
        excess = 0
        if self._rule in ("block", "error"):
            self._wait_for_room(size, deadline)
        else:
            self._expire()
            if self._is_shutdown:
                raise ShutDown
            if self._rule == "latest":
                excess = self._qsize()
            elif not self._fits(size):
                if self._rule == "drop_newest":
                    self._dropped_newest += 1
                    return False
                excess = self._excess(size)
        gone = []
        before = self._dropped_oldest
        try:
            for _ in range(excess):
                gone.append(self._remove(False))
                self._dropped_oldest += 1
        except BaseException:
            excess = self._dropped_oldest - before
            self._mend("_dropped_oldest")
            self._finish(excess)
            raise
        try:
            self._push(item, size)
        except BaseException:
            self._mend("_puts")
            self._finish(excess)
            raise
        # The dropped ones are done after the new one came. No call here, so no Ctrl-C.
        self._unfinished = self._unfinished - excess if self._unfinished > excess else 0
        try:
            self._settle()
            if excess:
                self._finish(0)
                self._after_take()
            self._wake(GETTERS, 1)
            if self._byte_limit:
                self._wake_putters()  # the next in line may fit as well
        except BaseException:
            self._mend("_puts")
            raise
        return True

    def _take(self, n: float, how: str = "_gets") -> list[T]:
        self._expire()
        items: list[T] = []
        try:
            while len(items) < n and self._qsize():
                items.append(self._remove(True))
                if how == "_gets":
                    self._gets += 1
                else:
                    self._count_gone(how, 1)
            self._settle()
            self._finish(0)
            self._after_take()
        except BaseException:
            self._mend(how)
            raise
        return items

    def _discard(self) -> list[T]:
        return self._take(_FOREVER, "_cleared")

    # ---- queue.Queue ---------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item by the queue's policy; with "block", wait for room when there is none.

        Args:
            item: any object.
            block: False raises Full at once instead of waiting.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Full: no room in time, or none and the policy is "error". Never with a policy that drops.
            ShutDown: the queue was shut down.
            ValueError, TypeError: the timeout is negative or no number; the item is over max_bytes or has no size.
        """
        deadline = _deadline(block, timeout)
        try:
            with self._lock:
                self._put_by_policy(item, self._size_of(item), deadline)
        finally:
            self._report()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item; wait for one when there is none.

        Args:
            block: False raises Empty at once instead of waiting.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Empty: no item in time.
            ShutDown: the queue was shut down and is empty.
            ValueError, TypeError: the timeout is negative or no number.
        """
        deadline = _deadline(block, timeout)
        try:
            with self._lock:
                self._wait_for_items(1, deadline)
                try:
                    item = self._remove(True)
                    self._gets += 1
                    self._settle()
                    self._after_take()
                except BaseException:
                    self._mend("_gets")
                    raise
                return item
        finally:
            self._report()

    def put_nowait(self, item: T) -> None:
        """put(item, block=False)."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """get(block=False)."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Number of items."""
        with self._lock:
            self._expire()
            size = self._qsize()
        self._report()
        return size

    def empty(self) -> bool:
        """True when there is no item."""
        return not self.qsize()

    def full(self) -> bool:
        """True when put would wait, be refused or drop: maxsize items, max_bytes bytes, or a closed gate."""
        with self._lock:
            self._expire()
            full = not self._fits(1 if self._byte_limit else 0)
        self._report()
        return full

    def task_done(self) -> None:
        """Report one item as done, for join().

        Raises:
            ValueError: called more often than there were items.
        """
        with self._lock:
            if self._unfinished <= 0:
                raise ValueError("task_done() called too many times")
            self._finish(1)
        self._report()

    def join(self) -> None:
        """Wait until task_done() was called for every item."""
        try:
            with self._lock:
                while True:
                    self._expire()
                    if not self._unfinished:
                        return
                    if self._told:
                        self._report()
                        continue
                    self._sleep(JOINERS, self._next_expiry(_FOREVER))
        finally:
            self._report()

    def shutdown(self, immediate: bool = False) -> None:
        """Close for good: put raises ShutDown, get does once the queue is empty. Wakes everybody who waits.

        Args:
            immediate: discard what is in the queue; the items count as done.
        """
        with self._lock:
            left = self._discard() if immediate else []
            if immediate:
                self._wake(JOINERS)
            self._is_shutdown = True
            for kind in (GETTERS, PUTTERS, WRITERS):
                self._wake(kind)
        self._report()
        del left

    @property
    def unfinished_tasks(self) -> int:
        """Items not yet reported by task_done()."""
        with self._lock:
            return self._unfinished

    @property
    def is_shutdown(self) -> bool:
        """True after shutdown()."""
        with self._lock:
            return self._is_shutdown

    # ---- batches ---------------------------------------------------------------------------------------------------

    def put_many(self, items: Sequence[T], block: bool = True, timeout: float | None = None) -> int:
        """Put items in order, each by the queue's policy, as many as find room in time.

        Args:
            items: a sequence; an iterator would lose what does not fit.
            block: False puts what fits now.
            timeout: seconds to wait at most, for all of them; None for ever.

        Returns:
            The number accepted. With the policies "block" and "error" items[:n] are in the queue and the rest was not
            touched: less than len(items) after the time-out, or when the queue was shut down while waiting. With
            "drop_newest" the others were dropped; with "drop_oldest" and "latest" all are accepted, and earlier ones
            dropped for them.

        Raises:
            ShutDown: the queue was shut down before the first item.
            TypeError: items is no sequence, or a string, or one of them has no size.
            ValueError: one of them is over max_bytes; nothing was put.
        """
        deadline = _deadline(block, timeout)
        batch = batch_of(items)
        accepted = 0
        try:
            with self._lock:
                sizes = [self._size_of(item) for item in batch]
                for i, item in enumerate(batch):
                    try:
                        accepted += self._put_by_policy(item, sizes[i], deadline)
                    except Full:
                        break
                    except ShutDown:
                        if i == 0:
                            raise
                        break
        finally:
            self._report()
        return accepted

    def get_many(
        self,
        max_items: int,
        block: bool = True,
        timeout: float | None = None,
        *,
        min_items: int = 1,
        linger: float = 0.0,
    ) -> list[T]:
        """Take up to max_items, oldest first; wait for the first like get.

        Args:
            max_items: most items to take, at least 1.
            block, timeout: as in get, for the first item.
            min_items: once there is an item, wait up to `linger` seconds until there are this many.
            linger: seconds to wait for min_items at most.

        Returns:
            1 to max_items items.

        Raises:
            Empty: no item in time.
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: a number is out of range or no number.
        """
        deadline = _deadline(block, timeout)
        most, least, wait = count(max_items, "max_items"), count(min_items, "min_items"), seconds(linger, "linger")
        if least > most:
            raise ValueError(f"min_items: expected at most max_items ({most}), got {least}")
        try:
            with self._lock:
                while True:
                    self._wait_for_items(1, deadline)
                    if self._qsize() < least and wait > 0:
                        try:
                            self._wait_for_items(least, time.monotonic() + wait)
                        except Empty:
                            continue  # somebody else took the first item meanwhile
                    taken = self._take(most)
                    if not taken:
                        continue  # the last one expired
                    if least > 1:
                        # While this thread lingered it may have been woken for items it leaves to others.
                        self._wake(GETTERS, self._qsize())
                    return taken
        finally:
            self._report()

    def drain(self) -> list[T]:
        """Take everything there is, without waiting; an empty list when there is nothing."""
        with self._lock:
            taken = self._take(_FOREVER)
        self._report()
        return taken

    def clear(self) -> int:
        """Discard everything there is and return how many items that were; they count as done."""
        with self._lock:
            left = self._discard()
        self._report()
        return len(left)

    def peek(self) -> T:
        """The oldest item, which stays in the queue.

        Raises:
            Empty: there is none.
            ShutDown: there is none and the queue was shut down.
            TypeError: a subclass overrides the storage.
        """
        if self._overridden:
            raise TypeError(f"{type(self._owner()).__name__}.peek() needs the queue's own storage")
        try:
            with self._lock:
                self._expire()
                if not self._items:
                    raise ShutDown if self._is_shutdown else Empty
                return self._items[0]
        finally:
            self._report()

    # ---- the gate --------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """False from the moment the queue reaches its high watermark until it is down to the low one."""
        with self._lock:
            self._expire()
            writable = not self._closed
        self._report()
        return writable

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until the gate is open.

        Args:
            timeout: seconds to wait at most; None for ever.

        Returns:
            True when it is open, False after the time-out.

        Raises:
            ShutDown: the queue was shut down.
            ValueError, TypeError: the timeout is negative or no number.
        """
        deadline = _deadline(True, timeout)
        assert deadline is not None
        try:
            with self._lock:
                while True:
                    self._expire()
                    if self._is_shutdown:
                        raise ShutDown
                    if not self._closed:
                        return True
                    if _past(deadline):
                        return False
                    if self._told:
                        self._report()
                        continue
                    self._sleep(WRITERS, self._next_expiry(deadline))
        finally:
            self._report()

    # ---- for asyncio -----------------------------------------------------------------------------------------------

    def _offer(self, item: T, woken: bool, /) -> int:
        try:
            with self._lock:
                size = self._size_of(item)
                if self._rule == "block":
                    self._expire()
                    if not self._is_shutdown and not self._ready(PUTTERS, size, woken):
                        return size
                return -1 if self._put_by_policy(item, size, None) else -2
        finally:
            self._report()

    def _ready(self, kind: int, need: int, woken: bool) -> bool:
        self._expire()
        if kind == JOINERS:
            return not self._unfinished
        if self._is_shutdown:
            return True
        if kind == GETTERS:
            return self._qsize() >= need
        if kind == PUTTERS:
            return self._fits(need) and (woken or not self._byte_limit or not self._lists[PUTTERS])
        return not self._closed

    def _enlist(
        self, kind: int, need: int, woken: bool, callback: Callable[[Any], bool], future: Any, /
    ) -> _Waiter | None:
        try:
            with self._lock:
                if self._ready(kind, need, woken):
                    return None
                if not woken:
                    self._empty_waits += kind == GETTERS
                    self._full_waits += kind == PUTTERS
                waiter = _Waiter(kind, need)
                waiter.callback, waiter.future = callback, future
                waiters = self._lists[kind]
                waiters.appendleft(waiter) if woken else waiters.append(waiter)
                waiter.listed = True
                return waiter
        finally:
            self._report()

    def _leave(self, waiter: _Waiter, gives_up: bool, /) -> bool:
        with self._lock:
            if waiter.listed and waiter not in self._lists[waiter.kind]:
                return False  # of the time before a fork
            listed = self._unlist(waiter)
            # Also when it was still listed: it may have stood before one that fits, or been woken in vain before.
            if gives_up or (listed and waiter.kind == PUTTERS):
                self._pass_on(waiter.kind)
        self._report()
        return not listed

    def _expires_in(self) -> float:
        with self._lock:
            at = self._next_expiry(_FOREVER)
        return -1.0 if at == _FOREVER else max(0.0, at - time.monotonic())

    def _freeze(self, now: int, /) -> None:
        with self._lock:
            self._frozen_at = now

    # ---- for QueueBase ---------------------------------------------------------------------------------------------

    def _configure(self, maxsize: int, high: int, low: int, /) -> None:
        with self._lock:
            self._limit, self._high_mark, self._low_mark = maxsize, high, low
            if high == 0:
                self._closed = False
            if any(self._lists):
                self._after_take()
        self._report()

    def _listen(self, on: bool, /) -> None:
        with self._lock:
            self._listening = bool(on)

    def _counters(self) -> tuple[Any, ...]:
        with self._lock:
            self._expire()
            counters = (
                self._qsize(),
                len(self._lists[PUTTERS]),
                len(self._lists[GETTERS]),
                self._puts,
                self._gets,
                self._cleared,
                self._refused,
                self._full_waits,
                self._empty_waits,
                self._wakeups,
                self._high_events,
                self._peak,
                self._unfinished,
                int(self._closed),
                self._dropped_newest,
                self._dropped_oldest,
                self._expired,
                self._bytes,
                self._peak_bytes,
                self._sojourn,
            )
        self._report()
        return counters
