"""SharedQueue over its native core, and the leftovers of processes that died."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator

from edgefast.queues._shared import SharedCore
from edgefast.queues._shared_base import FOLDER, SharedBase, path_of
from edgefast.queues._shared_types import SharedSegment

__all__ = ["SharedQueue", "cleanup", "list_shared"]

# Participants lock bytes from here on (shared_segment.hpp), and the creator does before it writes anything.
_LOCK_BASE, _LOCKS = 1 << 62, 1023
_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_UNFINISHED = 10.0  # seconds for which an unlocked file without a header may just be being created


class SharedQueue(SharedCore, SharedBase):
    """A bounded queue between processes, of byte messages, numpy records or pickled objects, in shared memory.

    FIFO in the order of publication. Any number of processes and threads put and get; any of them may be killed or
    stopped at any instruction without blocking the others or damaging the queue. An item that a dead producer was
    writing is counted as lost; one that a dead consumer was reading is redelivered. create() makes a queue, attach()
    finds it by name, and a pickled handle attaches where it is unpickled. A handle survives fork. Linux and the native
    backend only. See docs/shared-queue.md.

    Attributes:
        dtype: numpy.dtype of a record; None for byte messages and pickles.
        shape: of a record; () for the others.

    Examples:
        >>> from edgefast.queues import SharedQueue
        >>> with SharedQueue.create(100, itemsize=64) as q:
        ...     q.put(b"reading 1")
        ...     with SharedQueue.attach(q.name) as other:  # in this or any other process
        ...         other.get()
        b'reading 1'
    """


SharedQueue.__module__ = "edgefast.queues"


def _lock(fd: int, command: int, kind: int) -> bool:
    """Whether another process holds one of the participants' locks, or keeps us from taking them all."""
    import fcntl

    flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, _LOCK_BASE, _LOCKS, 0)
    try:
        answer = fcntl.fcntl(fd, command, flock)
    except (BlockingIOError, PermissionError):
        return True
    return command == _F_OFD_GETLK and struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK


def _segments() -> Iterator[tuple[str, str, int]]:
    """(name, path, descriptor) of our own segments' files."""
    prefix = os.path.basename(path_of("x", os.geteuid()))[:-1]
    for entry in sorted(os.listdir(FOLDER)):
        name = entry.removeprefix(prefix)
        if name == entry:
            continue
        try:
            path = path_of(name, os.geteuid())
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):  # gone meanwhile, a link, a folder, or nothing of ours
            continue
        try:
            yield name, path, fd
        finally:
            os.close(fd)


def list_shared() -> list[SharedSegment]:
    """The segments of this user on this machine, in use or left over, by name.

    Raises:
        ImportError: no native backend, or not Linux.
    """
    import fcntl
    import stat

    found = []
    for name, _, fd in _segments():
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            in_use = _lock(fd, _F_OFD_GETLK, fcntl.F_WRLCK)
            found.append(SharedSegment(name, status.st_size, status.st_ctime, in_use))
    return found


def cleanup() -> list[str]:
    """Remove the segments of this user that no living process is attached to; the names removed.

    What is in them is lost: a queue with a name that was left on purpose, for a later process to attach to, goes too.

    Raises:
        ImportError: no native backend, or not Linux.
    """
    import fcntl
    import stat

    removed = []
    for name, path, fd in _segments():
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            continue
        if os.pread(fd, 8, 0).rstrip(b"\0") == b"" and time.time() - status.st_ctime < _UNFINISHED:
            continue
        # Held until the file is gone: nobody can attach meanwhile.
        if _lock(fd, _F_OFD_SETLK, fcntl.F_WRLCK):
            continue
        with contextlib.suppress(FileNotFoundError):
            now = os.stat(path, follow_symlinks=False)
            if (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino):
                os.unlink(path)
                removed.append(name)
    return removed
