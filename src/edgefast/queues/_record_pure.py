"""RecordQueue in pure Python: one array under one lock. Semantics, exceptions and statistics are the native one's.

Type checkers read this module for both.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal

import numpy as np

from edgefast.queues._checks import seconds
from edgefast.queues._pure import _deadline
from edgefast.queues._record_base import POLICIES, RecordBase
from edgefast.queues._types import Empty, Full, ShutDown

__all__ = ["RecordQueue"]

_SAMPLE_EVERY = 64
_FREE, _WRITING, _READY, _ABANDONED, _READING = range(5)


class RecordQueue(RecordBase):
    """A bounded queue of fixed-size records for threads: copies of numpy records, no Python objects.

    FIFO in the order in which puts claimed their places. The memory is maxsize * itemsize bytes and two bits a record,
    touched when it is first used. Native code uses the same queue without the GIL: `native_handle()` and
    edgefast/record_queue.h. Safe from any number of threads. Cannot be pickled.

    Args:
        dtype: of a record, structured or not; no objects. A subarray dtype adds to the shape.
        maxsize: most records held at once, at least 1.
        shape: of a record: (64, 64) with dtype uint8 is a queue of small images.
        policy: what put does when there is no room: "block" waits; "error" raises Full at once; "drop_newest" drops
            what is put; "drop_oldest" makes room by dropping from the front; "latest" keeps the newest record only.
        high_watermark: number of records at which the queue closes, 1 to maxsize; None for no gate.
        low_watermark: number at which it reopens, below high; None for high // 4.
        name: shown by repr and in reports.

    Attributes:
        dtype: numpy.dtype of a record, without the subarray's shape.
        shape: of a record; () for scalars.

    Raises:
        TypeError: an argument is not of its type; the dtype holds objects.
        ValueError: sizes that are not positive, low not below high, high above maxsize, an unknown policy, a gate with
            policy "latest".
        MemoryError: maxsize records do not fit into memory.

    Examples:
        >>> import numpy as np
        >>> from edgefast.queues import RecordQueue
        >>> q = RecordQueue([("time", "f8"), ("level", "i4")], 100)
        >>> q.put((0.5, 3))
        >>> q.put_many(np.zeros(2, q.dtype))
        2
        >>> q.get_many(10)["level"].tolist()
        [3, 0, 0]
        >>> with q.reserve(2) as slots:
        ...     slots["level"] = 7
        >>> with q.view(2) as records:
        ...     int(records["level"].sum())
        14
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __init__(
        self,
        dtype: Any,
        maxsize: int,
        *,
        shape: int | tuple[int, ...] = (),
        policy: Literal["block", "drop_newest", "drop_oldest", "latest", "error"] = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        name: str | None = None,
    ) -> None:
        self._forget_waiters()
        self._head = self._tail = 0
        self._closed = self._is_shutdown = False
        self._abandoned = self._skipped = self._passed_over = 0
        self._cleared = self._dropped_newest = self._dropped_oldest = self._refused = 0
        self._full_waits = self._empty_waits = self._wakeups = self._high_events = self._peak = 0
        self._sampled_position, self._sampled_at, self._sojourn = 0, 0.0, -1.0
        super().__init__(
            dtype,
            maxsize,
            shape=shape,
            policy=policy,
            high_watermark=high_watermark,
            low_watermark=low_watermark,
            name=name,
        )

    def _forget_waiters(self) -> None:
        self._lock = threading.RLock()
        self._items = threading.Condition(self._lock)
        self._room_made = threading.Condition(self._lock)
        self._putters = self._getters = 0

    def _allocate(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], itemsize: int, capacity: int, policy: int
    ) -> None:
        self.dtype, self.shape = dtype, shape
        try:
            self._slots = np.zeros((capacity, *shape), dtype)
        except (MemoryError, ValueError):
            raise MemoryError(f"maxsize: expected room for {capacity} records of {itemsize} bytes, got none") from None
        self._states = bytearray(capacity)
        self._kind = POLICIES[policy]

    def _configure(self, limit: int, high: int, low: int) -> None:
        with self._lock:
            self._limit = 1 if self._kind == "latest" else limit
            self._gate_high, self._gate_low = high, low
            self._wake_all()

    # ---- parts, under the lock -----------------------------------------------------------------------------------

    def _wake_all(self) -> None:
        self._wakeups += self._putters + self._getters
        self._items.notify_all()
        self._room_made.notify_all()

    def _skip_abandoned(self) -> None:
        n = len(self._states)
        while self._head < self._tail and self._states[self._head % n] == _ABANDONED:
            i = self._head % n
            self._states[i], self._head, self._skipped = _FREE, self._head + 1, self._skipped + 1

    def _gate_closed(self) -> bool:
        return self._closed and self._gate_high > 0 and self._tail - self._head > self._gate_low

    def _room(self, past_gate: bool = False) -> int:
        self._skip_abandoned()
        if self._gate_closed() and not past_gate:
            return 0
        bound = min(self._limit, self._gate_high) if self._gate_high else self._limit
        return max(0, bound - (self._tail - self._head))

    def _run(self, position: int, most: int, state: int, in_a_row: bool) -> int:
        n = len(self._states)
        if in_a_row:
            most = min(most, n - position % n)
        for i in range(most):
            if self._states[(position + i) % n] != state:
                return i
        return most

    def _set(self, position: int, count: int, state: int) -> None:
        for i in range(position, position + count):
            self._states[i % len(self._states)] = state

    def _claim_put(self, most: int, past_gate: bool = False, in_a_row: bool = False) -> int:
        """Slots claimed from self._tail - count on; 0 for none."""
        room = self._room(past_gate)
        count = self._run(self._tail, min(room, most), _FREE, in_a_row)
        if count == 0:
            return 0
        closed = self._gate_closed()
        position = self._tail
        used = position + count - self._head
        sample = -(-position // _SAMPLE_EVERY) * _SAMPLE_EVERY
        now = time.monotonic() if sample < position + count and not self._sampled_at else 0.0
        peak = max(self._peak, used)
        try:
            self._set(position, count, _WRITING)
        except BaseException:  # Ctrl-C
            self._set(position, count, _FREE)
            raise
        # No call from here on, so no Ctrl-C.
        self._tail += count
        self._closed = self._gate_high > 0 and (closed or used >= self._gate_high)
        self._high_events += self._closed and not closed
        self._peak = peak
        if now:
            self._sampled_position, self._sampled_at = sample, now
        return count

    def _claim_get(self, most: int, in_a_row: bool = False) -> int:
        """Slots claimed from self._head - count on; 0 for none."""
        self._skip_abandoned()
        count = self._run(self._head, min(most, self._tail - self._head), _READY, in_a_row)
        try:
            self._set(self._head, count, _READING)
        except BaseException:  # Ctrl-C
            self._set(self._head, count, _READY)
            raise
        self._head += count
        return count

    # These two may be called again, when Ctrl-C came within the first call.

    def _abandon(self, position: int, count: int, abandoned: int) -> None:
        self._abandoned = abandoned
        first = max(position, self._head)
        self._set(first, position + count - first, _ABANDONED)
        self._skip_abandoned()
        self._wake_all()

    def _freed(self, position: int, count: int) -> None:
        self._set(position, count, _FREE)
        self._wake_all()
        if self._sampled_at and self._sampled_position < position + count:
            if self._sampled_position >= position:
                seconds = time.monotonic() - self._sampled_at
                self._sojourn = seconds if self._sojourn < 0 else self._sojourn + 0.125 * (seconds - self._sojourn)
            self._sampled_at = 0.0

    def _sleep(self, condition: threading.Condition, deadline: float) -> None:
        condition.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))

    def _claim_by_policy(self, most: int, deadline: float | None, in_a_row: bool) -> int:
        """Slots claimed, or 0 when the policy drops the new records."""
        counted = False
        while True:
            if self._is_shutdown:
                raise ShutDown
            if count := self._claim_put(most, in_a_row=in_a_row):
                return count
            if self._kind in ("drop_oldest", "latest"):
                if dropped := self._claim_get(most):
                    self._dropped_oldest += dropped
                    try:
                        self._freed(self._head - dropped, dropped)
                    except BaseException:
                        self._freed(self._head - dropped, dropped)
                        raise
                return self._claim_put(most, True, in_a_row)
            if self._kind == "drop_newest":
                return 0
            if self._kind == "error" or deadline is None or time.monotonic() >= deadline:
                self._refused += 1
                raise Full
            self._full_waits += not counted
            counted = True
            self._putters += 1
            try:
                self._sleep(self._room_made, deadline)
            finally:
                self._putters -= 1

    def _await(self, wanted: int, deadline: float | None) -> None:
        """Until that many records are there, or the end with at least one."""
        counted = False
        while self._tail - self._head < wanted and not self._is_shutdown:
            if deadline is None or time.monotonic() >= deadline:
                return
            self._empty_waits += not counted
            counted = True
            self._getters += 1
            try:
                self._sleep(self._items, deadline)
            finally:
                self._getters -= 1

    def _claim_records(self, most: int, deadline: float | None, in_a_row: bool = False) -> int:
        counted = False
        while True:
            if count := self._claim_get(most, in_a_row):
                return count
            if self._is_shutdown and self._tail == self._head:
                raise ShutDown
            if deadline is None or time.monotonic() >= deadline:
                raise Empty
            self._empty_waits += not counted
            counted = True
            self._getters += 1
            try:
                self._sleep(self._items, deadline)
            finally:
                self._getters -= 1

    def _indices(self, position: int, count: int) -> Any:
        first = position % len(self._states)
        if first + count <= len(self._states):
            return slice(first, first + count)
        return np.arange(position, position + count) % len(self._states)

    def _insert(self, records: np.ndarray, deadline: float | None) -> tuple[int, type[Exception] | None]:
        """Records accepted, and the exception that ended it."""
        done = skipped = len(records) - 1 if self._kind == "latest" and len(records) > 1 else 0
        with self._lock:
            while done < len(records):
                try:
                    count = self._claim_by_policy(len(records) - done, deadline, False)
                except (Full, ShutDown) as error:
                    return (0 if done == skipped else done), type(error)
                if count == 0:
                    self._dropped_newest += len(records) - done
                    return (0 if done == skipped else done), None
                position, abandoned = self._tail - count, self._abandoned + count
                try:
                    self._slots[self._indices(position, count)] = records[done : done + count]
                    self._set(position, count, _READY)
                    self._wake_all()
                except BaseException:
                    self._abandon(position, count, abandoned)
                    raise
                done += count
            self._passed_over += skipped
        return done, None

    # ---- copies ----------------------------------------------------------------------------------------------------

    def put(self, value: Any, block: bool = True, timeout: float | None = None) -> None:
        """Copy a record in; without room wait, drop or refuse, as the policy says.

        Args:
            value: an array or numpy scalar of exactly the queue's dtype and shape, or Python values that convert
                without a loss of kind (a tuple for a structured dtype).
            block: False raises Full at once instead of waiting. It may still wait for a copy that another thread is
                just making, as for a lock.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Full: no room in time (policies "block" and "error").
            ShutDown: the queue was shut down.
            TypeError: another dtype; a timeout that is no number.
            ValueError: another shape; values that do not fit; a negative timeout.
        """
        deadline = _deadline(block, timeout)
        error = self._insert(self._one(value)[np.newaxis], deadline)[1]
        if error:
            raise error

    def put_many(self, records: Any, block: bool = True, timeout: float | None = None) -> int:
        """Copy records in, in order, as many as find room in time.

        Args:
            records: (n, *shape) array of exactly the queue's dtype, or a list of Python values.
            block: False puts what fits now.
            timeout: seconds to wait at most, for all of them; None for ever.

        Returns:
            The number accepted: records[:n] were put. Less than all after the time-out, after shutdown() while
            waiting, or when the policy dropped the rest. Records of the same call that "drop_oldest" or "latest"
            replaced count as accepted.

        Raises:
            ShutDown: the queue was shut down before the first record.
            TypeError, ValueError: as for put.
        """
        deadline = _deadline(block, timeout)
        done, error = self._insert(self._many(records), deadline)
        if done == 0 and error is ShutDown:
            raise ShutDown
        return done

    def get(self, block: bool = True, timeout: float | None = None, *, out: np.ndarray | None = None) -> Any:
        """Copy the oldest record out; wait for one when there is none.

        Args:
            block: False raises Empty at once instead of waiting (for a copy under way it waits, as for a lock).
            timeout: seconds to wait at most; None for ever.
            out: C-contiguous array of the queue's dtype and shape to copy into.

        Returns:
            `out`, or a new array of the queue's shape, or a numpy scalar when that is ().

        Raises:
            Empty: no record in time.
            ShutDown: the queue was shut down and is empty.
            TypeError: out or timeout of another type.
            ValueError: out of another shape, read-only or not contiguous; a negative timeout.
        """
        deadline = _deadline(block, timeout)
        if out is not None:
            self._check_out(out, self.shape)
        with self._lock:
            self._claim_records(1, deadline)
            position = self._head - 1
            try:
                target = np.empty(self.shape, self.dtype) if out is None else out
                target[...] = self._slots[position % len(self._states)]
                self._freed(position, 1)
            except BaseException:
                self._freed(position, 1)
                raise
        return target if out is not None or self.shape else target[()]

    def get_many(
        self,
        max_items: int | None = None,
        block: bool = True,
        timeout: float | None = None,
        *,
        out: np.ndarray | None = None,
        min_items: int = 1,
        linger: float = 0.0,
    ) -> np.ndarray:
        """Copy up to max_items records out, oldest first; wait for the first like get.

        Args:
            max_items: most records to take; None for len(out).
            block, timeout: as for get.
            out: (n, *shape) C-contiguous array of the queue's dtype to copy into, n >= max_items.
            min_items: wait up to `linger` seconds after the first record until there are so many.
            linger: seconds.

        Returns:
            (k, *shape) array with 1 <= k <= max_items: new, or out[:k].

        Raises:
            Empty, ShutDown, TypeError, ValueError: as for get; also ValueError when min_items > max_items.
        """
        deadline = _deadline(block, timeout)
        most, least = self._counts(max_items, min_items, out)
        pause = seconds(linger, "linger")
        with self._lock:
            self._await(1, deadline)
            if self._tail > self._head and self._tail - self._head < least and pause:
                self._await(least, time.monotonic() + min(pause, 3e9))
            count = self._claim_records(most, deadline)
            position = self._head - count
            try:
                target = np.empty((count, *self.shape), self.dtype) if out is None else out[:count]
                target[...] = self._slots[self._indices(position, count)]
                self._freed(position, count)
            except BaseException:
                self._freed(position, count)
                raise
        return target if out is None or count < len(out) else out

    # ---- in place --------------------------------------------------------------------------------------------------

    def reserve(self, n: int = 1, timeout: float | None = None) -> AbstractContextManager[np.ndarray]:
        """Write records in place: `with q.reserve(n) as slots:` claims 1 to n slots that lie in a row, waiting for the
        first as put does; leaving the block commits them, an exception aborts them.

        slots is a writable (k, *shape) array with whatever the memory held; k < n when there is less room, or at the
        end of the ring's memory. It must not be used after the block. Records put behind an open reservation are seen
        after it ends.

        Raises (on entering):
            Full: no room in time, or the policy would drop the records.
            ShutDown: the queue was shut down.
            TypeError, ValueError: n or timeout; 1 <= n <= maxsize.
        """
        return _Open(self, self._batch(n), _deadline(True, timeout), True)

    def view(self, n: int = 1, timeout: float | None = None) -> AbstractContextManager[np.ndarray]:
        """Read records in place: `with q.view(n) as records:` takes 1 to n records that lie in a row, waiting for the
        first as get does; leaving the block frees their slots, after an exception too.

        records is a read-only (k, *shape) array. It must not be used after the block. Producers cannot use the slots
        meanwhile.

        Raises (on entering):
            Empty: no record in time.
            ShutDown: the queue was shut down and is empty.
            TypeError, ValueError: n or timeout; 1 <= n <= maxsize.
        """
        return _Open(self, self._batch(n), _deadline(True, timeout), False)

    def native_handle(self) -> Any:
        """A capsule with the edgefast_record_queue of edgefast/record_queue.h, for native code. It keeps the queue
        alive.

        Raises:
            NotImplementedError: this is the pure-Python queue.
        """
        raise NotImplementedError("native_handle: expected the native queue, this is the pure-Python one")

    # ---- the rest --------------------------------------------------------------------------------------------------

    def clear(self) -> int:
        """Discard all records; returns how many."""
        with self._lock:
            total = 0
            count = 0
            try:
                while count := self._claim_get(len(self._states)):
                    total += count
                    self._cleared += count
                    self._set(self._head - count, count, _FREE)
                self._wake_all()
            except BaseException:
                self._set(self._head - count, count, _FREE)
                self._wake_all()
                raise
            return total

    def shutdown(self, immediate: bool = False) -> None:
        """Close for good: put raises ShutDown, get does once the queue is empty. Wakes everybody who waits. An open
        reservation can still be committed.

        Args:
            immediate: discard what is in the queue.
        """
        with self._lock:
            self._is_shutdown = True
            self._wake_all()
            if immediate:
                self.clear()

    def qsize(self) -> int:
        """Number of records, open reservations included."""
        with self._lock:
            return self._tail - self._head

    def empty(self) -> bool:
        """True when there is no record."""
        return self.qsize() == 0

    def full(self) -> bool:
        """True when put would find no room: maxsize records, or the gate is closed."""
        with self._lock:
            return self._room() == 0

    @property
    def is_shutdown(self) -> bool:
        """True after shutdown()."""
        return self._is_shutdown

    @property
    def writable(self) -> bool:
        """True while the gate is open."""
        with self._lock:
            return not self._gate_closed()

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until the gate is open; False when it was not in time.

        Raises:
            ShutDown: the queue was shut down.
        """
        deadline = _deadline(True, timeout)
        assert deadline is not None
        with self._lock:
            while True:
                if self._is_shutdown:
                    raise ShutDown
                if not self._gate_closed():
                    return True
                if time.monotonic() >= deadline:
                    return False
                self._putters += 1
                try:
                    self._sleep(self._room_made, deadline)
                finally:
                    self._putters -= 1

    def _counters(self) -> dict[str, Any]:
        with self._lock:
            used = self._tail - self._head
            return {
                "current_buffer_used": used,
                "tasks_waiting_send": self._putters,
                "tasks_waiting_receive": self._getters,
                "put_count": self._tail - self._abandoned + self._passed_over,
                "get_count": self._head - self._skipped - self._dropped_oldest - self._cleared,
                "cleared": self._cleared,
                "dropped_newest": self._dropped_newest,
                "dropped_oldest": self._dropped_oldest + self._passed_over,
                "refused": self._refused,
                "full_waits": self._full_waits,
                "empty_waits": self._empty_waits,
                "wakeups": self._wakeups,
                "high_events": self._high_events,
                "peak": self._peak,
                "writable": not self._gate_closed(),
                "bytes_used": used * self.itemsize,
                "sojourn": self._sojourn,
            }


class _Open:
    """What reserve() and view() return: claims on entry, ends the claim on exit."""

    def __init__(self, queue: RecordQueue, n: int, deadline: float | None, writes: bool) -> None:
        self._queue, self._n, self._deadline, self._writes = queue, n, deadline, writes
        self._array: np.ndarray | None = None
        self._position = self._count = 0

    def __enter__(self) -> np.ndarray:
        q = self._queue
        if self._count:
            raise RuntimeError("expected a new reserve() or view(), got one that is open")
        with q._lock:
            if self._writes:
                count = q._claim_by_policy(self._n, self._deadline, True)
                if count == 0:
                    q._dropped_newest += self._n
                    raise Full
                self._position = q._tail - count
            else:
                count = q._claim_records(self._n, self._deadline, True)
                self._position = q._head - count
            self._count = count
            self._array = q._slots[q._indices(self._position, count)]
        self._array.flags.writeable = self._writes
        return self._array

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._count:
            self._close(kind is None)

    def __del__(self) -> None:
        if getattr(self, "_count", 0):
            self._close(False)

    def _close(self, commit: bool) -> None:
        q = self._queue
        if self._array is not None:
            self._array.flags.writeable = False  # the slots are somebody else's now
            self._array = None
        with q._lock:
            count, self._count = self._count, 0
            position, abandoned = self._position, q._abandoned + count
            try:
                if commit and self._writes:
                    q._set(position, count, _READY)
                    q._wake_all()
                elif self._writes:
                    q._abandon(position, count, abandoned)
                else:
                    q._freed(position, count)
            except BaseException:
                if self._writes:
                    q._abandon(position, count, abandoned)
                else:
                    q._freed(position, count)
                raise
