"""CountSketch: the table against the operator's matrix, bits, estimates, merging, exact counts, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch import CountSketch, IncompatibleSketchError, SketchOverflowError

DTYPES = ("float32", "float64", "int64")
SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)


def vector(n: int, dtype: str, seed: int = 0) -> np.ndarray:
    return (1000 * np.random.default_rng(seed).standard_normal(n)).astype(dtype)


def reference(cs: CountSketch, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The promised bits: one addition at a time, in order."""
    table = np.zeros(cs.depth * cs.width, cs.dtype)
    for i, v in zip(indices.tolist(), values.astype(cs.dtype), strict=True):
        for entry in streams.stack_table(cs.seed, cs.depth * cs.width, cs.depth, i, 1)[0]:
            bucket = entry & np.uint32(0x7FFFFFFF)
            table[bucket] = table[bucket] - v if entry >> np.uint32(31) else table[bucket] + v
    return table.reshape(cs.depth, cs.width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_table_bits(backend: str, n: int, dtype: Any) -> None:
    for depth, width in ((5, 13), (1, 1), (4, 100), (11, 3)):
        x = vector(n, dtype)
        cs = CountSketch(n, width, depth, seed=4, dtype=dtype)
        assert cs.update(x) is cs
        expected = reference(cs, np.arange(n), x)
        np.testing.assert_array_equal(cs.table, expected)
        one_by_one = CountSketch(n, width, depth, seed=4, dtype=dtype)
        for cut in range(0, n, 5):
            one_by_one.update(x[cut : cut + 5], start=cut)
        assert one_by_one.to_bytes() == cs.to_bytes()
        assert cs.n_seen == n
        order = np.random.default_rng(n).permutation(n)
        shuffled = CountSketch(n, width, depth, seed=4, dtype=dtype).update(x[order], indices=order)
        np.testing.assert_array_equal(shuffled.table, reference(cs, order, x[order]))


def test_the_map_is_the_operators(backend: str) -> None:
    cs = CountSketch(200, 30, 5, seed=8, dtype="float64").update(x := vector(200, "float64"))
    np.testing.assert_allclose(cs.table.ravel() * cs.operator.scale, cs.operator.transform(x), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 2, 5, 6, 255])
def test_estimates(backend: str, dtype: Any, depth: int) -> None:
    cs = CountSketch(500, 7, depth, seed=1, dtype=dtype).update(vector(500, dtype))
    entries = streams.stack_table(1, 7 * depth, depth, 0, 500)
    signs = 1 - 2 * (entries >> np.uint32(31)).astype(np.int64)
    counters = cs.table.ravel()[entries & np.uint32(0x7FFFFFFF)] * signs
    real = np.float32 if dtype == "float32" else np.float64
    found = cs.estimate()
    assert found.dtype == real
    low, high = (np.sort(counters, axis=1)[:, i].astype(real) for i in ((depth - 1) // 2, depth // 2))
    np.testing.assert_array_equal(found, low if depth % 2 else low * real(0.5) + high * real(0.5))
    some = np.array([[3, 499], [0, 3]])
    np.testing.assert_array_equal(cs.estimate(some), found[some])
    assert cs.estimate(7) == found[7]
    assert cs.estimate(np.array([], np.int64)).shape == (0,)
    assert not np.signbit(CountSketch(9, 3, depth, dtype=dtype).estimate()).any()


def test_error_and_heavy_hitters(backend: str) -> None:
    rng = np.random.default_rng(0)
    d = 20000
    x = rng.standard_normal(d).astype(np.float32)
    heavy = rng.choice(d, 10, replace=False)
    x[heavy] += 200 * rng.choice([-1, 1], 10)
    cs = CountSketch(d, 1000, 7, seed=3).update(x)
    assert abs(cs.l2() / np.linalg.norm(x) - 1) < 0.1
    error = cs.estimate() - x
    # One row errs by l2 / sqrt(width); the median of seven is better.
    assert np.sqrt(np.mean(error**2)) < np.linalg.norm(x) / np.sqrt(1000)
    index, value = cs.top_k(10)
    assert set(index.tolist()) == set(heavy.tolist())
    np.testing.assert_array_equal(value, cs.estimate(index))
    assert np.all(np.diff(np.abs(value)) <= 0)


def test_top_k_is_that_of_all_estimates(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cs = CountSketch(3000, 3, 3, seed=3, dtype="int64").update(vector(3000, "int64"))  # many equal estimates
    estimates = cs.estimate()
    order = np.lexsort((np.arange(3000), -np.abs(estimates)))
    monkeypatch.setattr("edgefast.sketch._count_sketch._TILE", 64)
    for k in (0, 1, 5, 40, 700, 3000):
        index, value = cs.top_k(k)
        np.testing.assert_array_equal(index, order[:k])
        np.testing.assert_array_equal(value, estimates[order[:k]])


def test_batches_weights_sparse_and_dtypes(backend: str) -> None:
    X = vector(5 * 40, "float64").reshape(5, 40)
    rows = CountSketch(40, 9, dtype="float64")
    for row in X:
        rows.update(row)
    assert CountSketch(40, 9, dtype="float64").update(X) == rows
    assert CountSketch(40, 9, dtype="float64").update(np.asfortranarray(X)) == rows
    weighted = CountSketch(40, 9, dtype="float64").update(X[0], weight=0.3)
    assert weighted.table.tobytes() == CountSketch(40, 9, dtype="float64").update(X[0] * 0.3).table.tobytes()
    counts = CountSketch(40, 9, dtype="int64").update(np.arange(40, dtype=np.uint8), weight=-3)
    assert counts == CountSketch(40, 9, dtype="int64").update(-3 * np.arange(40))
    half = CountSketch(40, 9).update(X[0].astype(np.float16))
    assert half == CountSketch(40, 9).update(X[0].astype(np.float16).astype(np.float32))
    wide = CountSketch(40, 9, dtype="float64").update(X[0].astype(np.float32))
    assert wide == CountSketch(40, 9, dtype="float64").update(X[0].astype(np.float32).astype(np.float64))
    unaligned = np.zeros(8 * 40 + 1, np.uint8)[1:].view(np.float64)
    unaligned[...] = X[0]
    for x in (unaligned, np.repeat(X[0], 2)[::2], X[0, ::-1].copy()[::-1]):
        assert CountSketch(40, 9, dtype="float64").update(x) == CountSketch(40, 9, dtype="float64").update(X[0])
    sparse = pytest.importorskip("scipy.sparse")
    S = sparse.csr_array(np.where(X > 500, X, 0))
    dense = CountSketch(40, 9, dtype="float64").update(np.where(X > 500, X, 0))
    np.testing.assert_array_equal(CountSketch(40, 9, dtype="float64").update(S).table, dense.table)


@given(seed=st.integers(0, 2**32), parts=st.integers(1, 5))
def test_integer_merges_are_exact_in_any_order(seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    indices, values = rng.integers(0, 10**9, 200), rng.integers(-(10**12), 10**12, 200)
    whole = CountSketch(10**9, 20, dtype="int64").update(values, indices=indices)
    owner = rng.integers(0, parts, 200)
    pieces = [
        CountSketch(10**9, 20, dtype="int64").update(values[owner == p], indices=indices[owner == p])
        for p in range(parts)
    ]
    rng.shuffle(pieces)
    total = pieces[0]
    for piece in pieces[1:]:
        total = piece.merge(total)
    assert total == whole
    assert total.to_bytes() == whole.to_bytes()


def test_arithmetic() -> None:
    x, y = vector(50, "float32", 1), vector(50, "float32", 2)
    a, b = CountSketch(50, 8).update(x), CountSketch(50, 8).update(y)
    c = a.copy()
    c += b
    np.testing.assert_array_equal(c.table, a.table + b.table)
    c -= b
    c *= 0.5
    np.testing.assert_array_equal(c.table, (a.table + b.table - b.table) * np.float32(0.5))
    assert c.n_seen == 50
    n = CountSketch(50, 8, dtype="int64").update(np.arange(50))
    n *= -2
    assert n.table.tobytes() == CountSketch(50, 8, dtype="int64").update(-2 * np.arange(50)).table.tobytes()


def test_overflow_is_a_typed_error_and_changes_nothing() -> None:
    cs = CountSketch(4, 2, 1, dtype="int64").update(np.array([2**62]), indices=np.array([0]))
    before = cs.to_bytes()
    for values in ([2**62], [-(2**62)], [-(2**63)]):
        with pytest.raises(SketchOverflowError):
            cs.update(np.array(values), indices=np.array([1]))
    with pytest.raises(SketchOverflowError, match="values: expected magnitudes to add up to less than"):
        cs.update(np.array([2**40]), indices=np.array([0]), weight=2**30)
    with pytest.raises(SketchOverflowError, match="other: expected counters below"):
        cs += cs
    with pytest.raises(SketchOverflowError, match="weight: expected counters below"):
        cs *= 2
    assert cs.to_bytes() == before
    cs.update(np.array([2**62 - 1]), indices=np.array([1]))


def test_value_semantics() -> None:
    cs = CountSketch(30, 4, 3, seed=5, dtype="int64").update(np.arange(30))
    for twin in (
        cs.copy(),
        copy.copy(cs),
        copy.deepcopy(cs),
        pickle.loads(pickle.dumps(cs)),
        CountSketch.from_bytes(cs.to_bytes()),
    ):
        assert twin == cs
        assert twin.fingerprint == cs.fingerprint
        twin.update(np.ones(30, np.int64))
        assert twin != cs
    assert cs != "x"
    assert repr(cs) == "<CountSketch n_features=30, width=4, depth=3, seed=5, dtype='int64': 30 values>"
    assert (cs.n_features, cs.width, cs.depth, cs.seed, cs.nbytes) == (30, 4, 3, 5, 96)
    with pytest.raises(ValueError, match="read-only"):
        cs.table[0, 0] = 1
    for other in (
        CountSketch(31, 4, 3, seed=5, dtype="int64"),
        CountSketch(30, 3, 4, seed=5, dtype="int64"),
        CountSketch(30, 4, 3, dtype="int64"),
        CountSketch(30, 4, 3, seed=5),
    ):
        with pytest.raises(IncompatibleSketchError, match="other: expected n_features=30, width=4"):
            cs.merge(other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(backend: str, bad: float) -> None:
    cs = CountSketch(3000, 5).update(vector(3000, "float32"))
    before = cs.to_bytes()
    x = vector(3000, "float32")
    x[2500] = bad
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        cs.update(x)
    assert cs.to_bytes() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CountSketch(0, 5), ValueError, "n_features: expected an integer from 1"),
        (lambda: CountSketch(5, 0), ValueError, "width: expected an integer from 1"),
        (lambda: CountSketch(5, 2**31), ValueError, "width: expected an integer from 1 to 429496729"),
        (lambda: CountSketch(5, 5, 256), ValueError, "depth: expected an integer from 1 to 255"),
        (lambda: CountSketch(5, 5, dtype="int32"), ValueError, "dtype: expected one of"),
        (
            lambda: CountSketch(5, 5).update(np.ones(4, "f4")),
            ValueError,
            "values: expected shape (5,) or (n, 5), got (4,)",
        ),
        (lambda: CountSketch(5, 5).update([1.0]), TypeError, "values: expected an array, got list"),
        (lambda: CountSketch(5, 5).update(np.ones(5)), TypeError, "values: expected float16, float32, int8"),
        (lambda: CountSketch(5, 5, dtype="int64").update(np.ones(5)), TypeError, "values: expected an integer other"),
        (lambda: CountSketch(5, 5, dtype="int64").update(np.ones(5, "u8")), TypeError, "got uint64"),
        (
            lambda: CountSketch(5, 5, dtype="int64").update(np.ones(5, int), weight=0.5),
            TypeError,
            "weight: expected an integer",
        ),
        (
            lambda: CountSketch(5, 5).update(np.ones(5, "f4"), weight=np.inf),
            ValueError,
            "weight: expected a finite number",
        ),
        (
            lambda: CountSketch(5, 5).update(np.ones(2, "f4"), indices=np.array([1])),
            ValueError,
            "expected the shape of indices",
        ),
        (
            lambda: CountSketch(5, 5).update(np.ones(1, "f4"), indices=np.array([5])),
            ValueError,
            "indices: expected values from 0 to 4",
        ),
        (lambda: CountSketch(5, 5).update(np.ones(1, "f4"), indices=np.array([-1])), ValueError, "got -1 to -1"),
        (
            lambda: CountSketch(5, 5).update(np.ones(1, "f4"), indices=np.array([0.5])),
            TypeError,
            "indices: expected an integer",
        ),
        (
            lambda: CountSketch(5, 5).update(np.ones(3, "f4"), start=3),
            ValueError,
            "values: expected shape (m,), m at most 2",
        ),
        (
            lambda: CountSketch(5, 5).update(np.ones(1, "f4"), indices=np.array([1]), start=0),
            ValueError,
            "expected None beside",
        ),
        (lambda: CountSketch(5, 5).estimate(np.array([5])), ValueError, "indices: expected values from 0 to 4"),
        (lambda: CountSketch(5, 5).estimate(np.array([1.5])), TypeError, "indices: expected an integer"),
        (lambda: CountSketch(5, 5).top_k(6), ValueError, "k: expected an integer from 0 to 5"),
        (lambda: CountSketch(5, 5).merge(3), TypeError, "other: expected a CountSketch, got int"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@given(
    dtype=st.sampled_from(DTYPES),
    n=st.integers(1, 300),
    width=st.integers(1, 60),
    depth=st.integers(1, 12),
    seed=st.integers(0, 2**64 - 1),
    threads=st.integers(1, 3),
)
def test_every_backend_gives_the_same_bytes(
    dtype: Any, n: int, width: int, depth: int, seed: int, threads: int
) -> None:
    x = vector(n, dtype, n)
    indices = np.random.default_rng(n).integers(0, 2**62, n)

    def make() -> tuple[bytes, bytes]:
        cs = CountSketch(2**62, width, depth, seed=seed, dtype=dtype, num_threads=threads)
        cs.update(x, indices=indices).update(x, start=2**61)
        return cs.to_bytes(), cs.estimate(indices).tobytes()

    with ef.using("numpy"):
        expected = make()
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert make() == expected
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert make() == expected


def test_threads_never_change_bits(backend: str) -> None:
    x = vector(120_000, "float32")
    results = set()
    for threads in (1, 2, 5):
        cs = CountSketch(120_000, 997, num_threads=threads).update(x)
        results.add(cs.to_bytes() + cs.estimate().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_table_goes_on_where_the_counters_are(dtype: Any) -> None:
    x = vector(50, dtype)
    whole = CountSketch(50, 30, 3, seed=4, dtype=dtype).update(x)
    again = CountSketch.from_table(whole.table, 50, seed=4)
    assert again.table.tobytes() == whole.table.tobytes()
    assert (again.seed, again.dtype, again.n_seen) == (4, whole.dtype, 0)
    assert (again.top_k(5)[0] == whole.top_k(5)[0]).all()
    again.update(x)
    np.testing.assert_allclose(again.table, 2 * whole.table, rtol=1e-5, atol=1e-2)
    assert (whole.table == CountSketch(50, 30, 3, seed=4, dtype=dtype).update(x).table).all()
    assert CountSketch.from_bytes(again.to_bytes()) == again


def test_from_table_bad_input() -> None:
    for bad in ([[1.0]], np.zeros(3, np.float32), np.zeros((2, 2), np.float16)):
        with pytest.raises(TypeError, match=r"table: expected a \(depth, width\) array"):
            CountSketch.from_table(bad, 9)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="table: expected finite"):
        CountSketch.from_table(np.array([[np.inf]]), 9)
    with pytest.raises(ValueError, match="magnitudes below"):
        CountSketch.from_table(np.array([[-(2**63)]]), 9)
    full = CountSketch.from_table(np.array([[2**63 - 1]]), 9)
    with pytest.raises(SketchOverflowError):
        full.update(np.array([1]), indices=np.array([0]))


@pytest.mark.parametrize("weight", [1e300, 10**400])
def test_weights_the_counters_do_not_hold(weight: Any) -> None:
    cs = CountSketch(100, 10)
    with pytest.raises(ValueError, match="weight: expected a finite number of float32, got 1"):
        cs.update(np.zeros(100, np.float32), weight=weight)
    with pytest.raises(ValueError, match="weight: expected a finite number of float32, got 1"):
        cs *= weight
    assert cs == CountSketch(100, 10)


def test_sparse_values_are_checked() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    X = sparse.csr_array(np.eye(4, dtype=np.float32))
    spare = X.copy()
    spare.data, spare.indices = np.append(X.data, np.float32(9)), np.append(X.indices, np.int32(3))
    assert CountSketch(4, 8).update(spare) == CountSketch(4, 8).update(X)
    for layout in ("csr", "csc"):
        bad = X.asformat(layout).copy()
        bad.indices[1] = 2**30
        with pytest.raises(ValueError, match=r"values: malformed matrix, expected .* from 0 to 3, got 1073741824"):
            CountSketch(4, 8).update(bad)
    with pytest.raises(ValueError, match="values: expected neither indices nor start"):
        CountSketch(4, 8).update(X, start=0)
    with pytest.raises(ValueError, match=r"indices: expected shape \(m,\), got \(2, 2\)"):
        CountSketch(4, 8).update(np.ones((2, 2), np.float32), indices=np.ones((2, 2), int))
