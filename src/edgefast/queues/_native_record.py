"""RecordQueue over the C-level core."""

from __future__ import annotations

from edgefast.queues import _record_pure
from edgefast.queues._record import RecordCore
from edgefast.queues._record_base import RecordBase

__all__ = ["RecordQueue"]


class RecordQueue(RecordCore, RecordBase):
    # The core's methods come first; documentation is the twin's.
    __reduce__ = RecordBase.__reduce__


RecordQueue.__doc__ = _record_pure.RecordQueue.__doc__
RecordQueue.__module__ = "edgefast.queues"
