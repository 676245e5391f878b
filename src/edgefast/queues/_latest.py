"""A mailbox that keeps only the newest value."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from typing import Any, Generic, NamedTuple, TypeVar

from edgefast.queues._checks import integer, seconds
from edgefast.queues._exceptions import Empty, ShutDown
from edgefast.queues._loops import loop_of

__all__ = ["Latest", "Versioned"]

T = TypeVar("T")

_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The threads that held or awaited the locks do not exist in the child."""
    for mailbox in tuple(_instances):
        mailbox._reset_waiting()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Versioned(NamedTuple, Generic[T]):
    """A value of a Latest and its number: the first one set is 1."""

    value: T
    version: int


class Latest(Generic[T]):
    """A mailbox that keeps only the newest value: for any number of writers and readers, threads and asyncio tasks.

    Nobody waits to write, and reading takes nothing away: every reader sees the newest value, and never one twice if it
    says which one it has.

    Examples:
        >>> from edgefast.queues import Latest
        >>> position = Latest()
        >>> for metres in (1.0, 1.5, 2.25):
        ...     version = position.set(metres)
        >>> value, seen = position.get()
        >>> value, seen
        (2.25, 3)
        >>> position.get(newer_than=seen, timeout=0)
        Traceback (most recent call last):
        ...
        _queue.Empty
    """

    def __init__(self, *, name: str | None = None) -> None:
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        self.name = name
        self._version = 0
        self._value: Any = None
        self._is_shutdown = False
        self._reset_waiting()
        _instances.add(self)

    def _reset_waiting(self) -> None:
        # Reentrant: a finalizer or a signal handler may use the mailbox.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: dict[asyncio.Future[None], Any] = {}

    @property
    def version(self) -> int:
        """How many values were set; 0 before the first."""
        return self._version

    @property
    def is_shutdown(self) -> bool:
        """True after shutdown()."""
        return self._is_shutdown

    def set(self, value: T) -> int:
        """Replace the value, wake whoever waits for it, and return its version.

        Raises:
            ShutDown: the mailbox was shut down.
        """
        with self._lock:
            if self._is_shutdown:
                raise ShutDown
            version = self._version + 1
            self._value, self._version, old = value, version, self._value
            self._wake()
        del old  # its finalizer may use the mailbox
        return version

    def _wake(self) -> None:
        try:
            self._wake_all()
        except BaseException:  # Ctrl-C: nobody else wakes them
            self._wake_all()
            raise

    def _wake_all(self) -> None:
        self._changed.notify_all()
        for future, loop in tuple(self._waiting.items()):
            loop.wake(future)
        self._waiting.clear()

    def shutdown(self) -> None:
        """Close for good: set raises ShutDown, get does when there is nothing newer. Wakes everybody who waits."""
        with self._lock:
            self._is_shutdown = True
            self._wake()

    def get(self, *, newer_than: int = 0, timeout: float | None = None) -> Versioned[T]:
        """The newest value; wait for one with a version above `newer_than` when there is none.

        Args:
            newer_than: the version the caller has; 0 for none.
            timeout: seconds to wait at most; None for ever.

        Raises:
            Empty: nothing newer in time.
            ShutDown: nothing newer, and the mailbox was shut down.
            TypeError, ValueError: newer_than is no integer from 0; the timeout is negative or no number.
        """
        seen = integer(newer_than, "newer_than", low=0, high=2**63 - 1)
        deadline = None if timeout is None else time.monotonic() + min(seconds(timeout, "timeout"), 3e9)
        with self._lock:
            while self._version <= seen:
                if self._is_shutdown:
                    raise ShutDown
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Empty
                self._changed.wait(left)
            return Versioned(self._value, self._version)

    async def aget(self, *, newer_than: int = 0) -> Versioned[T]:
        """get() without blocking the event loop.

        Raises:
            ShutDown: nothing newer, and the mailbox was shut down.
            TypeError, ValueError: newer_than is no integer from 0.
        """
        seen = integer(newer_than, "newer_than", low=0, high=2**63 - 1)
        loop = loop_of(asyncio.get_running_loop())
        while True:
            with self._lock:
                if self._version > seen:
                    return Versioned(self._value, self._version)
                if self._is_shutdown:
                    raise ShutDown
                future = asyncio.get_running_loop().create_future()
                self._waiting[future] = loop
            try:
                await future
            finally:
                with self._lock:
                    self._waiting.pop(future, None)

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return f"<{type(self).__name__}{name}: version {self._version}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__}: its value and waiters belong to this process")
