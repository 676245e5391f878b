"""Adaptive pipelines against fixed queue sizes and other libraries: throughput, latency, memory and CPU of whole runs.

One run is one round. `make bench ARGS="bench/pipeline"` takes ten minutes a pass; bench/pipeline/summary.py turns its
JSON into the tables of what is reached.
"""

from __future__ import annotations

from typing import Any

import pytest
from pipeline import contenders as C
from pipeline import workloads as W


@pytest.mark.parametrize("name", C.CONTENDERS)
@pytest.mark.parametrize("workload", W.WORKLOADS)
def test_pipeline(benchmark: Any, contender: Any, workload: str, name: str, request: pytest.FixtureRequest) -> None:
    for peer in ("pypeln", "streamz"):
        if name.startswith(peer):
            pytest.importorskip(peer, exc_type=ImportError)
    ours, function = C.CONTENDERS[name]
    timed = not request.config.getoption("--benchmark-disable")
    items = W.WORKLOADS[workload] if timed else 12
    meter = W.Meter(W.make(workload, items))
    benchmark.group = f"pipeline {workload}, {items} items"
    figures: dict[str, float] = {}
    benchmark.pedantic(lambda: figures.update(meter.run(function)), rounds=1, iterations=1)
    contender(benchmark, name, ours=ours, items=items, **figures)
