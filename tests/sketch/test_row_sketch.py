"""RowSketch: values against the operator's matrix, bits, merging, exact integers, what it tells, errors."""

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
from edgefast.backends.numpy.sketch_state import row_entries
from edgefast.sketch import IncompatibleSketchError, RowSketch, SketchOverflowError

KINDS = ("sparse_stack", "countsketch", "rademacher")
ACCUMULATE = ("float32", "float64", "int64")
SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)
NUMBERS = {"countsketch": 1, "sparse_stack": 2, "rademacher": 3}


def data(n: int, c: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, c)).astype(dtype)


def input_dtype(accumulate: str) -> Any:
    return np.float32 if accumulate == "float32" else np.float64


def reference(s: RowSketch, X: np.ndarray, row_start: int = 0) -> np.ndarray:
    """The promised bits: rows in order, one addition at a time, unscaled."""
    op = s.operator
    entries = row_entries(NUMBERS[op.kind], op.seed, s.size, op.nnz, (s.stream << 40) + row_start, len(X))
    sums = np.zeros((s.size, X.shape[1]), s.accumulate)
    if s.accumulate == "int64":
        X = np.rint(X.astype(np.float64) * 2.0**s.fraction_bits).astype(np.int64)
    for row, line in zip(X.astype(sums.dtype), entries, strict=True):
        for entry in line:
            bucket = entry & np.uint32(0x7FFFFFFF)
            sums[bucket] = sums[bucket] - row if entry >> np.uint32(31) else sums[bucket] + row
    return sums


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("c", SIZES)
def test_values_and_bits(backend: str, c: int, accumulate: Any) -> None:
    for kind, size, nnz in (
        ("sparse_stack", 24, 8),
        ("sparse_stack", 7, 3),
        ("countsketch", 5, 8),
        ("rademacher", 9, 8),
    ):
        s = RowSketch(c, size, kind=kind, nnz=nnz, seed=3, stream=2, accumulate=accumulate)
        X = data(37, c, input_dtype(accumulate))
        assert s.update(X) is s
        assert s.n_seen == s.next_row == 37
        np.testing.assert_array_equal(s.sums, reference(s, X))
        if accumulate == "float64":
            few = s.copy().update(X.astype(np.float32))
            expected = reference(s, np.concatenate([X, X.astype(np.float32)]))
            np.testing.assert_array_equal(few.sums, expected)


def test_the_matrix_is_the_operators(backend: str) -> None:
    # Stream 0 uses the first features of an operator: the same integers as SketchOperator's.
    for kind in KINDS:
        s = RowSketch(4, 16, kind=kind, seed=9).update(X := data(50, 4, np.float64))
        narrow = type(s.operator)(kind, 50, 16, seed=9, nnz=8)
        np.testing.assert_allclose(s.toarray(), narrow.toarray() @ X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize(("n", "c", "size"), [(700, 64, 128), (3, 1500, 300), (300, 1100, 17), (2000, 33, 64)])
def test_threads_levels_and_cuts_never_change_bits(backend: str, n: int, c: int, size: int, accumulate: Any) -> None:
    X = data(n, c, input_dtype(accumulate))

    def make(threads: int) -> RowSketch:
        return RowSketch(c, size, seed=1, accumulate=accumulate, num_threads=threads)

    with ef.using("numpy"):
        expected = make(1).update(X).to_bytes()
    for threads in (1, 2, 5):
        assert make(threads).update(X).to_bytes() == expected
    for cut in (1, n // 3, n - 1):
        assert make(2).update(X[:cut]).update(X[cut:]).to_bytes() == expected


def test_layouts_and_dtypes(backend: str) -> None:
    n, c = 45, 19
    ints = np.random.default_rng(0).integers(-100, 100, (n, c))
    expected = RowSketch(c, 12, accumulate="float64").update(ints.astype(np.float64))
    wide = np.zeros((2 * n, 3 * c))
    wide[::2, 1::3] = ints
    unaligned = np.zeros(8 * n * c + 1, np.uint8)[1:].view(np.float64).reshape(n, c)
    unaligned[...] = ints
    readonly = ints.astype(np.float64)
    readonly.flags.writeable = False
    layouts = [np.asfortranarray(readonly), wide[::2, 1::3], readonly[::-1].copy()[::-1], unaligned, readonly]
    layouts += [ints.astype(t) for t in ("f4", "f2", "i1", "i2", "i4")]
    for X in layouts:
        assert RowSketch(c, 12, accumulate="float64").update(X) == expected
    unsigned = abs(ints)
    for t in ("u1", "u2", "u4"):
        got = RowSketch(c, 12).update(unsigned.astype(t))
        assert got == RowSketch(c, 12).update(unsigned.astype(np.float64))
    for accumulate in ACCUMULATE:
        one = RowSketch(c, 12, accumulate=accumulate)
        for row in ints.astype(np.int16 if accumulate != "float32" else np.int8):
            one.update(row)
        whole = RowSketch(c, 12, accumulate=accumulate).update(ints.astype(np.float32))
        assert one.to_bytes() == whole.to_bytes()
        half = RowSketch(c, 12, accumulate=accumulate).update(ints.astype(np.float16))
        assert half.to_bytes() == whole.to_bytes()
    empty = RowSketch(c, 12).update(np.empty((0, c)))
    assert empty == RowSketch(c, 12)


def test_sparse_rows(backend: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    X = sparse.random(300, 40, 0.1, format="csr", random_state=0)
    for accumulate in ("float64", "int64"):
        expected = RowSketch(40, 32, accumulate=accumulate).update(X.toarray())
        for form in (X, X.tocsc(), sparse.csr_array(X)):
            assert RowSketch(40, 32, accumulate=accumulate).update(form) == expected
    bad = X.copy()
    bad.data[3] = np.nan
    with pytest.raises(ValueError, match="X: expected finite numbers"):
        RowSketch(40, 2).update(bad)


@given(seed=st.integers(0, 2**32), parts=st.integers(1, 6), kind=st.sampled_from(KINDS))
def test_integer_merges_are_exact_in_any_order(seed: int, parts: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 5)) * 10.0 ** rng.integers(-3, 4)
    whole = RowSketch(5, 8, kind=kind, accumulate="int64").update(X)
    owner = rng.integers(0, parts, len(X))
    pieces = []
    for p in rng.permutation(parts):
        piece = RowSketch(5, 8, kind=kind, accumulate="int64")
        for i in np.flatnonzero(owner == p):
            piece.update(X[i], row_start=int(i))
        pieces.append(piece)
    while len(pieces) > 1:
        a, b = pieces.pop(), pieces.pop(int(rng.integers(len(pieces))))
        pieces.append(a.merge(b, same_rows=True))
    assert pieces[0].sums.tobytes() == whole.sums.tobytes()
    assert pieces[0].to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_a_float_merge_adds_one_rounding(backend: str, accumulate: Any) -> None:
    X = data(90, 6, input_dtype(accumulate))
    a = RowSketch(6, 16, accumulate=accumulate).update(X[:50])
    b = RowSketch(6, 16, accumulate=accumulate, stream=1).update(X[50:])
    merged = a.copy().merge(b)
    np.testing.assert_array_equal(merged.sums, a.sums + b.sums)
    assert merged.n_seen == 90
    merged -= b
    np.testing.assert_array_equal(merged.sums, (a.sums + b.sums) - b.sums)
    assert merged.n_seen == 50
    merged *= 0.1
    np.testing.assert_array_equal(merged.sums, ((a.sums + b.sums) - b.sums) * np.dtype(accumulate).type(0.1))
    a += b
    assert a.n_seen == 90


def test_streams_are_disjoint_columns() -> None:
    X = data(40, 3, np.float64)
    two = RowSketch(3, 16, stream=5).update(X)
    np.testing.assert_array_equal(two.sums, reference(two, X))
    assert two.sums.tobytes() != RowSketch(3, 16, stream=4).update(X).sums.tobytes()
    later = RowSketch(3, 16, stream=5).update(X, row_start=1000)
    assert later.next_row == 1040
    np.testing.assert_array_equal(later.sums, reference(later, X, 1000))
    assert RowSketch(3, 16, stream=5).update(X[30:], row_start=30).update(X[:30], row_start=0).next_row == 40


def test_integer_mode_keeps_one_rounding_and_scales() -> None:
    X = data(50, 4, np.float64)
    s = RowSketch(4, 8, accumulate="int64", fraction_bits=20).update(X)
    f = RowSketch(4, 8).update(np.rint(X * 2**20) / 2**20)
    np.testing.assert_array_equal(s.sums, f.sums * 2**20)
    np.testing.assert_allclose(s.toarray(), f.toarray(), rtol=1e-15)
    t = s.copy()
    t *= -3
    np.testing.assert_array_equal(t.sums, -3 * s.sums)
    for _ in range(3):
        t.merge(s, same_rows=True)
    assert not t.sums.any()
    halves = RowSketch(1, 1, kind="countsketch", accumulate="int64", fraction_bits=0).update(
        np.array([[0.5], [1.5], [2.5]])
    )
    assert np.abs(halves.sums).max() <= 4  # 0, 2 and 2: half to even


def test_overflow_is_a_typed_error_and_changes_nothing() -> None:
    s = RowSketch(2, 4, accumulate="int64", fraction_bits=32).update(np.ones((3, 2)))
    before = s.to_bytes()
    with pytest.raises(SketchOverflowError, match=r"expected magnitudes up to 2\*\*30"):
        s.update(np.array([[1.0, 2.0**31]]))
    big = np.full((3, 2), 2.0**29)
    s.update(big[:2])
    with pytest.raises(SketchOverflowError, match="to add up to less than"):
        s.update(np.concatenate([big, big]))
    with pytest.raises(SketchOverflowError, match="expected sums below"):
        s.merge(s, same_rows=True)
    with pytest.raises(SketchOverflowError, match="expected sums below"):
        s *= 2
    s.update(-big[:0])
    assert s.n_seen == 5
    assert issubclass(SketchOverflowError, ValueError)
    assert issubclass(SketchOverflowError, OverflowError)
    assert RowSketch.from_bytes(before).n_seen == 3
    # As far as it goes: the largest sums that must fit do.
    edge = RowSketch(1, 1, kind="countsketch", accumulate="int64", fraction_bits=0)
    edge.update(np.array([2.0**62])).update(np.array([2.0**62 - 2**10]))
    assert abs(int(edge.sums[0, 0])) in (2**63 - 2**10, 2**10)


@pytest.mark.parametrize("accumulate", ACCUMULATE)
@pytest.mark.parametrize("n", [2, 500])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_leaves_no_trace(backend: str, accumulate: Any, n: int, bad: float) -> None:
    s = RowSketch(5, 16, accumulate=accumulate).update(data(10, 5))
    before = s.to_bytes()
    X = data(n, 5)
    X[n // 2, 3] = bad
    with pytest.raises(ValueError, match="X: expected finite numbers, got NaN or infinity"):
        s.update(X)
    assert s.to_bytes() == before


def test_gram_lstsq_svd() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20000, 10)) * np.arange(1, 11)
    beta = rng.standard_normal(10)
    y = X @ beta + 0.1 * rng.standard_normal(20000)
    for kind in KINDS:
        for accumulate in ACCUMULATE:
            s = RowSketch(11, 400, kind=kind, accumulate=accumulate, seed=2)
            s.update(np.column_stack([X, y]).astype(input_dtype(accumulate)))
            exact = X.T @ X
            # Subspace distortion is about sqrt(rank / size): 0.16 here.
            scale = np.sqrt(np.outer(exact.diagonal(), exact.diagonal()))
            assert np.abs((s.gram()[:10, :10] - exact) / scale).max() < 0.35
            b = s.lstsq()
            np.testing.assert_allclose(b, beta, atol=0.05)
            residual = np.linalg.norm(y - X @ b) / np.linalg.norm(y - X @ np.linalg.lstsq(X, y, rcond=None)[0])
            assert residual < 1.1
            assert s.lstsq(target=0).shape == (10,)
            values, vectors = s.svd(3)
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-12)
            assert np.all(vectors[np.arange(3), np.abs(vectors).argmax(axis=1)] > 0)
            np.testing.assert_allclose(values, np.linalg.norm(s.toarray().astype(float) @ vectors.T, axis=0), rtol=1e-5)
    # E B'B = X'X: the mean over seeds comes close.
    small = rng.standard_normal((60, 3))
    grams = [RowSketch(3, 12, seed=i).update(small).gram() for i in range(400)]
    np.testing.assert_allclose(np.mean(grams, axis=0), small.T @ small, atol=5 * 60 / np.sqrt(12 * 400))


def test_value_semantics() -> None:
    s = RowSketch(3, 8, stream=7, accumulate="int64").update(data(9, 3))
    for twin in (
        s.copy(),
        copy.copy(s),
        copy.deepcopy(s),
        pickle.loads(pickle.dumps(s)),
        RowSketch.from_bytes(s.to_bytes()),
    ):
        assert twin == s
        assert twin.fingerprint == s.fingerprint
        twin.update(data(1, 3))
        assert twin != s
    assert s != 3
    assert repr(s) == (
        "<RowSketch n_columns=3, size=8, kind='sparse_stack', nnz=8, seed=0, accumulate='int64', fraction_bits=24, "
        "stream=7: 9 rows>"
    )
    assert s.nbytes == 8 * 8 * 3
    assert (s.n_columns, s.size, s.stream, s.accumulate, s.fraction_bits) == (3, 8, 7, "int64", 24)
    with pytest.raises(ValueError, match="read-only"):
        s.sums[0, 0] = 1
    with pytest.raises(TypeError):
        hash(s)


def test_incompatible_sketches() -> None:
    s = RowSketch(3, 8).update(data(4, 3))
    others = [
        RowSketch(4, 8),
        RowSketch(3, 9),
        RowSketch(3, 8, seed=1),
        RowSketch(3, 8, nnz=4),
        RowSketch(3, 8, kind="countsketch"),
        RowSketch(3, 8, accumulate="float32"),
        RowSketch(3, 8, accumulate="int64"),
    ]
    for other in others:
        assert other.fingerprint != s.fingerprint
        with pytest.raises(IncompatibleSketchError, match="other: expected n_columns=3, size=8"):
            s += other
    with pytest.raises(IncompatibleSketchError, match="fraction_bits=3"):
        RowSketch(3, 8, accumulate="int64").merge(RowSketch(3, 8, accumulate="int64", fraction_bits=3))
    with pytest.raises(
        IncompatibleSketchError, match="rows 0 to 3 of stream 0 twice; give every device its own stream="
    ):
        s.merge(RowSketch(3, 8).update(data(4, 3)))
    s.merge(RowSketch(3, 8).update(data(4, 3)), same_rows=True)
    s.merge(RowSketch(3, 8).update(data(4, 3), row_start=4))
    assert s.next_row == 8
    assert issubclass(IncompatibleSketchError, ValueError)
    with pytest.raises(TypeError, match="other: expected a RowSketch, got int"):
        s.merge(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RowSketch(0, 8), ValueError, "n_columns: expected an integer from 1"),
        (lambda: RowSketch(3, 0), ValueError, "size: expected an integer from 1"),
        (lambda: RowSketch(3, 8.0), TypeError, "size: expected an integer, got float"),
        (lambda: RowSketch(3, 8, kind="srht"), ValueError, "for rows without an end, got 'srht'"),
        (lambda: RowSketch(3, 8, kind="gaussian"), ValueError, "for rows without an end, got 'gaussian'"),
        (lambda: RowSketch(3, 8, kind="x"), ValueError, "kind: expected one of"),
        (lambda: RowSketch(3, 8, kind=3), TypeError, "kind: expected a string"),
        (lambda: RowSketch(3, 8, stream=2**22), ValueError, "stream: expected an integer from 0 to 4194303"),
        (lambda: RowSketch(3, 8, accumulate="int32"), ValueError, "accumulate: expected one of"),
        (lambda: RowSketch(3, 8, fraction_bits=63), ValueError, "fraction_bits: expected an integer from 0 to 62"),
        (lambda: RowSketch(3, 8, num_threads=0), ValueError, "num_threads: expected a positive integer"),
        (lambda: RowSketch(3, 8).update(data(4, 2)), ValueError, "X: expected shape (n, 3) or (3,), got (4, 2)"),
        (lambda: RowSketch(3, 8).update(np.zeros((2, 2, 3))), ValueError, "X: expected shape (n, 3)"),
        (lambda: RowSketch(3, 8).update([[1.0, 2, 3]]), TypeError, "X: expected an array, got list"),
        (
            lambda: RowSketch(3, 8).update(np.ones((2, 3), bool)),
            TypeError,
            "X: expected float16, float32, float64 or an",
        ),
        (lambda: RowSketch(3, 8).update(np.ones((2, 3), np.int64)), TypeError, "got int64"),
        (lambda: RowSketch(3, 8).update(np.ones((2, 3), ">f8")), TypeError, "native byte order"),
        (lambda: RowSketch(3, 8).update(np.ma.ones((2, 3))), TypeError, "masked arrays are not supported"),
        (lambda: RowSketch(3, 8, accumulate="float32").update(np.ones((2, 3))), TypeError, "got float64"),
        (lambda: RowSketch(3, 8).update(data(4, 3), row_start=-1), ValueError, "row_start: expected an integer from 0"),
        (
            lambda: RowSketch(3, 8).update(data(4, 3), row_start=2**40 - 3),
            ValueError,
            "expected row numbers below 2**40",
        ),
        (lambda: RowSketch(3, 8).__imul__(np.nan), ValueError, "weight: expected a finite number of float64, got nan"),
        (lambda: RowSketch(3, 8).__imul__("2"), TypeError, "weight: expected a number, got str"),
        (
            lambda: RowSketch(3, 8, accumulate="int64").__imul__(0.5),
            TypeError,
            "weight: expected an integer, got float",
        ),
        (lambda: RowSketch(3, 8).svd(4), ValueError, "k: expected an integer from 1 to 3, got 4"),
        (lambda: RowSketch(3, 8).lstsq(target=3), ValueError, "target: expected an integer from -3 to 2, got 3"),
        (lambda: RowSketch(1, 8).lstsq(), ValueError, "target: expected a sketch of at least two columns"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@given(
    kind=st.sampled_from(KINDS),
    accumulate=st.sampled_from(ACCUMULATE),
    c=st.integers(1, 70),
    size=st.integers(1, 40),
    n=st.integers(0, 60),
    nnz=st.integers(1, 20),
    stream=st.integers(0, 2**22 - 1),
)
def test_every_backend_gives_the_same_bytes(
    kind: str, accumulate: Any, c: int, size: int, n: int, nnz: int, stream: int
) -> None:
    X = data(n, c, input_dtype(accumulate), seed=n)

    def make() -> bytes:
        return RowSketch(c, size, kind=kind, nnz=nnz, stream=stream, accumulate=accumulate).update(X).to_bytes()

    with ef.using("numpy"):
        expected = make()
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert make() == expected
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert make() == expected


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_malformed_sparse_rows(layout: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    X = sparse.eye_array(4, format=layout)
    X.indices[1] = 2**30
    with pytest.raises(ValueError, match=r"X: malformed matrix, expected .* indices from 0 to 3, got 1073741824"):
        RowSketch(4, 8).update(X)


def test_a_sum_of_its_stream_knows_the_rows_in_use() -> None:
    device = RowSketch(3, 8).update(np.ones((5, 3)), row_start=2)
    total = RowSketch(3, 8)
    total += device
    assert total.next_row == 7
    with pytest.raises(IncompatibleSketchError, match="got rows 2 to 6 of stream 0 twice"):
        total += device
    total.update(np.ones((1, 3)))
    assert total == device.copy().update(np.ones((1, 3)))
    assert RowSketch(3, 8, stream=1).merge(device).next_row == 0


def test_what_leaves_float64_is_an_overflow() -> None:
    sketch = RowSketch(3, 8, accumulate="int64")
    with pytest.raises(SketchOverflowError, match=r"X: expected magnitudes up to 2\*\*38 .*, got 1e\+308"):
        sketch.update(np.full((2, 3), -1e308))
    assert sketch == RowSketch(3, 8, accumulate="int64")


@pytest.mark.parametrize("weight", [1e300, 10**400, -(10**400)])
def test_weights_the_sums_do_not_hold(weight: Any) -> None:
    sketch = RowSketch(3, 8, accumulate="float32")
    with pytest.raises(ValueError, match=r"weight: expected a finite number of float32, got -?1"):
        sketch *= weight
    assert not sketch.sums.any()
