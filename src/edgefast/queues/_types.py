"""What the native queue and its pure-Python twin have in common: exceptions, statistics, the Python-level methods."""

from __future__ import annotations

import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

from edgefast.queues._checks import check_choice, integer, seconds
from edgefast.queues._exceptions import Empty, Full, ShutDown
from edgefast.queues._loops import AsyncMethods

__all__ = ["POLICIES", "Empty", "Full", "Policy", "QueueBase", "QueueStatistics", "ShutDown", "call_listeners"]

T = TypeVar("T")

Policy = Literal["block", "drop_newest", "drop_oldest", "latest", "error"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

#: The storage a subclass may override, as in queue.Queue.
HOOKS = ("_init", "_qsize", "_put", "_get")


class QueueStatistics(NamedTuple):
    """One moment of a queue; names as anyio's memory object streams where they mean the same.

    Attributes:
        current_buffer_used: items in the queue.
        max_buffer_size: maxsize; math.inf when unbounded.
        limit: items at which put finds no room: the lower of maxsize and the high watermark; math.inf without either.
        bytes_used: bytes of the items by the sizer; 0 when bytes are not counted.
        max_bytes: limit of bytes; math.inf without.
        high_watermark, low_watermark: where the gate closes and reopens; None without a gate.
        writable: whether the gate is open.
        tasks_waiting_send, tasks_waiting_receive: threads and asyncio tasks waiting in put and get.
        put_count, get_count: items put into the queue and got from it since creation.
        dropped_newest: items a put dropped instead of putting them.
        dropped_oldest: items a put removed to make room for its own (policies "drop_oldest" and "latest").
        expired: items removed because they were older than max_age.
        cleared: items discarded by clear() and shutdown(immediate=True).
        refused: puts that ended with Full.
        full_waits, empty_waits: calls that had to wait for room, for an item.
        wakeups: threads and tasks woken.
        high_events: how often the gate closed.
        peak, peak_bytes: most items and most bytes held at once.
        unfinished_tasks: items not yet reported by task_done().
        put_rate, get_rate: items per second since the previous statistics() call (since creation on the first).
        sojourn: moving average of the seconds an item spends in the queue, from 1 item in 64, or from all when there
            is a max_age; None before the first.
        time_to_drain: seconds until the queue is empty at get_rate; math.inf when nothing is being taken.
        lost: items that went with their producer before they were in the queue (the last four: SharedQueue only).
        redelivered: items put back because the process that was reading them died.
        dropped_dead: the same, dropped (on_consumer_death="drop").
        participants: handles attached.

    Always put_count == get_count + dropped_oldest + dropped_dead + expired + cleared + current_buffer_used.
    """

    current_buffer_used: int
    max_buffer_size: float
    limit: float
    bytes_used: int
    max_bytes: float
    high_watermark: int | None
    low_watermark: int | None
    writable: bool
    tasks_waiting_send: int
    tasks_waiting_receive: int
    put_count: int
    get_count: int
    dropped_newest: int
    dropped_oldest: int
    expired: int
    cleared: int
    refused: int
    full_waits: int
    empty_waits: int
    wakeups: int
    high_events: int
    peak: int
    peak_bytes: int
    unfinished_tasks: int
    put_rate: float
    get_rate: float
    sojourn: float | None
    time_to_drain: float
    lost: int = 0
    redelivered: int = 0
    dropped_dead: int = 0
    participants: int = 0


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


class QueueBase(AsyncMethods[T]):
    """The part of Queue that is the same over the native core and the pure-Python one."""

    if TYPE_CHECKING:  # what the cores provide

        def _setup(
            self, policy: int, counts_bytes: bool, max_bytes: int, sizer: Any, max_age: int, engine: Any, /
        ) -> None: ...
        def _configure(self, maxsize: int, high: int, low: int, /) -> None: ...
        def _listen(self, on: bool, /) -> None: ...
        def _counters(self) -> tuple[Any, ...]: ...
        def get(self, block: bool = True, timeout: float | None = None) -> T: ...

    #: The hooks a subclass overrides.
    _overridden: ClassVar[tuple[str, ...]] = ()

    name: str | None

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
        check_choice(policy, "policy", POLICIES)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        size = _check_maxsize(maxsize)
        high, low = _check_watermarks(size, high_watermark, low_watermark)
        most_bytes = 0 if max_bytes is None else integer(max_bytes, "max_bytes", low=1, high=2**62)
        if sizer is not None and not callable(sizer):
            raise TypeError(f"sizer: expected a callable or None, got {type(sizer).__name__}")
        age = _check_age(max_age)
        counts_bytes = most_bytes > 0 or sizer is not None
        if self._overridden and (counts_bytes or age or policy in ("drop_oldest", "latest")):
            raise TypeError(
                f"{type(self).__name__} overrides {', '.join(self._overridden)}: expected neither max_bytes, sizer, "
                'max_age nor the policies "drop_oldest" and "latest", which need the queue\'s own storage'
            )
        self._setup(POLICIES.index(policy), counts_bytes, most_bytes, sizer, age, self._new_engine(size, policy))
        self._configure(size, high, low)
        self._policy: Policy = policy
        self._maxsize = size
        self._max_bytes = most_bytes
        self._max_age = max_age if age else None
        self._high = high
        self._low = low
        self._listeners: list[Callable[[Any, str], object]] = []
        self._previous = (time.monotonic(), 0, 0)
        self.name = name

    def _new_engine(self, maxsize: int, policy: Policy) -> Any:
        """The queue that does the work in place of the core, if any."""

    @property
    def policy(self) -> Policy:
        """What put does when there is no room."""
        return self._policy

    @property
    def max_bytes(self) -> int | None:
        """Most bytes held at once; None for no limit."""
        return self._max_bytes or None

    @property
    def max_age(self) -> float | None:
        """Seconds after which an item is dropped instead of got; None for no limit."""
        return self._max_age

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
            dropped_newest,
            dropped_oldest,
            expired,
            bytes_used,
            peak_bytes,
            sojourn,
        ) = self._counters()
        now = time.monotonic()
        then, puts_then, gets_then = self._previous
        self._previous = (now, puts, gets)
        elapsed = max(now - then, 1e-9)
        put_rate, get_rate = (puts - puts_then) / elapsed, (gets - gets_then) / elapsed
        if used == 0:
            drain = 0.0
        else:
            drain = used / get_rate if get_rate > 0 else math.inf
        return QueueStatistics(
            current_buffer_used=used,
            max_buffer_size=self._maxsize or math.inf,
            limit=min(self._maxsize or math.inf, self._high or math.inf),
            bytes_used=bytes_used,
            max_bytes=self._max_bytes or math.inf,
            high_watermark=self._high or None,
            low_watermark=self._low if self._high else None,
            writable=not closed,
            tasks_waiting_send=putters,
            tasks_waiting_receive=getters,
            put_count=puts,
            get_count=gets,
            dropped_newest=dropped_newest,
            dropped_oldest=dropped_oldest,
            expired=expired,
            cleared=cleared,
            refused=refused,
            full_waits=full_waits,
            empty_waits=empty_waits,
            wakeups=wakeups,
            high_events=high,
            peak=peak,
            peak_bytes=peak_bytes,
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
        policy = "" if self._policy == "block" else f", {self._policy}"
        return f"<{type(self).__name__}{name}: {used} of {self._maxsize or 'any number of'} items{gate}{policy}>"

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


def _check_age(value: Any) -> int:
    """Nanoseconds, 0 for no limit."""
    if value is None or value == math.inf:
        return 0
    age = seconds(value, "max_age")
    if not 1e-9 <= age <= 3e9:
        raise ValueError(f"max_age: expected seconds above 0 or None, got {value!r}")
    return int(age * 1e9)
