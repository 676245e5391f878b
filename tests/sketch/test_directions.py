"""adjoint, sketch_rows, matrix notation, SciPy views, and how many components to take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import (
    RowSketch,
    SimHash,
    SketchOperator,
    _sparse,
    fwht,
    johnson_lindenstrauss_min_dim,
    rotate,
    suggest_n_components,
)

KINDS = ("sparse_stack", "countsketch", "srht", "rademacher", "gaussian", "sparse", "rotation")
HASH = ("sparse_stack", "countsketch", "sparse")
EXACT = (*HASH, "srht", "rotation")
SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)


def operator(kind: str, d: int = 97, k: int = 24, seed: int = 5) -> SketchOperator:
    k = d if kind == "rotation" else min(k, 1 << (d - 1).bit_length()) if kind == "srht" else k
    return SketchOperator(kind, d, k, seed=seed)


def data(n: int, d: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal((n, d))).astype(dtype)


def close(got: np.ndarray, expected: np.ndarray) -> None:
    precision = 5e-5 if got.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(got, expected, rtol=0, atol=precision * max(1.0, np.abs(expected).max(initial=0)))


def stable(kind: str, backend: str) -> bool:
    """Whether bytes may be compared."""
    return kind in EXACT or (kind == "rademacher" and backend != "numpy")


# --- adjoint ----------------------------------------------------------------------------------------------------


def reference(op: SketchOperator, Y: np.ndarray) -> np.ndarray:
    """The promised bits of the hash kinds and rademacher: terms from +0 in ascending order of components."""
    signs = np.sign(op.toarray()).astype(Y.dtype)
    acc = np.zeros((len(Y), op.n_features), Y.dtype)
    for c in range(op.n_components):
        hit = signs[c] != 0
        acc[:, hit] += Y[:, c, None] * signs[c, hit]
    return acc * Y.dtype.type(op.scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("d", SIZES)
def test_adjoint_values_and_bits(backend: str, d: int, dtype: Any) -> None:
    for k in (1, 8, 33, 300):
        for kind in KINDS:
            op = operator(kind, d, k)
            Y = data(19, op.n_components, dtype)
            got = op.adjoint(Y)
            assert got.shape == (19, d)
            assert got.dtype == dtype
            close(got, Y.astype(np.float64) @ op.toarray())
            if kind in HASH or (kind == "rademacher" and backend != "numpy"):
                assert got.tobytes() == reference(op, Y).tobytes(), (kind, k)


@pytest.mark.parametrize(("n", "d", "k"), [(70, 700, 64), (400, 130, 520), (3, 2000, 40), (5, 60, 20000)])
def test_adjoint_of_larger_batches(backend: str, n: int, d: int, k: int) -> None:
    for kind in KINDS:
        if k * d > 10**6 and kind not in HASH:
            continue
        op = operator(kind, d, k)
        Y = data(n, op.n_components)
        close(op.adjoint(Y), Y.astype(np.float64) @ op.toarray())


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_inputs_and_out(backend: str, kind: str) -> None:
    op = operator(kind)
    k = op.n_components
    for name, result in (("f2", "f4"), ("i1", "f4"), ("?", "f4"), ("i4", "f8"), ("f4", "f4"), ("f8", "f8")):
        Y = data(21, k, name)
        expected = op.adjoint(Y.astype(result))
        wide = np.zeros((42, 3 * k), name)
        wide[::2, 1::3] = Y
        for view in (Y, np.asfortranarray(Y), wide[::2, 1::3], Y[::-1, ::-1].copy()[::-1, ::-1]):
            got = op.adjoint(view)
            assert got.dtype == result
            if stable(kind, backend):
                assert got.tobytes() == expected.tobytes()
            else:
                close(got, expected)
    for out in (np.empty((21, 97)), np.empty((21, 97), order="F"), np.empty((42, 194))[::2, ::2]):
        assert op.adjoint(Y, out=out) is out
        close(out, expected)
    assert op.adjoint(Y[:0]).shape == (0, 97)
    one = op.adjoint(Y[3])
    assert one.shape == (97,)
    close(one, expected[3])


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_is_the_adjoint(backend: str, kind: str) -> None:
    op = operator(kind, 200, 64)
    x, y = data(1, 200, np.float64)[0], data(1, op.n_components, np.float64, 1)[0]
    assert math.isclose(op.transform(x) @ y, x @ op.adjoint(y), rel_tol=1e-10)


@pytest.mark.parametrize("d", [1, 2, 64, 97])
def test_adjoint_of_a_rotation_is_its_inverse(backend: str, d: int) -> None:
    op = operator("rotation", d)
    X = data(5, d, np.float64)
    np.testing.assert_allclose(op.adjoint(op.transform(X)), X, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_threads_and_batches_never_change_bits(backend: str, kind: str) -> None:
    op = operator(kind, 600, 64)
    Y = data(300, op.n_components)
    whole = op.adjoint(Y, num_threads=1)
    for threads in (2, 5):
        assert op.adjoint(Y, num_threads=threads).tobytes() == whole.tobytes()
    if stable(kind, backend):
        for cut in (1, 2, 17, 250):
            assert np.concatenate([op.adjoint(Y[:cut]), op.adjoint(Y[cut:])]).tobytes() == whole.tobytes(), cut


def test_adjoint_special_values(backend: str) -> None:
    for kind in EXACT:
        op = operator(kind)
        Y = data(20, op.n_components)
        Y[2, 3], Y[4, 5], Y[4, 6], Y[5, 0] = np.nan, np.inf, -np.inf, -0.0
        got = op.adjoint(Y)
        with np.errstate(all="ignore"), ef.using("numpy"):
            assert got.tobytes() == op.adjoint(Y).tobytes()
        nan = got.view(np.uint32)[np.isnan(got)]
        assert nan.size
        assert np.all(nan == np.array(np.nan, np.float32).view(np.uint32))
        with pytest.raises(ValueError, match=r"Y: expected finite numbers, got nan at \(2, 3\)"):
            op.adjoint(Y, nonfinite="raise")


@given(
    kind=st.sampled_from(EXACT),
    d=st.integers(1, 120),
    k=st.integers(1, 60),
    n=st.integers(1, 40),
    single=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_adjoint_is_the_same_on_every_backend(kind: str, d: int, k: int, n: int, single: bool, seed: int) -> None:
    op = operator(kind, d, k, seed)
    Y = data(n, op.n_components, np.float32 if single else np.float64, seed % 1000)
    with ef.using("numpy"):
        expected = op.adjoint(Y).tobytes()
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert op.adjoint(Y).tobytes() == expected
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert op.adjoint(Y).tobytes() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_is_unbiased(kind: str) -> None:
    """E[S.T S] is the identity, and so is the mean over seeds up to sampling error."""
    d, k, seeds = 16, 8, 800
    x = data(1, d, np.float64)[0]
    x /= np.linalg.norm(x)
    ops = [operator(kind, d, k, seed) for seed in range(seeds)]
    back = np.mean([op.adjoint(op.transform(x)) for op in ops], axis=0)
    # Each entry has variance below about (|x|^2 + x_j^2) / k, for the sparsest kind three times that.
    assert np.abs(back - x).max() < 5 * math.sqrt(3 * 2 / k / seeds)


# --- rows -------------------------------------------------------------------------------------------------------


def rows_of(D: np.ndarray, layout: str) -> Any:
    if layout == "dense":
        return D
    if layout == "F":
        return np.asfortranarray(D)
    return getattr(pytest.importorskip("scipy.sparse"), f"{layout}_array")(D)


@pytest.mark.parametrize("layout", ["dense", "F", "csr", "csc"])
@pytest.mark.parametrize("kind", KINDS)
def test_sketch_rows(backend: str, kind: str, layout: str) -> None:
    op = operator(kind)
    k, S = op.n_components, op.toarray()
    for name, columns in (("f4", 1), ("f4", 37), ("f8", 16), ("i1", 5), ("i4", 3), ("u2", 40)):
        D = np.rint(data(97, columns, np.float64)).clip(0 if name == "u2" else -100, 100).astype(name)
        D[np.random.default_rng(1).random(D.shape) < 0.5] = 0
        whole = op.sketch_rows(rows_of(D, layout))
        assert whole.shape == (k, columns)
        assert whole.dtype == (np.float64 if name in ("f8", "i4") else np.float32)
        close(whole, S @ D)
        if stable(kind, backend):
            assert whole.tobytes() == np.ascontiguousarray(op.transform(D.T).T).tobytes()
        close(op.sketch_rows(rows_of(D[20:61], layout), 20), S[:, 20:61] @ D[20:61])
        raw = op.sketch_rows(rows_of(D, layout), scaled=False)
        close(raw * op.scale, S @ D)
        # Blocks that continue each other.
        sums = np.full((k, columns), 0, whole.dtype, order="F" if columns > 16 else "C")
        for begin, end in ((0, 1), (1, 40), (40, 40), (40, 97)):
            block = rows_of(D[begin:end], layout)
            assert op.sketch_rows(block, begin, out=sums, accumulate=True, scaled=False) is sums
        if kind in (*HASH, "rademacher"):
            assert sums.tobytes("C") == raw.tobytes()
        else:
            close(sums * op.scale, S @ D)
    if layout == "dense":
        vector = op.sketch_rows(D[:, 0])
        assert vector.shape == (k,)
        close(vector, S @ D[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_sketch_rows_threads_and_out(backend: str, kind: str) -> None:
    op = operator(kind, 500, 40)
    D = data(500, 90)
    D[data(500, 90, seed=3) < 2] = 0
    for layout in ("dense", "csr", "csc"):
        X = rows_of(D, layout)
        whole = op.sketch_rows(X, num_threads=1)
        for threads in (2, 5):
            got = op.sketch_rows(X, num_threads=threads)
            assert got.tobytes() == whole.tobytes() if stable(kind, backend) else np.allclose(got, whole, atol=1e-3)
        out = np.full(whole.shape[::-1], 9, np.float32).T
        assert op.sketch_rows(X, out=out) is out
        np.testing.assert_allclose(out, whole, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(op.sketch_rows(X[:0], 500), np.zeros_like(whole))


def test_sketch_rows_small_chunks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        op = operator(kind)
        D = data(97, 9)
        expected = op.sketch_rows(D), op.sketch_rows(D[:50], 30)
        monkeypatch.setattr(_sparse, "_CHUNK", 40)
        monkeypatch.setattr(_sparse, "_BLOCK", 100)
        close(op.sketch_rows(D), expected[0])
        close(op.sketch_rows(D[:50], 30), expected[1])
        if kind in HASH:
            assert op.sketch_rows(D).tobytes() == expected[0].tobytes()
        monkeypatch.undo()


@pytest.mark.parametrize("layout", ["dense", "csr"])
def test_sketch_rows_nonfinite(backend: str, layout: str) -> None:
    for kind in KINDS:
        op = operator(kind)
        D = data(97, 4)
        used = int(np.flatnonzero(np.abs(op.toarray()).sum(axis=0))[9])
        D[used, 2] = np.nan
        got = op.sketch_rows(rows_of(D, layout))
        assert np.isnan(got[:, 2]).any()
        assert np.isfinite(got[:, [0, 1, 3]]).all()
        with pytest.raises(ValueError, match=rf"X: expected finite numbers, got nan at \({used}, 2\)"):
            op.sketch_rows(rows_of(D, layout), nonfinite="raise")


D = np.zeros((97, 4), np.float32)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((np.zeros((98, 4)),), {}, ValueError, "X: expected at most 97 rows from row_start=0 on, got 98"),
        ((D, 1), {}, ValueError, "X: expected at most 96 rows from row_start=1 on, got 97"),
        ((D, -1), {}, ValueError, "row_start: expected an integer from 0 to 97, got -1"),
        ((D, 98), {}, ValueError, "row_start: expected an integer from 0 to 97, got 98"),
        ((D, 1.0), {}, TypeError, "row_start: expected an integer, got float"),
        ((D[None],), {}, ValueError, "X: expected shape (m,) or (m, columns), got (1, 97, 4)"),
        (([1.0],), {}, TypeError, "X: expected an array, a SciPy CSR or CSC matrix or a buffer, got list"),
        ((D,), {"accumulate": True}, ValueError, "accumulate: expected out= and scaled=False with it"),
        (
            (D,),
            {"accumulate": True, "out": np.zeros((24, 4), np.float32)},
            ValueError,
            "accumulate: expected out= and scaled=False with it",
        ),
        ((D,), {"out": np.zeros((4, 24), np.float32)}, ValueError, "out: expected shape (24, 4), got (4, 24)"),
        ((D,), {"out": np.zeros((24, 4))}, ValueError, "out: expected dtype float32, got float64"),
        ((D,), {"out": D[:24]}, ValueError, "out: expected memory of its own"),
        ((D,), {"nonfinite": None}, ValueError, "nonfinite: expected 'propagate' or 'raise', got None"),
        ((D,), {"num_threads": 0}, ValueError, "num_threads: expected a positive integer, got 0"),
    ],
)
def test_bad_rows(backend: str, args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        operator("sparse_stack").sketch_rows(*args, **kwargs)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("Y", "kwargs", "error", "message"),
    [
        (np.zeros((4, 23)), {}, ValueError, "Y: expected shape (n, 24) or (24,), got (4, 23)"),
        (np.zeros((1, 4, 24)), {}, ValueError, "Y: expected shape (n, 24) or (24,), got (1, 4, 24)"),
        (np.zeros((4, 24), complex), {}, TypeError, "Y: expected a dtype of bool, int8 to int64"),
        (None, {}, TypeError, "Y: expected an array"),
        (np.zeros((4, 24)), {"out": np.zeros((4, 24))}, ValueError, "out: expected shape (4, 97), got (4, 24)"),
        (np.zeros((4, 24)), {"nonfinite": "no"}, ValueError, "nonfinite: expected 'propagate' or 'raise', got 'no'"),
    ],
)
def test_bad_adjoints(Y: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        operator("sparse_stack").adjoint(Y, **kwargs)
    assert message in str(caught.value)
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="Y: expected a dense array, got csr_array"):
        operator("sparse_stack").adjoint(sparse.csr_array((4, 24)))


# --- notation and views -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_notation(backend: str, kind: str) -> None:
    op = operator(kind)
    k, S = op.n_components, op.toarray()
    assert op.shape == S.shape
    assert op.T.shape == S.T.shape
    assert op.T.T is op
    assert op.T == SketchOperator.from_bytes(op.to_bytes()).T
    assert op.T != SketchOperator("srht", 97, 24).T
    assert hash(op.T) == hash(SketchOperator.from_bytes(op.to_bytes()).T)
    assert repr(op.T) == repr(op) + ".T"
    x, X = data(1, 97, np.float64)[0], data(97, 5, np.float64)
    y, Y = data(1, k, np.float64)[0], data(k, 5, np.float64)
    close(op @ x, S @ x)
    close(op @ X, S @ X)
    close(op.T @ y, S.T @ y)
    close(op.T @ Y, S.T @ Y)
    close(X.T @ op.T, X.T @ S.T)
    close(x @ op.T, x @ S.T)
    close(Y.T @ op, Y.T @ S)
    close(y @ op, y @ S)
    sparse = pytest.importorskip("scipy.sparse")
    close(op @ sparse.csr_array(X), S @ X)
    close(sparse.csc_array(X.T.copy()) @ op.T, X.T @ S.T)
    for bad in (X.T, np.zeros((97, 2, 2)), np.float64(3)):
        with pytest.raises(ValueError, match=r"x: expected shape \(97,\) or \(97, m\), got"):
            op @ bad


@pytest.mark.parametrize("kind", KINDS)
def test_linear_operator(kind: str) -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    op = operator(kind, 60, 20)
    S = op.toarray()
    A = op.aslinearoperator()
    assert isinstance(A, linalg.LinearOperator)
    assert A.shape == S.shape
    assert A.dtype == np.float64
    x, X = data(1, 60, np.float64)[0], data(60, 3, np.float64)
    y, Y = data(1, len(S), np.float64)[0], data(len(S), 3, np.float64)
    close(A @ x, S @ x)
    close(A @ x[:, None], S @ x[:, None])
    close(A @ X, S @ X)
    close(A.rmatvec(y), S.T @ y)
    close(A.H @ Y, S.T @ Y)
    close(A.T @ y, S.T @ y)
    close((A @ A.T) @ y, S @ S.T @ y)
    close(A @ np.arange(60), S @ np.arange(60.0))
    np.testing.assert_allclose(
        linalg.svds(A, k=3, return_singular_vectors=False, random_state=0).max(), np.linalg.norm(S, 2), rtol=1e-6
    )
    single = op.aslinearoperator(np.float32)
    assert (single @ x).dtype == np.float32
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got int32"):
        op.aslinearoperator(np.int32)
    with pytest.raises(TypeError, match="got complex128"):
        A @ (1j * x)


@pytest.mark.parametrize("kind", HASH)
def test_tosparse(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    op = operator(kind)
    S = op.toarray()
    for layout in ("csc", "csr"):
        matrix = op.tosparse(layout)
        assert isinstance(matrix, getattr(sparse, f"{layout}_array"))
        assert matrix.has_canonical_format
        assert matrix.dtype == np.float64
        np.testing.assert_array_equal(matrix.toarray(), S)
        single = op.tosparse(layout, dtype=np.float32)
        assert single.dtype == np.float32
        np.testing.assert_array_equal(single.toarray(), S.astype(np.float32))
    monkeypatch.setattr(_sparse, "_CHUNK", 30)
    np.testing.assert_array_equal(op.tosparse().toarray(), S)


def test_tosparse_errors() -> None:
    for kind in ("srht", "rademacher", "gaussian", "rotation"):
        with pytest.raises(ValueError, match=f"tosparse: a '{kind}' operator has no zeros"):
            operator(kind).tosparse()
    with pytest.raises(ValueError, match="format: expected 'csr' or 'csc', got 'bsr'"):
        operator("sparse_stack").tosparse("bsr")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype: expected float32 or float64, got int8"):
        operator("sparse_stack").tosparse(dtype=np.int8)


# --- theory -----------------------------------------------------------------------------------------------------


def test_min_dim_is_scikit_learns() -> None:
    random_projection = pytest.importorskip("sklearn.random_projection")
    peer = random_projection.johnson_lindenstrauss_min_dim
    samples, eps = np.array([1, 2, 10, 10**6, 10**12]), np.array([[0.01], [0.1], [0.5], [0.999]])
    got = johnson_lindenstrauss_min_dim(samples, eps=eps)
    assert got.dtype == peer(samples, eps=eps).dtype
    np.testing.assert_array_equal(got, peer(samples, eps=eps))
    np.testing.assert_array_equal(johnson_lindenstrauss_min_dim([7, 70]), peer([7, 70]))
    np.testing.assert_array_equal(johnson_lindenstrauss_min_dim(1e6, eps=[0.5, 0.1]), peer(1e6, eps=[0.5, 0.1]))
    for bad in ((0, 0.1), (-3, 0.1), (5, 0.0), (5, 1.0), (5, -0.1), ([5, 0], 0.5), (5, [0.5, 1.1])):
        with pytest.raises(ValueError, match=r"eps|sample"):
            peer(bad[0], eps=bad[1])
        with pytest.raises(ValueError, match=r"expected (positive )?values"):
            johnson_lindenstrauss_min_dim(bad[0], eps=bad[1])
    with pytest.raises(ValueError, match="n_samples: expected finite values, got inf"):
        johnson_lindenstrauss_min_dim(np.inf)
    for words in ("100", [1, "x"], np.array("2020-01-01", "M8[D]")):
        with pytest.raises(TypeError, match="n_samples: expected a number or an array of numbers"):
            johnson_lindenstrauss_min_dim(words)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sparse_stack", "srht", "rademacher", "gaussian", "sparse"])
def test_suggestions_hold(kind: str) -> None:
    """The bound fails no more often than it may, over many seeds."""
    d, eps, delta = 512, 0.5, 0.05
    k = suggest_n_components(eps, delta=delta, kind=kind)
    x = data(1, d, np.float64)[0]
    x /= np.linalg.norm(x)
    norms = np.array([np.sum(SketchOperator(kind, d, k, seed=s).transform(x) ** 2) for s in range(400)])
    # 400 delta = 20 failures are allowed; the bound is loose, so half of them would already be news.
    assert np.sum(np.abs(norms - 1) > eps) <= 10


def test_suggestions_hold_for_subspaces_and_countsketch() -> None:
    d, r, eps, delta = 400, 4, 0.5, 0.1
    basis = np.linalg.qr(data(d, r, np.float64))[0]
    for kind in ("gaussian", "sparse_stack", "srht", "countsketch"):
        k = suggest_n_components(eps, rank=r, delta=delta, kind=kind)
        if kind == "srht":
            k = min(k, 512)
        failures = 0
        for seed in range(60):
            values = np.linalg.svd(SketchOperator(kind, d, k, seed=seed).sketch_rows(basis), compute_uv=False)
            failures += bool(values[0] ** 2 > 1 + eps or values[-1] ** 2 < 1 - eps)
        assert failures <= 6, kind


def test_suggestions() -> None:
    for kind in ("sparse_stack", "srht", "rademacher", "gaussian", "sparse"):
        assert suggest_n_components(0.1, n_samples=1000, kind=kind) == johnson_lindenstrauss_min_dim(1000, eps=0.1)
    assert suggest_n_components(0.5) == math.ceil(2 * math.log(200) / (0.125 - 0.125 / 3))
    assert suggest_n_components(0.1, delta=0.1, kind="countsketch") == 2000
    assert suggest_n_components(0.5, n_samples=100, delta=0.5, kind="countsketch") == 2 * 4950 * 8
    assert suggest_n_components(0.5, rank=3, delta=0.5, kind="countsketch") == 12 * 8
    assert suggest_n_components(0.5, n_samples=2, delta=0.01) == suggest_n_components(0.5)
    assert suggest_n_components(0.3, n_samples=500, delta=1e-6) > suggest_n_components(0.3, n_samples=500, delta=0.1)
    assert suggest_n_components(0.999, n_samples=2) >= 1
    assert isinstance(suggest_n_components(0.5, rank=np.int64(5)), int)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((0.0,), {}, ValueError, "eps: expected a value in (0, 1), got 0.0"),
        ((1.0,), {}, ValueError, "eps: expected a value in (0, 1), got 1.0"),
        ((math.nan,), {}, ValueError, "eps: expected a value in (0, 1), got nan"),
        ((0.5,), {"delta": 0}, ValueError, "delta: expected a value in (0, 1), got 0"),
        ((0.5,), {"delta": 1.5}, ValueError, "delta: expected a value in (0, 1), got 1.5"),
        (("x",), {}, TypeError, "eps: expected a number, got str"),
        ((0.5,), {"delta": [0.1]}, TypeError, "delta: expected a number, got list"),
        ((0.5,), {"kind": ["srht"]}, ValueError, "kind: expected one of 'sparse_stack'"),
        ((0.5,), {"n_samples": 1}, ValueError, "n_samples: expected at least 2, got 1"),
        ((0.5,), {"n_samples": 10.0}, TypeError, "n_samples: expected an integer, got float"),
        ((0.5,), {"rank": 0}, ValueError, "rank: expected at least 1, got 0"),
        ((0.5,), {"rank": True}, TypeError, "rank: expected an integer, got bool"),
        ((0.5,), {"rank": 2, "n_samples": 3}, ValueError, "rank: expected either n_samples or rank, got both"),
        ((0.5,), {"kind": "rotation"}, ValueError, "kind: 'rotation' has as many components as features"),
        ((0.5,), {"kind": "jl"}, ValueError, "kind: expected one of 'sparse_stack'"),
        ((1e-200,), {}, ValueError, "eps: expected goals that float64 can compute with, got eps=1e-200, delta=None"),
        ((1e-20,), {"rank": 3}, ValueError, "eps: expected goals that float64 can compute with"),
        ((0.5,), {"kind": "countsketch", "delta": 5e-324}, ValueError, "delta=5e-324"),
        ((0.5,), {"n_samples": 10**400}, ValueError, "n_samples: expected finite values, got integers beyond float64"),
    ],
)
def test_bad_suggestions(args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        suggest_n_components(*args, **kwargs)
    assert message in str(caught.value)


def test_the_transpose_takes_what_the_adjoint_takes() -> None:
    op = SketchOperator("srht", 8, 4)
    with pytest.raises(TypeError, match="y: masked arrays are not supported"):
        _ = op.T @ np.ma.masked_equal(np.ones((4, 3)), 1)
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match="Y: expected a dense array, got csr_array"):
        _ = op.T @ sparse.csr_array(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("n", "eps", "error", "message"),
    [
        (10, 1e-200, ValueError, "eps: expected values that take fewer than 2**63 components, got 1e-200"),
        ([10, 100], [0.1, 1e-10], ValueError, "eps: expected values that take fewer than 2**63 components"),
        (10**400, 0.1, ValueError, "n_samples: expected finite values"),
        ([[1], [1, 2]], 0.1, TypeError, "n_samples: expected a number or an array of numbers"),
    ],
)
def test_min_dims_beyond_float64(n: Any, eps: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        johnson_lindenstrauss_min_dim(n, eps=eps)
    assert message in str(caught.value)


def test_arrays_that_do_not_share_their_memory() -> None:
    class Elsewhere:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("on another device")

    message = "Elsewhere does not give its memory as an array: on another device"
    X: Any = Elsewhere()
    for call in (fwht, rotate, SketchOperator("srht", 4, 2).transform, RowSketch(4, 2).update, SimHash().transform):
        with pytest.raises(TypeError, match=message):
            call(X)
