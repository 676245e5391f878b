"""What the papers say about rules and attacks, on one seed; and FedAvg of full-batch steps as gradient descent."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import MeanAccumulator, NonFiniteUpdate, weighted_mean

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "aggregate" / "attacks.py"


@functools.cache
def attacks() -> Any:
    pytest.importorskip("sklearn")
    if not SCRIPT.exists():
        pytest.skip("needs the source tree")
    spec = importlib.util.spec_from_file_location("edgefast_attacks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def accuracy(rule: str, attack: str, split: str = "IID") -> float:
    a = attacks()
    return a.train((a.RULES | a.POLICIES)[rule], attack, split, seed=0, rounds=100)


# ---- rules under attack ----------------------------------------------------------------------------------------------


def test_nothing_is_lost_without_an_attack() -> None:
    for rule in ("mean", "median", "trimmed mean", "multi-krum", "geometric median", "centred clipping"):
        assert accuracy(rule, "none") > 0.85, rule


@pytest.mark.parametrize("attack", ["sign flip ×10", "IPM 10", "Gaussian"])
def test_the_mean_fails_and_robust_rules_hold(attack: str) -> None:
    assert accuracy("mean", attack) < 0.3
    for rule in ("median", "trimmed mean", "multi-krum", "geometric median", "nnm + trimmed mean"):
        assert accuracy(rule, attack) > 0.75, rule


def test_one_nan_ends_a_mean_that_lets_it_through() -> None:
    assert accuracy("mean, nonfinite=propagate", "Inf/NaN") < 0.3
    for rule in ("mean", "median", "trimmed mean", "krum", "bulyan", "geometric median", "bucketing + krum"):
        assert accuracy(rule, "Inf/NaN") > 0.75, rule
    sent = np.zeros((3, 2))
    sent[1, 0] = np.nan
    with pytest.raises(NonFiniteUpdate, match="client 1"):
        weighted_mean(sent)


def test_krum_loses_minorities_and_mixing_mends_it() -> None:
    split = "Dirichlet 0.3"
    alone, mean = accuracy("krum", "none", split), accuracy("mean", "none", split)
    assert alone < mean - 0.1
    for mended in ("nnm + krum", "bucketing + krum"):
        assert accuracy(mended, "none", split) > alone + 0.05, mended


def test_a_little_is_enough_where_honest_clients_differ() -> None:
    split = "Dirichlet 0.3"
    lost = {
        rule: accuracy(rule, "none", split) - accuracy(rule, "ALIE 1.5", split)
        for rule in ("trimmed mean", "meamed", "bulyan", "multi-krum")
    }
    assert sum(v > 0.02 for v in lost.values()) >= 3, lost


def test_attacks_follow_their_formulas() -> None:
    a = attacks()
    rng = np.random.default_rng(0)
    honest, own = rng.normal(size=(16, 50)).astype(np.float32), rng.normal(size=(4, 50)).astype(np.float32)
    before = honest.copy(), own.copy()
    memory: dict[str, Any] = {}
    sent = {name: act(a.View(honest, own, rng, memory)) for name, act in a.ATTACKS.items() if act is not None}
    assert all(s.shape == own.shape for s in sent.values())
    mean, deviation = honest.mean(0), honest.std(0, ddof=1)
    np.testing.assert_allclose(sent["IPM 10"], np.tile(-10 * mean, (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(sent["ALIE 1.5"], np.tile(mean - 1.5 * deviation, (4, 1)), rtol=1e-4, atol=1e-6)
    # Values of Baruch et al.'s formula.
    z = [round(a.alie_z(*pair), 4) for pair in ((11, 2), (20, 4), (25, 5), (50, 10), (50, 24))]
    assert z == [0.1397, 0.1573, 0.2533, 0.2533, 1.4261]
    assert any((sent["mimic"] == row).all() for row in honest)
    assert 100 < sent["Gaussian"].std() < 300
    assert sorted(np.isfinite(sent["Inf/NaN"]).all(1)) == [False] * 4
    for array, copy in zip((honest, own), before, strict=True):
        assert (array == copy).all()


def test_mimic_finds_the_client_that_stands_out() -> None:
    a = attacks()
    rng = np.random.default_rng(1)
    memory: dict[str, Any] = {}
    for _ in range(12):
        honest = rng.normal(size=(16, 30)) * 0.1
        honest[5, :3] += 3
        sent = a.mimic(a.View(honest, honest[:4], rng, memory))
    assert (sent == honest[5]).all()


# ---- FedAvg and gradient descent -------------------------------------------------------------------------------------


def softmax_gradient(X: np.ndarray, y: np.ndarray, weights: np.ndarray, grid: float | None) -> np.ndarray:
    """Sum over the rows; residuals rounded to multiples of the grid, if any."""
    scores = X @ weights
    residual = np.exp(scores - scores.max(1, keepdims=True))
    residual /= residual.sum(1, keepdims=True)
    residual[np.arange(len(y)), y] -= 1
    return X.T @ (residual if grid is None else np.round(residual / grid) * grid)


def federated(shards: list[np.ndarray], X: np.ndarray, y: np.ndarray, rounds: int, step: float, **options: Any) -> Any:
    grid, accumulate, stream = options["grid"], options["accumulate"], options.get("stream", False)
    weights = np.zeros((X.shape[1], 10))
    for _ in range(rounds):
        local = [weights - step * (softmax_gradient(X[s], y[s], weights, grid) / len(s)) for s in shards]
        rows = [len(s) for s in shards]
        if stream:
            acc = MeanAccumulator(weights, accumulate=accumulate)
            for k in reversed(range(len(shards))):
                acc.add(local[k], rows[k])
            weights = acc.result()
        else:
            weights = weighted_mean(local, rows, accumulate=accumulate)
    return weights


def central(X: np.ndarray, y: np.ndarray, rounds: int, step: float, grid: float | None) -> np.ndarray:
    weights = np.zeros((X.shape[1], 10))
    for _ in range(rounds):
        weights = weights - step * (softmax_gradient(X, y, weights, grid) / len(y))
    return weights


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("sklearn")
    from edgefast.federated import digits as load

    data = load()
    return data.X.astype(np.float64) / 16, np.asarray(data.y).astype(np.int64)


@pytest.mark.parametrize("accumulate", ["float64", "reproducible"])
@pytest.mark.parametrize("stream", [False, True])
def test_fedavg_of_one_full_batch_step_is_gradient_descent(backend: str, accumulate: str, stream: bool) -> None:
    """Bit for bit, where every operation is exact: with residuals on a grid of 2^-20 and shards of 2^k rows no sum,
    quotient or product below needs more than 53 bits, whatever its order."""
    X, y = digits()
    X, y = X[:1024], y[:1024]
    sizes = [512, 256, 128, 64, 32, 32]
    shards = np.split(np.random.default_rng(0).permutation(1024), np.cumsum(sizes)[:-1])
    found = federated(shards, X, y, 20, 0.5, grid=2.0**-20, accumulate=accumulate, stream=stream)
    expected = central(X, y, 20, 0.5, 2.0**-20)
    assert np.abs(expected).max() > 0.1
    assert found.tobytes() == expected.tobytes()


def test_and_up_to_rounding_for_any_shards(backend: str) -> None:
    """Plain float64: a round differs by the roundings of its sums, a few units in the largest weight's last place."""
    X, y = digits()
    cuts = np.sort(np.random.default_rng(1).choice(len(y), 19, replace=False))
    shards = np.split(np.random.default_rng(2).permutation(len(y)), cuts)
    for rounds in (1, 20):
        found = federated(shards, X, y, rounds, 0.5, grid=None, accumulate="float64")
        expected = central(X, y, rounds, 0.5, None)
        assert np.abs(found - expected).max() <= 4 * rounds * np.spacing(np.abs(expected).max())
