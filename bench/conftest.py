"""Benchmarks side by side: every contender of a group runs in the same session, interleaved over several passes.

A benchmark sets `benchmark.group` to "<operation> <dtype> <size> <threads>t" and calls `contender(benchmark, name)`
before it runs; bench/report.py turns the JSON into the table of ratios. `--benchmark-disable` runs each once, answers
checked, nothing timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Telemetry of a peer must be off before it is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import pytest

import edgefast as ef
from edgefast import backends

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passes", type=int, default=1, help="how often the whole comparison is repeated, interleaved")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("bench_pass", range(metafunc.config.getoption("--passes")), ids=lambda i: f"pass{i}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # All contenders of a file once, then all of them again: slow drift of the machine hits each alike.
    # Tests of another folder in the same session have no pass: they keep their place at the front of their file.
    files = list(dict.fromkeys(item.path for item in items))

    def key(item: pytest.Item) -> tuple[int, int]:
        callspec = getattr(item, "callspec", None)
        return files.index(item.path), callspec.params.get("bench_pass", 0) if callspec else 0

    items.sort(key=key)


@pytest.fixture(autouse=True)
def bench_pass(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def contender() -> Callable[..., None]:
    """Names a benchmark's contender and what it moves: contender(benchmark, "scikit-learn", bytes=..., items=...)."""

    def label(benchmark: Any, name: str, *, ours: bool = False, **extra: float | str) -> None:
        benchmark.extra_info.update({"contender": name, "ours": ours, **extra})

    return label


def our_contenders() -> list[str]:
    """ "native" at its best SIMD level, then the other levels and backends this machine has."""
    names = [f"native-{level}" for level in backends.simd_levels()]
    return names + [b for b in ef.available_backends() if b != "native"]


@pytest.fixture(scope="session", autouse=True)
def _limits(request: pytest.FixtureRequest) -> Iterator[None]:
    """Measures the machine's limits at the start and the end of a timed session and keeps the better of both."""
    config = request.config
    if config.getoption("--benchmark-disable") or not config.getoption("--benchmark-json"):
        yield
        return
    import limits

    first = [limits.measure(1), limits.measure(2)]
    yield
    second = [limits.measure(1), limits.measure(2)]
    config.stash[LIMITS] = [
        {k: a["threads"] if k == "threads" else max(a[k], b[k]) for k in a}  # type: ignore[literal-required]
        for a, b in zip(first, second, strict=True)
    ]


LIMITS = pytest.StashKey[list[dict[str, float]]]()


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: object, output_json: dict[str, Any]) -> None:
    from edgefast._info import config as edgefast_config

    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)  # every single timing: hundreds of megabytes nobody reads
    output_json["limits"] = config.stash.get(LIMITS, None)
    output_json["edgefast"] = edgefast_config()
