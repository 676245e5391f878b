"""RecordQueue over the C-level core."""

from __future__ import annotations

from edgefast.queues import _record_pure
from edgefast.queues._documentation import document
from edgefast.queues._record import RecordCore
from edgefast.queues._record_base import RecordBase

__all__ = ["RecordQueue"]


class RecordQueue(RecordCore, RecordBase):
    # The core's methods come first.
    __reduce__ = RecordBase.__reduce__


document(RecordQueue, RecordCore, _record_pure.RecordQueue)
RecordQueue.__module__ = "edgefast.queues"
