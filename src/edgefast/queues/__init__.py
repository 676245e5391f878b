"""Bounded queues with backpressure, for threads, asyncio and processes. Imports nothing beyond the standard library and
numpy.

The implementation is chosen once, at import: the C-level one, or the pure-Python twin when the process runs with
EDGEFAST_BACKEND=numba or numpy or the extension is missing. SharedQueue has no twin: without the native backend, and on
other systems than Linux, its create() and attach() raise ImportError.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edgefast import backends
from edgefast.queues._exceptions import CorruptedError, VersionMismatch
from edgefast.queues._latest import Latest, Versioned
from edgefast.queues._shared_types import Participant, RecoveryReport, SharedSegment
from edgefast.queues._types import Empty, Full, Policy, QueueStatistics, ShutDown

if TYPE_CHECKING or backends.process_backend() != "native":
    from edgefast.queues._pure import Queue
    from edgefast.queues._record_pure import RecordQueue

    IMPLEMENTATION = "python"
else:
    from edgefast.queues._native_queue import Queue
    from edgefast.queues._native_record import RecordQueue

    IMPLEMENTATION = "native"

if TYPE_CHECKING or (IMPLEMENTATION == "native" and sys.platform == "linux"):
    from edgefast.queues._shared_queue import SharedQueue, cleanup, list_shared
else:
    from edgefast.queues._shared_pure import SharedQueue, cleanup, list_shared

__all__ = [
    "IMPLEMENTATION",
    "CorruptedError",
    "Empty",
    "Full",
    "Latest",
    "Participant",
    "Policy",
    "Queue",
    "QueueStatistics",
    "RecordQueue",
    "RecoveryReport",
    "SharedQueue",
    "SharedSegment",
    "ShutDown",
    "VersionMismatch",
    "Versioned",
    "cleanup",
    "list_shared",
]
