"""What the native RecordQueue and its pure-Python twin have in common: checks, conversion, statistics."""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgefast.queues._checks import check_choice, integer
from edgefast.queues._types import QueueStatistics, ShutDown

__all__ = ["POLICIES", "RecordBase"]

POLICIES = ("block", "drop_newest", "drop_oldest", "latest", "error")
_RANK = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}  # what a Python number may become without loss of kind

_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The threads that waited do not exist in the child."""
    for queue in tuple(_instances):
        queue._forget_waiters()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class RecordBase:
    """The part of RecordQueue above the native core and the pure-Python one."""

    if TYPE_CHECKING:  # what the cores provide
        dtype: np.dtype[Any]
        shape: tuple[int, ...]

        def _allocate(
            self, dtype: np.dtype[Any], shape: tuple[int, ...], itemsize: int, capacity: int, policy: int, /
        ) -> None: ...
        def _configure(self, limit: int, high: int, low: int, /) -> None: ...
        def _counters(self) -> dict[str, Any]: ...
        def get(self, block: bool = True, timeout: float | None = None, *, out: Any = None) -> Any: ...

    def __init__(
        self,
        dtype: Any,
        maxsize: int,
        *,
        shape: int | tuple[int, ...] = (),
        policy: str = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        name: str | None = None,
    ) -> None:
        base, sub = _check_dtype(dtype)
        full_shape = (*_check_shape(shape), *sub)
        itemsize = base.itemsize * math.prod(full_shape)
        if itemsize == 0:
            raise ValueError(f"dtype, shape: expected records of at least one byte, got {base} of shape {full_shape}")
        capacity = integer(maxsize, "maxsize", low=1, high=2**48)
        check_choice(policy, "policy", POLICIES)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        high, low = _check_gate(capacity, policy, high_watermark, low_watermark)
        self._allocate(base, full_shape, itemsize, capacity, POLICIES.index(policy))
        self._configure(capacity, high, low)
        self._capacity = self._maxsize = capacity
        self._high, self._low = high, low
        self._policy = policy
        self._previous = (time.monotonic(), 0, 0)
        self.name = name
        _instances.add(self)

    # ---- conversion ------------------------------------------------------------------------------------------------

    def _one(self, value: Any) -> np.ndarray:
        """A record as a C-contiguous array, or a typed error."""
        if isinstance(value, (np.ndarray, np.generic)):
            # Scalars are of native byte order, also those out of an array that is not.
            same = value.dtype == self.dtype or (
                isinstance(value, np.generic) and value.dtype == self.dtype.newbyteorder("=")
            )
            if not same:
                raise TypeError(f"value: expected dtype {self.dtype}, got {value.dtype}")
            array = np.asarray(value, self.dtype, order="C")
        else:
            array = self._converted(value, "value")
        if array.shape != self.shape:
            raise ValueError(f"value: expected a record of shape {self.shape}, got {array.shape}")
        return array

    def _many(self, records: Any) -> np.ndarray:
        """Records as a C-contiguous array of shape (n, *shape), or a typed error."""
        if isinstance(records, (np.ndarray, np.generic)):
            if records.dtype != self.dtype:
                raise TypeError(f"records: expected dtype {self.dtype}, got {records.dtype}")
            array = records if records.ndim == 0 else np.ascontiguousarray(records)
        elif isinstance(records, (list, tuple)):
            array = self._converted(records, "records") if records else np.empty((0, *self.shape), self.dtype)
        else:
            raise TypeError(f"records: expected an array or a list, got {type(records).__name__}")
        if array.ndim == 0 or array.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("n", *self.shape)))
            raise ValueError(f"records: expected shape ({wanted}), got {array.shape}")
        return array

    def _converted(self, value: Any, name: str) -> np.ndarray:
        """Python values; numbers only where nothing but precision is lost, so that 2.5 does not become 2."""
        try:
            if self.dtype.kind in _RANK:
                kind = np.asarray(value).dtype.kind
                if kind not in _RANK or _RANK[kind] > _RANK[self.dtype.kind]:
                    raise TypeError(f"{name}: expected values for {self.dtype}, got {np.asarray(value).dtype}")
            return np.array(value, dtype=self.dtype)
        except (ValueError, OverflowError, TypeError) as error:
            if str(error).startswith(f"{name}: "):
                raise
            kind_of = TypeError if isinstance(error, TypeError) else ValueError
            raise kind_of(f"{name}: expected values for {self.dtype}, got {value!r:.80} ({error})") from None

    def _check_out(self, out: Any, shape: tuple[int, ...]) -> None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected an array, got {type(out).__name__}")
        if out.dtype != self.dtype:
            raise TypeError(f"out: expected dtype {self.dtype}, got {out.dtype}")
        if out.shape != shape:
            raise ValueError(f"out: expected shape {shape}, got {out.shape}")
        if not out.flags.carray:
            raise ValueError("out: expected a writable C-contiguous array, got another")

    def _counts(self, max_items: Any, min_items: Any, out: Any) -> tuple[int, int]:
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"out: expected an array, got {type(out).__name__}")
            if out.ndim == 0:
                raise ValueError("out: expected at least one dimension, got none")
            self._check_out(out, (len(out), *self.shape))
            if max_items is None:
                max_items = len(out)
        elif max_items is None:
            raise TypeError("max_items: expected an integer, or an array for out, got neither")
        most = integer(max_items, "max_items", low=1, high=2**62)
        if out is not None and most > len(out):
            raise ValueError(f"max_items: expected at most len(out) = {len(out)}, got {most}")
        return min(most, self._capacity), integer(min_items, "min_items", low=1, high=most)

    def _batch(self, n: Any) -> int:
        return integer(n, "n", low=1, high=self._capacity)

    # ---- settings --------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> str:
        """What put does when there is no room."""
        return self._policy

    @property
    def itemsize(self) -> int:
        """Bytes of a record."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def maxsize(self) -> int:
        """Most records held at once. May be set at any time, up to what the queue was made with: more room wakes who
        waits for it, less lets what is there drain.

        Raises (on setting):
            TypeError: not an integer.
            ValueError: not positive, above the size the queue was made with, or below the high watermark.
        """
        return self._maxsize

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        size = integer(value, "maxsize", low=max(1, self._high), high=self._capacity)
        self._configure(size, self._high, self._low)
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
        marks = _check_gate(self._maxsize, self._policy, high, low)
        self._configure(self._maxsize, *marks)
        self._high, self._low = marks

    def statistics(self) -> QueueStatistics:
        """The queue at this moment, as Queue.statistics(). Rates are over the time since the previous call.

        Records count from the moment their place is claimed: a reservation that is open, and one that was aborted
        behind records not yet taken, is part of current_buffer_used. unfinished_tasks is 0: there is no task_done().
        """
        counters = self._counters()
        now, puts, gets, used = time.monotonic(), counters["put_count"], counters["get_count"], 0
        used = counters["current_buffer_used"]
        then, puts_then, gets_then = self._previous
        self._previous = (now, puts, gets)
        elapsed = max(now - then, 1e-9)
        get_rate = (gets - gets_then) / elapsed
        values = {
            **counters,
            "max_buffer_size": 1 if self._policy == "latest" else self._maxsize,
            "limit": 1 if self._policy == "latest" else self._maxsize,
            "max_bytes": math.inf,
            "high_watermark": self._high or None,
            "low_watermark": self._low if self._high else None,
            "sojourn": None if counters["sojourn"] < 0 else counters["sojourn"],
            "put_rate": (puts - puts_then) / elapsed,
            "get_rate": get_rate,
            "time_to_drain": 0.0 if used == 0 else used / get_rate if get_rate > 0 else math.inf,
        }
        # 0: what a queue of records does not have, such as unfinished tasks.
        return QueueStatistics(**{field: values.get(field, 0) for field in QueueStatistics._fields})

    def __iter__(self) -> Iterator[Any]:
        """Records as they come, until the queue is shut down and empty."""
        while True:
            try:
                record = self.get()
            except ShutDown:
                return
            yield record

    def __repr__(self) -> str:
        used = self._counters()["current_buffer_used"]
        gate = f", gate {self._high}/{self._low}" if self._high else ""
        name = f" {self.name!r}" if self.name else ""
        shape = f"{self.shape} of " if self.shape else ""
        return f"<{type(self).__name__}{name}: {used} of {self._maxsize} records of {shape}{self.dtype}{gate}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__}: its records and waiters belong to this process")


def _check_dtype(dtype: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise TypeError(f"dtype: expected a numpy dtype, got {dtype!r:.80} ({error})") from None
    base, shape = found.base, found.shape
    if base.hasobject or base.kind not in "?biufcmMSUV":
        raise TypeError(f"dtype: expected one of plain values (objects need a Queue), got {base}")
    return base, shape


def _check_shape(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, (tuple, list)):
        return tuple(integer(n, "shape", low=1, high=2**40) for n in shape)
    return (integer(shape, "shape", low=1, high=2**40),)


def _check_gate(maxsize: int, policy: str, high: Any, low: Any) -> tuple[int, int]:
    """(high, low) with 0, 0 for no gate."""
    if high is None:
        if low is not None:
            raise ValueError(f"low_watermark: expected None without a high_watermark, got {low!r}")
        return 0, 0
    if policy == "latest":
        raise ValueError(f"high_watermark: expected None with policy 'latest', which holds one record, got {high!r}")
    high = integer(high, "high_watermark", low=1, high=maxsize)
    low = high // 4 if low is None else integer(low, "low_watermark", low=0, high=high - 1)
    return high, low
