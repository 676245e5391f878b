"""fwht: values against the Hadamard matrix, bits against the plain butterfly, layouts, in place, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import fwht

DTYPES = (np.float32, np.float64)


def data(shape: Any, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def hadamard(n: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def butterfly(x: np.ndarray) -> np.ndarray:
    """The promised bits: stages of ascending stride, (a, b) -> (a + b, a - b)."""
    x = x.copy()
    n = x.shape[-1]
    h = 1
    while h < n:
        i = np.arange(n)[np.arange(n) & h == 0]
        a, b = x[..., i], x[..., i + h]
        x[..., i], x[..., i + h] = a + b, a - b
        h *= 2
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log", range(18))
def test_values_and_bits(backend: str, log: int, dtype: Any) -> None:
    n = 1 << log
    for rows in (1, 3) if log > 10 else (1, 2, 9):
        x = data((rows, n), dtype)
        y = fwht(x)
        np.testing.assert_array_equal(y, butterfly(x))
        if log <= 9:
            bound = (log + 1) * np.finfo(dtype).eps * np.abs(x).sum(axis=1, dtype=np.float64)
            assert np.all(np.abs(y - x.astype(np.float64) @ hadamard(n)) <= bound[:, None])
        np.testing.assert_array_equal(fwht(x, norm="ortho"), butterfly(x) * dtype(1 / np.sqrt(n)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_never_change_bits(backend: str, dtype: Any) -> None:
    for shape in ((1, 1 << 19), (3, 1 << 17), (4096, 64), (1, 1 << 18)):
        x = data(shape, dtype)
        expected = fwht(x, num_threads=1, norm="ortho")
        for threads in (2, 5):
            assert fwht(x, num_threads=threads, norm="ortho").tobytes() == expected.tobytes()
        in_place = x.copy()
        assert fwht(in_place, num_threads=2, norm="ortho", out=in_place) is in_place
        assert in_place.tobytes() == expected.tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axes_layouts_and_out(backend: str, axis: int) -> None:
    x = data((8, 16, 32))
    expected = np.moveaxis(butterfly(np.moveaxis(x, axis, -1)), -1, axis)
    strided = np.zeros((16, 32, 64), np.float32)[::2, ::2, ::2]
    strided[...] = x
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    readonly = x.copy()
    readonly.flags.writeable = False
    for source in (x, np.asfortranarray(x), strided, unaligned, readonly):
        before = source.tobytes()
        got = fwht(source, axis=axis)
        np.testing.assert_array_equal(got, expected)
        assert got.flags.writeable
        assert not np.shares_memory(got, source)
        for out in (np.empty_like(x), np.empty(x.shape, np.float32, order="F"), np.empty((8, 16, 64), "f4")[..., ::2]):
            assert fwht(source, axis=axis, out=out) is out
            np.testing.assert_array_equal(out, expected)
        assert source.tobytes() == before
        if source.flags.writeable:
            own = source.copy(order="K")
            assert fwht(own, axis=axis, out=own) is own
            np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(unaligned, x)
    fwht(strided, axis=axis, out=strided)
    np.testing.assert_array_equal(strided, expected)
    fwht(unaligned, axis=axis, out=unaligned)
    np.testing.assert_array_equal(unaligned, expected)


def test_overlapping_out_behaves_as_if_it_did_not(backend: str) -> None:
    memory = data(96)
    x = memory[:64]
    expected = butterfly(x)
    out = memory[32:]
    fwht(x, out=out)
    np.testing.assert_array_equal(out, expected)


def test_empty_one_and_special_values(backend: str) -> None:
    assert fwht(np.empty((0, 8))).shape == (0, 8)
    np.testing.assert_array_equal(fwht(np.array([3.0])), [3.0])
    x = np.zeros((2, 64), np.float32)
    x[0, 5] = np.nan
    x[1, 5] = np.inf
    y = fwht(x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], np.inf * hadamard(64)[5])
    assert not np.isnan(x[1]).any()


@given(log=st.integers(0, 12), rows=st.integers(1, 5), seed=st.integers(0, 1000), single=st.booleans())
def test_involution_parseval_and_equal_backends(log: int, rows: int, seed: int, single: bool) -> None:
    x = data((rows, 1 << log), np.float32 if single else np.float64, seed)
    tolerance = 1e-5 if single else 1e-13
    with ef.using("numpy"):
        y = fwht(x, norm="ortho")
    np.testing.assert_allclose(fwht(y, norm="ortho"), x, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose((y.astype(float) ** 2).sum(1), (x.astype(float) ** 2).sum(1), rtol=10 * tolerance)
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert fwht(x, norm="ortho").tobytes() == y.tobytes()


@pytest.mark.parametrize(
    ("x", "kwargs", "error", "message"),
    [
        ([1.0, 2.0], {}, TypeError, "x: expected an array of float32 or float64, got list"),
        (np.zeros(8, np.int64), {}, TypeError, "x: expected dtype float32 or float64"),
        (np.zeros(8, np.float16), {}, TypeError, "x: expected dtype float32 or float64"),
        (np.zeros((2, 6)), {}, ValueError, "x: expected a power of two as the length of axis -1, got 6"),
        (np.zeros((2, 0)), {}, ValueError, "x: expected a power of two as the length of axis -1, got 0"),
        (np.zeros((3, 8)), {"axis": 0}, ValueError, "x: expected a power of two as the length of axis 0, got 3"),
        (np.array(1.0), {}, ValueError, "x: expected at least one dimension"),
        (np.zeros(8), {"axis": 1}, np.exceptions.AxisError, "axis 1 is out of bounds"),
        (np.zeros(8), {"axis": 1.0}, TypeError, "axis: expected an integer, got float"),
        (np.zeros(8), {"axis": "0"}, TypeError, "axis: expected an integer, got str"),
        (np.zeros(8), {"norm": "forward"}, ValueError, "norm: expected None or 'ortho', got 'forward'"),
        (np.zeros(8), {"out": np.zeros(4)}, ValueError, "out: expected shape (8,), got (4,)"),
        (np.zeros(8), {"out": np.zeros(8, "f4")}, ValueError, "out: expected dtype float64, got float32"),
        (np.zeros(8), {"out": [0.0] * 8}, TypeError, "out: expected an array of float64, got list"),
        (np.zeros(8), {"out": np.broadcast_to(0.0, 8)}, ValueError, "out: expected a writeable array"),
        (np.zeros(8), {"num_threads": 0}, ValueError, "num_threads: expected a positive integer, got 0"),
    ],
)
def test_bad_input(backend: str, x: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        fwht(x, **kwargs)
    assert message in str(caught.value)


def test_any_number_of_threads(backend: str) -> None:
    assert fwht(np.ones(8), num_threads=2**70)[0] == 8
