"""Bounded queues with backpressure, for threads and asyncio. Imports nothing beyond the standard library and numpy.

The implementation is chosen once, at import: the C-level one, or the pure-Python twin when the process runs with
EDGEFAST_BACKEND=numba or numpy or the extension is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgefast import backends
from edgefast.queues._latest import Latest, Versioned
from edgefast.queues._types import Empty, Full, Policy, QueueStatistics, ShutDown

if TYPE_CHECKING or backends.process_backend() != "native":
    from edgefast.queues._pure import Queue
    from edgefast.queues._record_pure import RecordQueue

    IMPLEMENTATION = "python"
else:
    from edgefast.queues._native_queue import Queue
    from edgefast.queues._native_record import RecordQueue

    IMPLEMENTATION = "native"

__all__ = [
    "IMPLEMENTATION",
    "Empty",
    "Full",
    "Latest",
    "Policy",
    "Queue",
    "QueueStatistics",
    "RecordQueue",
    "ShutDown",
    "Versioned",
]
