"""Metrics in the text exposition format: read back by a parser of our own and by that of the client library."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from edgefast.pipeline import Decision, PipelineStatistics, StageStatistics, prometheus
from edgefast.queues import Latest, Queue, RecordQueue


def stage(name: str, **values: Any) -> StageStatistics:
    fields: dict[str, Any] = dict.fromkeys(StageStatistics._fields, 0)
    return StageStatistics(**{**fields, "name": name, "backend": "thread", "sojourn": None, **values})


def pipeline(*stages: StageStatistics, **values: Any) -> PipelineStatistics:
    fields: dict[str, Any] = dict.fromkeys(PipelineStatistics._fields, 0)
    start = {"name": "p", "state": "running", "stages": stages, "decisions": (), "max_bytes": math.inf}
    return PipelineStatistics(**{**fields, **start, **values})


class Source:
    def __init__(self, name: str | None, statistics: Any) -> None:
        self.name, self.now = name, statistics

    def statistics(self) -> Any:
        return self.now


def exported(*sources: Source) -> prometheus.Exporter:
    exporter = prometheus.Exporter()
    for source in sources:
        exporter.add(source)
    return exporter


LINE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parse(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The samples of a text that is in the format to the letter, families together."""
    assert text.endswith("\n") or not text
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    current = None
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in helped, "a family in two pieces"
            helped.add(current)
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert kind in ("counter", "gauge")
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
            continue
        match = LINE.fullmatch(line)
        assert match, line
        name, labels, value = match.groups()
        assert name == current
        assert name in kinds
        unescaped = {k: re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], v) for k, v in LABEL.findall(labels)}
        key = (name, frozenset(unescaped.items()))
        assert key not in samples, "twice"
        samples[key] = float(value)
        assert kinds[name] != "counter" or samples[key] >= 0
    return samples


def value(text: str, name: str, **labels: str) -> float:
    return parse(text)[name, frozenset(labels.items())]


def test_a_queue() -> None:
    q: Queue[bytes] = Queue(8, max_bytes=100, high_watermark=4, low_watermark=1, policy="drop_newest", name="uplink")
    for _ in range(6):
        q.put(b"12345")
    q.get()
    exporter = prometheus.Exporter()
    exporter.add(q)
    text = exporter.text()
    for name, number in {
        "put_total": 4,
        "got_total": 1,
        "items": 3,
        "limit_items": 4,
        "low_items": 1,
        "bytes": 15,
        "limit_bytes": 100,
        "open": 0,
        "closings_total": 1,
    }.items():
        assert value(text, f"edgefast_queue_{name}", queue="uplink") == number, name
    assert value(text, "edgefast_queue_dropped_total", queue="uplink", reason="newest") == 2
    assert "# HELP edgefast_queue_items Items in the queue.\n# TYPE edgefast_queue_items gauge\n" in text


def test_unbounded_and_unknown() -> None:
    exporter = prometheus.Exporter()
    exporter.add(Queue(), "a")
    exporter.add(RecordQueue("f4", 10), "b")
    text = exporter.text()
    assert value(text, "edgefast_queue_limit_items", queue="a") == math.inf
    assert value(text, "edgefast_queue_limit_items", queue="b") == 10
    # No gate and no item yet: the metric is left out instead of made up.
    assert "edgefast_queue_low_items" not in text
    assert "edgefast_queue_sojourn_seconds" not in text
    assert 'limit_items{queue="a"} +Inf\n' in text


def test_a_pipeline() -> None:
    first = stage("read", arrived=10, served=9, limit=16, low=12, busy=1.5, blocked=0.25, starved=2.0, writable=True)
    second = stage("send", dropped_oldest=3, expired=1, sojourn=0.125, workers=2, time_to_drain=math.inf)
    text = exported(Source("edge", pipeline(first, second, submitted=10, target_delay=0.2))).text()
    who = {"pipeline": "edge"}
    assert value(text, "edgefast_pipeline_submitted_total", **who) == 10
    assert value(text, "edgefast_pipeline_target_delay_seconds", **who) == 0.2
    assert value(text, "edgefast_pipeline_state", **who, state="running") == 1
    assert value(text, "edgefast_pipeline_state", **who, state="failed") == 0
    assert value(text, "edgefast_pipeline_stage_arrived_total", **who, stage="read") == 10
    assert value(text, "edgefast_pipeline_stage_queue_open", **who, stage="read") == 1
    assert value(text, "edgefast_pipeline_stage_queue_limit_items", **who, stage="read") == 16
    for state, seconds in {"busy": 1.5, "blocked": 0.25, "starved": 2.0}.items():
        name = "edgefast_pipeline_stage_worker_seconds_total"
        assert value(text, name, **who, stage="read", state=state) == seconds
    assert value(text, "edgefast_pipeline_stage_dropped_total", **who, stage="send", reason="oldest") == 3
    assert value(text, "edgefast_pipeline_stage_queue_sojourn_seconds", **who, stage="send") == 0.125
    assert value(text, "edgefast_pipeline_stage_queue_drain_seconds", **who, stage="send") == math.inf
    assert ("edgefast_pipeline_stage_queue_sojourn_seconds", frozenset({*who.items(), ("stage", "read")})) not in parse(
        text
    )


def test_every_number_of_the_statistics_is_there() -> None:
    """A field somebody adds to the statistics is exported or listed here."""
    derived = {"name", "backend", "arrival_rate", "service_rate"}
    numbers = {f: 1000.0 + k for k, f in enumerate(StageStatistics._fields) if f not in derived}
    found = set(parse(exported(Source("p", pipeline(stage("s", **numbers)))).text()).values())
    assert set(numbers.values()) <= found
    strings = {"name", "state", "backend", "scheduler", "throughput", "stages", "decisions"}
    numbers = {f: 2000.0 + k for k, f in enumerate(PipelineStatistics._fields) if f not in strings}
    found = set(parse(exported(Source("p", pipeline(stage("s"), **numbers))).text()).values())
    assert set(numbers.values()) <= found


def test_decisions_are_counted_once() -> None:
    def decided(*rows: tuple[float, float, float]) -> PipelineStatistics:
        return pipeline(stage("s"), decisions=tuple(Decision(t, "s", "limit", a, b, "why") for t, a, b in rows))

    source = Source("p", decided((1.0, 2, 4), (1.0, 4, 8), (2.0, 8, 5)))
    exporter = exported(source)
    for _ in range(2):
        text = exporter.text()
        who = {"pipeline": "p", "stage": "s", "what": "limit"}
        assert value(text, "edgefast_pipeline_decisions_total", **who, direction="up") == 2
        assert value(text, "edgefast_pipeline_decisions_total", **who, direction="down") == 1
    for rows, up in [
        (((2.0, 8, 5), (2.0, 5, 9)), 3),  # the oldest are forgotten, and the step of 2.0 went on
        (((2.0, 8, 5), (2.0, 5, 9), (3.0, 5, 6), (4.0, 1, 2)), 5),
        (((4.0, 1, 2),), 5),
        (((5.0, 1, 2), (5.0, 1, 2)), 7),
    ]:
        source.now = decided(*rows)
        assert value(exporter.text(), "edgefast_pipeline_decisions_total", **who, direction="up") == up


def test_names_of_any_kind() -> None:
    strange = 'a"b\\c\nd{e} é,='
    text = exported(Source(strange, pipeline(stage(strange)))).text()
    assert value(text, "edgefast_pipeline_stage_workers", pipeline=strange, stage=strange) == 0


def test_families_of_several_sources_stay_together() -> None:
    exporter = exported(Source("a", pipeline(stage("s"))), Source("b", pipeline(stage("s"), stage("t"))))
    exporter.add(Queue(), "a")  # a queue may have a pipeline's name
    text = exporter.text()
    stages = [labels for name, labels in parse(text) if name == "edgefast_pipeline_stage_workers"]
    assert len(stages) == 3


def test_adding_and_removing() -> None:
    exporter = prometheus.Exporter()
    assert exporter.text() == ""
    q: Queue[int] = Queue(name="q")
    exporter.add(q)
    exporter.add(q)  # again: nothing
    with pytest.raises(ValueError, match="name: expected one no other queue has, got 'q'"):
        exporter.add(Queue(), "q")
    exporter.remove(q)
    exporter.remove(q)
    assert exporter.text() == ""
    with pytest.raises(TypeError, match="expected a string for a source without a name"):
        exporter.add(Queue())
    with pytest.raises(TypeError, match=r"expected an object with a statistics\(\) method, got Latest"):
        exporter.add(Latest())


def test_the_client_library_reads_the_same() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    strange = 'a"b\\c\nd'
    exporter = exported(Source(strange, pipeline(stage("s", busy=0.1, limit=7, time_to_drain=math.inf))))
    exporter.add(Queue(3), "q")
    text = exporter.text()
    theirs = {
        (s.name, frozenset(s.labels.items())): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }
    assert theirs == parse(text)
    assert len(theirs) > 50
