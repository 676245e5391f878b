"""rotate and inverse_rotate: orthogonality, inversion, mixing, layouts, errors. Bits: test_operator.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import SketchOperator, inverse_rotate, rotate

SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 1000, 1024, 1025, 4097)
DTYPES = (np.float32, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_keeps_lengths_and_inverts(backend: str, d: int, dtype: Any) -> None:
    x = np.random.default_rng(d).standard_normal((5, d)).astype(dtype)
    y = rotate(x, 9)
    assert y.dtype == dtype
    assert y.shape == x.shape
    length = np.linalg.norm(x.astype(np.float64), axis=1)
    bound = 6 * (d.bit_length() + 3) * np.finfo(dtype).eps
    assert np.all(np.abs(np.linalg.norm(y.astype(np.float64), axis=1) - length) <= bound * length)
    back = inverse_rotate(y, 9)
    assert np.all(np.linalg.norm(back.astype(np.float64) - x, axis=1) <= 2 * bound * length)
    op = SketchOperator("rotation", d, d, seed=9)
    assert op.transform(x).tobytes() == y.tobytes()
    if d <= 100:
        np.testing.assert_allclose(y, x @ op.toarray().T, rtol=0, atol=20 * bound)
        # The inverse of a rotation is its transpose.
        np.testing.assert_allclose(inverse_rotate(x, 9), x @ op.toarray(), rtol=0, atol=20 * bound)


@pytest.mark.parametrize("d", [6, 64, 97, 127, 129, 768])
def test_matrix_is_orthogonal(d: int) -> None:
    matrix = SketchOperator("rotation", d, d, seed=1).toarray()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(d), atol=1e-13)


@pytest.mark.parametrize("d", [127, 128, 129, 192, 255])
def test_spreads_every_vector(d: int) -> None:
    """Entries look normal with variance 1/d: a rotation by fewer steps leaves blocks of zeros or single large ones."""
    matrices = np.array([SketchOperator("rotation", d, d, seed=s).toarray() for s in range(8)]) * np.sqrt(d)
    assert abs(np.mean(matrices**4) - 3) < 0.25
    assert np.abs(matrices).max() < 6.5
    # Either half of the coordinates feeds either half of the results.
    half = d // 2
    share = np.mean(matrices[:, :half, :half] ** 2)
    assert abs(share - 1) < 0.1


def test_in_place_and_layouts(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 97)).astype(np.float32)
    expected = rotate(x, 3)
    for layout in (np.asfortranarray(x), np.repeat(x, 2, axis=2)[:, :, ::2], x[::-1, :, ::-1].copy()[::-1, :, ::-1]):
        assert rotate(layout, 3).tobytes() == expected.tobytes()
    one = rotate(x[0, 0], 3)
    assert one.tobytes() == expected[0, 0].tobytes()
    out = np.empty((97, 3, 6), np.float32).T
    assert rotate(x, 3, out=out) is out
    np.testing.assert_array_equal(out, expected)
    work = x.copy()
    assert rotate(work, 3, out=work) is work
    assert work.tobytes() == expected.tobytes()
    assert inverse_rotate(work, 3, out=work) is work
    assert work.tobytes() == inverse_rotate(expected, 3).tobytes()
    fortran = np.asfortranarray(x)
    rotate(fortran, 3, out=fortran)
    np.testing.assert_array_equal(fortran, expected)
    assert rotate(x[:0], 3).shape == (0, 3, 97)
    rows = np.random.default_rng(4).standard_normal((4, 16))
    apart = rows[::3].copy()
    np.testing.assert_array_equal(rotate(rows[::3], 3, out=rows[1:3]), rotate(apart, 3))  # between the rows of x
    for threads in (1, 2, 5):
        assert rotate(np.repeat(x, 300, axis=0), 3, num_threads=threads)[::300].tobytes() == expected.tobytes()


@pytest.mark.parametrize("d", [32, 33])
def test_not_finite(backend: str, d: int) -> None:
    x = np.ones((3, d), np.float32)
    x[0, 5], x[1, 6] = np.nan, np.inf
    for function in (rotate, inverse_rotate):
        y = function(x, 1)
        assert np.isnan(y[0]).all()
        assert not np.isfinite(y[1]).any()
        assert np.isfinite(y[2]).all()
        assert np.all(y.view(np.uint32)[np.isnan(y)] == np.array(np.nan, np.float32).view(np.uint32))


@given(d=st.integers(1, 140), seed=st.integers(0, 2**64 - 1), inverse=st.booleans(), single=st.booleans())
def test_every_backend_gives_the_same_bytes(d: int, seed: int, inverse: bool, single: bool) -> None:
    x = np.random.default_rng(d).standard_normal((3, d)).astype(np.float32 if single else np.float64)
    function = inverse_rotate if inverse else rotate
    with ef.using("numpy"):
        expected = function(x, seed)
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert function(x, seed).tobytes() == expected.tobytes()
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert function(x, seed).tobytes() == expected.tobytes()


FLOATS = np.ones((4, 8), np.float32)


@pytest.mark.parametrize("function", [rotate, inverse_rotate])
@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([1.0, 2.0],), {}, TypeError, "x: expected an array of float32 or float64, got list"),
        ((np.ones(3, np.complex64),), {}, TypeError, "x: expected"),
        ((np.float32(1),), {}, Exception, "x: expected"),
        ((np.ones((3, 0), np.float32),), {}, ValueError, "x: expected vectors of at least one element"),
        ((FLOATS, -1), {}, ValueError, "seed: expected an integer from 0 to"),
        ((FLOATS, 1.0), {}, TypeError, "seed: expected an integer, got float"),
        ((FLOATS,), {"out": np.ones((4, 7), np.float32)}, ValueError, "out: expected shape (4, 8), got (4, 7)"),
        ((FLOATS,), {"out": np.ones((4, 8))}, ValueError, "out: expected dtype float32, got float64"),
        ((FLOATS,), {"out": FLOATS[::-1]}, ValueError, "out: expected x itself or memory of its own"),
        ((FLOATS,), {"num_threads": 0}, ValueError, "num_threads"),
    ],
)
def test_errors(backend: str, function: Any, args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert message in str(caught.value)
