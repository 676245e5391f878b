"""report.html: complete, self-contained, and safe with any name."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.federated import Dataset, Progress, RunConfig, run, write_report

pytest.importorskip("matplotlib")

VOID = {"meta", "br", "link", "img"}


class Outline(HTMLParser):
    """Fails on tags that do not nest; collects what a page would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    data = Dataset.of(rng.normal(size=(60, 8)) + y[:, None], y, name="<script>alert('&')</script>")
    return run(RunConfig(devices=3, rounds=4, components=4), data).metrics


def page(metrics: dict[str, Any], path: Path) -> str:
    write_report(metrics, path)
    text = path.read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.loads == []
    assert "script" not in outline.tags
    assert outline.tags.count("svg") == 4
    assert not re.search(r"url\((?!#)", text)
    return text


def test_page(metrics: dict[str, Any], tmp_path: Path) -> None:
    text = page(metrics, tmp_path / "report.html")
    assert "&lt;script&gt;" in text
    for title in ("Accuracy per round", "Queue depth over time", "Uplink bytes", "Throughput per stage"):
        assert f"<h2>{title}" in text
    for shown in (f"{metrics['accuracy']['federated']:.1%}", "high watermark", "low watermark", "raw features"):
        assert shown in text


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    rng = np.random.default_rng(0)
    data = Dataset.of(rng.normal(size=(60, 8)), np.arange(60) % 2)
    text = page(run(RunConfig(devices=3, components=4), data, on_progress=stop).metrics, tmp_path / "r.html")
    assert "Interrupted after" in text


def test_before_the_first_round(metrics: dict[str, Any], tmp_path: Path) -> None:
    empty = copy.deepcopy(metrics)
    empty.update(rounds=[], interrupted=True, accuracy=dict.fromkeys(metrics["accuracy"]))
    empty["queue"]["depth"] = {"seconds": [], "max": []}
    empty["queue"]["trace"] = {"device": 0, "seconds": [], "depth": []}
    for stage in empty["stages"].values():
        stage["per_second"] = None
    for key in empty["uplink_bytes"]:
        empty["uplink_bytes"][key] = 0
    assert "Interrupted after 0 of 4 rounds" in page(empty, tmp_path / "r.html")


def test_a_drop_policy_is_called_unrepeatable(metrics: dict[str, Any], tmp_path: Path) -> None:
    dropping = copy.deepcopy(metrics)
    dropping["repeatable"] = False
    dropping["config"]["policy"] = dropping["queue"]["policy"] = "drop_newest"
    dropping["queue"]["dropped"] = 5
    text = page(dropping, tmp_path / "r.html")
    assert "another run with the same seed gives another model" in text
    assert "5 of 48 batches were dropped" in text or "batches were dropped" in text


def test_missing_devices_are_told(metrics: dict[str, Any], tmp_path: Path) -> None:
    from edgefast.federated.report import describe_faults

    assert describe_faults(metrics) == []
    hurt = copy.deepcopy(metrics)
    late = [(1, 2), (2, 2), (4, 2), (3, 0)]
    hurt["faults"] = [{"device": d, "round": r, "kind": "late", "reason": "slow or stopped"} for r, d in late]
    failed = "its ClientApp failed: ValueError: no"
    hurt["faults"].append({"device": 2, "round": 3, "kind": "late", "reason": failed})
    hurt["faults"].insert(1, {"device": 1, "round": 2, "kind": "lost", "reason": "killed by <SIGKILL>"})
    assert describe_faults(hurt) == [
        ("lost", "device 1 in round 2: killed by <SIGKILL>; 2 of 3 devices went on"),
        ("late", "device 2 in rounds 1-2, 4: slow or stopped"),
        ("late", "device 0 in round 3: slow or stopped"),
        ("late", f"device 2 in round 3: {failed}"),
    ]
    text = page(hurt, tmp_path / "r.html")
    assert "Lost: device 1 in round 2: killed by &lt;SIGKILL&gt;; 2 of 3 devices went on." in text
    assert "Late: device 2 in rounds 1-2, 4: slow or stopped." in text
    assert "another run gives another model" in text
    assert "a device lost" in text
    hurt["faults"] = [{"device": d, "round": 2, "kind": "lost", "reason": "killed by SIGKILL"} for d in range(3)]
    hurt["deserted"] = True
    text = page(hurt, tmp_path / "r.html")
    assert "Every device was lost after 4 of 4 rounds" in text
    assert "went on" not in text


def test_same_metrics_same_bytes(metrics: dict[str, Any], tmp_path: Path) -> None:
    assert page(metrics, tmp_path / "a.html") == page(metrics, tmp_path / "b.html")


def test_one_of_everything(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = Dataset.of(rng.normal(size=(40, 8)), np.arange(40) % 2, name="small")
    result = run(RunConfig(devices=1, rounds=1, components=4, epochs=1), data)
    write_report(result.metrics, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "on 1 device with 32 training rows; 8 rows kept" in page
    assert "for 1 round<" in page
    assert "After 1 round:" in page
