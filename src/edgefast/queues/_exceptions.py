"""The exceptions of queue.Queue, the same classes, with ShutDown on every Python."""

from __future__ import annotations

import queue as _queue
import sys

__all__ = ["Empty", "Full", "ShutDown"]

Full = _queue.Full
Empty = _queue.Empty

if sys.version_info >= (3, 13):
    ShutDown = _queue.ShutDown
else:

    class ShutDown(Exception):
        """Raised by put, and by get on an empty queue, after shutdown(): queue.ShutDown of CPython 3.13."""

        __module__ = "edgefast.queues"
