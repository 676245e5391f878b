"""Statistics of pipelines and queues as Prometheus metrics: the text exposition format, version 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/; names follow https://prometheus.io/docs/practices/naming/:
base units (seconds, bytes), counters end in _total. Needs no client library.

    >>> from edgefast.pipeline import prometheus
    >>> from edgefast.queues import Queue
    >>> uplink = Queue(100)
    >>> uplink.put("reading")
    >>> exporter = prometheus.Exporter()
    >>> exporter.add(uplink, "uplink")
    >>> [line for line in exporter.text().splitlines() if "queue_items{" in line]
    ['edgefast_queue_items{queue="uplink"} 1']
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgefast.pipeline._types import PipelineStatistics

__all__ = ["CONTENT_TYPE", "Exporter"]

#: Value of the HTTP header Content-Type for `Exporter.text`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Samples = Iterable[tuple[Labels, float]]


class _Family(NamedTuple):
    name: str
    kind: str  # "counter" or "gauge"
    help: str
    samples: Callable[[Any], Samples]  # of a statistics tuple, without the labels that say whose they are


def _one(read: Callable[[Any], float | None]) -> Callable[[Any], Samples]:
    def samples(statistics: Any) -> Samples:
        value = read(statistics)
        return [] if value is None else [((), value)]

    return samples


def _stages(read: Callable[[Any], float | None]) -> Callable[[Any], Samples]:
    """One sample for each stage; none where the value is unknown."""

    def samples(statistics: Any) -> Samples:
        values = ((s.name, read(s)) for s in statistics.stages)
        return [((("stage", name),), value) for name, value in values if value is not None]

    return samples


def _stages_by(label: str, fields: Mapping[str, str]) -> Callable[[Any], Samples]:
    """One sample for each stage and entry of fields: label value -> attribute."""

    def samples(statistics: Any) -> Samples:
        return [
            ((("stage", s.name), (label, value)), getattr(s, field))
            for s in statistics.stages
            for value, field in fields.items()
        ]

    return samples


_DROPS = {
    "newest": "dropped_newest",
    "oldest": "dropped_oldest",
    "expired": "expired",
    "cleared": "cleared",
}

_STATES = ("idle", "running", "draining", "closed", "failed")


def _stage_families() -> list[_Family]:
    def counter(name: str, text: str, field: str) -> _Family:
        return _Family(f"stage_{name}_total", "counter", text, _stages(lambda s: getattr(s, field)))

    def gauge(name: str, text: str, read: Callable[[Any], float | None]) -> _Family:
        return _Family(f"stage_{name}", "gauge", text, _stages(read))

    return [
        counter("arrived", "Items put into the queue of the stage.", "arrived"),
        counter("served", "Items taken from the queue of the stage.", "served"),
        counter("completed", "Items whose work is done and whose outputs are with the next stage.", "completed"),
        counter("emitted", "Outputs of the stage.", "emitted"),
        counter("failed", "Items given up on.", "failed"),
        counter("retried", "Attempts after the first.", "retried"),
        counter("lost", "Items taken and not completed.", "lost"),
        counter("redelivered", "Items given to another worker because theirs died.", "redelivered"),
        counter("worker_restarts", "Workers replaced after they died.", "restarts"),
        _Family("stage_dropped_total", "counter", "Items the queue dropped, by reason.", _stages_by("reason", _DROPS)),
        counter("refused", "Puts that ended with Full.", "refused"),
        counter("full_waits", "Puts that had to wait for room.", "full_waits"),
        counter("closings", "How often the queue closed.", "closings"),
        _Family(
            "stage_worker_seconds_total",
            "counter",
            "What the workers did: busy in the function, blocked by the next queue, starved of input.",
            _stages_by("state", {name: name for name in ("busy", "blocked", "starved")}),
        ),
        gauge("workers", "Workers that serve the stage.", lambda s: s.workers),
        gauge("workers_min", "Least number of workers.", lambda s: s.min_workers),
        gauge("workers_max", "Largest number of workers.", lambda s: s.max_workers),
        gauge("queue_items", "Items in the queue.", lambda s: s.depth),
        gauge("queue_limit_items", "Items at which the queue closes.", lambda s: s.limit),
        gauge("queue_low_items", "Items at which a closed queue reopens.", lambda s: s.low),
        gauge("queue_peak_items", "Most items in the queue so far.", lambda s: s.peak),
        gauge("queue_bytes", "Bytes in the queue; 0 when not counted.", lambda s: s.bytes),
        gauge("queue_limit_bytes", "Most bytes the queue takes.", lambda s: s.max_bytes),
        gauge("queue_peak_bytes", "Most bytes in the queue so far.", lambda s: s.peak_bytes),
        gauge("queue_open", "1 while the queue accepts items, else 0.", lambda s: s.writable),
        gauge("queue_sojourn_seconds", "Moving average of the time an item spends in the queue.", lambda s: s.sojourn),
        gauge("queue_drain_seconds", "Time until the queue is empty at the present rate.", lambda s: s.time_to_drain),
    ]


def _pipeline_families() -> list[_Family]:
    def one(name: str, kind: str, text: str, read: Callable[[Any], float | None]) -> _Family:
        return _Family(name, kind, text, _one(read))

    def state(statistics: Any) -> Samples:
        return [((("state", name),), float(statistics.state == name)) for name in _STATES]

    return [
        one("submitted_total", "counter", "Items accepted from outside.", lambda p: p.submitted),
        one("delivered_total", "counter", "Outputs somebody took over.", lambda p: p.delivered),
        one("unread_total", "counter", "Outputs nobody was there to read.", lambda p: p.unread),
        one("output_items", "gauge", "Outputs waiting for their reader.", lambda p: p.output_depth),
        one("output_limit_items", "gauge", "Outputs at which the last stage waits.", lambda p: p.output_limit),
        one("bytes", "gauge", "Bytes in all queues; 0 when not counted.", lambda p: p.bytes),
        one("limit_bytes", "gauge", "Byte budget of all queues together.", lambda p: p.max_bytes),
        one(
            "target_delay_seconds", "gauge", "Longest time an item should wait in one queue.", lambda p: p.target_delay
        ),
        one("running_seconds", "gauge", "Time since the first item.", lambda p: p.elapsed),
        _Family("state", "gauge", "1 for the state the pipeline is in, 0 for the others.", state),
        *_stage_families(),
    ]


def _queue_families() -> list[_Family]:
    def one(name: str, kind: str, text: str, field: str) -> _Family:
        return _Family(name, kind, text, _one(lambda q: getattr(q, field, None)))

    def dropped(statistics: Any) -> Samples:
        reasons = {**_DROPS, "lost": "lost"}
        return [((("reason", r),), getattr(statistics, f)) for r, f in reasons.items() if hasattr(statistics, f)]

    return [
        one("put_total", "counter", "Items put into the queue.", "put_count"),
        one("got_total", "counter", "Items got from the queue.", "get_count"),
        _Family("dropped_total", "counter", "Items dropped, by reason.", dropped),
        one("redelivered_total", "counter", "Items given to another consumer because theirs died.", "redelivered"),
        one("refused_total", "counter", "Puts that ended with Full.", "refused"),
        one("full_waits_total", "counter", "Puts that had to wait for room.", "full_waits"),
        one("empty_waits_total", "counter", "Gets that had to wait for an item.", "empty_waits"),
        one("wakeups_total", "counter", "Threads, tasks and processes woken.", "wakeups"),
        one("closings_total", "counter", "How often the gate closed.", "high_events"),
        one("items", "gauge", "Items in the queue.", "current_buffer_used"),
        one("limit_items", "gauge", "Items at which put finds no room.", "limit"),
        one("low_items", "gauge", "Items at which a closed queue reopens.", "low_watermark"),
        one("peak_items", "gauge", "Most items in the queue so far.", "peak"),
        one("bytes", "gauge", "Bytes in the queue; 0 when not counted.", "bytes_used"),
        one("limit_bytes", "gauge", "Most bytes the queue takes.", "max_bytes"),
        one("peak_bytes", "gauge", "Most bytes in the queue so far.", "peak_bytes"),
        one("open", "gauge", "1 while the gate is open, else 0.", "writable"),
        one("waiting_senders", "gauge", "Threads and tasks waiting in put.", "tasks_waiting_send"),
        one("waiting_receivers", "gauge", "Threads and tasks waiting in get.", "tasks_waiting_receive"),
        one("sojourn_seconds", "gauge", "Moving average of the time an item spends in the queue.", "sojourn"),
        one("drain_seconds", "gauge", "Time until the queue is empty at the present rate.", "time_to_drain"),
    ]


_PIPELINE_FAMILIES = _pipeline_families()
_QUEUE_FAMILIES = _queue_families()


class Exporter:
    """Collects pipelines and queues and writes their metrics when asked, for a scrape or a file.

    Thread-safe. Each text() is one call of statistics() for each of them, which the rates in other statistics() are
    relative to; the metrics themselves are counters and gauges only, and do not depend on who else asks.

    Examples:
        Serving them needs nothing but the standard library:

        >>> from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        >>> exporter = Exporter()
        >>> class Metrics(BaseHTTPRequestHandler):
        ...     def do_GET(self):
        ...         self.send_response(200)
        ...         self.send_header("Content-Type", CONTENT_TYPE)
        ...         self.end_headers()
        ...         self.wfile.write(exporter.text().encode())
        >>> server = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)  # server.serve_forever() in a thread
        >>> server.server_close()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, str], Any] = {}
        self._decided: dict[str, Counter[tuple[str, str, str]]] = {}
        self._newest: dict[str, tuple[float, int]] = {}  # time of the last decision, and how many had it

    def add(self, source: Any, name: str | None = None) -> None:
        """Include a pipeline or a queue from now on.

        Args:
            source: what has a statistics() method: Pipeline, Queue, RecordQueue, SharedQueue. Kept alive until removed.
            name: value of the label `pipeline` or `queue`; None for the source's own name.

        Raises:
            TypeError: no statistics() method, or no name.
            ValueError: another source of this kind has the name.
        """
        statistics = getattr(source, "statistics", None)
        if not callable(statistics):
            raise TypeError(f"source: expected an object with a statistics() method, got {type(source).__name__}")
        label = getattr(source, "name", None) if name is None else name
        if not isinstance(label, str):
            raise TypeError(f"name: expected a string for a source without a name, got {type(label).__name__}")
        kind = "pipeline" if isinstance(statistics(), PipelineStatistics) else "queue"
        with self._lock:
            if self._sources.get((kind, label), source) is not source:
                raise ValueError(f"name: expected one no other {kind} has, got {label!r}")
            self._sources[kind, label] = source

    def remove(self, source: Any) -> None:
        """Leave a pipeline or a queue out from now on; nothing when it was not there."""
        with self._lock:
            self._sources = {key: one for key, one in self._sources.items() if one is not source}

    def text(self) -> str:
        """The metrics of this moment, families in a fixed order. UTF-8 when encoded; see CONTENT_TYPE."""
        with self._lock:
            found = [(kind, name, source.statistics()) for (kind, name), source in self._sources.items()]
            pipelines = [(name, s) for kind, name, s in found if kind == "pipeline"]
            queues = [(name, s) for kind, name, s in found if kind == "queue"]
            for name, statistics in pipelines:
                self._count(name, statistics)
            lines: list[str] = []
            for family in _PIPELINE_FAMILIES:
                _write(lines, "pipeline", family, pipelines)
            if pipelines:
                _write(lines, "pipeline", self._decisions(), [(name, name) for name, _ in pipelines])
            for family in _QUEUE_FAMILIES:
                _write(lines, "queue", family, queues)
        return "".join(line + "\n" for line in lines)

    def _count(self, name: str, statistics: PipelineStatistics) -> None:
        """Adds the decisions since the last text(). A pipeline keeps its newest 1024: more in between are missed."""
        counts = self._decided.setdefault(name, Counter())
        newest, counted = self._newest.get(name, (-math.inf, 0))
        fresh = [d for d in statistics.decisions if d.time >= newest]
        # Decisions of one step have one time, and some of them may have been counted before the others were made.
        for decision in fresh[counted:] if fresh and fresh[0].time == newest else fresh:
            counts[decision.stage, decision.what, "up" if decision.new > decision.old else "down"] += 1
        if fresh:
            last = fresh[-1].time
            self._newest[name] = last, sum(d.time == last for d in fresh)

    def _decisions(self) -> _Family:
        def samples(name: str) -> Samples:
            return [
                ((("stage", stage), ("what", what), ("direction", direction)), float(n))
                for (stage, what, direction), n in sorted(self._decided[name].items())
            ]

        text = "Changes of limits, gates and workers that the controller made."
        return _Family("decisions_total", "counter", text, samples)


def _write(lines: list[str], kind: str, family: _Family, sources: list[tuple[str, Any]]) -> None:
    """Help, type and samples of one metric of all sources; nothing when there are none."""
    name = f"edgefast_{kind}_{family.name}"
    found = [(((kind, owner), *labels), value) for owner, s in sources for labels, value in family.samples(s)]
    if not found:
        return
    lines.append(f"# HELP {name} {_escape(family.help)}")
    lines.append(f"# TYPE {name} {family.kind}")
    for labels, value in found:
        text = ",".join(f'{key}="{_escape(label, quotes=True)}"' for key, label in labels)
        lines.append(f"{name}{{{text}}} {_value(value)}")


def _escape(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quotes else text


def _value(number: float) -> str:
    """As Go's ParseFloat reads it."""
    number = float(number)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
