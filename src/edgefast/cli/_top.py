"""What `edgefast top` knows and how it reads: pictures, tables, text. Drawing them in colour is top.py's."""

from __future__ import annotations

import math
import os
import re
import time
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

from edgefast.pipeline._publish import ProcessSnapshot, Snapshots, read_published
from edgefast.pipeline._types import Decision, PipelineStatistics, StageStatistics
from edgefast.queues import CorruptedError, Participant, QueueStatistics, SharedQueue, VersionMismatch, list_shared

__all__ = [
    "Cell",
    "Column",
    "Picture",
    "SharedView",
    "Table",
    "Watcher",
    "as_json",
    "commands",
    "heading",
    "lines",
    "notes",
    "tables",
]

_SILENT = 3.0  # seconds without a new picture after which a living process is shown as silent
_BAR = 8  # cells
_LEAST_TEXT = 24  # columns below which cutting a text leaves nothing to read


class SharedView(NamedTuple):
    """A segment of shared memory.

    Attributes:
        name, size: of the segment, bytes.
        state: "in use", "left behind" by processes that ended, or why it cannot be read.
        statistics: None when it is not in use or cannot be read; rates are since the last look.
        participants: the handles attached.
    """

    name: str
    size: int
    state: str
    statistics: QueueStatistics | None
    participants: tuple[Participant, ...]


class Picture(NamedTuple):
    """Everything at one moment.

    Attributes:
        clock: time.monotonic().
        published: what processes published.
        shared: the segments of shared memory.
        busy: share of its workers' time that a stage spent in its function since the picture before (since the start in
            the first one), by (pid, pipeline's place, stage's place).
    """

    clock: float
    published: Snapshots
    shared: tuple[SharedView, ...]
    busy: dict[tuple[int, int, int], float]


class Watcher:
    """Takes pictures, and remembers the one before for the differences."""

    def __init__(self) -> None:
        self._shared: dict[str, tuple[float, int, int]] = {}
        self._busy: dict[tuple[int, int, int], tuple[float, float, float]] = {}

    def look(self) -> Picture:
        """The present.

        Raises:
            OSError: the private folder is not this user's alone.
        """
        published = read_published()
        return Picture(time.monotonic(), published, self._segments(), self._shares(published))

    def _segments(self) -> tuple[SharedView, ...]:
        try:
            found = list_shared()
        except ImportError:  # no SharedQueue here, so there are no segments
            return ()
        return tuple(self._segment(*segment) for segment in sorted(found))

    def _segment(self, name: str, size: int, created: float, in_use: bool) -> SharedView:
        if not in_use:
            return SharedView(name, size, "left behind", None, ())
        try:
            queue = SharedQueue.attach(name)
        except FileNotFoundError:
            return SharedView(name, size, "gone", None, ())
        except (OSError, CorruptedError, VersionMismatch, RuntimeError) as error:
            return SharedView(name, size, " ".join(str(error).split()), None, ())
        try:
            now = time.monotonic()
            statistics = queue.statistics()
            others = _participants(queue)
        except CorruptedError as error:
            return SharedView(name, size, " ".join(str(error).split()), None, ())
        finally:
            queue.close()
        then, puts, gets = self._shared.get(name, (now, statistics.put_count, statistics.get_count))
        self._shared[name] = (now, statistics.put_count, statistics.get_count)
        seconds = now - then
        statistics = statistics._replace(
            put_rate=(statistics.put_count - puts) / seconds if seconds > 0 else 0.0,
            get_rate=(statistics.get_count - gets) / seconds if seconds > 0 else 0.0,
            participants=len(others),
        )
        return SharedView(name, size, "in use", statistics, others)

    def _shares(self, published: Snapshots) -> dict[tuple[int, int, int], float]:
        shares, kept = {}, {}
        for process in published.processes:
            for i, pipeline in enumerate(process.pipelines):
                for j, stage in enumerate(pipeline.stages):
                    key = (process.pid, i, j)
                    then, busy, share = self._busy.get(key, (process.clock - pipeline.elapsed, 0.0, 0.0))
                    if process.clock > then:
                        share = (stage.busy - busy) / (process.clock - then) / max(1, stage.workers)
                        then, busy = process.clock, stage.busy
                    shares[key] = min(1.0, max(0.0, share))
                    kept[key] = (then, busy, share)
        self._busy = kept
        return shares


def _participants(queue: Any) -> tuple[Participant, ...]:
    """The handles attached, without ours."""
    found = list(queue.participants())
    for each in found:
        if each.pid == os.getpid():
            found.remove(each)
            break
    return tuple(found)


# ---- JSON ----------------------------------------------------------------------------------------------------------


def as_json(picture: Picture) -> dict[str, Any]:
    """The picture as one JSON-ready object; infinity is null."""
    processes = []
    for process in picture.published.processes:
        found = _plain(process)
        found["age"] = max(0.0, picture.clock - found.pop("clock"))
        for i, pipeline in enumerate(found["pipelines"]):
            for j, stage in enumerate(pipeline["stages"]):
                stage["busy_share"] = picture.busy[process.pid, i, j]
            for decision in pipeline["decisions"]:
                decision["age"] = max(0.0, picture.clock - decision.pop("time"))
        processes.append(found)
    return {
        "processes": processes,
        "shared": [_plain(view) for view in picture.shared],
        "unreadable": list(picture.published.unreadable),
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _plain(v) for key, v in value._asdict().items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- tables --------------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """Text without control characters, and a style: "", "head", "good", "warn", "bad", "dim"."""

    text: str
    style: str = ""


class Column(NamedTuple):
    """A title; whether numbers stand at its right edge; how soon it gives way where room is short (0 never)."""

    title: str
    right: bool = False
    yields: int = 0


class Table(NamedTuple):
    """Columns and rows under a title."""

    title: str
    columns: tuple[Column, ...]
    rows: list[list[Cell]]


_COLUMNS = (
    Column("pid", True),
    Column("pipeline"),
    Column("stage"),
    Column("workers", True, 4),
    Column("busy", True, 3),
    Column("", False, 2),
    Column("depth", True),
    Column("limit", True),
    Column("low", True, 7),
    Column("gate"),
    Column("in/s", True),
    Column("out/s", True),
    Column("wait", True, 5),
    Column("dropped", True),
    Column("waits", True, 6),
    Column("lost", True, 8),
    Column("redelivered", True, 9),
    Column("last decision", False, 1),
)
_SHARED = (
    Column("queue"),
    Column("handles", True, 3),
    Column("", False, 2),
    Column("depth", True),
    Column("limit", True),
    Column("low", True, 7),
    Column("gate"),
    Column("in/s", True),
    Column("out/s", True),
    Column("dropped", True),
    Column("waits", True, 6),
    Column("lost", True, 8),
    Column("redelivered", True, 9),
    Column("bytes", True, 5),
)
_QUEUES = (Column("pid", True), *(c for c in _SHARED if c.title != "bytes"))


def heading(picture: Picture) -> str:
    """The first line."""
    processes = picture.published.processes
    pipelines = [p for process in processes for p in process.pipelines]
    queues = sum(len(process.queues) for process in processes)
    counts = [
        _several(len(processes), "process", "processes"),
        _several(len(pipelines), "pipeline", "pipelines"),
        _several(sum(len(p.stages) for p in pipelines), "stage", "stages"),
        *([_several(queues, "queue", "queues")] if queues else []),
        _several(len(picture.shared), "shared queue", "shared queues"),
    ]
    return f"edgefast top  {time.strftime('%H:%M:%S')}  " + ", ".join(counts)


def commands(picture: Picture) -> list[str]:
    """A line for every command that runs, with its processes."""
    found: dict[str, list[int]] = {}
    for process in picture.published.processes:
        found.setdefault(clean(process.command, 80) or "?", []).append(process.pid)
    return [f"{command}  (pid {', '.join(map(str, pids))})" for command, pids in found.items()]


def notes(picture: Picture) -> list[str]:
    """Lines below the tables: what a person should know."""
    found = []
    if not picture.published.processes and not picture.shared:
        found.append("nothing is running: pipelines show themselves with Pipeline(publish=True) or EDGEFAST_PUBLISH=1")
    for process in picture.published.processes:
        silent = picture.clock - process.clock
        if silent > _SILENT:
            found.append(f"process {process.pid} has not reported for {_seconds(silent)}: stopped, or short of CPU")
    left = [view.name for view in picture.shared if view.state == "left behind"]
    if left:
        names = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        found.append(
            f"{_several(len(left), 'shared queue', 'shared queues')} left behind by processes that ended: {names}; "
            "edgefast.queues.cleanup() removes them"
        )
    if picture.published.unreadable:
        count = len(picture.published.unreadable)
        found.append(f"{_several(count, 'file', 'files')} not readable: damaged, or of another version of edgefast")
    return found


def tables(picture: Picture) -> list[Table]:
    """Those that have rows."""
    pipelines = Table("pipelines", _COLUMNS, list(_pipeline_rows(picture)))
    queues = Table("queues", _QUEUES, [])
    for process in picture.published.processes:
        for queue in process.queues:
            found = queue.statistics
            shared = found.participants > 0  # a SharedQueue: it counts its handles
            queues.rows.append(
                [
                    Cell(str(process.pid), "dim"),
                    Cell(clean(queue.name, 40), "head"),
                    Cell(str(found.participants) if shared else ""),
                    *_queue_cells(found),
                    _alarm(found.lost) if shared else Cell(""),
                    _alarm(found.redelivered) if shared else Cell(""),
                ]
            )
    shared = Table("shared queues", _SHARED, [_shared_row(view) for view in picture.shared])
    return [table for table in (pipelines, queues, shared) if table.rows]


def _pipeline_rows(picture: Picture) -> Iterator[list[Cell]]:
    for process in picture.published.processes:
        for i, pipeline in sorted(enumerate(process.pipelines), key=lambda each: _natural(each[1].name)):
            for j, stage in enumerate(pipeline.stages):
                yield _stage_row(picture, process, pipeline, stage, picture.busy[process.pid, i, j], first=j == 0)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts device-2 before device-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _stage_row(
    picture: Picture,
    process: ProcessSnapshot,
    pipeline: PipelineStatistics,
    stage: StageStatistics,
    share: float,
    *,
    first: bool,
) -> list[Cell]:
    state = {"running": "", "draining": "warn", "failed": "bad"}.get(pipeline.state, "dim")
    workers = str(stage.workers)
    if stage.min_workers != stage.max_workers:
        workers += f" ({stage.min_workers}-{stage.max_workers})"
    decisions = [d for d in pipeline.decisions if d.stage == stage.name]
    return [
        Cell(str(process.pid), "dim") if first else Cell(""),
        Cell(clean(pipeline.name), state) if first else Cell(""),
        Cell(clean(stage.name), "head"),
        Cell(workers),
        Cell(f"{share:.0%}", "warn" if share > 0.9 else ""),
        _bar(stage.depth, stage.limit, stage.writable),
        Cell(f"{stage.depth:,}"),
        Cell(_limit(stage.limit)),
        Cell(f"{stage.low:,}"),
        _gate(stage.writable),
        Cell(_rate(stage.arrival_rate)),
        Cell(_rate(stage.service_rate)),
        Cell("" if stage.sojourn is None else _seconds(stage.sojourn)),
        _alarm(stage.dropped_newest + stage.dropped_oldest + stage.expired),
        Cell(f"{stage.full_waits:,}"),
        _alarm(stage.lost + stage.failed),
        _alarm(stage.redelivered),
        Cell(_decision(picture, decisions[-1]) if decisions else "", "dim"),
    ]


def _decision(picture: Picture, decision: Decision) -> str:
    ago = _seconds(max(0.0, picture.clock - decision.time))
    return clean(f"{ago} ago {decision.what} {decision.old:g} → {decision.new:g}: {decision.reason}", 60)


def _queue_cells(statistics: QueueStatistics) -> list[Cell]:
    return [
        _bar(statistics.current_buffer_used, statistics.limit, statistics.writable),
        Cell(f"{statistics.current_buffer_used:,}"),
        Cell(_limit(statistics.limit)),
        Cell("" if statistics.low_watermark is None else f"{statistics.low_watermark:,}"),
        _gate(statistics.writable),
        Cell(_rate(statistics.put_rate)),
        Cell(_rate(statistics.get_rate)),
        _alarm(statistics.dropped_newest + statistics.dropped_oldest + statistics.dropped_dead + statistics.expired),
        Cell(f"{statistics.full_waits:,}"),
    ]


def _shared_row(view: SharedView) -> list[Cell]:
    name = Cell(clean(view.name, 40), "head")
    if view.statistics is None:
        style = "dim" if view.state in ("left behind", "gone") else "bad"
        filler = [Cell("")] * (len(_SHARED) - 3)
        return [name, Cell(clean(view.state, 40), style), *filler, Cell(_bytes(view.size))]
    alive = sum(p.alive for p in view.participants)
    dead = len(view.participants) - alive
    people = Cell(f"{alive} + {dead} dead", "bad") if dead else Cell(str(alive))
    statistics = view.statistics
    return [
        name,
        people,
        *_queue_cells(statistics),
        _alarm(statistics.lost),
        _alarm(statistics.redelivered),
        Cell(_bytes(view.size)),
    ]


def _bar(depth: int, limit: float, writable: bool) -> Cell:
    full = min(_BAR, math.ceil(depth * _BAR / limit)) if 0 < limit < math.inf else 0
    return Cell("█" * full + "░" * (_BAR - full), "good" if writable else "bad")


def _gate(writable: bool) -> Cell:
    return Cell("open", "good") if writable else Cell("closed", "bad")


def _alarm(count: int) -> Cell:
    return Cell(f"{count:,}", "warn" if count else "dim")


def _limit(limit: float) -> str:
    return "∞" if limit == math.inf else f"{limit:,.0f}"


def _rate(value: float) -> str:
    for unit in ("", "k", "M"):
        if value < 999.5 or unit == "M":
            return f"{value:.0f}{unit}" if value >= 99.5 or value == int(value) else f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _several(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# ---- text ----------------------------------------------------------------------------------------------------------


def clean(text: str, most: int = 24) -> str:
    """Text of others for a terminal: escape sequences, line ends and marks that turn the direction shown as they are
    written in Python, at most `most` columns."""
    found = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _cut(found, most)


def _cut(text: str, most: int) -> str:
    if _width(text) <= most:
        return text
    while _width(text) > most - 1:
        text = text[: -max(1, (_width(text) - most + 1) // 2)]
    return text + "…"


def _width(text: str) -> int:
    """Columns of a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def lines(table: Table, width: float = math.inf) -> list[list[Cell]]:
    """Header and rows as cells padded to columns. Where `width` is less, columns of zeros go first, then the text at
    the end is cut, then columns go in the order of their `yields`."""
    rows = [[Cell(c.title, "dim") for c in table.columns], *table.rows]
    widths = [max(_width(row[i].text) for row in rows) for i in range(len(table.columns))]
    kept = [i for i in range(len(widths)) if any(row[i].text for row in table.rows)]
    yielding = sorted((i for i in kept if table.columns[i].yields > 1), key=lambda i: -table.columns[i].yields)
    idle = [i for i in yielding if all(row[i].text in ("", "0") for row in table.rows)]
    text = next((i for i in kept if table.columns[i].yields == 1), None)

    def excess() -> float:
        return sum(widths[i] + 2 for i in kept) - 2 - width

    for i in [*idle, *(i for i in yielding if i not in idle)]:
        if excess() <= (0 if text is None else max(0, widths[text] - _LEAST_TEXT)):
            break
        kept.remove(i)
    if text is not None and excess() > 0:
        widths[text] = max(0, int(widths[text] - excess()))
        if widths[text] < _LEAST_TEXT:
            kept.remove(text)
        else:
            rows = [
                [*row[:text], row[text]._replace(text=_cut(row[text].text, widths[text])), *row[text + 1 :]]
                for row in rows
            ]
    return [[_pad(row[i], widths[i], table.columns[i].right) for i in kept] for row in rows]


def _pad(cell: Cell, width: int, right: bool) -> Cell:
    space = " " * (width - _width(cell.text))
    return cell._replace(text=space + cell.text if right else cell.text + space)


def plain(picture: Picture) -> str:
    """The picture as text."""
    parts = [heading(picture), *commands(picture)]
    for table in tables(picture):
        parts += ["", table.title]
        parts += ["  ".join(cell.text for cell in row).rstrip() for row in lines(table)]
    remarks = notes(picture)
    return "\n".join([*parts, *(["", *remarks] if remarks else [])])
