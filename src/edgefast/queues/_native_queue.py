"""Queue over the C-level core."""

from __future__ import annotations

from edgefast.queues import _pure
from edgefast.queues._native import QueueCore
from edgefast.queues._types import QueueBase, T

__all__ = ["Queue"]


class Queue(QueueCore, QueueBase[T]):
    # The core's methods come first; documentation is the twin's.
    __slots__ = ()


Queue.__doc__ = _pure.Queue.__doc__
Queue.__module__ = "edgefast.queues"
