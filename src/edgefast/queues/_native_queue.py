"""Queue over the C-level core."""

from __future__ import annotations

import weakref
from typing import Any

from edgefast.queues import _pure
from edgefast.queues._documentation import document
from edgefast.queues._native import QueueCore
from edgefast.queues._types import HOOKS, Policy, QueueBase, T

__all__ = ["Queue"]


class Queue(QueueCore, QueueBase[T]):
    # The core's methods come first.
    __slots__ = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._overridden = tuple(name for name in HOOKS if getattr(cls, name) is not getattr(Queue, name))

    def _new_engine(self, maxsize: int, policy: Policy) -> Any:
        if not self._overridden:
            return None
        self._engine = _Engine(self, policy)
        self._init(maxsize)
        return self._engine

    # What a subclass calls through super(): the engine's storage.

    def _init(self, maxsize: int) -> None:
        _pure.Queue._init(self._engine, maxsize)

    def _qsize(self) -> int:
        return _pure.Queue._qsize(self._engine) if self._overridden else self.qsize()

    def _put(self, item: T) -> None:
        _pure.Queue._put(self._engine, item)

    def _get(self) -> T:
        return _pure.Queue._get(self._engine)


class _Engine(_pure.Queue[Any]):
    """The pure-Python queue that does the work of a queue whose storage a subclass overrides."""

    def __init__(self, outer: Queue[Any], policy: Policy) -> None:
        self._outer = weakref.ref(outer)
        super().__init__(policy=policy)

    def _owner(self) -> Any:
        return self._outer()

    def _init(self, maxsize: int) -> None:
        """Done by the outer queue."""

    def _qsize(self) -> int:
        return self._outer()._qsize()  # type: ignore[union-attr]

    def _put(self, item: Any) -> None:
        self._outer()._put(item)  # type: ignore[union-attr]

    def _get(self) -> Any:
        return self._outer()._get()  # type: ignore[union-attr]


document(Queue, QueueCore, _pure.Queue)
Queue.__module__ = "edgefast.queues"
