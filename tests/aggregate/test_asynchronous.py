"""FedBuff, gossip and FedProx's term."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.aggregate import (
    FedBuff,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    fedprox_gradient,
    gossip,
    metropolis_mixing,
)


def ring(n: int) -> np.ndarray[Any, Any]:
    linked = np.zeros((n, n), bool)
    for i in range(n):
        linked[i, (i + 1) % n] = linked[(i + 1) % n, i] = True
    return linked


@pytest.mark.parametrize("normalize", ["count", "weight"])
def test_fedbuff_is_the_papers_rule(backend: str, normalize: Any) -> None:
    rng = np.random.default_rng(0)
    x = {"w": rng.standard_normal(30), "b": rng.standard_normal(3).astype(np.float32), "n": np.array(5)}
    server = FedBuff(x, 3, lr=0.5, normalize=normalize)
    expected = x["w"].copy()
    versions = [0, 0, 0, 1, 0, 1, 2, 1, 2]
    for begin in range(0, 9, 3):
        deltas = rng.standard_normal((3, 30))
        weights = rng.integers(1, 5, 3).astype(float)
        scales = [(1 + server.version - v) ** -0.5 * w for v, w in zip(versions[begin:], weights, strict=False)]
        for i in range(3):
            d = {"w": deltas[i], "b": np.ones(3, np.float32), "n": np.array(2)}
            assert server.add(d, versions[begin + i], weights[i]) == (i == 2)
        divisor = 3 if normalize == "count" else sum(scales)
        expected += 0.5 * sum(s * d for s, d in zip(scales, deltas, strict=True)) / divisor
        np.testing.assert_allclose(server.model["w"], expected, rtol=1e-13)
    assert server.version == 3
    assert server.pending == 0
    assert server.model["b"].dtype == np.float32
    np.testing.assert_array_equal(x["n"], 5)


def test_fedbuff_refuses_and_keeps() -> None:
    server = FedBuff({"w": np.zeros(3)}, 2)
    for delta, version, error in (
        ({"w": np.zeros(4)}, 0, ShapeMismatch),
        ({"v": np.zeros(3)}, 0, StructureMismatch),
        ({"w": np.full(3, np.nan)}, 0, NonFiniteUpdate),
        ({"w": np.zeros(3)}, 1, ValueError),
        ({"w": np.zeros(3)}, -1, ValueError),
        ({"w": np.zeros(3)}, "0", TypeError),
    ):
        with pytest.raises(error):
            server.add(delta, version)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="above 0"):
        server.add({"w": np.zeros(3)}, 0, weight=0)
    assert server.pending == 0
    with pytest.raises(ValueError, match="staleness: expected a finite weight"):
        FedBuff(np.zeros(2), 1, staleness=lambda _: -1.0).add(np.zeros(2), 0)
    for make in (
        lambda: FedBuff(np.zeros(2), 0),
        lambda: FedBuff(np.zeros(2), 1, lr=0),
        lambda: FedBuff(np.zeros(2), 1, normalize="mean"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="expected"):
            make()
    assert repr(FedBuff(np.zeros(2), 3)) == "<FedBuff of 3 updates a step: version 0, 0 pending>"
    with pytest.raises(TypeError, match="buffer_size"):
        FedBuff(np.zeros(2), 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="staleness"):
        FedBuff(np.zeros(2), 1, staleness=0.5)  # type: ignore[arg-type]


@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_metropolis_is_doubly_stochastic(n: int, seed: int, share: float) -> None:
    upper = np.triu(np.random.default_rng(seed).random((n, n)) < share, 1)
    mixing = metropolis_mixing(upper | upper.T)
    np.testing.assert_array_equal(mixing, mixing.T)
    np.testing.assert_allclose(mixing.sum(axis=0), 1, atol=1e-14)
    assert (mixing >= 0).all()
    assert ((mixing > 0) | ~(upper | upper.T)).all()


def test_gossip_reaches_the_mean_of_all(backend: str) -> None:
    rng = np.random.default_rng(1)
    models = [{"w": rng.standard_normal(20), "b": rng.standard_normal(2).astype(np.float32)} for _ in range(6)]
    keep = [m["w"].copy() for m in models]
    mixing = metropolis_mixing(ring(6))
    mean = np.mean(keep, axis=0)
    now: list[Any] = models
    spread = [np.inf]
    for _ in range(60):
        now = gossip(now, mixing)
        np.testing.assert_allclose(np.mean([m["w"] for m in now], axis=0), mean, atol=1e-12)
        spread.append(max(np.abs(m["w"] - mean).max() for m in now))
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 1e-6
    assert now[0]["b"].dtype == np.float32
    for m, w in zip(models, keep, strict=True):
        np.testing.assert_array_equal(m["w"], w)
    np.testing.assert_allclose(gossip(models, mixing)[2]["w"], np.tensordot(mixing[2], np.stack(keep), 1), atol=1e-14)


def test_gossip_refuses() -> None:
    models = [np.zeros(2), np.ones(2)]
    for mixing, message in (
        ([[1.0]], "shape"),
        ([[0.5, 0.6], [0.5, 0.5]], "row 0 sums to"),
        ([[1.5, -0.5], [0.5, 0.5]], ">= 0"),
        ([[np.nan, 1], [0.5, 0.5]], "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            gossip(models, mixing)
    with pytest.raises(ShapeMismatch):
        gossip([np.zeros(2), np.zeros(3)], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match="square"):
        metropolis_mixing([[0, 1]])
    with pytest.raises(ValueError, match="symmetric"):
        metropolis_mixing([[0, 1], [0, 0]])


def test_fedprox() -> None:
    rng = np.random.default_rng(2)
    g, x, c = ({"w": rng.standard_normal(9).astype(np.float32), "b": rng.standard_normal(2)} for _ in range(3))
    got = fedprox_gradient(g, x, c, 0.3)
    for key in g:
        wide = g[key].astype(float) + 0.3 * (x[key].astype(float) - c[key].astype(float))
        np.testing.assert_array_equal(got[key], wide.astype(g[key].dtype))
    np.testing.assert_array_equal(fedprox_gradient(g, x, c, 0)["w"], g["w"])
    assert fedprox_gradient(g, x, c, 0.3, out=g) is g
    np.testing.assert_array_equal(g["w"], got["w"])
    with pytest.raises(ValueError, match="mu: expected a finite weight >= 0"):
        fedprox_gradient(g, x, c, -1)
    with pytest.raises(StructureMismatch):
        fedprox_gradient(g, {"w": x["w"]}, c, 1)
