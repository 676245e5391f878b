"""What the native queue and its pure-Python twin have in common: exceptions, statistics, the Python-level methods."""

from __future__ import annotations

import queue as _queue
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from edgefast.queues._checks import check_choice, integer

__all__ = ["Empty", "Full", "QueueBase", "QueueStatistics", "ShutDown", "call_listeners"]

T = TypeVar("T")

Full = _queue.Full
Empty = _queue.Empty

if sys.version_info >= (3, 13):
    ShutDown = _queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by put, and by get on an empty queue, after shutdown(): queue.ShutDown of CPython 3.13."""


class QueueStatistics(NamedTuple):
    """One moment of a queue; names as anyio's memory object streams where they mean the same.

    Attributes:
        current_buffer_used: items in the queue.
        max_buffer_size: maxsize; math.inf when unbounded.
        high_watermark, low_watermark: where the gate closes and reopens; None without a gate.
        writable: whether the gate is open.
        tasks_waiting_send, tasks_waiting_receive: threads blocked in put and get.
        put_count, get_count: items put and got since creation.
        cleared: items discarded by clear() and shutdown(immediate=True).
        refused: puts that ended with Full.
        full_waits, empty_waits: calls that had to wait for room, for an item.
        wakeups: threads woken.
        high_events: how often the gate closed.
        peak: most items held at once.
        unfinished_tasks: items not yet reported by task_done().
        put_rate, get_rate: items per second since the previous statistics() call (since creation on the first).
        sojourn: moving average of the seconds an item spends in the queue, from 1 item in 64; None before the first.
        time_to_drain: seconds until the queue is empty at get_rate; math.inf when nothing is being taken.
    """

    current_buffer_used: int
    max_buffer_size: float
    high_watermark: int | None
    low_watermark: int | None
    writable: bool
    tasks_waiting_send: int
    tasks_waiting_receive: int
    put_count: int
    get_count: int
    cleared: int
    refused: int
    full_waits: int
    empty_waits: int
    wakeups: int
    high_events: int
    peak: int
    unfinished_tasks: int
    put_rate: float
    get_rate: float
    sojourn: float | None
    time_to_drain: float


def call_listeners(queue: QueueBase[Any], went_high: bool, went_low: bool) -> None:
    """Tells every watermark listener what happened; an exception of one does not keep the others from hearing."""
    for listener in tuple(queue._listeners):
        for event, happened in (("high", went_high), ("low", went_low)):
            if not happened:
                continue
            try:
                listener(queue, event)
            except Exception as error:
                sys.unraisablehook(
                    types.SimpleNamespace(
                        exc_type=type(error),
                        exc_value=error,
                        exc_traceback=error.__traceback__,
                        err_msg="Exception ignored in watermark listener",
                        object=listener,
                    )  # type: ignore[arg-type]
                )


class QueueBase(Generic[T]):
    """The part of Queue that is the same over the native core and the pure-Python one."""

    if TYPE_CHECKING:  # what the cores provide

        def _configure(self, maxsize: int, high: int, low: int, /) -> None: ...
        def _listen(self, on: bool, /) -> None: ...
        def _counters(self) -> tuple[Any, ...]: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    name: str | None

    def __init__(
        self,
        maxsize: int = 0,
        *,
        policy: Literal["block"] = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        name: str | None = None,
    ) -> None:
        check_choice(policy, "policy", ("block",))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        size = _check_maxsize(maxsize)
        high, low = _check_watermarks(size, high_watermark, low_watermark)
        self._configure(size, high, low)
        self._maxsize = size
        self._high = high
        self._low = low
        self._listeners: list[Callable[[Any, str], object]] = []
        self._previous = (time.monotonic(), 0, 0)
        self.name = name

    @property
    def policy(self) -> str:
        """What put does when there is no room: "block"."""
        return "block"

    @property
    def maxsize(self) -> int:
        """Most items held at once; 0 for no limit. May be set at any time: more room wakes who waits for it, less
        lets what is there drain.

        Raises (on setting):
            TypeError: not an integer.
            ValueError: negative, or below the high watermark.
        """
        return self._maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        size = _check_maxsize(value)
        high, low = _check_watermarks(size, self._high or None, self._low if self._high else None)
        self._configure(size, high, low)
        self._maxsize = size

    @property
    def watermarks(self) -> tuple[int, int] | None:
        """(high, low), or None without a gate."""
        return (self._high, self._low) if self._high else None

    def set_watermarks(self, high: int | None, low: int | None = None) -> None:
        """Move the gate, or take it away with high=None. low=None is high // 4.

        Raises:
            TypeError, ValueError: as for the constructor's high_watermark and low_watermark.
        """
        high_mark, low_mark = _check_watermarks(self._maxsize, high, low)
        self._configure(self._maxsize, high_mark, low_mark)
        self._high, self._low = high_mark, low_mark

    def add_watermark_listener(self, listener: Callable[[Any, str], object]) -> None:
        """Have listener(queue, "high") called after the operation that closed the gate, and listener(queue, "low")
        after the one that reopened it, in the thread of that operation.

        Raises:
            TypeError: the listener is not callable.
        """
        if not callable(listener):
            raise TypeError(f"listener: expected a callable, got {type(listener).__name__}")
        self._listeners.append(listener)
        self._listen(True)

    def remove_watermark_listener(self, listener: Callable[[Any, str], object]) -> None:
        """Stop calling a listener.

        Raises:
            ValueError: it was not added.
        """
        if listener not in self._listeners:
            raise ValueError("listener: expected one that was added, got another")
        self._listeners.remove(listener)
        self._listen(bool(self._listeners))

    def statistics(self) -> QueueStatistics:
        """The queue at this moment. Rates are over the time since the previous call."""
        (
            used,
            putters,
            getters,
            puts,
            gets,
            cleared,
            refused,
            full_waits,
            empty_waits,
            wakeups,
            high,
            peak,
            tasks,
            closed,
            sojourn,
            _,
        ) = self._counters()
        now = time.monotonic()
        then, puts_then, gets_then = self._previous
        self._previous = (now, puts, gets)
        elapsed = max(now - then, 1e-9)
        put_rate, get_rate = (puts - puts_then) / elapsed, (gets - gets_then) / elapsed
        if used == 0:
            drain = 0.0
        else:
            drain = used / get_rate if get_rate > 0 else float("inf")
        return QueueStatistics(
            current_buffer_used=used,
            max_buffer_size=self._maxsize or float("inf"),
            high_watermark=self._high or None,
            low_watermark=self._low if self._high else None,
            writable=not closed,
            tasks_waiting_send=putters,
            tasks_waiting_receive=getters,
            put_count=puts,
            get_count=gets,
            cleared=cleared,
            refused=refused,
            full_waits=full_waits,
            empty_waits=empty_waits,
            wakeups=wakeups,
            high_events=high,
            peak=peak,
            unfinished_tasks=tasks,
            put_rate=put_rate,
            get_rate=get_rate,
            sojourn=None if sojourn < 0 else sojourn,
            time_to_drain=drain,
        )

    def __iter__(self) -> Iterator[T]:
        """Items as they come, until the queue is shut down and empty."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __repr__(self) -> str:
        used = self._counters()[0]
        gate = f", gate {self._high}/{self._low}" if self._high else ""
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__name__}{name}: {used} of {self._maxsize or 'any number of'} items{gate}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__}: its items and waiters belong to this process")


def _check_maxsize(value: Any) -> int:
    # queue.Queue takes any maxsize <= 0 for "no limit"; a negative one is more likely a mistake.
    return integer(value, "maxsize", low=0, high=2**62)


def _check_watermarks(maxsize: int, high: Any, low: Any) -> tuple[int, int]:
    """(high, low) with 0, 0 for no gate."""
    if high is None:
        if low is not None:
            raise ValueError(f"low_watermark: expected None without a high_watermark, got {low!r}")
        return 0, 0
    high = integer(high, "high_watermark", low=1, high=maxsize or 2**62)
    low = high // 4 if low is None else integer(low, "low_watermark", low=0, high=high - 1)
    return high, low
