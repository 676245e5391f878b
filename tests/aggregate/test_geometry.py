"""Geometric median, centred clipping, NNM, bucketing and norm clipping against their formulas in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.aggregate import (
    GramAccumulator,
    NonFiniteUpdate,
    ShapeMismatch,
    TooFewUpdates,
    ZeroWeightError,
    bucketing,
    centered_clip,
    clip_by_global_norm,
    geometric_median,
    nnm,
    weighted_mean,
    weiszfeld_weights,
)


def reference_median(x: np.ndarray, alpha: np.ndarray, eps: float, steps: int, ftol: float, zero: bool) -> np.ndarray:
    """RFA's smoothed Weiszfeld (Pillutla et al. 2022, algorithm 2), reading the data in every step."""
    z = np.zeros(x.shape[1]) if zero else alpha @ x / alpha.sum()
    objective = (alpha * np.linalg.norm(x - z, axis=1)).sum()
    for _ in range(steps):
        beta = alpha / np.maximum(eps, np.linalg.norm(x - z, axis=1))
        z = beta @ x / beta.sum()
        before, objective = objective, (alpha * np.linalg.norm(x - z, axis=1)).sum()
        if ftol and abs(before - objective) <= ftol * objective:
            break
    return z


def reference_clip(x: np.ndarray, v: np.ndarray, tau: float, steps: int) -> np.ndarray:
    for _ in range(steps):
        norms = np.linalg.norm(x - v, axis=1)
        v = v + ((x - v) * np.minimum(1, tau / np.maximum(norms, 1e-300))[:, None]).mean(0)
    return v


def cloud(count: int, size: int, seed: int = 0, bad: int = 0, far: float = 1e3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, size)) + 5
    x[:bad] += far
    return x


# ---- geometric median ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 33])
@pytest.mark.parametrize("start", ["mean", "zero"])
def test_weiszfeld_in_the_space_of_coefficients(backend: str, count: int, start: Any) -> None:
    x = cloud(count, 120, seed=count, bad=count // 3)
    alpha = np.random.default_rng(1).integers(1, 9, count).astype(float)
    for steps in (1, 4, 30):
        found = geometric_median(list(x), alpha, max_iter=steps, ftol=0, start=start)
        np.testing.assert_allclose(found, reference_median(x, alpha, 1e-5, steps, 0, start == "zero"), rtol=1e-9)
    found = geometric_median(list(x), alpha, max_iter=50, ftol=1e-3)
    np.testing.assert_allclose(found, reference_median(x, alpha, 1e-5, 50, 1e-3, False), rtol=1e-9)


@pytest.mark.parametrize("far", [1e3, 1e9, 1e18])
def test_a_minority_cannot_move_it_far(backend: str, far: float) -> None:
    x = cloud(11, 200, bad=4, far=far).astype(np.float32)
    honest = x[4:].astype(np.float64)
    value, info = geometric_median(list(x), max_iter=300, ftol=0, return_info=True)
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    # Lopuhaa and Rousseeuw 1991: within 2 (n - f) / (n - 2 f) radii of the honest.
    assert np.linalg.norm(value - honest.mean(0)) <= 2 * 7 / 3 * radius
    assert info.weights[:4].max() < 0.1
    assert info.scores is not None
    np.testing.assert_allclose(info.scores, np.linalg.norm(x - value.astype(np.float64), axis=1), rtol=1e-3)
    assert math.isclose(info.weights.sum(), 1)


@pytest.mark.parametrize("far", [1e3, 1e18, 1e30])
def test_from_the_median_few_steps_are_enough(backend: str, far: float) -> None:
    x = cloud(11, 200, bad=4, far=far).astype(np.float32)
    honest = x[4:].astype(np.float64)
    found = geometric_median(list(x), start="median")
    radius = np.linalg.norm(honest - honest.mean(0), axis=1).max()
    assert np.linalg.norm(found - honest.mean(0)) <= 2 * 7 / 3 * radius
    z = np.median(x.astype(np.float64), axis=0)
    for _ in range(4):
        beta = 1 / np.maximum(1e-5, np.linalg.norm(x - z, axis=1))
        z = beta @ x.astype(np.float64) / beta.sum()
    np.testing.assert_allclose(geometric_median(list(x), start="median", ftol=0), z, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("outlier", [1.0, 1e5])
def test_converging_onto_an_update_keeps_what_cancels_in_the_gram_matrix(
    backend: str, scale: float, outlier: float
) -> None:
    # An update of more than half the weight is the geometric median: its distance, a difference of equal numbers, goes
    # to zero. The float64 reference reads the data in every step.
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(5, 700)) * scale).astype(np.float32)
    x[4] *= np.float32(outlier)
    alpha, spread = np.array([5.0, 1, 1, 1, 1]), scale * math.sqrt(700)
    for steps in (4, 40):
        expected = reference_median(x.astype(np.float64), alpha, 1e-12 * scale, steps, 0, False)
        found = geometric_median(list(x), alpha.tolist(), eps=1e-12 * scale, max_iter=steps, ftol=0)
        assert np.linalg.norm(found - expected) <= 5 * 2.0**-24 * spread
    assert np.linalg.norm(found - x[0]) <= 5 * 2.0**-24 * spread


def test_objective_falls(backend: str) -> None:
    x = cloud(9, 50, bad=2)

    def objective(z: np.ndarray) -> float:
        return float(np.linalg.norm(x - z, axis=1).sum())

    values = [objective(geometric_median(list(x), max_iter=k, ftol=0)) for k in range(8)]
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))
    assert geometric_median(list(x), max_iter=0).tobytes() == weighted_mean(list(x), [1 / 9] * 9).tobytes()


@given(st.permutations(range(8)), st.integers(0, 2**32))
def test_shares_follow_a_permutation_bit_for_bit(backend: str, order: list[int], seed: int) -> None:
    x = cloud(8, 20, seed)
    _, info = geometric_median(list(x), return_info=True)
    _, moved = geometric_median([x[k] for k in order], return_info=True)
    assert moved.weights.tobytes() == info.weights[list(order)].tobytes() or np.allclose(
        moved.weights, info.weights[list(order)], rtol=1e-15, atol=0
    )


def test_same_bits_everywhere(backend: str) -> None:
    updates = [row.astype(np.float32) for row in cloud(7, 70_001)]
    with ef.using("numpy"):
        expected = [geometric_median(updates).tobytes(), centered_clip(updates, 3.0, n_iter=3).tobytes()]
    for threads in (1, 3):
        assert geometric_median(updates, num_threads=threads).tobytes() == expected[0]
        assert centered_clip(updates, 3.0, n_iter=3, num_threads=threads).tobytes() == expected[1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 9, 10, 15, 16, 17])
def test_gram_of_odd_values_everywhere(backend: str, count: int) -> None:
    rng = np.random.default_rng(count)
    size = 512 * 3 + 97
    values = np.array([0.0, -0.0, 1.5, -1.5, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    x = np.where(rng.random((count, size)) < 0.7, rng.choice(values, (count, size)), rng.normal(size=(count, size)))
    x = x.astype(np.float32)
    for bad in (None, np.nan, -np.nan, np.inf, -np.inf):
        if bad is not None:
            x[count // 2, 512 + 7] = x[0, 512 * 3 + 50] = bad  # in a whole segment, and in the rest
        rows = [[row] for row in x]
        found, expected = np.zeros((2, count, count))
        backends.kernels().pair_sums(rows, None, found, 2)
        with ef.using("numpy"):
            backends.kernels().pair_sums(rows, None, expected, 1)
        if bad is None:
            np.testing.assert_array_equal(found, expected)
        assert sorted({0, count // 2}) == np.flatnonzero(~np.isfinite(found.diagonal())).tolist() or bad is None


def test_identical_updates(backend: str) -> None:
    u = [{"a": np.array([0.1, -3, 7e7], np.float32), "n": np.array([3])}] * 5
    assert geometric_median(u)["a"].tobytes() == u[0]["a"].tobytes()
    assert geometric_median(u)["n"].tolist() == [3]
    assert centered_clip(u, 1.0, center=u[0])["a"].tobytes() == u[0]["a"].tobytes()


def test_weights_from_an_accumulator(backend: str) -> None:
    x = cloud(9, 300, bad=2)
    acc = GramAccumulator(9)
    acc.add(list(x[:, :100]))
    acc.add(list(x[:, 100:]))
    found = weiszfeld_weights(acc.gram(), max_iter=20)
    _, info = geometric_median(list(x), max_iter=20, return_info=True)
    np.testing.assert_allclose(found, info.weights, rtol=1e-9)


# ---- centred clipping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 20])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.5, 30.0, 1e6])
def test_centered_clip_follows_the_formula(backend: str, count: int, steps: int, tau: float) -> None:
    x = cloud(count, 90, seed=count, bad=count // 4)
    for center in (None, np.random.default_rng(9).normal(size=90)):
        start = np.zeros(90) if center is None else center
        found = centered_clip(list(x), tau, center=center, n_iter=steps)
        np.testing.assert_allclose(found, reference_clip(x, start, tau, steps), rtol=1e-9, atol=1e-9)


def test_no_update_moves_it_by_more_than_its_share(backend: str) -> None:
    center = np.zeros(50)
    for value in (1e10, 1e100):
        honest = [np.zeros(50)] * 9
        found = centered_clip([*honest, np.full(50, value)], 2.0, center=center)
        assert np.linalg.norm(found) <= 2.0 / 10 * (1 + 1e-12)


def test_center_has_to_fit(backend: str) -> None:
    with pytest.raises(ShapeMismatch, match=r"client center: expected shape \(2,\), got \(3,\)"):
        centered_clip([np.ones(2)], 1.0, center=np.ones(3))
    with pytest.raises(NonFiniteUpdate, match="client center: expected finite values"):
        centered_clip([np.ones(2)], 1.0, center=np.array([1, np.nan]))
    inside = [np.ones(2), np.ones(2)]
    assert centered_clip(inside, 10.0, center=np.zeros(2), out=inside[0]).tolist() == [1.0, 1.0]


# ---- before a rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "f"), [(1, 0), (3, 1), (5, 2), (10, 3), (33, 10)])
def test_nnm_follows_the_formula(backend: str, count: int, f: int) -> None:
    x = cloud(count, 5000, seed=count).astype(np.float32)
    found = nnm(list(x), f)
    distances = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1)
    for i in range(count):
        members = sorted(np.argsort(distances[i], kind="stable")[: count - f].tolist())
        assert i in members
        assert found[i].tobytes() == weighted_mean([x[k] for k in members]).tobytes()


def test_nnm_pulls_honest_updates_together(backend: str) -> None:
    x = cloud(12, 40, bad=3)
    mixed = np.array(nnm(list(x), 3)[3:])
    honest = x[3:]
    assert mixed.var(0).sum() < honest.var(0).sum()
    assert abs(mixed.mean() - honest.mean()) < 1  # the far ones are nobody's neighbours


def test_bucketing(backend: str) -> None:
    updates = [{"w": np.array([float(1 << k)]), "n": np.array([k])} for k in range(7)]
    found = bucketing(updates, 2, seed=5)
    assert len(found) == 4
    sizes = [2, 2, 2, 1]
    sums = [round(float(b["w"][0]) * s) for b, s in zip(found, sizes, strict=True)]
    assert sum(sums) == 127  # every update once
    assert [bin(s).count("1") for s in sums] == sizes
    again = bucketing(updates, 2, seed=5)
    assert [b["w"][0] for b in again] == [b["w"][0] for b in found]
    orders = {tuple(b["w"][0] for b in bucketing(updates, 2, seed=s)) for s in range(20)}
    assert len(orders) > 15
    # Frozen: the permutation is the same on every platform and version.
    assert sums == GOLDEN_BUCKETS
    assert [b["w"][0] for b in bucketing(updates, 1, seed=0)] != [u["w"][0] for u in updates]
    assert len(bucketing(updates, 100, seed=0)) == 1


GOLDEN_BUCKETS = [5, 18, 40, 64]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_clipping_follows_the_formula(backend: str, dtype: str) -> None:
    x = cloud(6, 700).astype(dtype)
    x[3] = 0
    before = x.tobytes()
    clipped, norms = clip_by_global_norm(list(x), 140.0, return_norms=True)
    np.testing.assert_allclose(norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-13)
    for row, found, norm in zip(x, clipped, norms, strict=True):
        factor = min(1.0, 140.0 / norm) if norm else 1.0
        assert found.tobytes() == (row.astype(np.float64) * factor).astype(dtype).tobytes()
        assert np.linalg.norm(found.astype(np.float64)) <= 140.0 * (1 + 2 * float(np.finfo(dtype).eps))
    assert x.tobytes() == before
    assert clipped[3].tolist() == [0] * 700


def test_one_norm_over_all_tensors(backend: str) -> None:
    update = {"a": np.array([3.0]), "b": [np.array([4.0], np.float32)], "n": np.array([1000])}
    (found,) = clip_by_global_norm([update], 2.5, ints="skip")
    assert found["a"].tolist() == [1.5]
    assert found["b"][0].tolist() == [2.0]
    assert found["n"].tolist() == [1000]
    out = [{"a": np.zeros(1), "b": [np.zeros(1, np.float32)], "n": np.zeros(1, int)}]
    assert clip_by_global_norm([update], 2.5, ints="skip", out=out)[0] is out[0]
    assert out[0]["a"][0] == 1.5


def test_nonfinite_updates(backend: str) -> None:
    updates = [np.full(30, float(k)) for k in range(6)]
    updates[1][7] = np.nan
    rules: list[Callable[..., Any]] = [
        geometric_median,
        lambda u, **o: centered_clip(u, 1.0, **o),
        lambda u, **o: centered_clip(u, 1.0, n_iter=2, **o),
        lambda u, **o: nnm(u, 1, **o),
        lambda u, **o: bucketing(u, 2, seed=0, **o),
        lambda u, **o: clip_by_global_norm(u, 1.0, **o),
    ]
    rest = updates[:1] + updates[2:]
    for rule in rules:
        with pytest.raises(NonFiniteUpdate, match="client 1: expected finite values, got nan"):
            rule(updates)
        found, expected = rule(updates, nonfinite="drop"), rule(rest)
        assert np.array(found).tobytes() == np.array(expected).tobytes()
    _, norms = clip_by_global_norm(updates, 1.0, nonfinite="drop", return_norms=True)
    assert np.isnan(norms[1])
    assert not np.isnan(norms[[0, 2, 3, 4, 5]]).any()


TWO = [np.ones(2), np.zeros(2)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nnm(TWO, 1), TooFewUpdates, r"nnm: expected at least 3 updates \(2f < K with f=1\), got 2"),
        (lambda: nnm(TWO, -1), ValueError, "f: expected an integer >= 0, got -1"),
        (lambda: nnm(TWO, 0, out=[TWO[0]]), ValueError, "out: expected a list of 2 updates, got 1"),
        (lambda: nnm(TWO, 0, out=TWO[0]), ValueError, "out: expected a list of 2 updates, got a ndarray"),
        (lambda: bucketing(TWO, 0, seed=0), ValueError, "s: expected an integer >= 1, got 0"),
        (lambda: bucketing(TWO, 1, seed=-1), ValueError, "seed: expected an integer >= 0, got -1"),
        (lambda: bucketing(TWO, 1, seed=2**64), ValueError, r"seed: expected an integer below 2\*\*64"),
        (lambda: clip_by_global_norm(TWO, 0), ValueError, "max_norm: expected a finite number > 0, got 0"),
        (lambda: clip_by_global_norm(TWO, "1"), TypeError, "max_norm: expected a number, got str"),  # type: ignore[arg-type]
        (lambda: clip_by_global_norm([np.full(2, 1e200)], 1.0), OverflowError, "squared distances exceed float64"),
        (lambda: centered_clip(TWO, -1.0), ValueError, "tau: expected a finite number > 0"),
        (lambda: centered_clip(TWO, math.nan), ValueError, "tau: expected a finite number > 0, got nan"),
        (lambda: centered_clip(TWO, 1.0, n_iter=0), ValueError, "n_iter: expected an integer >= 1, got 0"),
        (lambda: geometric_median(TWO, eps=0), ValueError, "eps: expected a finite number > 0"),
        (lambda: geometric_median(TWO, ftol=-1), ValueError, "ftol: expected a finite number >= 0"),
        (lambda: geometric_median(TWO, max_iter=-1), ValueError, "max_iter: expected an integer >= 0"),
        (lambda: geometric_median(TWO, start="x"), ValueError, "start: expected one of mean, median, zero"),  # type: ignore[arg-type]
        (lambda: geometric_median(TWO, max_iter=0, start="zero"), ValueError, "max_iter: expected at least 1"),
        (lambda: geometric_median(TWO, [0, 0]), ZeroWeightError, "expected at least one weight above 0, got 2 zeros"),
        (lambda: geometric_median(TWO, [1]), ValueError, "weights: expected 2 weights"),
        (lambda: geometric_median(TWO, nonfinite="propagate"), ValueError, "nonfinite: expected one of raise, drop"),  # type: ignore[arg-type]
        (lambda: geometric_median([np.full(2, 1e200), -np.full(2, 1e200)]), OverflowError, "exceed float64"),
        (
            lambda: weiszfeld_weights(np.zeros((2, 3))),
            ValueError,
            r"gram: expected a square matrix, got shape \(2, 3\)",
        ),
        (lambda: weiszfeld_weights(np.full((2, 2), np.nan)), ValueError, "gram: expected finite values"),
        (lambda: weiszfeld_weights(np.eye(2), [0, 0]), ZeroWeightError, "expected at least one weight above 0"),
    ],
)
def test_what_cannot_be_used(backend: str, call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_memory_mapped_updates(backend: str, tmp_path: Path) -> None:
    import tracemalloc

    count, size = 6, 400_000
    for k in range(count):
        (cloud(1, size, seed=k)[0]).astype(np.float32).tofile(tmp_path / f"{k}.bin")
    mapped = [np.memmap(tmp_path / f"{k}.bin", np.float32, "r") for k in range(count)]
    loaded = [np.array(m) for m in mapped]
    expected = [geometric_median(loaded), ef.aggregate.krum(loaded, 1), centered_clip(loaded, 1.0)]
    out = np.memmap(tmp_path / "out.bin", np.float32, "w+", shape=size)
    rules: list[Callable[[], Any]] = [
        lambda: geometric_median(mapped, out=out),
        lambda: ef.aggregate.krum(mapped, 1, out=out),
        lambda: centered_clip(mapped, 1.0, out=out),
    ]
    for rule, wanted in zip(rules, expected, strict=True):
        tracemalloc.start()
        try:
            assert rule() is out
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert np.asarray(out).tobytes() == wanted.tobytes()
        assert peak < 7 << 20 <= count * size * 4, peak
