"""Statistics of running pipelines and queues for other processes of the same user: what `edgefast top` shows."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import sys
import threading
import time
import typing
import weakref
from typing import Any, NamedTuple, Protocol

from edgefast._version import __version__
from edgefast.pipeline import _slots
from edgefast.pipeline._runtime import Event
from edgefast.pipeline._types import Decision, PipelineStatistics, StageStatistics
from edgefast.queues import QueueStatistics

__all__ = ["ProcessSnapshot", "QueueSnapshot", "Snapshots", "publish", "read_published", "unpublish", "wanted"]

_log = logging.getLogger("edgefast")

_FORMAT = 1
_PERIOD = 0.5  # seconds
_MAX_TEXT = 200  # characters of a string that is read
_MAX_ROWS = 10_000  # elements of a list that is read
_MAX_DECISIONS = 8  # the newest ones of a pipeline are published


class QueueSnapshot(NamedTuple):
    """A queue of a process and its statistics."""

    name: str
    statistics: QueueStatistics


class ProcessSnapshot(NamedTuple):
    """What one process published.

    Attributes:
        pid: its process number, by its own account.
        command: its command line, shortened.
        version: of edgefast.
        clock: time.monotonic() when it wrote this.
        pipelines, queues: what runs in it; rates are per second since it wrote before.
    """

    pid: int
    command: str
    version: str
    clock: float
    pipelines: tuple[PipelineStatistics, ...]
    queues: tuple[QueueSnapshot, ...]


class Snapshots(NamedTuple):
    """All that is published.

    Attributes:
        processes: those that could be read.
        unreadable: names of the files that could not: damaged, or of another version of edgefast.
    """

    processes: tuple[ProcessSnapshot, ...]
    unreadable: tuple[str, ...]


class _Source(Protocol):
    def statistics(self) -> Any: ...


def wanted(publish: bool | None) -> bool:
    """Whether to publish: as asked, or by EDGEFAST_PUBLISH when None.

    Raises:
        ValueError: EDGEFAST_PUBLISH is neither 0, 1 nor empty.
    """
    if publish is not None:
        return publish
    value = os.environ.get("EDGEFAST_PUBLISH", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"EDGEFAST_PUBLISH: expected 0 or 1, got {value!r}")
    return value == "1"


# ---- writing -------------------------------------------------------------------------------------------------------


class _Publisher:
    """One thread and one pair of files for all that a process publishes; both are gone with the last source."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may remove
        self._sources: dict[int, weakref.ref[Any]] = {}
        self._counted: dict[tuple[int, str], tuple[float, int, int]] = {}
        self._thread: threading.Thread | None = None
        self._wake = Event()
        self._slot: _slots.Slot | None = None

    def add(self, source: _Source) -> None:
        key = id(source)
        with self._lock:
            begun = self._thread is not None
            try:
                if self._slot is None:
                    self._slot = _slots.Slot()
                for counted in [c for c in self._counted if c[0] == key]:
                    del self._counted[counted]  # of an earlier source at this address
                self._sources[key] = weakref.ref(source, lambda _: self._sources.pop(key, None))
                if not begun:
                    self._wake.clear()
                    self._thread = threading.Thread(target=self._run, name="edgefast-publish", daemon=True)
                    self._thread.start()
            except BaseException:
                self._sources.pop(key, None)
                if not begun:  # nobody would ever write, nor remove the files
                    self._thread = None
                    self._close_slot()
                raise
            if not begun:
                # Children of multiprocessing end without atexit.
                util = sys.modules.get("multiprocessing.util")
                if util is not None:
                    util.Finalize(None, self.close, exitpriority=10)

    def remove(self, source: _Source) -> None:
        with self._lock:
            self._sources.pop(id(source), None)
            if not self._sources:
                self._wake.set()

    def close(self) -> None:
        """At the end of the process."""
        with self._lock:
            self._sources.clear()
            self._wake.set()
            thread = self._thread
        if thread is not None:
            thread.join(1)

    def forget(self) -> None:
        """In a forked child, where neither the thread nor the sources' threads live on."""
        if self._slot is not None:
            self._slot.forget()
        self.__init__()

    def _close_slot(self) -> None:
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def _run(self) -> None:
        reported = False
        # The first picture after a moment, when all that starts together is there.
        pause = 0.05
        while True:
            self._wake.wait(pause)
            pause = _PERIOD
            with self._lock:
                if not self._sources:
                    self._close_slot()
                    self._counted.clear()
                    self._thread = None
                    return
                self._wake.clear()
            data = self._picture()
            try:
                if self._slot is None:
                    self._slot = _slots.Slot()
                self._slot.write(data)
            except OSError as error:
                # Somebody cleaned up, or the disk is full: the pipelines go on, and so do the attempts.
                self._close_slot()
                if not reported:
                    _log.warning("cannot publish statistics: %s", error)
                    reported = True

    def _picture(self) -> bytes:
        now = time.monotonic()
        pipelines, queues = [], []
        for key, reference in list(self._sources.items()):
            source = reference()
            if source is None:
                continue
            try:
                statistics = source.statistics()
            except Exception:  # closed by another thread at this moment
                continue
            if isinstance(statistics, PipelineStatistics):
                stages = []
                for stage in statistics.stages:
                    arriving, serving = self._rates(key, stage.name, now, stage.arrived, stage.served)
                    stages.append(stage._replace(arrival_rate=arriving, service_rate=serving))
                out, _ = self._rates(key, "", now, statistics.delivered + statistics.unread, 0)
                decisions = statistics.decisions[-_MAX_DECISIONS:]
                pipelines.append(statistics._replace(throughput=out, stages=tuple(stages), decisions=decisions))
            else:
                putting, getting = self._rates(key, "", now, statistics.put_count, statistics.get_count)
                statistics = statistics._replace(put_rate=putting, get_rate=getting)
                queues.append(QueueSnapshot(getattr(source, "name", None) or f"queue {key:#x}", statistics))
        snapshot = ProcessSnapshot(os.getpid(), _command(), __version__, now, tuple(pipelines), tuple(queues))
        return json.dumps({"format": _FORMAT, **_plain(snapshot)}, allow_nan=False).encode()

    def _rates(self, key: int, name: str, now: float, first: int, second: int) -> tuple[float, float]:
        """Per second since the last picture. Our own: statistics() of the source counts from its last caller."""
        before, first_before, second_before = self._counted.get((key, name), (now, first, second))
        self._counted[key, name] = (now, first, second)
        seconds = now - before
        if seconds <= 0:
            return 0.0, 0.0
        return (first - first_before) / seconds, (second - second_before) / seconds


def _command() -> str:
    words = list(sys.argv)
    if words:
        folder, file = os.path.split(words[0])
        words[0] = os.path.basename(folder) if file == "__main__.py" else file  # python -m
    return " ".join(words)


def _plain(value: Any) -> Any:
    """Named tuples as objects, infinity as null, text no longer than a reader takes."""
    if hasattr(value, "_asdict"):
        return {key: _plain(v) for key, v in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value[:_MAX_TEXT] if isinstance(value, str) else value


_publisher = _Publisher()
atexit.register(_publisher.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_publisher.forget)


def publish(source: _Source) -> None:
    """Show a Pipeline or Queue in `edgefast top` from now on, until `unpublish`, its end or the process's.

    Args:
        source: anything whose statistics() gives PipelineStatistics or QueueStatistics; held weakly.

    Where that cannot be, because the private folder cannot be made or is not this user's alone, the log says why: what
    shows the work must not stop it.
    """
    try:
        _publisher.add(source)
    except OSError as error:
        _log.warning("cannot publish statistics: %s", error)


def unpublish(source: _Source) -> None:
    """Show it no more, within a moment; nothing happens when it was not published."""
    _publisher.remove(source)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_published() -> Snapshots:
    """What all running processes of this user publish; what dead ones left is removed.

    Nothing in the files is trusted: every field has to be there, of its type and in bounds.

    Raises:
        OSError: the private folder is not this user's alone.
    """
    processes, unreadable = [], []
    for name, data in _slots.read_all():
        try:
            if data is None:
                raise ValueError("not a readable file")
            found = json.loads(data, parse_constant=_refuse)
            if type(found) is not dict or found.get("format") != _FORMAT:
                raise ValueError("another format")
            processes.append(_tuple(ProcessSnapshot, found))
        except (ValueError, RecursionError):
            unreadable.append(name)
    return Snapshots(tuple(processes), tuple(unreadable))


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _tuple(kind: Any, found: Any) -> Any:
    """A named tuple out of an object, field by field as its annotations say."""
    if type(found) is not dict:
        raise ValueError(f"expected an object for {kind.__name__}")
    values = []
    for field, hint in _hints(kind).items():
        if field not in found:
            raise ValueError(f"no {field}")
        values.append(_value(hint, found[field]))
    return kind(*values)


def _hints(kind: Any) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind)
    return _HINTS[kind]


_HINTS: dict[Any, dict[str, Any]] = {}
_ROWS = {
    tuple[PipelineStatistics, ...]: PipelineStatistics,
    tuple[QueueSnapshot, ...]: QueueSnapshot,
    tuple[StageStatistics, ...]: StageStatistics,
    tuple[Decision, ...]: Decision,
}


def _value(hint: Any, found: Any) -> Any:
    if hint in _ROWS:
        if type(found) is not list or len(found) > _MAX_ROWS:
            raise ValueError("expected a list")
        return tuple(_tuple(_ROWS[hint], each) for each in found)
    if hint is QueueStatistics:
        return _tuple(hint, found)
    if hint is bool:
        if type(found) is bool:
            return found
    elif hint is str or typing.get_origin(hint) is typing.Literal:
        if type(found) is str and len(found) <= _MAX_TEXT and (hint is str or found in typing.get_args(hint)):
            return found
    elif type(None) in typing.get_args(hint):
        return None if found is None else _value(typing.get_args(hint)[0], found)
    elif hint is int:
        if type(found) is int and abs(found) < 2**63:
            return found
    elif hint is float:
        if found is None:
            return math.inf
        if type(found) in (int, float) and abs(found) < 2**63:
            return float(found)
    raise ValueError(f"expected {hint}, got {type(found).__name__}")
