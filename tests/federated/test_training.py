"""Standardisation is exact under every sketch; the trainer follows the gradient; shards are a partition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.federated import InputError, dirichlet_partition
from edgefast.federated.partition import stratified_split
from edgefast.federated.training import Scaler, SoftmaxTrainer, log_softmax
from edgefast.sketch import SketchOperator


@pytest.mark.parametrize("d", [1, 7, 8, 9, 31, 33, 64, 97, 1000])
@pytest.mark.parametrize("kind", ["sparse_stack", "srht", "rademacher"])
def test_sketches_of_scaled_rows_are_exact(backend: str, kind: str, d: int) -> None:
    rng = np.random.default_rng(d)
    X = rng.normal(size=(9, d)) * rng.choice([1e-6, 1.0, 1e6], d) + rng.choice([0.0, 1e3], d)
    X[0] *= 1e9  # clipped
    scaler = Scaler.fit([X[:4], X[4:]])
    fixed = scaler.transform(X)
    assert fixed.dtype == np.float32
    assert np.abs(fixed).max() <= 8
    k = min(d, 16)
    operator = SketchOperator(kind, d, k, seed=d)
    signs = np.sign(operator.toarray()).astype(np.int64)
    integers = (fixed.astype(np.float64) * 2.0**scaler.bits).astype(np.int64)
    assert np.array_equal(integers * 2.0**-scaler.bits, fixed)
    exact = (integers @ signs.T) * 2.0**-scaler.bits  # Python-exact: int64 sums, then a power of two
    expected = exact.astype(np.float32) * np.float32(operator.scale)
    assert np.array_equal(operator.transform(fixed), expected)


def test_scaler_statistics_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(3, 5, (300, 4))
    X[:, 2] = 7.1  # constant: its mean rounds, it still has to become 0
    scaler = Scaler.fit([X[:10], X[10:11], X[11:]])
    np.testing.assert_allclose(scaler.mean, X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.deviation[[0, 1, 3]], X.std(axis=0)[[0, 1, 3]], rtol=1e-12)
    assert scaler.deviation[2] == 0
    fixed = scaler.transform(X)
    assert not fixed[:, 2].any()
    np.testing.assert_allclose(fixed.std(axis=0)[[0, 1, 3]], 1, atol=1e-3)


def test_wide_data_goes_to_float64() -> None:
    d = 2**15 + 1
    scaler = Scaler(np.zeros(d), np.ones(d))
    assert scaler.dtype is np.float64
    assert scaler.bits == 52 - 16 - 3


def test_log_softmax_does_not_overflow() -> None:
    logs = log_softmax(np.array([[1e30, 0, -1e30], [-700.0, -700, -700], [0, 1, 2]]))
    assert np.isfinite(logs[:2, 0]).all()
    np.testing.assert_allclose(np.exp(logs).sum(axis=1), 1)


def test_the_trainer_steps_along_the_negative_gradient() -> None:
    rng = np.random.default_rng(1)
    Z, y = rng.normal(size=(5, 3)), np.array([0, 1, 1, 3, 2])
    start = {"weights": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}

    def loss(weights: np.ndarray, bias: np.ndarray) -> float:
        return -float(log_softmax(Z @ weights + bias)[np.arange(5), y].mean())

    trainer = SoftmaxTrainer(start, 0.25)
    trainer.train(Z, y)
    assert trainer.rows == 5
    assert trainer.loss == pytest.approx(5 * loss(**start))
    for key in start:
        for index in np.ndindex(start[key].shape):
            shifted = {k: v.copy() for k, v in start.items()}
            shifted[key][index] += 1e-6
            up = loss(**shifted)
            shifted[key][index] -= 2e-6
            slope = (up - loss(**shifted)) / 2e-6
            assert trainer.model[key][index] == pytest.approx(start[key][index] - 0.25 * slope, abs=1e-8)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), st.floats(0.01, 100), st.integers(0, 9)
)
def test_shards_are_a_partition(labels: list[int], devices: int, alpha: float, seed: int) -> None:
    y = np.array(labels)
    if devices > len(y):
        with pytest.raises(InputError, match="devices: expected at most one per training row"):
            dirichlet_partition(y, devices, alpha=alpha, seed=seed)
        return
    shards = dirichlet_partition(y, devices, alpha=alpha, seed=seed)
    assert len(shards) == devices
    assert all(len(s) and np.all(np.diff(s) > 0) for s in shards)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(y)))
    again = dirichlet_partition(y, devices, alpha=alpha, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


def test_small_alpha_makes_devices_differ_and_large_alpha_makes_them_alike() -> None:
    y = np.arange(5000) % 10

    def largest_class_share(alpha: float) -> float:
        shards = dirichlet_partition(y, 10, alpha=alpha, seed=3)
        return float(np.mean([np.bincount(y[s], minlength=10).max() / len(s) for s in shards]))

    assert largest_class_share(0.1) > 0.5
    assert largest_class_share(1000) < 0.13


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_the_split_keeps_every_class_for_training(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels)
    train, test = stratified_split(y, fraction, seed=seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(y)))
    assert set(y[train].tolist()) == set(labels)
    if len(set(labels)) < len(labels):
        assert len(test)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": np.zeros((4, 2))}, InputError, "labels: expected one label a row, shape (n,), got shape (4, 2)"),
        ({"n_devices": 0}, InputError, "n_devices: expected at least 1, got 0"),
        ({"n_devices": 2.5}, TypeError, "n_devices: expected an integer, got float"),
        ({"alpha": "0.3"}, TypeError, "alpha: expected a number, got str"),
        ({"alpha": np.inf}, InputError, "alpha: expected a number above 0 and below inf, got inf"),
        ({"seed": 2**64}, InputError, "seed: expected an integer from 0 to"),
    ],
)
def test_bad_partition(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        dirichlet_partition(**{"labels": np.arange(4), "n_devices": 2, **change})
    assert message in str(caught.value)
