"""What transform accepts: every element type, every way to hold an array, SciPy's CSR and CSC."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import SketchOperator, _inputs, _sparse

sparse = pytest.importorskip("scipy.sparse")

KINDS = ("sparse_stack", "countsketch", "srht", "rademacher", "gaussian", "sparse", "rotation")
#: Kinds whose output bytes are promised on every backend.
EXACT = ("sparse_stack", "countsketch", "srht", "sparse", "rotation")
NARROW = ("?", "i1", "u1", "i2", "u2", "f2", "f4")
WIDE = ("i4", "u4", "i8", "u8", "f8")


def operator(kind: str, d: int = 97, k: int = 24, seed: int = 5) -> SketchOperator:
    return SketchOperator(kind, d, d if kind == "rotation" else k, seed=seed)


def numbers(n: int, d: int, dtype: Any, seed: int = 0, density: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        X = rng.standard_normal((n, d)).astype(dtype)
    elif dtype.kind == "b":
        X = rng.random((n, d)) < 0.5
    else:
        info = np.iinfo(dtype)
        X = rng.integers(max(info.min, -(2**53)), min(info.max, 2**53), (n, d), dtype, endpoint=True)
    X[rng.random((n, d)) >= density] = 0
    return X


def compressed(D: np.ndarray, layout: str = "csr", index: Any = np.int32) -> Any:
    """Without SciPy's conversions, which do not know float16 and bool."""
    M = getattr(sparse, f"{layout}_array")((D != 0).astype(np.int8))
    major = np.repeat(np.arange(M.indptr.size - 1), np.diff(M.indptr))
    M.data = D[major, M.indices] if layout == "csr" else D[M.indices, major]
    M.indices, M.indptr = M.indices.astype(index), M.indptr.astype(index)
    return M


def same(kind: str, got: np.ndarray, expected: np.ndarray, backend: str, note: str = "") -> None:
    if kind in EXACT or (kind == "rademacher" and backend != "numpy"):
        assert got.tobytes() == expected.tobytes(), (kind, note)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max(initial=0)))


# --- dense ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NARROW + WIDE)
def test_element_types(backend: str, name: str) -> None:
    result = np.float32 if name in NARROW else np.float64
    for kind in KINDS:
        op = operator(kind)
        for n in (1, 2, 37):
            X = numbers(n, 97, name)
            Y = op.transform(X)
            assert Y.dtype == result
            assert Y.tobytes() == op.transform(X.astype(result)).tobytes()
            expected = X.astype(np.float64) @ op.toarray().T
            np.testing.assert_allclose(Y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    out = np.empty((37, 97), result)
    assert op.transform(X, out=out) is out
    assert out.tobytes() == Y.tobytes()


@pytest.mark.parametrize("name", ["f2", "i1", "u1", "i2", "u2"])
def test_every_narrow_value_is_exact(backend: str, name: str) -> None:
    bits = np.arange(1 << 8 * np.dtype(name).itemsize).astype(f"u{np.dtype(name).itemsize}")
    X = bits.view(name)[:, None]
    op = SketchOperator("countsketch", 1, 1, seed=0)
    sign = np.sign(op.toarray()[0, 0])
    Y = op.transform(X)[:, 0]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(Y, X[:, 0].astype(np.float32) * np.float32(sign))
    # Many features a row: the converting loops of the tiles.
    wide = X[: X.size // 256 * 256].reshape(-1, 256)
    op = SketchOperator("sparse_stack", 256, 40, seed=0)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(op.transform(wide), op.transform(wide.astype(np.float32)))


@pytest.mark.parametrize("name", ["f2", "u1", "i2", "i4"])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_other_types(backend: str, kind: str, name: str) -> None:
    n, d = 21, 97
    op = operator(kind)
    X = numbers(n, d, name)
    expected = op.transform(X)
    wide = np.zeros((2 * n, 3 * d), name)
    wide[::2, 1::3] = X
    raw = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(name).reshape(n, d)
    unaligned[...] = X
    readonly = X.copy()
    readonly.flags.writeable = False
    for note, view in {
        "F": np.asfortranarray(X),
        "strided": wide[::2, 1::3],
        "reversed": X[::-1, ::-1].copy()[::-1, ::-1],
        "unaligned": unaligned,
        "readonly": readonly,
    }.items():
        same(kind, op.transform(view), expected, backend, note)


def test_64_bit_integers_are_held_to_what_float64_holds() -> None:
    op = operator("countsketch", 3, 2)
    for name in ("i8", "u8"):
        assert op.transform(np.array([[2**53, 0, 1]], name)).dtype == np.float64
        with pytest.raises(
            ValueError, match=r"X: expected integers that float64 holds exactly, up to 2\*\*53, got 90071"
        ):
            op.transform(np.array([[2**53 + 1, 0, 1]], name))
    with pytest.raises(ValueError, match=r"got -9007199254740993"):
        op.transform(np.array([[-(2**53) - 1, 0, 1]]))
    with pytest.raises(ValueError, match=r"up to 2\*\*53"):
        op.transform(sparse.csr_array(np.array([[2**53 + 1, 0, 1]])))


class Capsule:
    """The least an object needs for DLPack."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._x.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._x.__dlpack_device__()


class Interface:
    def __init__(self, x: np.ndarray) -> None:
        self.__array_interface__ = x.__array_interface__
        self._x = x


def test_holders_of_memory(tmp_path: Path) -> None:
    op = operator("sparse_stack", 12, 5)
    X = numbers(6, 12, np.float32)
    expected = op.transform(X)
    np.save(tmp_path / "x.npy", X)
    for holder in (
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        np.memmap(tmp_path / "x.npy", np.float32, "r", offset=128, shape=(6, 12)),
        X.view(np.matrix),
        Capsule(X),
        Interface(X),
        memoryview(X),
    ):
        got = op.transform(holder)
        assert type(got) is np.ndarray
        assert got.tobytes() == expected.tobytes()
    row = array.array("f", X[0].tolist())
    assert op.transform(row).tobytes() == expected[0].tobytes()
    text = bytes(range(12))
    assert op.transform(text).tobytes() == op.transform(np.arange(12, dtype=np.uint8)).tobytes()
    out = np.zeros(3 * 12, np.float32)
    assert op.transform(bytearray(text)).tobytes() == op.transform(text).tobytes()
    assert not out.any()


def test_torch_and_pandas() -> None:
    op = operator("sparse_stack", 12, 5)
    X = numbers(6, 12, np.float32)
    expected = op.transform(X).tobytes()
    pandas = pytest.importorskip("pandas")
    assert op.transform(pandas.DataFrame(X)).tobytes() == expected
    torch = pytest.importorskip("torch")
    assert op.transform(torch.from_numpy(X)).tobytes() == expected
    for bad in (torch.from_numpy(X).requires_grad_(), torch.from_numpy(X).bfloat16()):
        with pytest.raises(TypeError, match="X: Tensor does not give its memory as an array"):
            op.transform(bad)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([[1.0] * 10], TypeError, "X: expected an array, a SciPy CSR or CSC matrix or a buffer, got list"),
        (None, TypeError, "X: expected an array, a SciPy CSR or CSC matrix or a buffer, got NoneType"),
        ("0123456789", TypeError, "X: expected an array, a SciPy CSR or CSC matrix or a buffer, got str"),
        (np.zeros((4, 10), ">f4"), TypeError, "in native byte order, got >f4"),
        (np.zeros((4, 10), ">i2"), TypeError, "in native byte order, got >i2"),
        (np.zeros((4, 10), object), TypeError, "X: expected a dtype of bool, int8 to int64"),
        (np.zeros((4, 10), complex), TypeError, "got complex128"),
        (np.zeros((4, 10), np.longdouble), TypeError, "X: expected a dtype of bool, int8 to int64"),
        (np.zeros((4, 10), "M8[s]"), TypeError, "got datetime64[s]"),
        (np.zeros((4, 10), "S3"), TypeError, "got |S3"),
        (np.zeros(4, [("a", "f4", 10)]), TypeError, "X: expected a dtype of bool, int8 to int64"),
        (np.ma.zeros((4, 10)), TypeError, "X: masked arrays are not supported"),
        (np.zeros((4, 9), np.uint8), ValueError, "X: expected shape (n, 10) or (10,), got (4, 9)"),
        (np.float32(3), ValueError, "X: expected shape (n, 10) or (10,), got ()"),
        (sparse.csr_array((4, 9)), ValueError, "X: expected shape (n, 10) or (10,), got (4, 9)"),
        (sparse.bsr_array((4, 10)), TypeError, "X: expected a sparse matrix in CSR or CSC format, got bsr"),
        (sparse.lil_matrix((4, 10)), TypeError, "X: expected a sparse matrix in CSR or CSC format, got lil"),
        (sparse.csr_array((4, 10), dtype=complex), TypeError, "got complex128"),
        (sparse.csc_matrix((4, 10), dtype=np.longdouble), TypeError, "X: expected a dtype of bool"),
    ],
)
def test_bad_inputs(backend: str, X: Any, error: type[Exception], message: str) -> None:
    for kind in KINDS:
        with pytest.raises(error) as caught:
            operator(kind, 10, 3).transform(X)
        assert message in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_nonfinite_policy(backend: str, kind: str) -> None:
    op = operator(kind, 40, 12)
    X = numbers(9, 40, np.float32)
    assert op.transform(X, nonfinite="raise").tobytes() == op.transform(X).tobytes()
    for bad in (np.nan, np.inf, -np.inf):
        Z = X.copy()
        used = np.flatnonzero(np.abs(op.toarray()).sum(axis=0))[3]
        Z[4, used] = bad
        for held in (Z, compressed(Z), compressed(Z, "csc"), Z.astype(np.float16)):
            with pytest.raises(ValueError, match=rf"X: expected finite numbers, got {bad} at \(4, {used}\)"):
                op.transform(held, nonfinite="raise")
            assert not np.isfinite(op.transform(held)[4]).all()
        with pytest.raises(ValueError, match=rf"X: expected finite numbers, got {bad} at \({used},\)"):
            op.transform(Z[4], nonfinite="raise")
    full = np.full((1, 40), np.finfo(np.float32).max, np.float32) * np.sign(op.toarray()[:1]).astype(np.float32)
    if kind not in ("countsketch", "sparse"):
        with pytest.raises(ValueError, match="X: expected finite results, got an overflow of float32"):
            op.transform(full, nonfinite="raise")
    with pytest.raises(ValueError, match="nonfinite: expected 'propagate' or 'raise', got 'ignore'"):
        op.transform(X, nonfinite="ignore")  # type: ignore[arg-type]


# --- sparse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize("name", NARROW + WIDE)
def test_sparse_is_dense(backend: str, name: str, layout: str) -> None:
    for kind in KINDS:
        op = operator(kind)
        for n in (1, 37):
            D = numbers(n, 97, name, density=0.2)
            if n > 5:
                D[3] = 0
                D[5] = numbers(1, 97, name, seed=9)
            for index in (np.int32, np.int64):
                X = compressed(D, layout, index)
                Y = op.transform(X)
                assert Y.dtype == (np.float32 if name in NARROW else np.float64)
                same(kind, Y, op.transform(D), backend, f"{n} {index}")


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_shapes_and_out(backend: str, kind: str) -> None:
    op = operator(kind)
    k = op.n_components
    for layout in ("csr", "csc"):
        D = numbers(12, 97, np.float32, density=0.3)
        X = compressed(D, layout)
        expected = op.transform(X)
        for out in (
            np.full((12, k), 7, np.float32),
            np.full((12, k), 7, np.float32, order="F"),
            np.full((24, 2 * k), 7, np.float32)[::2, ::2],
        ):
            assert op.transform(X, out=out) is out
            np.testing.assert_array_equal(out, expected)
        assert op.transform(compressed(D[:0], layout)).shape == (0, k)
        empty = op.transform(compressed(np.zeros_like(D), layout))
        assert empty.tobytes() == op.transform(np.zeros_like(D)).tobytes()
        matrix = sparse.csr_matrix(D) if layout == "csr" else sparse.csc_matrix(D)
        assert op.transform(matrix).tobytes() == expected.tobytes()
        with pytest.raises(ValueError, match=r"out: expected shape"):
            op.transform(X, out=np.empty((3, 4), np.float32))
        room = np.zeros(12 * 97, np.float32)
        held = compressed(D, layout)
        held.data = room[: X.data.size]
        with pytest.raises(ValueError, match="out: expected memory of its own"):
            op.transform(held, out=room[: 12 * k].reshape(12, k))
    try:
        row = sparse.csr_array(D[0])
    except ValueError:
        return  # a SciPy without one-dimensional sparse arrays
    if row.ndim == 1:
        one = op.transform(row)
        assert one.shape == (k,)
        same(kind, one, op.transform(D[0]), backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_small_blocks_give_the_same_bytes(
    backend: str, kind: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = operator(kind)
    X = compressed(numbers(60, 97, np.float32, density=0.4), layout)
    expected = op.transform(X)
    monkeypatch.setattr(_sparse, "_BLOCK", 50)
    monkeypatch.setattr(_sparse, "_CHUNK", 40)
    np.testing.assert_allclose(op.transform(X), expected, rtol=1e-3, atol=1e-4)
    if kind != "gaussian":
        assert op.transform(X).tobytes() == expected.tobytes()
    few = compressed(numbers(3, 97, np.float32, density=0.05), layout)
    monkeypatch.undo()
    drawn = op.transform(few)
    same(kind, drawn, op.transform(few.toarray()), backend)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_never_change_bits_of_sparse(backend: str, kind: str) -> None:
    op = SketchOperator(kind, 600, 600 if kind == "rotation" else 64, seed=2)
    D = numbers(700, 600, np.float32, density=0.3)
    for layout in ("csr", "csc"):
        X = compressed(D, layout)
        whole = op.transform(X, num_threads=1)
        for threads in (2, 5):
            got = op.transform(X, num_threads=threads)
            if kind == "gaussian":
                np.testing.assert_allclose(got, whole, rtol=1e-3, atol=1e-4)
            else:
                assert got.tobytes() == whole.tobytes()


def test_special_values_of_sparse(backend: str) -> None:
    """Zeros that are stored, NaN and infinities: as dense, since an absent zero changes no sum."""
    for kind in ("sparse_stack", "countsketch", "srht", "sparse", "rotation"):
        op = operator(kind)
        D = numbers(20, 97, np.float32, density=0.3)
        X = compressed(D)
        X.data[::7] = 0.0
        X.data[1::7] = -0.0
        X.data[5] = np.nan
        X.data[40] = np.inf
        X.data[41] = -np.inf
        X.data[80] = np.finfo(np.float32).max
        D = X.toarray()
        with np.errstate(all="ignore"):
            assert op.transform(X).tobytes() == op.transform(D).tobytes(), kind


def test_indices_in_any_order_and_twice(backend: str) -> None:
    rng = np.random.default_rng(3)
    D = np.zeros((30, 97), np.float32)
    rows, columns = rng.integers(0, 30, 400), rng.integers(0, 97, 400)
    values = np.rint(rng.standard_normal(400) * 9).astype(np.float32)
    np.add.at(D, (rows, columns), values)
    order = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[order], np.arange(31))
    X = sparse.csr_array((values[order], columns[order].astype(np.int32), indptr.astype(np.int32)), shape=(30, 97))
    assert not X.has_canonical_format
    T = sparse.csc_array((X.data, X.indices, X.indptr), shape=(97, 30))
    before = (X.data.tobytes(), X.indices.tobytes(), X.indptr.tobytes())
    for array_ in (X.data, X.indices, X.indptr):
        array_.flags.writeable = False
    for kind in KINDS:
        op = operator(kind)
        same(kind, op.transform(X), op.transform(D), backend)
        op = operator(kind, 30, 16)
        same(kind, op.transform(T), op.transform(D.T.copy()), backend)
    assert before == (X.data.tobytes(), X.indices.tobytes(), X.indptr.tobytes())
    # Sums that the stored type could not hold.
    small = sparse.csr_array((np.array([100, 100], np.int8), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    op = operator("countsketch", 3, 2)
    assert op.transform(small).tobytes() == op.transform(np.array([[0, 200, 0]], np.float32)).tobytes()


def test_strided_parts_and_spare_room(backend: str) -> None:
    D = numbers(9, 97, np.float32, density=0.2)
    op = operator("sparse_stack")
    expected = op.transform(D)
    X = compressed(D)
    size = X.data.size
    X.data, X.indices = np.repeat(X.data, 2)[::2], np.repeat(X.indices, 2)[::2]
    assert op.transform(X).tobytes() == expected.tobytes()
    X.data, X.indices = np.r_[X.data, [9, 9]].astype(np.float32), np.r_[X.indices, [2**30, -1]].astype(np.int32)
    assert X.data.size > size
    assert op.transform(X).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("indptr", "indices", "message"),
    [
        ([0, 2, 3], [0, 97, 1], "expected column indices from 0 to 96, got 97 in row 0"),
        ([0, 2, 3], [0, 1, -1], "expected column indices from 0 to 96, got -1 in row 1"),
        ([0, 2, 3], [0, 1, 2**31 - 1], "got 2147483647 in row 1"),
        ([1, 2, 3], [0, 1, 2], "expected indptr to begin at 0 and to ascend to at most 3, got 1 at row 0"),
        ([0, 4, 3], [0, 1, 2], "expected indptr to begin at 0 and to ascend to at most 3, got 4 at row 0"),
        ([0, 3, 2], [0, 1, 2], "ascend to at most 3, got 2 at row 1"),
        ([0, 3, -5], [0, 1, 2], "ascend to at most 3, got -5 at row 1"),
        ([0, 3, 2**31 - 1], [0, 1, 2], "ascend to at most 3, got 2147483647 at row 1"),
        ([0, 3], [0, 1, 2], "expected 3 numbers in indptr, got 2"),
        ([0, 3, 3, 3], [0, 1, 2], "expected 3 numbers in indptr, got 4"),
    ],
)
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_malformed(backend: str, indptr: Any, indices: Any, message: str, index: Any) -> None:
    for layout in ("csr", "csc"):
        X = sparse.csr_array((2, 97)) if layout == "csr" else sparse.csc_array((97, 2))
        X.data = np.ones(3)
        X.indices, X.indptr = np.array(indices, index), np.array(indptr, index)
        expected = (
            message if layout == "csr" else message.replace("column", "?").replace("row", "column").replace("?", "row")
        )
        op = operator("sparse_stack", *((97,) if layout == "csr" else (2,)), 2)
        with pytest.raises(ValueError, match="malformed") as caught:
            op.transform(X)
        assert expected in str(caught.value)
        assert str(caught.value).startswith("X: malformed matrix, ")


def test_malformed_parts(backend: str) -> None:
    op = operator("sparse_stack")
    X = sparse.csr_array((2, 97))
    for part, value, error, message in (
        ("indices", np.zeros(1, np.int16), TypeError, "X.indices: expected dtype int32 or int64, got int16"),
        ("indptr", np.zeros(3, ">i4"), TypeError, "X.indptr: expected dtype int32 or int64, got >i4"),
        ("indices", np.zeros(1, np.float64), TypeError, "X.indices: expected dtype int32 or int64, got float64"),
        ("data", [1.0], ValueError, "X.data: malformed matrix, expected a one-dimensional array"),
        ("data", np.zeros((1, 1)), ValueError, "X.data: malformed matrix, expected a one-dimensional array"),
        ("data", np.ma.zeros(1), TypeError, "X.data: masked arrays are not supported"),
        ("data", np.zeros(1, ">f4"), TypeError, "got >f4"),
    ):
        Z = X.copy()
        setattr(Z, part, value)
        with pytest.raises(error) as caught:
            op.transform(Z)
        assert message in str(caught.value)


def test_hostile_matrices_never_crash(backend: str) -> None:
    rng = np.random.default_rng(0)
    op = operator("sparse_stack", 20, 6)
    D = numbers(8, 20, np.float64, density=0.3)
    accepted = 0
    for trial in range(300):
        X = compressed(D, ("csr", "csc")[trial % 2], (np.int32, np.int64)[trial // 2 % 2])
        for _ in range(rng.integers(1, 3)):
            part = (X.indices, X.indptr)[rng.integers(2)]
            part[rng.integers(part.size)] = rng.integers(-4, 30)
        try:
            Y = op.transform(X)
        except ValueError as error:
            assert "malformed" in str(error)  # noqa: PT017
        else:
            accepted += 1
            assert Y.shape == (8, 6)
    assert 10 < accepted < 290


@pytest.mark.parametrize("kind", ["sparse_stack", "countsketch", "rademacher", "gaussian", "sparse"])
def test_features_without_number(backend: str, kind: str) -> None:
    """Work and memory follow the stored numbers: 2**40 features cost nothing."""
    d = 2**40
    op = SketchOperator(kind, d, 16, seed=1, density=1 / 3)
    where = np.array([3, 2**33, d - 1, 0, 3, d - 1])
    values = np.array([1, -2, 3, 4, 0.5, 8], np.float32)
    X = sparse.csr_array((values, where, np.array([0, 3, 3, 6])), shape=(3, d))
    Y = op.transform(X)
    assert not Y[1].any()
    one = np.stack([op.transform(sparse.csr_array(([1.0], [j], [0, 1]), shape=(1, d)))[0] for j in where])
    np.testing.assert_allclose(Y[0], values[:3] @ one[:3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(Y[2], values[3:] @ one[3:], rtol=1e-5, atol=1e-5)
    assert np.abs(one).sum() > 0


@given(
    kind=st.sampled_from(EXACT),
    d=st.integers(1, 90),
    k=st.integers(1, 40),
    n=st.integers(0, 30),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    name=st.sampled_from(["f4", "f8", "f2", "i1", "u2", "i4"]),
    layout=st.sampled_from(["csr", "csc", "dense"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_backend_gives_the_same_bytes(
    kind: str, d: int, k: int, n: int, density: float, name: str, layout: str, seed: int
) -> None:
    k = d if kind == "rotation" else min(k, 1 << (d - 1).bit_length()) if kind == "srht" else k
    op = SketchOperator(kind, d, k, seed=seed)
    D = numbers(n, d, name, seed % 1000, density)
    X = D if layout == "dense" else compressed(D, layout)
    with ef.using("numpy"):
        expected = op.transform(D.astype(_inputs.RESULT_DTYPES[D.dtype])).tobytes()
        assert op.transform(X).tobytes() == expected
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert op.transform(X).tobytes() == expected
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert op.transform(X).tobytes() == expected
