"""SharedQueue above its native core: making and finding segments, checks, statistics, pickling."""

from __future__ import annotations

import ast
import contextlib
import errno
import math
import os
import re
import secrets
import time
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgefast.queues._checks import check_choice, integer
from edgefast.queues._exceptions import CorruptedError, ShutDown
from edgefast.queues._record_base import POLICIES, RecordBase, _check_dtype, _check_gate, _check_shape
from edgefast.queues._shared import MAX_DIMENSIONS, MAX_DTYPE, MAX_ITEM, MAX_PARTICIPANTS, MAX_SLOTS
from edgefast.queues._shared_loops import SharedAsyncMethods
from edgefast.queues._types import QueueStatistics

if TYPE_CHECKING:
    from typing import Self

__all__ = ["SharedBase", "path_of"]

SERIALIZERS = ("bytes", "records", "pickle")
FOLDER = "/dev/shm"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")

_instances: weakref.WeakSet[Any] = weakref.WeakSet()


def path_of(name: object, uid: int) -> str:
    """The file of a segment.

    Raises:
        TypeError: name is no string.
        ValueError: name is not of letters, digits, ".", "_", "-", 1 to 100 of them.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected 1 to 100 letters, digits, '.', '_' or '-', got {name!r:.120}")
    return f"{FOLDER}/edgefast-{uid}-{name}"


def describe(dtype: np.dtype[Any], limit: int) -> str:
    """A dtype as ASCII text that makes the same dtype again."""
    full = ascii(np.lib.format.dtype_to_descr(dtype))
    text = ""
    for text in (full.replace(" ", ""), full):  # names of fields may have spaces
        with contextlib.suppress(CorruptedError):
            if parse(text) == dtype:
                break
    else:
        raise ValueError(f"dtype: expected one that its description restores, got {dtype}")
    if len(text) > limit:
        raise ValueError(f"dtype: expected a description of at most {limit} bytes, got {len(text)}: {dtype}")
    return text


def parse(text: str) -> np.dtype[Any]:
    """The dtype of a description out of a segment, which anybody may have written."""
    try:
        dtype = np.lib.format.descr_to_dtype(ast.literal_eval(text))
        if dtype.hasobject or dtype.subdtype is not None or dtype.kind not in "?biufcmMSUV":
            raise ValueError("not one of plain values")
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, KeyError, IndexError) as error:
        raise CorruptedError(f"segment: expected the description of a dtype, got {text!r} ({error})") from None
    return dtype


def _after_fork_in_child() -> None:
    """The child is a participant of its own, and has none of the threads that wait for asyncio tasks."""
    for queue in tuple(_instances):
        queue._forget_watchers()
        queue._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _remove(path: str, identity: tuple[int, int], pid: int) -> None:
    """The name of a segment, if it is still that segment's and this is the process that made it."""
    if os.getpid() != pid:
        return
    with contextlib.suppress(FileNotFoundError):
        found = os.stat(path, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == identity:
            os.unlink(path)


class SharedBase(SharedAsyncMethods):
    """The part of SharedQueue above the native core."""

    if TYPE_CHECKING:  # what the core provides
        dtype: np.dtype[Any] | None
        shape: tuple[int, ...]

        def _open_new(self, path: str, config: dict[str, Any], mode: int, /) -> None: ...
        def _open(self, path: str, owner: int, /) -> None: ...
        def _config(self) -> dict[str, Any]: ...
        def _settings(self) -> tuple[int, int, int]: ...
        def _set_dtype(self, dtype: np.dtype[Any], shape: tuple[int, ...], /) -> None: ...
        def _configure(self, limit: int, high: int, low: int, /) -> None: ...
        def _counters(self) -> dict[str, Any]: ...
        def _close(self) -> None: ...
        def _after_fork(self) -> None: ...

    _creator: int | None  # the process that made the segment, in the handle that did

    def __init__(self) -> None:
        raise TypeError("SharedQueue: expected SharedQueue.create(...) or SharedQueue.attach(name), got a call")

    # ---- making and finding ----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        maxsize: int,
        *,
        itemsize: int | None = None,
        dtype: Any = None,
        shape: int | tuple[int, ...] = (),
        serializer: Literal["bytes", "pickle"] = "bytes",
        policy: Literal["block", "drop_newest", "drop_oldest", "latest", "error"] = "block",
        high_watermark: int | None = None,
        low_watermark: int | None = None,
        name: str | None = None,
        mode: int = 0o600,
        max_participants: int = 64,
        on_consumer_death: Literal["redeliver", "drop"] = "redeliver",
    ) -> Self:
        """Make a queue in shared memory, all of it allocated at once.

        Args:
            maxsize: most items held at once, at least 1.
            itemsize: most bytes of an item, for byte messages and pickles.
            dtype, shape: instead of itemsize: a queue of numpy records, as RecordQueue.
            serializer: with itemsize: "bytes" takes and gives bytes; "pickle" any picklable object, the memory of
                arrays copied once (protocol 5, out of band). Pickles of other users are never read.
            policy, high_watermark, low_watermark: as for RecordQueue.
            name: for attach() in unrelated processes, 1 to 100 letters, digits, ".", "_" or "-". A queue with a name
                stays until unlink(); one without goes with the handle create() returned, at the latest when its
                process exits normally.
            mode: permissions of the segment.
            max_participants: most handles attached at once; each adds up to 64 spare slots, as far as 1 MiB goes for
                all, at least four.
            on_consumer_death: what becomes of an item whose consumer is killed before get() has copied it, or inside a
                view() block: "redeliver" puts it back, at the end; "drop" drops and counts it.

        Raises:
            ImportError: no native backend, or not Linux.
            TypeError: an argument is not of its type; both or neither of itemsize and dtype.
            ValueError: sizes that are not positive, low not below high, high above maxsize, an unknown choice, a gate
                with policy "latest", a name of other characters, a dtype of more than 255 bytes of description,
                pickles in a segment that others may write.
            FileExistsError: there is such a queue.
            OSError: shared memory has not so much room, or cannot be had.
        """
        capacity = integer(maxsize, "maxsize", low=1, high=MAX_SLOTS)
        record: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        check_choice(serializer, "serializer", ("bytes", "pickle"))
        if (itemsize is None) == (dtype is None):
            raise TypeError(f"itemsize, dtype: expected one of both, got {'neither' if dtype is None else 'both'}")
        if dtype is not None:
            if serializer != "bytes":
                raise TypeError(f"serializer: expected none with a dtype, got {serializer!r}")
            record = _check_record(dtype, shape)
            size = record[0].itemsize * math.prod(record[1])
        else:
            if shape != ():
                raise TypeError(f"shape: expected none without a dtype, got {shape!r}")
            size = integer(itemsize, "itemsize", low=1, high=MAX_ITEM)
        check_choice(policy, "policy", POLICIES)
        check_choice(on_consumer_death, "on_consumer_death", ("redeliver", "drop"))
        permissions = integer(mode, "mode", low=0, high=0o777)
        if permissions & 0o600 != 0o600:
            raise ValueError(f"mode: expected the owner's permission to read and write (0o600), got {permissions:#o}")
        if serializer == "pickle" and permissions & 0o022:
            raise ValueError(
                f"mode: expected one in which only the owner writes ({permissions & ~0o022:#o}) with serializer "
                f"'pickle', got {permissions:#o}: who can write a pickle can run code in its reader"
            )
        people = integer(max_participants, "max_participants", low=1, high=MAX_PARTICIPANTS)
        high, low = _check_gate(capacity, policy, high_watermark, low_watermark)
        path = path_of(secrets.token_hex(8) if name is None else name, os.geteuid())
        self = cls.__new__(cls)
        config = {
            "capacity": capacity,
            "itemsize": size,
            "policy": POLICIES.index(policy),
            "high": high,
            "low": low,
            "participants": people,
            "redeliver": on_consumer_death == "redeliver",
            "serializer": SERIALIZERS.index("records" if record else serializer),
            "dtype": describe(record[0], MAX_DTYPE) if record else "",
            "shape": record[1] if record else (),
        }
        try:
            self._open_new(path, config, permissions)
            self._begin(path, os.getpid(), name is None)
            return self
        except BaseException:  # Ctrl-C, say: nobody will have the handle
            if not self.closed:
                _remove(path, self._config()["file"], os.getpid())
                self._close()
            raise

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        uid: int | None = None,
        dtype: Any = None,
        shape: int | tuple[int, ...] = (),
        serializer: Literal["bytes", "pickle"] | None = None,
    ) -> Self:
        """A handle of a queue that another process, or this one, has made.

        The segment is opened without following links; it must be a regular file of the expected owner, of exactly the
        size its header tells, with a valid header. Only a private copy of the header is used after that.

        Args:
            name: as given to create(), or the `name` of another handle.
            uid: user id of the owner, when that is another user whose segment's mode lets us write; None for our own.
            dtype, shape, serializer: what the queue must hold; None does not ask.

        Raises:
            ImportError: no native backend, or not Linux.
            FileNotFoundError: no such queue, or not ready yet.
            PermissionError: the file belongs to somebody else, may not be opened, or holds pickles of another user, or
                of a segment that others may write.
            CorruptedError: the segment is none of SharedQueue, or is damaged.
            VersionMismatch: another version's layout.
            RuntimeError: max_participants are attached.
            TypeError, ValueError: an argument; the queue holds something else than asked for.
        """
        owner = os.geteuid() if uid is None else integer(uid, "uid", low=0, high=2**32 - 2)
        path = path_of(name, owner)
        wanted: str | None = None
        record = None
        if serializer is not None:
            check_choice(serializer, "serializer", ("bytes", "pickle"))
            wanted = serializer
        if dtype is not None:
            if serializer is not None:
                raise TypeError(f"serializer: expected none with a dtype, got {serializer!r}")
            record, wanted = _check_record(dtype, shape), "records"
        elif shape != ():
            raise TypeError(f"shape: expected none without a dtype, got {shape!r}")
        self = cls.__new__(cls)
        self._open(path, owner)
        try:
            self._begin(path, None, False)
            self._check_name()
            if wanted is not None and wanted != self._kind:
                raise ValueError(f"serializer: expected a queue of {wanted}, got one of {self._kind}: {self.name!r}")
            if record is not None and record != (self.dtype, self.shape):
                raise ValueError(
                    f"dtype: expected a queue of {record[0]} of shape {record[1]}, got one of {self.dtype} of shape "
                    f"{self.shape}: {self.name!r}"
                )
        except BaseException:
            self._close()
            raise
        return self

    def _check_name(self) -> None:
        """cleanup() or unlink() may have come between opening the file and becoming a participant."""
        try:
            found = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._file:
            raise FileNotFoundError(errno.ENOENT, "no SharedQueue of that name: it was removed just now", self._path)

    def _begin(self, path: str, creator: int | None, anonymous: bool) -> None:
        config = self._config()
        self._path = path
        self._name = os.path.basename(path).split("-", 2)[2]
        self._kind = SERIALIZERS[config["serializer"]]
        self._policy = POLICIES[config["policy"]]
        self._capacity: int = config["capacity"]
        self._itemsize: int = config["itemsize"]
        self._participants: int = config["participants"]
        self._on_consumer_death = "redeliver" if config["redeliver"] else "drop"
        self._nonce: int = config["nonce"]
        self._uid: int = config["uid"]
        if self._kind == "records":
            dtype = parse(config["dtype"])
            size = dtype.itemsize * math.prod(config["shape"])
            if size != self._itemsize:
                raise CorruptedError(f"segment: expected records of {self._itemsize} bytes, got a dtype of {size}")
            self._set_dtype(dtype, tuple(config["shape"]))
        self._creator = creator
        self._previous = (time.monotonic(), 0, 0)
        self._forget_watchers()
        self._file: tuple[int, int] = config["file"]
        self._finalizer = weakref.finalize(self, _remove, path, self._file, os.getpid()) if anonymous else None
        _instances.add(self)

    # ---- end of use ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give this handle up: other handles go on. Calls of other threads that wait on it end with ValueError, as does
        every later call. Blocks of reserve() and view() must have ended. Closing twice is nothing.

        Raises:
            BufferError: a reserve() or view() block is open.
        """
        self._close()
        if self._finalizer is not None:
            self._finalizer()

    def unlink(self) -> None:
        """Remove the queue's name, so that nobody can attach any more; those who are attached go on, and the memory is
        freed with the last. Nothing happens when the name is gone, or is another queue's by now.

        Raises:
            PermissionError: the segment is another user's.
        """
        _remove(self._path, self._file, os.getpid())

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """close(); the handle that create() returned also unlinks, in the process that called it."""
        if self._creator == os.getpid():
            self.unlink()
        self.close()

    # ---- records ---------------------------------------------------------------------------------------------------

    _one = RecordBase._one
    _many = RecordBase._many
    _converted = RecordBase._converted
    _check_out = RecordBase._check_out
    _counts = RecordBase._counts
    _batch = RecordBase._batch

    # ---- settings --------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        def _check_open(self) -> None: ...

    @property
    def name(self) -> str:
        """For attach()."""
        return self._name

    @property
    def serializer(self) -> str:
        """ "bytes", "pickle", or "records" for a queue with a dtype."""
        return self._kind

    @property
    def itemsize(self) -> int:
        """Most bytes of an item; bytes of a record."""
        return self._itemsize

    @property
    def policy(self) -> str:
        """What put does when there is no room."""
        return self._policy

    @property
    def on_consumer_death(self) -> str:
        """What becomes of an item whose consumer dies: "redeliver" or "drop"."""
        return self._on_consumer_death

    @property
    def max_participants(self) -> int:
        """Most handles attached at once."""
        return self._participants

    @property
    def maxsize(self) -> int:
        """Most items held at once, for all participants. May be set at any time, up to what the queue was made with:
        more room wakes who waits for it, less lets what is there drain.

        Raises (on setting):
            TypeError: not an integer.
            ValueError: not positive, above the size the queue was made with, or below the high watermark.
        """
        return self._settings()[0]

    @maxsize.setter
    def maxsize(self, value: int) -> None:
        _, high, low = self._settings()
        self._configure(integer(value, "maxsize", low=max(1, high), high=self._capacity), high, low)

    @property
    def watermarks(self) -> tuple[int, int] | None:
        """(high, low), or None without a gate."""
        _, high, low = self._settings()
        return (high, low) if high else None

    def set_watermarks(self, high: int | None, low: int | None = None) -> None:
        """Move the gate, for all participants, or take it away with high=None. low=None is high // 4.

        Raises:
            TypeError, ValueError: as for create()'s high_watermark and low_watermark.
        """
        limit = self._settings()[0]
        self._configure(limit, *_check_gate(limit, self._policy, high, low))

    def statistics(self) -> QueueStatistics:
        """The queue at this moment, counted over all participants, living and dead. Rates are over the time since the
        previous call on this handle.
        """
        counters = self._counters()
        limit, high, low = self._settings()
        now, puts, gets = time.monotonic(), counters["put_count"], counters["get_count"]
        used = counters["current_buffer_used"]
        then, puts_then, gets_then = self._previous
        self._previous = (now, puts, gets)
        elapsed = max(now - then, 1e-9)
        get_rate = (gets - gets_then) / elapsed
        most = 1 if self._policy == "latest" else limit
        values = {
            **counters,
            "max_buffer_size": most,
            "limit": min(most, high or most),
            "max_bytes": math.inf,  # no limit of its own
            "bytes_used": used * self._itemsize,
            "peak_bytes": counters["peak"] * self._itemsize,
            "high_watermark": high or None,
            "low_watermark": low if high else None,
            "sojourn": None if counters["sojourn"] < 0 else counters["sojourn"],
            "put_rate": (puts - puts_then) / elapsed,
            "get_rate": get_rate,
            "time_to_drain": 0.0 if used == 0 else used / get_rate if get_rate > 0 else math.inf,
        }
        return QueueStatistics(**{field: values.get(field, 0) for field in QueueStatistics._fields})

    if TYPE_CHECKING:

        @property
        def closed(self) -> bool: ...

    def __iter__(self) -> Iterator[Any]:
        """Items as they come, until the queue is shut down and empty."""
        while True:
            try:
                item = self.get()
            except ShutDown:
                return
            yield item

    def __repr__(self) -> str:
        if self.closed:
            return f"<{type(self).__name__} {self._name!r}: closed>"
        limit, high, low = self._settings()
        gate = f", gate {high}/{low}" if high else ""
        if self._kind == "records":
            kind = f"records of {f'{self.shape} of ' if self.shape else ''}{self.dtype}"
        else:
            kind = f"{'messages' if self._kind == 'bytes' else 'pickles'} of up to {self._itemsize} bytes"
        return f"<{type(self).__name__} {self._name!r}: {self.qsize()} of {limit} {kind}{gate}>"

    def __reduce__(self) -> Any:
        """A reference: unpickling attaches, in any process of this machine that may."""
        self._check_open()
        return _attach_again, (type(self), self._name, self._uid, self._nonce)


def _attach_again(cls: type[SharedBase], name: str, uid: int, nonce: int) -> SharedBase:
    queue = cls.attach(name, uid=uid)
    if queue._nonce != nonce:
        queue.close()
        raise FileNotFoundError(f"SharedQueue {name!r}: expected the queue that was pickled, got a newer one")
    return queue


def _check_record(dtype: Any, shape: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    base, sub = _check_dtype(dtype)
    full = (*_check_shape(shape), *sub)
    size = base.itemsize * math.prod(full)
    if size == 0:
        raise ValueError(f"dtype, shape: expected records of at least one byte, got {base} of shape {full}")
    if len(full) > MAX_DIMENSIONS:
        raise ValueError(f"shape: expected at most {MAX_DIMENSIONS} dimensions, got {len(full)}")
    if size > MAX_ITEM:
        raise ValueError(f"dtype, shape: expected records of at most {MAX_ITEM} bytes, got {size}")
    return base, full
