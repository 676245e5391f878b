"""Weighted mean of model updates: ours against numpy, BLAS and Flower's own function, from the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.aggregate import MeanAccumulator, weighted_mean

# clients, parameters, tensors, threads
CASES = [(10, 5_000_000, 1, 2), (10, 5_000_000, 1, 1), (10, 5_000_000, 20, 2), (100, 400_000, 400, 2)]
_made: dict[tuple[int, int, int], tuple[list[dict[str, Any]], list[int], dict[str, Any]]] = {}


def updates(clients: int, parameters: int, tensors: int) -> tuple[list[dict[str, Any]], list[int], dict[str, Any]]:
    """Updates, weights, and the mean in float64."""
    key = (clients, parameters, tensors)
    if key not in _made:
        _made.clear()
        rng = np.random.default_rng(0)
        size = parameters // tensors
        models = [{str(t): rng.standard_normal(size, np.float32) for t in range(tensors)} for _ in range(clients)]
        weights = rng.integers(10, 1000, clients).tolist()
        expected = {
            k: sum(w * m[k].astype(np.float64) for w, m in zip(weights, models, strict=True)) / sum(weights)
            for k in models[0]
        }
        _made[key] = (models, weights, expected)
    return _made[key]


each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}/{c[2]}-{c[3]}t")


def start(benchmark: Any, case: tuple[int, int, int, int]) -> Any:
    clients, parameters, tensors, threads = case
    benchmark.group = f"weighted mean float32 {clients} clients x {parameters} in {tensors} tensor(s) {threads}t"
    # Every update read once, the result written once.
    return (*updates(clients, parameters, tensors), (clients + 1) * parameters * 4, threads)


def close(result: dict[str, Any], expected: dict[str, Any], rtol: float = 1e-6) -> None:
    for k, v in expected.items():
        np.testing.assert_allclose(result[k], v, rtol=rtol, atol=1e-6)


@each_case
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize("form", ["out=", "new arrays"])
def test_ours(benchmark: Any, contender: Any, case: Any, backend: str, form: str) -> None:
    models, weights, expected, moved, threads = start(benchmark, case)
    name, _, simd = backend.partition("-")
    if backend != our_contenders()[0] and (case != CASES[0] or form == "new arrays"):
        pytest.skip("one comparison of the levels is enough")
    out = {k: np.empty_like(v) for k, v in models[0].items()} if form == "out=" else None
    with ef.using(name, simd=simd or None):
        close(weighted_mean(models, weights, out=out, num_threads=threads), expected)
        contender(benchmark, f"edgefast {backend}, {form}", ours=True, bytes=moved)
        benchmark(weighted_mean, models, weights, out=out, num_threads=threads)


@each_case
def test_accumulator(benchmark: Any, contender: Any, case: Any) -> None:
    models, weights, expected, moved, threads = start(benchmark, case)
    acc = MeanAccumulator(models[0], num_threads=threads)

    def work() -> Any:
        acc.reset()
        for m, w in zip(models, weights, strict=True):
            acc.add(m, w)
        return acc.result()

    close(work(), expected)
    contender(benchmark, "edgefast MeanAccumulator, one by one", ours=True, bytes=moved)
    benchmark(work)


def peer(
    benchmark: Any, contender: Any, name: str, moved: int, work: Callable[[], Any], check: Callable[[Any], None]
) -> None:
    check(work())
    contender(benchmark, name, bytes=moved)
    benchmark(work)


@each_case
def test_numpy_in_place(benchmark: Any, contender: Any, case: Any) -> None:
    models, weights, expected, moved, _ = start(benchmark, case)
    total = np.float32(sum(weights))

    def work() -> dict[str, Any]:
        result = {}
        for k in models[0]:
            acc = models[0][k] * np.float32(weights[0])
            term = np.empty_like(acc)
            for m, w in zip(models[1:], weights[1:], strict=True):
                np.multiply(m[k], np.float32(w), out=term)
                acc += term
            acc /= total
            result[k] = acc
        return result

    peer(benchmark, contender, "numpy in-place loop (float32)", moved, work, lambda r: close(r, expected, 1e-3))


@each_case
def test_blas_gemv(benchmark: Any, contender: Any, case: Any) -> None:
    if case[2] != 1:
        pytest.skip("needs the updates in one matrix")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    models, weights, expected, moved, threads = start(benchmark, case)
    stacked = np.stack([m["0"] for m in models])
    share = (np.array(weights) / sum(weights)).astype(np.float32)
    with threadpoolctl.threadpool_limits(threads):
        peer(
            benchmark,
            contender,
            "BLAS gemv, stacked beforehand (float32)",
            moved,
            lambda: share @ stacked,
            lambda r: close({"0": r}, expected, 1e-3),
        )


@each_case
def test_flower(benchmark: Any, contender: Any, case: Any) -> None:
    app = pytest.importorskip("flwr.app")
    utils = pytest.importorskip("flwr.serverapp.strategy.strategy_utils")
    models, weights, expected, moved, _ = start(benchmark, case)
    records = [
        app.RecordDict(
            {
                "arrays": app.ArrayRecord({k: app.Array(v) for k, v in m.items()}),
                "metrics": app.MetricRecord({"num-examples": w}),
            }
        )
        for m, w in zip(models, weights, strict=True)
    ]
    peer(
        benchmark,
        contender,
        "Flower aggregate_arrayrecords",
        moved,
        lambda: utils.aggregate_arrayrecords(records, "num-examples"),
        lambda r: close({k: a.numpy() for k, a in r.items()}, expected, 1e-3),
    )
