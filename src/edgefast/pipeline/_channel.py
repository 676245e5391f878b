"""Messages between a worker's thread and its process: two SharedQueues, or a pipe where there are none.

Objects travel as pickles of protocol 5; the memory of arrays goes beside the pickle, copied into shared memory and out
of it, in pieces as large as a slot. Both directions have one sender and one receiver, so the pieces stay in order.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing as mp
import pickle
import struct
import weakref
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from edgefast.queues import Empty, Full, SharedQueue, ShutDown

__all__ = ["Channel", "Gone", "PipeChannel", "dumps", "forget_others", "open_channel", "parent_lives"]

_PIECE = 1 << 16
_SLOTS = 8
#: Seconds between two looks at whether the other side is alive: the first, and at most.
_FIRST_LOOK, _LAST_LOOK = 0.02, 0.25

Message = list[memoryview]


class Gone(Exception):
    """The other side is not there any more."""


def dumps(value: Any) -> Message:
    """A pickle and the buffers beside it."""
    out = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []

    def aside(buffer: pickle.PickleBuffer) -> bool:
        buffers.append(buffer)
        return False

    ForkingPickler(out, 5, True, aside).dump(value)
    # Not getbuffer(): a collected cycle of the two is reported as an error by CPython 3.13.
    return [memoryview(out.getvalue()), *(buffer.raw() for buffer in buffers)]


class Channel:
    """One end."""

    def send(self, message: Message, alive: Callable[[], bool]) -> None:
        """Send what dumps() made.

        Raises:
            Gone: alive() is false.
        """
        raise NotImplementedError

    def receive(self, alive: Callable[[], bool]) -> Any:
        """The next object.

        Raises:
            Gone: the other side closed its end, or alive() is false and nothing has come.
            whatever unpickling raises.
        """
        raise NotImplementedError

    def settled(self) -> None:
        """The other side has its end: nothing of it may stay if both are killed."""

    def hang_up(self) -> None:
        """Tell the other side that nothing more comes, and that nobody reads any more."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


# ---- shared memory ---------------------------------------------------------------------------------------------------


class _Shared(Channel):
    def __init__(self, inbox: Any, outbox: Any) -> None:
        self._inbox = inbox
        self._outbox = outbox

    def __reduce__(self) -> Any:
        return _Shared, (self._inbox, self._outbox)

    def settled(self) -> None:
        self._inbox.unlink()
        self._outbox.unlink()

    def hang_up(self) -> None:
        for queue in (self._outbox, self._inbox):
            with contextlib.suppress(ShutDown, ValueError):
                queue.shutdown()

    def close(self) -> None:
        for queue in (self._inbox, self._outbox):
            with contextlib.suppress(BufferError):
                queue.close()

    def send(self, message: Message, alive: Callable[[], bool]) -> None:
        sizes = [len(part) for part in message]
        head = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        if len(sizes) == 1 and len(head) + sizes[0] <= _PIECE:
            self._put(head + message[0], alive)
            return
        if len(head) > _PIECE:  # thousands of arrays: their sizes do not fit
            raise ValueError(f"item: expected at most {_PIECE // 8 - 2} arrays, got {len(sizes) - 1}")
        self._put(head, alive)
        for part in message:
            for start in range(0, len(part), _PIECE):
                self._put(part[start : start + _PIECE], alive)

    def _put(self, piece: Any, alive: Callable[[], bool]) -> None:
        look = _FIRST_LOOK
        while True:
            try:
                self._outbox.put(piece, True, look)
                return
            except Full:
                if not alive():
                    raise Gone from None
                look = min(2 * look, _LAST_LOOK)
            except ShutDown:
                raise Gone from None

    def receive(self, alive: Callable[[], bool]) -> Any:
        first = self._get(alive)
        (n,) = struct.unpack_from("<I", first)
        sizes = struct.unpack_from(f"<{n}Q", first, 4)
        here = 4 + 8 * n
        if len(first) > here:
            return pickle.loads(memoryview(first)[here:])
        parts = []
        for size in sizes:
            part = bytearray(size)
            filled = 0
            while filled < size:
                piece = self._get(alive)
                part[filled : filled + len(piece)] = piece
                filled += len(piece)
            parts.append(part)
        return pickle.loads(parts[0], buffers=parts[1:])

    def _get(self, alive: Callable[[], bool]) -> bytes:
        look = _FIRST_LOOK
        while True:
            try:
                return self._inbox.get(True, look)
            except Empty:
                if not alive():
                    try:  # it may have sent this before its end
                        return self._inbox.get(False)
                    except (Empty, ShutDown):
                        raise Gone from None
                look = min(2 * look, _LAST_LOOK)
            except ShutDown:
                raise Gone from None


# ---- a pipe ----------------------------------------------------------------------------------------------------------

_our_ends: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_others() -> None:
    """In a forked child: the ends of other workers would stay open when the parent dies."""
    for end in tuple(_our_ends):
        end.close()


class PipeChannel(Channel):
    def __init__(self, end: Any) -> None:
        self._end = end

    def __reduce__(self) -> Any:
        return PipeChannel, (self._end,)

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._end.send_bytes(b"")
        self._end.close()

    def close(self) -> None:
        self._end.close()

    def send(self, message: Message, alive: Callable[[], bool]) -> None:
        try:
            self._end.send_bytes(struct.pack("<I", len(message)))
            for part in message:
                self._end.send_bytes(part)
        except OSError:
            raise Gone from None

    def receive(self, alive: Callable[[], bool]) -> Any:
        first = self._get(alive)
        if not first:
            raise Gone
        (n,) = struct.unpack("<I", first)
        data, *buffers = [self._get(alive) for _ in range(n)]
        return pickle.loads(data, buffers=[bytearray(b) for b in buffers])

    def _get(self, alive: Callable[[], bool]) -> bytes:
        look = _FIRST_LOOK
        try:
            while not self._end.poll(look):
                # The other end may be open in a process that was forked meanwhile: its closing alone tells nothing.
                if not alive() and not self._end.poll(0):
                    raise Gone
                look = min(2 * look, _LAST_LOOK)
            return self._end.recv_bytes()
        except (EOFError, OSError):
            raise Gone from None


def open_channel(context: Any) -> tuple[Channel, Channel]:
    """The parent's end and the process's. A forked process gets a pipe: it would take part in every queue that is open
    here, those of the other workers included."""
    queues: list[Any] = []
    try:
        for _ in range(2 if context.get_start_method() != "fork" else 0):
            queues.append(SharedQueue.create(_SLOTS, itemsize=_PIECE, max_participants=4))
        if queues:
            return _Shared(queues[0], queues[1]), _Shared(queues[1], queues[0])
    except (ImportError, OSError):  # not here, or no room in /dev/shm
        for queue in queues:
            queue.close()
    ours, theirs = context.Pipe()
    _our_ends.add(ours)
    return PipeChannel(ours), PipeChannel(theirs)


def parent_lives() -> bool:
    """In the process: whether the one it works for is there."""
    parent = mp.parent_process()
    return parent is not None and parent.is_alive()
