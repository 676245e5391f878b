"""The exceptions of queue.Queue, the same classes, with ShutDown on every Python; those of shared segments."""

from __future__ import annotations

import queue as _queue
import sys

__all__ = ["CorruptedError", "Empty", "Full", "ShutDown", "VersionMismatch"]

Full = _queue.Full
Empty = _queue.Empty

if sys.version_info >= (3, 13):
    ShutDown = _queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by put, and by get on an empty queue, after shutdown(): queue.ShutDown of CPython 3.13."""

        __module__ = "edgefast.queues"


class CorruptedError(ValueError):
    """The segment of a SharedQueue is no such segment, or is damaged; the message says what was expected and found."""

    __module__ = "edgefast.queues"


class VersionMismatch(ValueError):
    """The segment of a SharedQueue was made by a version of edgefast, or on an architecture, with another layout."""

    __module__ = "edgefast.queues"
