"""median, trimmed_mean and meamed against an oracle that sorts Python floats."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import (
    DtypeMismatch,
    IntegerRange,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    TooFewUpdates,
    meamed,
    median,
    trimmed_mean,
)
from edgefast.backends.numpy.elements import round_to_brain, widen
from edgefast.backends.table import BF16

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 2051]
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
Rule = Callable[..., Any]


def sort_key(x: float) -> tuple[int, float, float]:
    """-0 before +0, NaN last."""
    return (1, 0.0, 0.0) if math.isnan(x) else (0, x, math.copysign(1.0, x))


def average(chosen: list[float]) -> float:
    total = chosen[0]
    for x in chosen[1:]:
        total += x
    if math.isinf(total) and all(map(math.isfinite, chosen)):
        total = 0.0
        for x in chosen:
            total += x * 2.0**-32
        mean = total / len(chosen) * 2.0**32
    else:
        mean = total / len(chosen)
    return min(max(mean, chosen[0]), chosen[-1]) if len(chosen) > 1 else chosen[0]


def near_median(column: list[float], keep: int) -> float:
    n = len(column)
    middle = average(column[(n - 1) // 2 : n // 2 + 1])
    # Nearest first, the lower of two equally near ones.
    distance = [abs(x - middle) for x in column]
    order = sorted(range(n), key=lambda i: (1, 0.0, i) if math.isnan(distance[i]) else (0, distance[i], i))
    return average([column[i] for i in sorted(order[:keep])])


def oracle(updates: list[np.ndarray], rule: str, f: int) -> np.ndarray:
    n = len(updates)
    values = []
    for column in zip(*(u.ravel().tolist() for u in updates), strict=True):
        ordered = sorted(map(float, column), key=sort_key)
        if rule == "median":
            values.append(average(ordered[(n - 1) // 2 : n // 2 + 1]))
        elif rule == "trimmed":
            values.append(average(ordered[f : n - f]))
        else:
            values.append(near_median(ordered, n - f))
    exact = np.array(values, np.float64)
    kind = updates[0].dtype.kind
    if kind == "b":
        result = exact > 0.5
    elif kind == "f":
        result = exact.astype(updates[0].dtype)
    else:
        result = np.rint(exact).astype(updates[0].dtype)
    return result.reshape(updates[0].shape)


def run(updates: Any, rule: str, f: int, **options: Any) -> Any:
    if rule == "median":
        return median(updates, **options)
    return trimmed_mean(updates, f=f, **options) if rule == "trimmed" else meamed(updates, f, **options)


def random_updates(dtype: str, shape: Any, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    dt = np.dtype(dtype)
    if dt.kind == "f":
        return [(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, size=shape)).astype(dt) for _ in range(count)]
    if dt.kind == "b":
        return [rng.random(shape) < 0.5 for _ in range(count)]
    info = np.iinfo(dt)
    low, high = max(info.min, -(2**53)), min(int(info.max), 2**53)
    return [rng.integers(low, high, size=shape, dtype=dt, endpoint=True) for _ in range(count)]


def assert_same(found: Any, expected: np.ndarray) -> None:
    found = np.asarray(found)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


RULES = ["median", "trimmed", "meamed"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_dtype_and_size(backend: str, dtype: str, rule: str) -> None:
    for size in SIZES:
        for count in (5, 6) if size < 2000 else (5,):
            updates = random_updates(dtype, size, count, seed=size)
            assert_same(run(updates, rule, 2), oracle(updates, rule, 2))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u8"])
def test_every_number_of_updates(backend: str, dtype: str) -> None:
    for count in [*range(1, 21), 31, 32, 33, 47, 64, 65, 100]:
        updates = random_updates(dtype, 37, count, seed=count)
        for rule in RULES:
            f = (count - 1) // 3
            assert_same(run(updates, rule, f), oracle(updates, rule, f))
    for f in range(8):  # every way to trim, in and beyond the registers
        for count in (15, 16, 17, 18):
            updates = random_updates(dtype, 33, count, seed=f)
            assert_same(trimmed_mean(updates, f=f), oracle(updates, "trimmed", f))
            assert_same(meamed(updates, f), oracle(updates, "meamed", f))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_median_of_two_sorted_halves(backend: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for count in range(17, 34):
        updates = [rng.integers(-count, count, 331).astype(dtype) for _ in range(count)]
        ordered = np.sort(np.stack(updates).astype(np.float64), axis=0)
        expected = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        assert_same(median(updates), expected.astype(dtype))
        for bad in (0, count // 2, count - 1):  # noticed in either half
            rest = [u for k, u in enumerate(updates) if k != bad]
            worse = [*updates]
            worse[bad] = np.where(np.arange(331) == 13 * bad % 331, np.array(np.inf, dtype), updates[bad])
            assert_same(median(worse, nonfinite="drop"), median(rest))


def test_more_updates_than_any_cache(backend: str) -> None:
    updates = random_updates("f4", 70, 1500)
    assert_same(median(updates), oracle(updates, "median", 0))
    assert_same(trimmed_mean(updates, f=500), oracle(updates, "trimmed", 500))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u8"])
@pytest.mark.parametrize("layout", ["sliced", "reversed", "fortran", "unaligned", "readonly", "broadcast", "0d"])
def test_layouts(backend: str, dtype: str, layout: str) -> None:
    base = random_updates(dtype, (18, 22), 4)
    if layout == "sliced":
        updates = [b[::2, 1::3] for b in base]
    elif layout == "reversed":
        updates = [b[::-1, ::-1] for b in base]
    elif layout == "fortran":
        updates = [np.asfortranarray(b) for b in base]
    elif layout == "unaligned":
        updates = []
        for b in base:
            raw = np.zeros(b.nbytes + 1, np.uint8)
            raw[1:] = b.view(np.uint8).ravel()
            updates.append(raw[1:].view(dtype).reshape(b.shape))
    elif layout == "readonly":
        updates = base
        for b in base:
            b.flags.writeable = False
    elif layout == "broadcast":
        updates = [np.broadcast_to(b[0], b.shape) for b in base]
    else:
        updates = [np.array(b[0, 0]) for b in base]
    before = [u.tobytes() for u in updates]
    for rule in RULES:
        assert_same(run(updates, rule, 1), oracle(updates, rule, 1))
    assert [u.tobytes() for u in updates] == before


def test_unaligned_output(backend: str) -> None:
    updates = random_updates("f4", 100, 5)
    raw = np.zeros(401, np.uint8)
    out = raw[1:].view(np.float32)
    assert median(updates, out=out) is out
    assert_same(out, oracle(updates, "median", 0))


def test_structures_out_and_matrices(backend: str) -> None:
    def model(k: float) -> dict[str, Any]:
        return {"w": np.full((2, 2), k, np.float32), "b": [np.full(3, k, np.float16), (np.array(k),)], "none": {}}

    found = median([model(1), model(5), model(2)])
    assert found["w"].tolist() == [[2.0, 2.0]] * 2
    assert found["w"].dtype == np.float32
    assert found["b"][0].dtype == np.float16
    assert isinstance(found["b"][1], tuple)
    assert found["none"] == {}
    out = model(0)
    assert trimmed_mean([model(1), model(5), model(2)], f=1, out=out) is out
    assert out["b"][1][0] == 2
    X = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    assert_same(median(X), oracle(list(X), "median", 0))
    first = X.copy()
    row = X[0]
    assert_same(median(X, out=row), oracle(list(first), "median", 0))  # out may be one of the updates


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_do_not_change_a_bit(backend: str, threads: int) -> None:
    updates = [
        [a[k] for a in (random_updates(t, s, 5) for t, s in zip(("f4", "f2", "f8"), (150_001, 3, 40_000), strict=True))]
        for k in range(5)
    ]
    with ef.using("numpy"):
        expected = [trimmed_mean(updates, f=1), meamed(updates, 1)]
    found = [trimmed_mean(updates, f=1, num_threads=threads), meamed(updates, 1, num_threads=threads)]
    for f, e in zip(found, expected, strict=True):
        for a, b in zip(f, e, strict=True):
            assert_same(a, b)


# ---- properties -----------------------------------------------------------------------------------------------------

columns = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=3, max_size=21)


@given(columns, st.data())
def test_order_of_the_updates_leaves_no_trace(backend: str, rows: list[list[float]], data: Any) -> None:
    updates = [np.array(r, np.float32) for r in rows]
    order = data.draw(st.permutations(range(len(rows))))
    f = data.draw(st.integers(0, (len(rows) - 1) // 2))
    for rule in RULES:
        assert_same(run([updates[i] for i in order], rule, f), run(updates, rule, f))


@given(columns, st.data())
def test_f_arbitrary_values_keep_the_result_among_the_honest(backend: str, rows: list[list[float]], data: Any) -> None:
    honest = [np.array(r, np.float32) for r in rows]
    f = data.draw(st.integers(0, len(rows) - 1))
    wild = st.floats(width=32, allow_nan=True, allow_infinity=True)
    bad = [np.array(data.draw(st.lists(wild, min_size=3, max_size=3)), np.float32) for _ in range(f)]
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for rule in ("median", "trimmed"):
        found = run([*bad, *honest], rule, f, nonfinite="rank")
        assert (low <= found).all(), rule
        assert (found <= high).all(), rule
    # Values around the median may include bad ones, but none further from it than some honest one.
    found = meamed([*bad, *honest], f, nonfinite="rank").astype(np.float64)
    middle = median([*bad, *honest], nonfinite="rank").astype(np.float64)
    radius = np.max([abs(h - middle) for h in np.array(honest, np.float64)], axis=0)
    slack = 1e-6 * (radius + abs(middle)) + 1e-30
    assert (abs(found - middle) <= radius + slack).all()


@given(columns, st.integers(-20, 20), st.booleans())
def test_scaling_by_powers_of_two_and_sign(backend: str, rows: list[list[float]], exponent: int, negate: bool) -> None:
    factor = (-1.0 if negate else 1.0) * 2.0**exponent
    updates = [np.array(r, np.float64) for r in rows]
    scaled = [u * factor for u in updates]
    # Exact for the median; sums of negated values run in the other direction.
    assert (median(scaled) == median(updates) * factor).all()
    if not negate:
        assert (trimmed_mean(scaled, f=1) == trimmed_mean(updates, f=1) * factor).all()
        assert (meamed(scaled, 1) == meamed(updates, 1) * factor).all()


@given(columns, st.integers(-1000, 1000))
def test_translation(backend: str, rows: list[list[float]], shift: int) -> None:
    updates = [np.rint(np.array(r)) for r in rows]  # integers in float64: every sum is exact
    moved = [u + shift for u in updates]
    for rule in RULES:
        np.testing.assert_allclose(run(moved, rule, 1), run(updates, rule, 1) + shift, rtol=0, atol=1e-9)
    if len(rows) % 2:
        assert (median(moved) == median(updates) + shift).all()


@given(st.floats(width=16), st.integers(1, 40))
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_equal_updates_give_that_update(backend: str, dtype: str, value: float, count: int) -> None:
    updates = [np.array([value, -0.0, 0.1], dtype)] * count
    for rule in RULES:
        found = run(updates, rule, (count - 1) // 2, nonfinite="rank")
        if math.isnan(value):
            assert np.isnan(found[0])
            found[0] = updates[0][0]
        assert_same(found, updates[0])


@given(columns)
def test_numpy_agrees(backend: str, rows: list[list[float]]) -> None:
    updates = [np.array(r, np.float32) for r in rows]
    np.testing.assert_array_max_ulp(median(updates), np.median(updates, axis=0), 1)
    cut = int(0.2 * len(rows))
    kept = np.sort(np.array(updates, np.float64), axis=0)[cut : len(rows) - cut]
    np.testing.assert_allclose(trimmed_mean(updates, trim=0.2), kept.mean(0), rtol=1e-6, atol=1e-6)


# ---- extremes and what is not finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("count", [4, 5, 20])
def test_extremes(backend: str, dtype: str, count: int) -> None:
    info = np.finfo(dtype)
    values = [0.0, -0.0, info.max, -info.max, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 1, info.max]
    updates = [np.array(np.roll(values * 5, 2 * k), dtype) for k in range(count)]
    for rule in RULES:
        assert_same(run(updates, rule, 1), oracle(updates, rule, 1))
    top = [np.full(9, info.max, dtype)] * count
    for rule in RULES:
        assert_same(run(top, rule, 1), top[0])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("count", [3, 5, 17, 24])
def test_rank_and_propagate(backend: str, dtype: str, count: int) -> None:
    rng = np.random.default_rng(count)
    updates = [rng.normal(size=70).astype(dtype) for _ in range(count)]
    bad = (count - 1) // 2
    for k in range(bad):
        updates[k][rng.random(70) < 0.6] = [np.nan, np.inf, -np.inf][k % 3]
        updates[k][:3] = -np.array(np.nan, dtype)
    for rule in RULES:
        found, expected = run(updates, rule, bad, nonfinite="rank"), oracle(updates, rule, bad)
        fine = ~np.isnan(expected)
        assert (np.isnan(found) == ~fine).all()
        assert_same(found[fine], expected[fine])
    nan = np.isnan(updates).any(axis=0)
    for rule in RULES:
        through = run(updates, rule, bad, nonfinite="propagate")
        assert np.isnan(through[nan]).all()
        ranked = run(updates, rule, bad, nonfinite="rank")
        assert through[~nan].tobytes() == ranked[~nan].tobytes() or np.isnan(ranked[~nan]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("place", [0, 16, 70])
def test_raise_and_drop(backend: str, value: float, count: int, place: int) -> None:
    updates = [{"a": np.full(71, k, np.float32), "n": np.array([k])} for k in range(count)]
    updates[2]["a"][place] = value
    for rule in RULES:
        with pytest.raises(NonFiniteUpdate, match=r"client 2, key 'a': expected finite values, got"):
            run(updates, rule, 1)
    found = median(updates, nonfinite="drop")
    rest = [k for k in range(count) if k != 2]
    assert found["a"].tolist() == [np.median(rest)] * 71
    assert found["n"].tolist() == [int(np.rint(np.median(rest)))]
    everything = [{"a": np.full(3, value, np.float32)}] * 3
    with pytest.raises(NonFiniteUpdate, match="client 0"):
        median(everything, nonfinite="drop")


def test_dropping_below_the_bound(backend: str) -> None:
    updates = [np.full(4, float(k)) for k in range(5)]
    updates[4][0] = np.inf
    with pytest.raises(TooFewUpdates, match=r"trimmed_mean: expected at least 5 updates .*got 4 \(1 dropped\)"):
        trimmed_mean(updates, f=2, nonfinite="drop")


# ---- integers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ints", "expected"), [("round", 4), ("max", 90), ("first", 2), ("skip", 2)])
def test_policies_for_integers(backend: str, ints: Any, expected: int) -> None:
    updates = [{"w": np.array([float(k)]), "n": np.array([k])} for k in (2, 3, 4, 5, 90)]
    assert median(updates, ints=ints)["n"].tolist() == [expected]
    assert median(updates, ints=ints)["w"].tolist() == [4.0]
    with pytest.raises(DtypeMismatch, match=r"key 'n': expected floating-point tensors"):
        median(updates, ints="error")


def test_ties_of_integers_and_bools(backend: str) -> None:
    assert median([np.array([0, 1, 2]), np.array([1, 2, 5])]).tolist() == [0, 2, 4]
    flags = [
        np.array(c) for c in ([True, True, False], [True, False, False], [False, True, False], [False, True, True])
    ]
    assert median(flags).tolist() == [False, True, False]
    with pytest.raises(IntegerRange, match=r"client 1: expected integers within \+-2\*\*53"):
        median([np.array([0]), np.array([2**60])])
    assert median([np.array([0]), np.array([2**60])], ints="max").tolist() == [2**60]


# ---- what does not fit ----------------------------------------------------------------------------------------------

ONES = [np.ones(2)] * 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: trimmed_mean(ONES, f=2),
            TooFewUpdates,
            r"trimmed_mean: expected at least 5 updates \(2f < K with f=2\)",
        ),
        (lambda: meamed(ONES, 2), TooFewUpdates, r"meamed: expected at least 5 updates \(2f < K with f=2\), got 4"),
        (lambda: meamed(ONES, 2**70), TooFewUpdates, "meamed: expected at least"),
        (lambda: trimmed_mean(ONES), TypeError, "expected exactly one of trim= and f="),
        (lambda: trimmed_mean(ONES, trim=0.1, f=1), TypeError, "expected exactly one of trim= and f="),
        (lambda: trimmed_mean(ONES, trim=0.5), ValueError, r"trim: expected a number in \[0, 0.5\), got 0.5"),
        (lambda: trimmed_mean(ONES, trim=-0.1), ValueError, "trim: expected a number"),
        (lambda: trimmed_mean(ONES, trim=math.nan), ValueError, "trim: expected a number"),
        (lambda: trimmed_mean(ONES, trim="0.1"), ValueError, "trim: expected a number"),  # type: ignore[arg-type]
        (lambda: trimmed_mean(ONES, f=-1), ValueError, "f: expected an integer >= 0, got -1"),
        (lambda: meamed(ONES, 0.5), TypeError, "f: expected an integer, got float"),  # type: ignore[arg-type]
        (lambda: meamed(ONES, True), TypeError, "f: expected an integer, got bool"),
        (lambda: median(np.zeros((65536, 1))), ValueError, "updates: expected at most 65535, got 65536"),
        (lambda: median([]), ValueError, "updates: expected at least one update, got none"),
        (lambda: median({"a": np.ones(2)}), TypeError, "updates: expected a sequence of updates, got dict"),  # type: ignore[arg-type]
        (lambda: median(np.array(1.0)), TypeError, "got a 0-d array"),
        (lambda: median([np.ones(2), np.ones(3)]), ShapeMismatch, r"client 1: expected shape \(2,\), got \(3,\)"),
        (
            lambda: median([np.ones(2), np.ones(2, np.float32)]),
            DtypeMismatch,
            "client 1: expected float64, got float32",
        ),
        (lambda: median([{"a": np.ones(2)}, {"b": np.ones(2)}]), StructureMismatch, "missing 'a'; unexpected 'b'"),
        (lambda: median([np.ones(2, complex)]), DtypeMismatch, "client 0: expected an array of float16"),
        (
            lambda: median(ONES, nonfinite="ignore"),
            ValueError,
            "nonfinite: expected one of raise, drop, propagate, rank",
        ),  # type: ignore[arg-type]
        (lambda: median(ONES, ints="sum"), ValueError, "ints: expected one of"),  # type: ignore[arg-type]
        (lambda: median(ONES, num_threads=0), ValueError, "num_threads: expected a positive integer"),
        (lambda: median(ONES, out=np.ones(3)), ShapeMismatch, "client out"),
    ],
)
def test_what_cannot_be_used(backend: str, call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    if error is TooFewUpdates:
        assert isinstance(caught.value, ValueError)
        assert caught.value.expected
        assert caught.value.got


# ---- out of core ----------------------------------------------------------------------------------------------------


def test_memory_mapped_updates(backend: str, tmp_path: Path) -> None:
    count, size = 6, 400_000
    expected = []
    for k in range(count):
        values = np.random.default_rng(k).normal(size=size).astype(np.float32)
        values.tofile(tmp_path / f"{k}.bin")
        expected.append(values[:5000])
    mapped = [np.memmap(tmp_path / f"{k}.bin", np.float32, "r") for k in range(count)]
    out = np.memmap(tmp_path / "out.bin", np.float32, "w+", shape=size)
    median(mapped, out=out)  # whatever a backend compiles or caches
    trimmed_mean(mapped, f=1, out=out)
    tracemalloc.start()
    try:
        assert median(mapped, out=out) is out
        assert_same(np.asarray(out[:5000]), oracle(expected, "median", 0))
        trimmed_mean(mapped, f=1, out=out)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert_same(np.asarray(out[:5000]), oracle(expected, "trimmed", 1))
    assert peak < 9 << 20 < count * size * 4, peak


# ---- bfloat16, tensors, files ---------------------------------------------------------------------------------------


def test_bfloat16(backend: str) -> None:
    for count in (1, 4, 5, 16, 17, 33):
        values = [u.astype(np.float32) for u in random_updates("f4", 97, count, seed=count)]
        brains = [round_to_brain(v).view(BF16) for v in values]
        wide = [widen(b) for b in brains]  # float64
        for rule in RULES:
            f = (count - 1) // 3
            found = run(brains, rule, f)
            assert found.view(BF16).dtype == BF16  # of ml_dtypes where that is installed
            assert found.tobytes() == round_to_brain(oracle(wide, rule, f)).tobytes()
    bad = [round_to_brain(np.array([x], np.float32)).view(BF16) for x in (1.0, 2.0, np.nan)]
    with pytest.raises(NonFiniteUpdate, match="client 2"):
        median(bad)
    assert widen(median(bad, nonfinite="rank").view(BF16)).tolist() == [2.0]
    assert np.isnan(widen(median(bad, nonfinite="propagate").view(BF16))).all()
    assert ef.aggregate.pairwise_sq_distances(bad[:2]).tolist() == [[0, 1], [1, 0]]
    acc = ef.aggregate.TrimmedMeanAccumulator(bad[0], f=1, nonfinite="rank")
    for b in bad:
        acc.add(b)
    assert widen(acc.result().view(BF16)).tolist() == [2.0]
    assert ef.aggregate.TrimmedMeanAccumulator.from_bytes(acc.to_bytes()) == acc


def test_files(backend: str, tmp_path: Path) -> None:
    models = [{"w": np.full((2, 3), k, np.float32), "b": np.arange(3.0) * k} for k in (1, 2, 9)]
    for k, m in enumerate(models):
        np.savez(tmp_path / f"{k}.npz", **m)
    paths = [tmp_path / f"{k}.npz" for k in range(3)]
    assert (ef.aggregate.krum(paths, 0)["w"] == 1).all()  # the first of two that are equally near
    for found in (median(paths), ef.aggregate.geometric_median(paths, max_iter=99)):
        assert list(found) == ["w", "b"]
        np.testing.assert_allclose(found["w"], 2, atol=1e-2)


def test_torch_tensors(backend: str) -> None:
    torch = pytest.importorskip("torch")
    updates = [{"w": torch.full((3,), float(k)), "h": torch.full((2,), k, dtype=torch.bfloat16)} for k in (1, 2, 9)]
    found = median(updates)
    assert isinstance(found["w"], torch.Tensor)
    assert found["w"].tolist() == [2.0] * 3
    assert found["h"].dtype == torch.bfloat16
    assert ef.aggregate.nnm(updates, 1)[0]["w"].tolist() == [1.5] * 3
