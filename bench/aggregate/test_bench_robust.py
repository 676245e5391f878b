"""Robust rules: ours against numpy, Flower's functions and byzfl's formulas, from the same arrays.

Limits, for K updates of P float32 values: every update is read once, 4 (K + 1) P bytes. Sorting: Batcher's network has
31 comparators for K = 10, 191 for 32, 1104 for 100; a comparator is a minimum and a maximum of 16 (AVX-512) or 8 (AVX2)
coordinates, two of which start a cycle. The median of 17 to 32 needs less: both halves sorted, 63 comparators each for
K = 32, and its two ranks from 64 minima and maxima. So K = 10 and that are bound by memory, K = 100 by arithmetic: 138
cycles a coordinate block of 16. Pair sums: K (K + 1) / 2 products and sums in float64, 8 coordinates at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.aggregate import geometric_median, krum, median, trimmed_mean, weighted_mean

# clients, parameters, threads
CASES = [
    (10, 2_000_000, 2),
    (10, 2_000_000, 1),
    (32, 1_000_000, 2),
    (32, 1_000_000, 1),
    (100, 300_000, 2),
    (100, 300_000, 1),
]
_made: dict[tuple[int, int], list[np.ndarray]] = {}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}-{c[2]}t")


def updates(clients: int, parameters: int) -> list[np.ndarray]:
    key = (clients, parameters)
    if key not in _made:
        _made.clear()
        rng = np.random.default_rng(0)
        _made[key] = [rng.standard_normal(parameters, np.float32) for _ in range(clients)]
    return _made[key]


def start(benchmark: Any, rule: str, case: tuple[int, int, int]) -> tuple[list[np.ndarray], int, int]:
    clients, parameters, threads = case
    benchmark.group = f"{rule} float32 {clients} clients x {parameters} {threads}t"
    return updates(clients, parameters), (clients + 1) * parameters * 4, threads


def once(benchmark: Any, work: Callable[[], Any]) -> None:
    benchmark.pedantic(work, rounds=3, warmup_rounds=1)


def ours(benchmark: Any, contender: Any, backend: str, moved: int, work: Callable[[], Any], check: Any) -> None:
    name, _, simd = backend.partition("-")
    with ef.using(name, simd=simd or None):
        check(work())
        contender(benchmark, f"edgefast {backend}", ours=True, bytes=moved)
        once(benchmark, work)


def skip_extra(backend: str, case: Any) -> None:
    if backend != our_contenders()[0] and case != CASES[0]:
        pytest.skip("one comparison of the levels is enough")


def close(expected: np.ndarray) -> Callable[[Any], None]:
    return lambda found: np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# ---- coordinate-wise -------------------------------------------------------------------------------------------------


def cut(clients: int) -> int:
    return int(0.2 * clients)


def expected_of(rule: str, x: list[np.ndarray]) -> np.ndarray:
    ordered = np.sort(np.stack(x), axis=0)
    if rule == "median":
        return (ordered[(len(x) - 1) // 2] + ordered[len(x) // 2]) / 2
    return ordered[cut(len(x)) : len(x) - cut(len(x))].astype(np.float64).mean(0)


@each_case
@pytest.mark.parametrize("rule", ["median", "trimmed mean"])
@pytest.mark.parametrize("backend", our_contenders())
def test_ours(benchmark: Any, contender: Any, case: Any, rule: str, backend: str) -> None:
    skip_extra(backend, case)
    x, moved, threads = start(benchmark, rule, case)
    out = np.empty_like(x[0])
    if rule == "median":
        work = lambda: median(x, out=out, num_threads=threads)  # noqa: E731
    else:
        work = lambda: trimmed_mean(x, trim=0.2, out=out, num_threads=threads)  # noqa: E731
    ours(benchmark, contender, backend, moved, work, close(expected_of(rule, x)))


@each_case
@pytest.mark.parametrize("rule", ["median", "trimmed mean"])
def test_numpy(benchmark: Any, contender: Any, case: Any, rule: str) -> None:
    """np.median is Flower's FedMedian; np.partition and mean are its trim_mean. One thread whatever the case."""
    x, moved, _ = start(benchmark, rule, case)
    stacked = np.stack(x)
    f = cut(len(x))
    if rule == "median":
        name, work = "np.median (Flower's FedMedian), stacked beforehand", lambda: np.median(stacked, axis=0)
    else:
        name = "np.partition and mean, stacked beforehand"
        work = lambda: np.partition(stacked, (f, len(x) - f - 1), axis=0)[f : len(x) - f].mean(0)  # noqa: E731
    close(expected_of(rule, x))(work())
    contender(benchmark, name, bytes=moved)
    benchmark.pedantic(work, rounds=1)


@each_case
def test_flower_trim_mean(benchmark: Any, contender: Any, case: Any) -> None:
    strategies = pytest.importorskip("flwr.serverapp.strategy.fedtrimmedavg")
    x, moved, _ = start(benchmark, "trimmed mean", case)
    stacked = np.stack(x)
    work = lambda: strategies.trim_mean(stacked, 0.2)  # noqa: E731
    close(expected_of("trimmed mean", x))(work())
    contender(benchmark, "Flower trim_mean, stacked beforehand", bytes=moved)
    benchmark.pedantic(work, rounds=1)


# ---- geometry --------------------------------------------------------------------------------------------------------

GEOMETRY = [c for c in CASES if c[0] <= 32]
each_geometry = pytest.mark.parametrize("case", GEOMETRY, ids=lambda c: f"{c[0]}x{c[1]}-{c[2]}t")


def pairwise(x: list[np.ndarray]) -> np.ndarray:
    d = np.zeros((len(x), len(x)))
    for i, a in enumerate(x):
        for j in range(i):
            diff = a - x[j]
            d[i, j] = d[j, i] = np.dot(diff, diff)
    return d


@each_geometry
@pytest.mark.parametrize("backend", our_contenders())
def test_krum(benchmark: Any, contender: Any, case: Any, backend: str) -> None:
    skip_extra(backend, case)
    x, moved, threads = start(benchmark, "krum", case)
    out = np.empty_like(x[0])
    f = cut(len(x))
    best = int(np.sort(pairwise(x), axis=1)[:, 1 : len(x) - f - 1].sum(1).argmin())

    def check(found: np.ndarray) -> None:
        assert found.tobytes() == x[best].tobytes()

    ours(benchmark, contender, backend, moved, lambda: krum(x, f, out=out, num_threads=threads), check)


@each_geometry
def test_flower_krum(benchmark: Any, contender: Any, case: Any) -> None:
    app = pytest.importorskip("flwr.app")
    multikrum = pytest.importorskip("flwr.serverapp.strategy.multikrum")
    x, moved, _ = start(benchmark, "krum", case)
    records = [
        app.RecordDict({"a": app.ArrayRecord({"w": app.Array(u)}), "m": app.MetricRecord({"num-examples": 1})})
        for u in x
    ]
    contender(benchmark, "Flower select_multikrum", bytes=moved)
    benchmark.pedantic(lambda: multikrum.select_multikrum(records, cut(len(x)), 1), rounds=2, warmup_rounds=1)


def rfa(x: np.ndarray) -> np.ndarray:
    z = x.mean(0)
    for _ in range(4):
        beta = 1 / np.maximum(1e-5, np.linalg.norm(x - z, axis=1))
        z = (beta / beta.sum()).astype(x.dtype) @ x
    return z


@each_geometry
@pytest.mark.parametrize("backend", our_contenders())
def test_geometric_median(benchmark: Any, contender: Any, case: Any, backend: str) -> None:
    skip_extra(backend, case)
    x, moved, threads = start(benchmark, "geometric median (4 iterations)", case)
    out = np.empty_like(x[0])
    work = lambda: geometric_median(x, ftol=0, out=out, num_threads=threads)  # noqa: E731
    expected = rfa(np.stack(x))
    ours(
        benchmark, contender, backend, moved, work, lambda r: np.testing.assert_allclose(r, expected, rtol=0, atol=1e-4)
    )


@each_geometry
def test_one_mean_beside_it(benchmark: Any, contender: Any, case: Any) -> None:
    x, moved, threads = start(benchmark, "geometric median (4 iterations)", case)
    out = np.empty_like(x[0])
    contender(benchmark, "edgefast weighted_mean (one mean, for scale)", bytes=moved)
    once(benchmark, lambda: weighted_mean(x, out=out, num_threads=threads))


@each_geometry
def test_rfa_in_numpy(benchmark: Any, contender: Any, case: Any) -> None:
    x, moved, _ = start(benchmark, "geometric median (4 iterations)", case)
    stacked = np.stack(x)
    contender(benchmark, "Weiszfeld in numpy, stacked beforehand", bytes=moved)
    benchmark.pedantic(lambda: rfa(stacked), rounds=1)
