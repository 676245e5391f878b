"""Weighted mean of model updates: ours against numpy, BLAS, torch and Flower's own function, from the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
@pytest.mark.parametrize("accumulate", ["float32", "reproducible"])
def test_other_sums(benchmark: Any, contender: Any, case: Any, accumulate: Any) -> None:
    models, weights, expected, moved, threads = start(benchmark, case)
    out = {k: np.empty_like(v) for k, v in models[0].items()}
    close(weighted_mean(models, weights, out=out, accumulate=accumulate, num_threads=threads), expected, 1e-3)
    contender(benchmark, f"edgefast accumulate={accumulate}, out=", ours=True, bytes=moved)
    benchmark(weighted_mean, models, weights, out=out, accumulate=accumulate, num_threads=threads)


@each_case
@pytest.mark.parametrize("accumulate", ["float64", "float32", "reproducible"])
@pytest.mark.parametrize("many", [False, True], ids=["add", "add_many"])
def test_accumulator(benchmark: Any, contender: Any, case: Any, accumulate: Any, many: bool) -> None:
    models, weights, expected, moved, threads = start(benchmark, case)
    acc = MeanAccumulator(models[0], accumulate=accumulate, num_threads=threads)
    out = {k: np.empty_like(v) for k, v in models[0].items()}

    def work() -> Any:
        acc.reset()
        if many:
            acc.add_many(models, weights)
        else:
            for m, w in zip(models, weights, strict=True):
                acc.add(m, w)
        return acc.result(out=out)

    close(work(), expected, 1e-3)
    contender(
        benchmark, f"edgefast MeanAccumulator {accumulate}, {'add_many' if many else 'add'}", ours=True, bytes=moved
    )
    benchmark(work)


@pytest.mark.parametrize("callers", [1, 2, 4])
def test_concurrent_add(benchmark: Any, contender: Any, callers: int) -> None:
    """Ten updates from `callers` Python threads at once, one kernel thread each."""
    case = CASES[1]
    models, weights, expected, moved, _ = start(benchmark, case)
    benchmark.group = "concurrent MeanAccumulator.add float32 10 clients x 5000000 1t"
    acc = MeanAccumulator(models[0], num_threads=1)

    def work() -> Any:
        acc.reset()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(lambda mw: acc.add(*mw), zip(models, weights, strict=True)))
        return acc.result()

    close(work(), expected)
    contender(benchmark, f"edgefast, {callers} callers", ours=callers > 1, bytes=moved)
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
def test_torch_add(benchmark: Any, contender: Any, case: Any) -> None:
    torch = pytest.importorskip("torch")
    models, weights, expected, moved, threads = start(benchmark, case)
    states = [{k: torch.from_numpy(v) for k, v in m.items()} for m in models]
    total = float(sum(weights))

    def work() -> dict[str, Any]:
        result = {}
        for k in states[0]:
            acc = states[0][k] * (weights[0] / total)
            for m, w in zip(states[1:], weights[1:], strict=True):
                acc.add_(m[k], alpha=w / total)
            result[k] = acc.numpy()
        return result

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        peer(benchmark, contender, "torch add_ (float32)", moved, work, lambda r: close(r, expected, 1e-3))
    finally:
        torch.set_num_threads(before)


def flower_records(models: list[dict[str, Any]], weights: list[int]) -> list[Any]:
    app = pytest.importorskip("flwr.app")
    return [
        app.RecordDict(
            {
                "arrays": app.ArrayRecord({k: app.Array(v) for k, v in m.items()}),
                "metrics": app.MetricRecord({"num-examples": w}),
            }
        )
        for m, w in zip(models, weights, strict=True)
    ]


@each_case
def test_flower(benchmark: Any, contender: Any, case: Any) -> None:
    utils = pytest.importorskip("flwr.serverapp.strategy.strategy_utils")
    models, weights, expected, moved, _ = start(benchmark, case)
    records = flower_records(models, weights)
    peer(
        benchmark,
        contender,
        "Flower aggregate_arrayrecords",
        moved,
        lambda: utils.aggregate_arrayrecords(records, "num-examples"),
        lambda r: close({k: a.numpy() for k, a in r.items()}, expected, 1e-3),
    )


@each_case
def test_ours_on_flower_records(benchmark: Any, contender: Any, case: Any) -> None:
    """RecordDict to ArrayRecord, as Flower's function: its bytes in, its bytes out."""
    app = pytest.importorskip("flwr.app")
    models, weights, expected, moved, threads = start(benchmark, case)
    records = flower_records(models, weights)

    def work() -> Any:
        arrays = [next(iter(r.array_records.values())) for r in records]
        shares = [next(iter(r.metric_records.values()))["num-examples"] for r in records]
        return app.ArrayRecord(weighted_mean(arrays, shares, num_threads=threads))

    close({k: a.numpy() for k, a in work().items()}, expected)
    contender(benchmark, "edgefast, RecordDict to ArrayRecord", ours=True, bytes=moved)
    benchmark(work)
