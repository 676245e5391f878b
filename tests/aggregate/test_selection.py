"""Krum, Multi-Krum, Bulyan and distances against the published formulas, and against the peers where installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import (
    GramAccumulator,
    NonFiniteUpdate,
    StructureMismatch,
    TooFewUpdates,
    ZeroWeightError,
    bulyan,
    krum,
    krum_scores,
    multi_krum,
    pairwise_sq_distances,
    weighted_mean,
)


def exact_distance(a: np.ndarray, b: np.ndarray) -> Fraction:
    pairs = zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)
    return sum(((Fraction(x) - Fraction(y)) ** 2 for x, y in pairs), Fraction(0))


def reference_scores(updates: list[np.ndarray], closest: int) -> list[float]:
    """Blanchard et al. 2017, section 4, in Python."""
    scores = []
    for i, x in enumerate(updates):
        others = sorted(float(((x.astype(np.float64) - y) ** 2).sum()) for j, y in enumerate(updates) if j != i)
        scores.append(sum(others[:closest]))
    return scores


def cloud(count: int, size: int, seed: int, bad: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    updates = [rng.normal(size=size).astype(np.float32) for _ in range(count)]
    for k in range(bad):
        updates[k] += 100
    return updates


# ---- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "?"])
def test_distances_are_right_to_the_last_digits(backend: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 15, 17, 33, 65, 97, 1100):
        for count in (1, 2, 3, 4, 5, 7, 9):
            updates = [(rng.normal(size=size) * 50).astype(np.int64).astype(dtype) for _ in range(count)]
            if dtype.startswith("f"):
                updates = [(u + rng.normal(size=size)).astype(dtype) for u in updates]
            found = pairwise_sq_distances(updates)
            assert found.shape == (count, count)
            assert (found == found.T).all()
            assert (np.diag(found) == 0).all()
            for i in range(count):
                for j in range(i):
                    exact = exact_distance(updates[i], updates[j])
                    assert abs(Fraction(found[i, j]) - exact) <= exact * Fraction(1, 2**47)


def test_same_bits_everywhere(backend: str) -> None:
    rng = np.random.default_rng(1)
    updates = [
        {"a": rng.normal(size=70_001), "b": rng.normal(size=(3, 5)).astype(np.float16), "c": np.zeros(0)}
        for _ in range(6)
    ]
    with ef.using("numpy"):
        expected = pairwise_sq_distances(updates)
    for threads in (1, 2, 5):
        assert pairwise_sq_distances(updates, num_threads=threads).tobytes() == expected.tobytes()
    order = [3, 1, 5, 0, 2, 4]
    permuted = pairwise_sq_distances([updates[k] for k in order])
    assert permuted.tobytes() == expected[np.ix_(order, order)].tobytes()


@pytest.mark.parametrize("spread", [1e-4, 1e-5, 1e-6])
def test_close_updates_far_from_zero(backend: str, spread: float) -> None:
    # Where |x|^2 + |y|^2 - 2xy in float32 loses every digit.
    rng = np.random.default_rng(2)
    base = rng.normal(0, 0.05, 20_000)
    updates = [(base + spread * rng.normal(size=20_000)).astype(np.float32) for _ in range(10)]
    wide = np.array(updates, np.float64)
    expected = ((wide[:, None, :] - wide[None, :, :]) ** 2).sum(-1)
    np.testing.assert_allclose(pairwise_sq_distances(updates), expected, rtol=1e-13)
    scores = reference_scores(updates, 6)
    _, info = krum(updates, f=2, return_info=True)
    assert info.selected == (int(np.argmin(scores)),)
    x = np.array(updates)
    squares = (x**2).sum(1)
    expanded = squares[:, None] + squares[None, :] - 2 * x @ x.T
    error = abs(expanded - expected)[~np.eye(10, dtype=bool)] / expected[~np.eye(10, dtype=bool)]
    assert error.max() > 1e-3  # the expansion is that much off


def test_structures_and_integers_in_distances(backend: str) -> None:
    updates = [{"w": np.array([3.0 * k]), "n": np.array([4 * k])} for k in range(2)]
    assert pairwise_sq_distances(updates).tolist() == [[0, 25], [25, 0]]
    assert pairwise_sq_distances(updates, ints="skip").tolist() == [[0, 9], [9, 0]]
    assert pairwise_sq_distances(np.array([[0.0, 0], [3, 4]])).tolist() == [[0, 25], [25, 0]]


def test_distances_that_are_not_finite(backend: str) -> None:
    updates = [np.zeros(3), np.array([0, np.inf, 0]), np.ones(3), np.array([np.nan, 0, 0])]
    with pytest.raises(NonFiniteUpdate, match="client 1: expected finite values, got inf"):
        pairwise_sq_distances(updates)
    found = pairwise_sq_distances(updates, nonfinite="propagate")
    assert found[0, 2] == 3
    assert np.isinf(found[0, 1])
    assert np.isnan(found[3, 0])
    huge = pairwise_sq_distances([np.array([1e200]), np.array([-1e200])])
    assert np.isinf(huge[0, 1])
    assert huge[0, 0] == 0


# ---- Krum ------------------------------------------------------------------------------------------------------------

presets = pytest.mark.parametrize("neighbours", ["paper", "flower", "byzfl"])


def closest(count: int, f: int, neighbours: str) -> int:
    return count - f - 1 if neighbours == "byzfl" else max(1, count - f - 2)


@presets
@pytest.mark.parametrize(("count", "f"), [(3, 0), (5, 1), (7, 2), (10, 2), (11, 4), (33, 9)])
def test_krum_follows_the_formula(backend: str, neighbours: Any, count: int, f: int) -> None:
    updates = cloud(count, 50, seed=count, bad=f)
    scores = reference_scores(updates, closest(count, f, neighbours))
    value, info = krum(updates, f, neighbours=neighbours, return_info=True)
    best = int(np.argmin(scores))
    assert info.selected == (best,)
    assert best >= f
    assert value.tobytes() == updates[best].tobytes()
    np.testing.assert_allclose(info.scores, scores, rtol=1e-12)
    assert info.weights.tolist() == [1.0 if k == best else 0.0 for k in range(count)]
    for m in (1, 2, count):
        mean, chosen = multi_krum(updates, f, m, neighbours=neighbours, return_info=True)
        expected = np.argsort(scores, kind="stable")[:m].tolist()
        assert list(chosen.selected) == expected
        assert mean.tobytes() == (weighted_mean([updates[k] for k in sorted(expected)]) + np.float32(0)).tobytes()


def test_defaults_of_multi_krum(backend: str) -> None:
    updates = cloud(9, 20, seed=0)
    assert len(multi_krum(updates, 2, return_info=True)[1].selected) == 7
    assert len(multi_krum(updates, 2, neighbours="byzfl", return_info=True)[1].selected) == 7
    assert len(multi_krum(updates, 2, neighbours="flower", return_info=True)[1].selected) == 1


def test_weights_average_but_do_not_score(backend: str) -> None:
    updates = [np.array([x]) for x in (1.0, 2.0, 3.0, 2.5, 100.0)]
    value, info = multi_krum(updates, 1, 3, weights=[1, 1, 2, 5, 1000], return_info=True)
    assert set(info.selected) == {1, 2, 3}
    assert value[0] == (2 + 2 * 3 + 5 * 2.5) / 8
    assert info.weights.tolist() == [0, 1 / 8, 2 / 8, 5 / 8, 0]
    with pytest.raises(ZeroWeightError, match=r"multi_krum: expected weight above 0 among the chosen updates"):
        multi_krum(updates, 1, 1, weights=[0, 0, 0, 0, 1])


@given(st.integers(0, 2**32), st.data())
def test_the_order_of_the_updates_leaves_no_trace(backend: str, seed: int, data: Any) -> None:
    count = data.draw(st.integers(5, 12))
    f = data.draw(st.integers(0, (count - 3) // 2))
    updates = cloud(count, 9, seed)
    order = data.draw(st.permutations(range(count)))
    assert krum([updates[k] for k in order], f).tobytes() == krum(updates, f).tobytes()


@given(st.integers(0, 2**32), st.integers(-5, 5), st.booleans())
def test_choice_survives_translation_and_scaling(backend: str, seed: int, exponent: int, negate: bool) -> None:
    updates = [np.rint(u * 1000).astype(np.float64) for u in cloud(8, 9, seed)]
    _, info = krum(updates, 2, return_info=True)
    factor = (-1.0 if negate else 1.0) * 2.0**exponent
    _, moved = krum([u * factor + 1024 * factor for u in updates], 2, return_info=True)
    assert moved.selected == info.selected


def test_equal_scores_take_the_first(backend: str) -> None:
    updates = [np.array([x]) for x in (5.0, 5.0, 5.0, 5.0, 5.0)]
    assert krum(updates, 1, return_info=True)[1].selected == (0,)
    assert multi_krum(updates, 1, 3, return_info=True)[1].selected == (0, 1, 2)


def test_krum_copies_bit_for_bit(backend: str) -> None:
    updates = [{"w": np.array([-0.0, k / 100], np.float16), "n": np.array([k])} for k in range(5)]
    value, info = krum(updates, 1, ints="first", return_info=True)
    k = info.selected[0]
    assert value["w"].tobytes() == updates[k]["w"].tobytes()
    assert value["w"] is not updates[k]["w"]
    assert value["n"].tolist() == [k]
    assert krum(updates, 1, ints="skip")["n"].tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_bad_values(backend: str, value: float) -> None:
    updates = [np.full(20, 1 + k / 10) for k in range(7)]
    updates[2][3] = value
    if math.isfinite(value):
        assert krum(updates, 2, return_info=True)[1].selected != (2,)
        return
    with pytest.raises(NonFiniteUpdate, match="client 2"):
        krum(updates, 2)
    for options in ({"nonfinite": "drop"}, {"nonfinite": "propagate"}):
        for rule in (krum, multi_krum):
            found, info = rule(updates, 1, return_info=True, **options)
            assert 2 not in info.selected[:6] or rule is multi_krum
            assert info.dropped == ((2,) if options["nonfinite"] == "drop" else ())
            assert rule is multi_krum or np.isfinite(found).all()
    _, info = krum(updates, 1, nonfinite="drop", return_info=True)
    assert info.scores is not None
    assert np.isnan(info.scores[2])
    assert info.weights[2] == 0


# ---- Bulyan ----------------------------------------------------------------------------------------------------------


def reference_bulyan(updates: list[np.ndarray], f: int, iterative: bool) -> np.ndarray:
    n = len(updates)
    theta = n - 2 * f
    if iterative:
        left, chosen = list(range(n)), []
        for _ in range(theta):
            scores = reference_scores([updates[k] for k in left], max(1, len(left) - f - 2))
            chosen.append(left.pop(int(np.argmin(scores))))
    else:
        chosen = np.argsort(reference_scores(updates, max(1, n - f - 2)), kind="stable")[:theta].tolist()
    stack = np.array([updates[k] for k in sorted(chosen)], np.float64)
    middle = np.median(stack, axis=0)
    stack = np.sort(stack, axis=0)
    nearest = np.argsort(abs(stack - middle), axis=0, kind="stable")[: theta - 2 * f]
    return np.take_along_axis(stack, np.sort(nearest, axis=0), axis=0).mean(0)


@pytest.mark.parametrize("selection", ["iterative", "one-shot"])
@pytest.mark.parametrize(("count", "f"), [(3, 0), (7, 1), (8, 1), (11, 2), (20, 4)])
def test_bulyan_follows_the_formula(backend: str, selection: Any, count: int, f: int) -> None:
    updates = cloud(count, 40, seed=count, bad=f)
    value, info = bulyan(updates, f, selection=selection, return_info=True)
    expected = reference_bulyan(updates, f, selection == "iterative")
    np.testing.assert_allclose(value, expected, rtol=2e-7, atol=1e-7)
    assert len(info.selected) == count - 2 * f
    assert np.isnan(info.weights).sum() == count - 2 * f
    assert value.dtype == np.float32


# ---- what does not fit -----------------------------------------------------------------------------------------------

FOUR = [np.arange(2.0)] * 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: krum(FOUR, 1), TooFewUpdates, r"krum: expected at least 5 updates \(2f \+ 2 < K with f=1\), got 4"),
        (lambda: krum(FOUR, 2, neighbours="byzfl"), TooFewUpdates, r"at least 5 updates \(2f < K with f=2\), got 4"),
        (lambda: krum(FOUR, 4, neighbours="flower"), TooFewUpdates, r"at least 5 updates \(f < K with f=4"),
        (lambda: krum(FOUR[:1], 0, neighbours="flower"), TooFewUpdates, "at least 2 updates"),
        (lambda: multi_krum(FOUR, 0, 5), TooFewUpdates, r"multi_krum: expected at least 5 updates \(m=5\), got 4"),
        (lambda: multi_krum(FOUR, 0, 0), ValueError, "m: expected an integer >= 1, got 0"),
        (
            lambda: bulyan(FOUR, 1),
            TooFewUpdates,
            r"bulyan: expected at least 7 updates \(4f \+ 3 <= K with f=1\), got 4",
        ),
        (lambda: bulyan(FOUR[:2], 0), TooFewUpdates, "bulyan: expected at least 3 updates"),
        (lambda: krum(FOUR, -1), ValueError, "f: expected an integer >= 0, got -1"),
        (lambda: krum(FOUR, 1.0), TypeError, "f: expected an integer, got float"),  # type: ignore[arg-type]
        (lambda: krum(FOUR, 0, neighbours="all"), ValueError, "neighbours: expected one of paper, flower, byzfl"),  # type: ignore[arg-type]
        (lambda: bulyan(FOUR, 0, selection="x"), ValueError, "selection: expected one of iterative, one-shot"),  # type: ignore[arg-type]
        (lambda: krum(FOUR, 0, nonfinite="rank"), ValueError, "nonfinite: expected one of raise, drop, propagate"),  # type: ignore[arg-type]
        (lambda: multi_krum(FOUR, 0, weights=[1]), ValueError, "weights: expected 4 weights"),
        (lambda: pairwise_sq_distances([]), ValueError, "updates: expected at least one update"),
        (
            lambda: krum_scores(np.zeros((2, 3)), 0),
            ValueError,
            r"sq_distances: expected a square matrix, got shape \(2, 3\)",
        ),
        (lambda: krum_scores(np.zeros((4, 4)), 1), TooFewUpdates, "krum_scores: expected at least 5 updates"),
    ],
)
def test_what_cannot_be_used(backend: str, call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# ---- part by part ----------------------------------------------------------------------------------------------------


def test_gram_accumulator_adds_up_parts(backend: str) -> None:
    rng = np.random.default_rng(0)
    updates = [{"a": rng.normal(size=700), "b": rng.normal(size=(30, 3)).astype(np.float32)} for _ in range(7)]
    whole = GramAccumulator(7)
    whole.add(updates)
    assert whole.sq_distances().tobytes() == pairwise_sq_distances(updates).tobytes()
    assert whole.size == 790
    left, right = GramAccumulator(7), GramAccumulator(7)
    left.add([u["a"] for u in updates])
    right.add([u["b"] for u in updates])
    left += right
    np.testing.assert_allclose(left.sq_distances(), whole.sq_distances(), rtol=1e-14)
    np.testing.assert_allclose(left.gram(), whole.gram(), rtol=1e-12, atol=1e-12)
    assert krum_scores(left.sq_distances(), 2).argmin() == krum(updates, 2, return_info=True)[1].selected[0]
    a, b = np.array([u["a"] for u in updates]), np.array([u["b"].ravel() for u in updates])
    a -= np.median(a, axis=0)
    b = 2 * (b / 2 - np.median(b, axis=0) / 2).astype(np.float64)  # float32 differences
    np.testing.assert_allclose(whole.gram(), a @ a.T + b @ b.T, rtol=1e-10, atol=1e-10)


def test_gram_accumulator_misfits_and_value_semantics(backend: str) -> None:
    acc = GramAccumulator(3)
    acc.add([np.array([1.0, k]) for k in range(3)])
    before = acc.to_bytes()
    with pytest.raises(StructureMismatch, match="client parts: expected 3 parts, one per update, got 2"):
        acc.add([np.ones(2)] * 2)
    with pytest.raises(NonFiniteUpdate, match="client 1"):
        acc.add([np.ones(1), np.array([np.nan]), np.ones(1)])
    with pytest.raises(StructureMismatch, match="client other: expected 3 updates, got 2"):
        acc.merge(GramAccumulator(2))
    with pytest.raises(TypeError, match="other: expected a GramAccumulator, got int"):
        acc.merge(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_updates: expected an integer >= 1, got 0"):
        GramAccumulator(0)
    assert acc.to_bytes() == before
    import copy
    import pickle

    for twin in (acc.copy(), copy.copy(acc), copy.deepcopy(acc), pickle.loads(pickle.dumps(acc))):
        assert twin == acc
        twin.merge(acc)
        assert twin != acc
    assert acc != 3
    assert repr(acc) == "<GramAccumulator of 3 updates: 2 coordinates>"
    assert acc.nbytes == 2 * 9 * 8
    acc.merge(acc)
    assert acc.sq_distances()[0, 2] == 8


def test_gram_accumulator_bytes_are_checked() -> None:
    acc = GramAccumulator(2)
    acc.add([np.zeros(1), np.ones(1)])
    good = acc.to_bytes()
    assert GramAccumulator.from_bytes(memoryview(bytearray(good))) == acc
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        for data in (bytes(bad), good[:i]):
            with pytest.raises(ValueError, match="accumulator: "):
                GramAccumulator.from_bytes(data)
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        GramAccumulator.from_bytes("EFGR")  # type: ignore[arg-type]
