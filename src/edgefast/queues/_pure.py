"""Queue in pure Python: a deque under one lock. The same semantics, exceptions and statistics as the native one.

Type checkers read this module for both.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

from edgefast.queues._types import Empty, Full, QueueBase, ShutDown, call_listeners

__all__ = ["Queue"]

T = TypeVar("T")

_SAMPLE_EVERY = 64
_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The threads that held or awaited the locks do not exist in the child."""
    for queue in tuple(_instances):
        queue._reset_waiting()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _seconds(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            value = float(value)
        except TypeError:
            raise TypeError(f"'{name}' must be a number or None, not {type(value).__name__}") from None
    seconds = float(value)
    if not seconds >= 0:
        raise ValueError(f"'{name}' must be a non-negative number")
    return seconds


def _deadline(block: Any, timeout: Any) -> float | None:
    """None for "do not block", infinity for "for ever", else a time.monotonic()."""
    if not block:
        return None
    if timeout is None:
        return float("inf")
    seconds = _seconds(timeout, "timeout")
    return float("inf") if seconds > 3e9 else time.monotonic() + seconds


class Queue(QueueBase[T]):
    """A bounded FIFO queue for threads: queue.Queue with watermarks, batches and statistics.

    Everything queue.Queue has means the same here (`mutex`, `queue` and the overridable `_init/_put/_get/_qsize` are
    absent). With a high watermark the queue closes when it holds that many items - put blocks or raises Full - and
    reopens when it is down to the low one, so that producers run in bursts instead of one item at a time.

    Safe to use from any number of threads. FIFO for all, in the order in which puts got their room. Cannot be pickled.

    Args:
        maxsize: most items held at once; 0 for no limit.
        policy: what put does when there is no room: "block".
        high_watermark: number of items at which the queue closes, 1 to maxsize; None for no gate.
        low_watermark: number at which it reopens, below high; None for high // 4.
        name: shown by repr and in reports.

    Raises:
        TypeError: an argument is not of its type.
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
    """

    def __init__(
        self,
        maxsize: int = 0,
        *,
        policy: Literal["block"] = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        name: str | None = None,
    ) -> None:
        self._reset_waiting()
        self._items: deque[T] = deque()
        self._closed = False
        self._is_shutdown = False
        self._unfinished = 0
        self._listening = False
        self._went_high = self._went_low = False
        self._puts = self._gets = self._cleared = self._refused = 0
        self._full_waits = self._empty_waits = self._wakeups = self._high_events = self._peak = 0
        self._sampled_position = 0
        self._sampled_at = 0.0
        self._sojourn = -1.0
        self._created_at = time.monotonic()
        self._maxsize = self._high = self._low = 0
        super().__init__(maxsize, policy=policy, high_watermark=high_watermark, low_watermark=low_watermark, name=name)

        _instances.add(self)

    def _reset_waiting(self) -> None:
        # Reentrant: a finalizer may run inside an operation and use the queue.
        self._lock = threading.RLock()
        self._not_empty = threading.Condition(self._lock)
        self._not_full = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._opened = threading.Condition(self._lock)
        self._putters = self._getters = 0

    # ---- parts, under the lock -----------------------------------------------------------------------------------

    def _room(self) -> float:
        if self._closed:
            return 0
        room = float("inf")
        if self._limit > 0:
            room = self._limit - len(self._items)
        if self._high_mark > 0:
            room = min(room, self._high_mark - len(self._items))
        return max(room, 0)

    def _push(self, item: T) -> None:
        position = self._gets + self._cleared + len(self._items)
        if position % _SAMPLE_EVERY == 0 and not self._sampled_at:
            self._sampled_position, self._sampled_at = position, time.monotonic()
        self._items.append(item)
        self._puts += 1
        self._unfinished += 1
        if self._high_mark > 0 and not self._closed and len(self._items) >= self._high_mark:
            self._closed = self._went_high = True
            self._high_events += 1
        self._peak = max(self._peak, len(self._items))

    def _pop(self) -> T:
        if self._sampled_at and self._gets + self._cleared == self._sampled_position:
            seconds = time.monotonic() - self._sampled_at
            self._sojourn = seconds if self._sojourn < 0 else self._sojourn + 0.125 * (seconds - self._sojourn)
            self._sampled_at = 0.0
        item = self._items.popleft()
        self._gets += 1
        if self._closed and len(self._items) <= self._low_mark:
            self._closed = False
            self._went_low = True
        return item

    def _after_take(self) -> None:
        if self._putters and (room := self._room()) > 0:
            self._wake(self._not_full, int(min(room, self._putters)))
        if not self._closed:
            self._opened.notify_all()

    def _wake(self, condition: threading.Condition, n: int) -> None:
        self._wakeups += n
        condition.notify(n)

    def _events(self) -> tuple[bool, bool]:
        events = (self._went_high and self._listening, self._went_low and self._listening)
        self._went_high = self._went_low = False
        return events

    def _tell(self, events: tuple[bool, bool]) -> None:
        if any(events):
            call_listeners(self, *events)

    def _sleep(self, condition: threading.Condition, deadline: float) -> None:
        condition.wait(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))

    def _wait_for_room(self, deadline: float | None) -> None:
        counted = False
        while True:
            if self._is_shutdown:
                raise ShutDown
            if self._room() > 0:
                return
            if deadline is None or time.monotonic() >= deadline:
                self._refused += 1
                raise Full
            if not counted:
                self._full_waits += 1
                counted = True
            self._putters += 1
            try:
                self._sleep(self._not_full, deadline)
            except BaseException:
                # Woken and leaving without putting: the room is somebody else's now.
                self._not_full.notify()
                raise
            finally:
                self._putters -= 1

    def _wait_for_items(self, wanted: int, deadline: float | None) -> None:
        counted = False
        while len(self._items) < wanted:
            if self._is_shutdown:
                if self._items:
                    return
                raise ShutDown
            if deadline is None or time.monotonic() >= deadline:
                if self._items:
                    return
                raise Empty
            if not counted:
                self._empty_waits += 1
                counted = True
            self._getters += 1
            try:
                self._sleep(self._not_empty, deadline)
            except BaseException:
                self._not_empty.notify()
                raise
            finally:
                self._getters -= 1

    def _take(self, n: int) -> list[T]:
        items = [self._pop() for _ in range(min(n, len(self._items)))]
        self._after_take()
        return items

    def _finish(self, n: int) -> None:
        self._unfinished -= min(n, self._unfinished)
        if self._unfinished == 0:
            self._all_done.notify_all()

    # ---- queue.Queue ---------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; wait for room when there is none.

        Args:
            item: any object.
            block: False raises Full at once instead of waiting.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Full: no room in time.
            ShutDown: the queue was shut down.
            ValueError, TypeError: the timeout is negative or no number.
        """
        deadline = _deadline(block, timeout)
        with self._lock:
            self._wait_for_room(deadline)
            self._push(item)
            if self._getters:
                self._wake(self._not_empty, 1)
            events = self._events()
        self._tell(events)

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
        with self._lock:
            self._wait_for_items(1, deadline)
            item = self._pop()
            self._after_take()
            events = self._events()
        self._tell(events)
        return item

    def put_nowait(self, item: T) -> None:
        """put(item, block=False)."""
        self.put(item, block=False)

    def get_nowait(self) -> T:
        """get(block=False)."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Number of items."""
        with self._lock:
            return len(self._items)

    def empty(self) -> bool:
        """True when there is no item."""
        with self._lock:
            return not self._items

    def full(self) -> bool:
        """True when put would have to wait: maxsize items, or the gate is closed."""
        with self._lock:
            return self._room() == 0

    def task_done(self) -> None:
        """Report one item as done, for join().

        Raises:
            ValueError: called more often than there were items.
        """
        with self._lock:
            if self._unfinished <= 0:
                raise ValueError("task_done() called too many times")
            self._finish(1)

    def join(self) -> None:
        """Wait until task_done() was called for every item."""
        with self._lock:
            while self._unfinished:
                self._all_done.wait()

    def shutdown(self, immediate: bool = False) -> None:
        """Close for good: put raises ShutDown, get does once the queue is empty. Wakes everybody who waits.

        Args:
            immediate: discard what is in the queue; the items count as done.
        """
        with self._lock:
            left = self._discard() if immediate else []
            if immediate:
                self._all_done.notify_all()
            self._is_shutdown = True
            for condition in (self._not_empty, self._not_full, self._opened):
                condition.notify_all()
            events = self._events()
        self._tell(events)
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
        """Put items in order, as many as find room in time.

        Args:
            items: a sequence; an iterator would lose what does not fit.
            block: False puts what fits now.
            timeout: seconds to wait at most, for all of them; None for ever.

        Returns:
            The number accepted: items[:n] are in the queue, the rest was not touched. Less than len(items) after the
            time-out, or when the queue was shut down while waiting.

        Raises:
            ShutDown: the queue was shut down before the first item.
            TypeError: items is no sequence, or a string.
        """
        deadline = _deadline(block, timeout)
        if not isinstance(items, Sequence) and not (hasattr(items, "__getitem__") and hasattr(items, "__len__")):
            raise TypeError(
                f"items: expected a sequence such as a list, got {type(items).__name__} "
                "(an iterator would lose what does not fit)"
            )
        if isinstance(items, (str, bytes)) or hasattr(items, "keys"):
            raise TypeError(
                f"items: expected a sequence such as a list, got {type(items).__name__} "
                "(an iterator would lose what does not fit)"
            )
        batch = list(items)
        done = 0
        with self._lock:
            while done < len(batch):
                try:
                    self._wait_for_room(deadline)
                except Full:
                    break
                except ShutDown:
                    if done == 0:
                        raise
                    break
                n = int(min(self._room(), len(batch) - done))
                for item in islice(batch, done, done + n):
                    self._push(item)
                done += n
                if self._getters:
                    self._wake(self._not_empty, min(n, self._getters))
            events = self._events()
        self._tell(events)
        return done

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
        most = _count(max_items, "max_items")
        least = _count(min_items, "min_items")
        wait = _seconds(linger, "linger")
        if least > most:
            raise ValueError(f"min_items: expected at most max_items ({most}), got {least}")
        with self._lock:
            while True:
                self._wait_for_items(1, deadline)
                if len(self._items) < least and wait > 0:
                    try:
                        self._wait_for_items(least, time.monotonic() + wait)
                    except Empty:
                        continue  # somebody else took the first item meanwhile
                break
            taken = self._take(most)
            events = self._events()
        self._tell(events)
        return taken

    def drain(self) -> list[T]:
        """Take everything there is, without waiting; an empty list when there is nothing."""
        with self._lock:
            taken = self._take(len(self._items))
            events = self._events()
        self._tell(events)
        return taken

    def _discard(self) -> list[T]:
        left = self._take(len(self._items))
        self._gets -= len(left)
        self._cleared += len(left)
        self._finish(len(left))
        return left

    def clear(self) -> int:
        """Discard everything there is and return how many items that were; they count as done."""
        with self._lock:
            left = self._discard()
            events = self._events()
        self._tell(events)
        return len(left)

    def peek(self) -> T:
        """The oldest item, which stays in the queue.

        Raises:
            Empty: there is none.
            ShutDown: there is none and the queue was shut down.
        """
        with self._lock:
            if not self._items:
                raise ShutDown if self._is_shutdown else Empty
            return self._items[0]

    # ---- the gate --------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """False from the moment the queue reaches its high watermark until it is down to the low one."""
        with self._lock:
            return not self._closed

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
        with self._lock:
            while self._closed and not self._is_shutdown:
                if time.monotonic() >= deadline:
                    return False
                self._sleep(self._opened, deadline)
            if self._is_shutdown:
                raise ShutDown
            return True

    # ---- for QueueBase ---------------------------------------------------------------------------------------------

    def _configure(self, maxsize: int, high: int, low: int, /) -> None:
        with self._lock:
            self._limit, self._high_mark, self._low_mark = maxsize, high, low
            if high == 0:
                self._closed = False
            self._after_take()

    def _listen(self, on: bool, /) -> None:
        with self._lock:
            self._listening = bool(on)

    def _counters(self) -> tuple[Any, ...]:
        with self._lock:
            return (
                len(self._items),
                self._putters,
                self._getters,
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
                self._sojourn,
                time.monotonic() - self._created_at,
            )


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = value.__index__()
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number
