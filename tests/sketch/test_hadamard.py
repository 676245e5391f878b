"""fwht: definition, bits on every backend, layouts, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

import edgefast as ef
from edgefast.sketch import fwht


def butterflies(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The textbook loop over the last axis, stages in ascending order."""
    a = x.copy()
    n = a.shape[-1]
    h = 1
    while h < n:
        for i in range(0, n, 2 * h):
            low, high = a[..., i : i + h].copy(), a[..., i + h : i + 2 * h].copy()
            a[..., i : i + h], a[..., i + h : i + 2 * h] = low + high, low - high
        h *= 2
    return a


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_equal_the_textbook_loop(backend: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for p in range(15):
        x = rng.standard_normal((3, 1 << p)).astype(dtype)
        assert fwht(x).tobytes() == butterflies(x).tobytes(), p


def test_is_the_sylvester_matrix(backend: str) -> None:
    x = np.random.default_rng(1).integers(-50, 50, (5, 64)).astype(np.float64)
    np.testing.assert_array_equal(fwht(x), x @ hadamard(64))


@given(p=st.integers(0, 9), rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_involution_and_norm(backend: str, p: int, rows: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((rows, 1 << p))
    y = fwht(x, norm="ortho")
    np.testing.assert_allclose(fwht(y, norm="ortho"), x, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)


def test_axes_layouts_and_out(backend: str) -> None:
    x = np.random.default_rng(2).standard_normal((8, 3, 16)).astype(np.float32)
    for axis in (0, 2, -1, -3):
        expected = np.moveaxis(butterflies(np.ascontiguousarray(np.moveaxis(x, axis, -1))), -1, axis)
        np.testing.assert_array_equal(fwht(x, axis=axis), expected)
        np.testing.assert_array_equal(fwht(np.asfortranarray(x), axis=axis), expected)
        np.testing.assert_array_equal(fwht(x[:, ::-1], axis=axis), expected[:, ::-1])
        out = np.empty_like(x)
        assert fwht(x, axis=axis, out=out) is out
        np.testing.assert_array_equal(out, expected)
        inplace = x.copy()
        assert fwht(inplace, axis=axis, out=inplace) is inplace
        np.testing.assert_array_equal(inplace, expected)
        strided = np.zeros((16, 3, 32), np.float32)[::2, :, ::2]
        fwht(x, axis=axis, out=strided)
        np.testing.assert_array_equal(strided, expected)
    before = x.copy()
    fwht(x)
    np.testing.assert_array_equal(x, before)
    raw = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    fwht(x, out=raw)
    np.testing.assert_array_equal(raw, butterflies(x))


def test_vector_view_of_the_same_memory_is_in_place(backend: str) -> None:
    x = np.arange(8.0)
    out = fwht(x, out=x[:])
    np.testing.assert_array_equal(out, butterflies(np.arange(8.0)))
    np.testing.assert_array_equal(x, out)


def test_threads_never_change_bits(backend: str) -> None:
    x = np.random.default_rng(3).standard_normal((300, 1024)).astype(np.float32)
    one = fwht(x, num_threads=1)
    for threads in (2, 5):
        assert fwht(x, num_threads=threads).tobytes() == one.tobytes()


def test_non_finite_spreads(backend: str) -> None:
    x = np.ones((2, 32))
    x[0, 5] = np.nan
    y = fwht(x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], butterflies(x)[1])


@pytest.mark.slow
def test_large_transform_is_cache_blocked_alike() -> None:
    x = np.random.default_rng(4).standard_normal(1 << 20).astype(np.float32)
    with ef.using("numpy"):
        expected = fwht(x)
    np.testing.assert_array_equal(fwht(x), expected)


SHARED = np.zeros(16)


@pytest.mark.parametrize(
    ("x", "kwargs", "error", "message"),
    [
        (np.zeros(6), {}, ValueError, "x: expected a power of two along axis 0, got length 6"),
        (np.zeros((2, 0)), {}, ValueError, "x: expected a power of two along axis 1, got length 0"),
        (np.zeros(()), {}, ValueError, "x: expected at least one dimension, got a 0-d array"),
        (np.zeros(4, int), {}, TypeError, "x: expected a float32 or float64 array in native byte order, got int64"),
        (np.zeros(4), {"axis": 1}, ValueError, "axis: expected -1 <= axis <= 0, got 1"),
        (np.zeros(4), {"axis": 0.0}, TypeError, "axis: expected an integer, got float"),
        (np.zeros(4), {"norm": "backward"}, ValueError, "norm: expected None or 'ortho', got 'backward'"),
        (np.zeros(4), {"out": np.zeros(8)}, ValueError, "out: expected shape (4,), got (8,)"),
        (np.zeros(4), {"out": np.zeros(4, np.float32)}, TypeError, "out: expected dtype float64, got float32"),
        (np.zeros(4), {"out": [0, 0, 0, 0]}, TypeError, "out: expected a numpy array, got list"),
        (np.zeros(4), {"out": np.broadcast_to(0.0, 4)}, ValueError, "out: expected a writeable array"),
        (SHARED[:8], {"out": SHARED[4:12]}, ValueError, "out: expected x itself or memory of its own"),
        (SHARED[:8], {"out": SHARED[7::-1]}, ValueError, "out: expected x itself or memory of its own"),
        (np.zeros(4), {"num_threads": 0}, ValueError, "num_threads: expected a positive integer, got 0"),
    ],
)
def test_bad_input(backend: str, x: Any, kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        fwht(x, **kwargs)
    assert message in str(caught.value)
