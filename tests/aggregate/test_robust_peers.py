"""Presets against the real packages, where they are installed: Flower's functions, byzfl's numpy path."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import (
    bulyan,
    centered_clip,
    clip_by_global_norm,
    geometric_median,
    krum,
    meamed,
    median,
    multi_krum,
    nnm,
    trimmed_mean,
    weighted_mean,
)

pytestmark = pytest.mark.engine


def cloud(count: int, size: int, seed: int, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, size)) + 1).astype(dtype)


# ---- Flower ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flower() -> Any:
    pytest.importorskip("flwr.serverapp.strategy")
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy import bulyan as flower_bulyan
    from flwr.serverapp.strategy import fedtrimmedavg, multikrum, strategy_utils

    def records(x: np.ndarray, weights: list[int]) -> list[Any]:
        return [
            RecordDict({"a": ArrayRecord({"w": Array(row)}), "m": MetricRecord({"num-examples": w})})
            for row, w in zip(x, weights, strict=True)
        ]

    return types.SimpleNamespace(
        records=records,
        trim_mean=fedtrimmedavg.trim_mean,
        select=multikrum.select_multikrum,
        aggregate=strategy_utils.aggregate_arrayrecords,
        closest=flower_bulyan.aggregate_n_closest_weights,
    )


@pytest.mark.parametrize(("count", "beta"), [(3, 0.2), (5, 0.2), (10, 0.2), (11, 0.3), (20, 0.45)])
def test_flower_trimmed_mean_and_median(flower: Any, count: int, beta: float) -> None:
    x = cloud(count, 500, count, np.float64)
    np.testing.assert_array_max_ulp(trimmed_mean(x, trim=beta), flower.trim_mean(x, beta), 4)
    x32 = x.astype(np.float32)
    # Flower adds in float32: ours is one rounding from the exact mean.
    np.testing.assert_allclose(trimmed_mean(x32, trim=beta), flower.trim_mean(x32, beta), rtol=1e-6)
    np.testing.assert_array_max_ulp(median(x32), np.median(x32, axis=0), 1)  # FedMedian is np.median


@pytest.mark.parametrize(("count", "f", "m"), [(5, 1, 1), (10, 2, 1), (10, 2, 4), (7, 6, 2)])
def test_flower_multi_krum(flower: Any, count: int, f: int, m: int) -> None:
    x = cloud(count, 400, count)
    weights = np.random.default_rng(0).integers(1, 50, count).tolist()
    records = flower.records(x, weights)
    chosen = flower.select(records, f, m)
    _, info = multi_krum(x, f, m, weights=weights, neighbours="flower", return_info=True)
    assert [records.index(c) for c in chosen] == list(info.selected)
    value = multi_krum(x, f, m, weights=weights, neighbours="flower")
    expected = next(iter(flower.aggregate(chosen, "num-examples").values())).numpy()
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_flower_picks_the_wrong_update_where_ours_does_not(flower: Any) -> None:
    wrong = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        base = rng.normal(0, 0.05, 20_000)
        x = (base + 1e-5 * rng.normal(size=(10, 20_000))).astype(np.float32)
        wide = x.astype(np.float64)
        distances = ((wide[:, None] - wide[None]) ** 2).sum(-1)
        scores = np.sort(distances, axis=1)[:, 1:7].sum(1)
        _, info = krum(x, 2, neighbours="flower", return_info=True)
        assert info.selected == (int(scores.argmin()),)
        records = flower.records(x, [1] * 10)
        wrong += records.index(flower.select(records, 2, 1)[0]) != int(scores.argmin())
    assert wrong > 0


@pytest.mark.parametrize(("count", "f"), [(7, 1), (11, 2), (20, 4)])
def test_flower_bulyan(flower: Any, count: int, f: int) -> None:
    x = cloud(count, 300, count)
    records = flower.records(x, [1] * count)
    theta = count - 2 * f
    rows = [[next(iter(r["a"].values())).numpy()] for r in flower.select(records, f, theta)]
    middle = [np.median(np.stack([r[0] for r in rows]), axis=0)]
    (expected,) = flower.closest(middle, rows, theta - 2 * f)
    np.testing.assert_allclose(bulyan(x, f, selection="one-shot"), expected, rtol=1e-6)


# ---- byzfl -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Any]:
    """Its aggregators; the numpy path needs torch only to be importable."""
    added = []
    try:
        import torch  # noqa: F401
    except ImportError:
        stub = types.ModuleType("torch")
        stub.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
        sys.modules["torch"] = stub
        added.append("torch")
    try:
        pytest.importorskip("scipy")
        module = _load_byzfl()
        yield module
    finally:
        for name in added:
            sys.modules.pop(name, None)
        for name in [n for n in sys.modules if n == "byzfl" or n.startswith("byzfl.")]:
            sys.modules.pop(name)


def _load_byzfl() -> Any:
    """byzfl.aggregators without byzfl/__init__.py, which imports data sets and plotting."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("byzfl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("byzfl is not installed")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("byzfl", "byzfl.utils", "byzfl.aggregators"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    # The array tools of torch tensors, which the numpy path never calls.
    sys.modules["byzfl.utils.torch_tools"] = types.ModuleType("byzfl.utils.torch_tools")
    sys.modules["byzfl.utils"].torch_tools = sys.modules["byzfl.utils.torch_tools"]  # type: ignore[attr-defined]
    rules = importlib.import_module("byzfl.aggregators.aggregators")
    before = importlib.import_module("byzfl.aggregators.preaggregators")
    return types.SimpleNamespace(**{k: v for m in (rules, before) for k, v in vars(m).items() if isinstance(v, type)})


@pytest.mark.parametrize(("count", "f"), [(3, 1), (5, 1), (10, 3), (11, 5), (20, 6)])
def test_byzfl_rules(byzfl: Any, count: int, f: int) -> None:
    x = cloud(count, 300, count, np.float64)

    def same(found: Any, expected: np.ndarray, ulp: int = 4) -> None:
        np.testing.assert_array_max_ulp(np.asarray(found), expected, ulp)

    same(median(x), byzfl.Median()(x), 1)
    same(trimmed_mean(x, f=f), byzfl.TrMean(f)(x))
    assert krum(x, f, neighbours="byzfl").tobytes() == byzfl.Krum(f)(x).tobytes()
    np.testing.assert_allclose(multi_krum(x, f, neighbours="byzfl"), byzfl.MultiKrum(f)(x), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(meamed(x, f), byzfl.Meamed(f)(x), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(nnm(x, f), byzfl.NNM(f)(x), rtol=1e-13, atol=1e-14)
    found = geometric_median(x, eps=0.1, max_iter=3, ftol=0, start="zero")
    np.testing.assert_allclose(found, byzfl.GeometricMedian(nu=0.1, T=3)(x), rtol=1e-12, atol=1e-13)
    for steps in (1, 3):
        clipped = byzfl.CenteredClipping(L=steps, tau=7.0)(x)
        np.testing.assert_allclose(centered_clip(x, 7.0, n_iter=steps), clipped, rtol=1e-12, atol=1e-12)
    clipped = byzfl.Clipping(c=20.0)(x.copy())
    np.testing.assert_allclose(clip_by_global_norm(x, 20.0), clipped, rtol=1e-14)
    np.testing.assert_allclose(weighted_mean(x), byzfl.Average()(x), rtol=1e-14, atol=1e-15)
