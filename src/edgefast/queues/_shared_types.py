"""The tuples that SharedQueue reports with."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Participant", "RecoveryReport", "SharedSegment"]


class RecoveryReport(NamedTuple):
    """What SharedQueue.recover() found and did.

    Attributes:
        dead: participants that had died.
        lost: items they had not put yet, gone with them.
        redelivered: items they were reading, put again.
        dropped: the same, dropped (on_consumer_death="drop").
    """

    dead: int
    lost: int
    redelivered: int
    dropped: int


class Participant(NamedTuple):
    """A handle attached to a SharedQueue.

    Attributes:
        pid: its process; in another pid namespace a number of that one.
        start_time: of the process, clock ticks since boot (field 22 of /proc/PID/stat).
        alive: whether the process still holds its entry.
    """

    pid: int
    start_time: int
    alive: bool


class SharedSegment(NamedTuple):
    """A segment that list_shared() found.

    Attributes:
        name: for SharedQueue.attach().
        size: bytes of shared memory.
        created: seconds since the epoch.
        in_use: whether any process is attached.
    """

    name: str
    size: int
    created: float
    in_use: bool
