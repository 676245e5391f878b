"""The fast Walsh-Hadamard transform."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from edgefast import backends
from edgefast._validate import as_float_array, integer

__all__ = ["fwht"]


def fwht(
    x: Any,
    *,
    axis: int = -1,
    norm: Literal["ortho"] | None = None,
    out: np.ndarray[Any, Any] | None = None,
    num_threads: int | None = None,
) -> np.ndarray[Any, Any]:
    """Fast Walsh-Hadamard transform along one axis, in Sylvester (natural) order.

    The result has the same bits for every backend, SIMD level, number of threads and memory layout: the butterflies
    run in a fixed order. NaN and infinities spread to the entries they reach, as in plain arithmetic.

    Args:
        x: float32 or float64 array of any shape; its length n along `axis` is a power of two.
        axis: the axis to transform.
        norm: None for the unscaled transform (H @ H = n I), "ortho" for division by sqrt(n), its own inverse.
        out: array of x's shape and dtype for the result; `out=x` transforms in place.
        num_threads: threads to use; None for the default (see edgefast.using).

    Returns:
        The transform, x's shape and dtype; `out` when given.

    Raises:
        TypeError: x is not float32 or float64, or out has another dtype.
        ValueError: n is not a power of two, x is 0-d, axis or norm is unknown, or out has another shape, is
            read-only, or overlaps x without being x.

    References:
        Fino, Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform", IEEE Trans. Computers, 1976.

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import fwht
        >>> fwht(np.array([1.0, 0.0, 0.0, 0.0]))
        array([1., 1., 1., 1.])
        >>> x = np.arange(8, dtype=np.float32)
        >>> np.allclose(fwht(fwht(x, norm="ortho"), norm="ortho"), x)
        True
    """
    x = as_float_array(x, "x")
    if x.ndim == 0:
        raise ValueError("x: expected at least one dimension, got a 0-d array")
    axis = integer(axis, "axis", low=-x.ndim, high=x.ndim - 1) % x.ndim
    if norm not in (None, "ortho"):
        raise ValueError(f"norm: expected None or 'ortho', got {norm!r}")
    n = x.shape[axis]
    if n < 1 or n & (n - 1):
        raise ValueError(f"x: expected a power of two along axis {axis}, got length {n}")
    threads = backends.num_threads(num_threads)
    if out is not None:
        _check_out(out, x)
    # The kernel works in place on contiguous rows: the axis goes last, in the result's own memory where it can.
    if out is not None and axis == x.ndim - 1 and out.flags.c_contiguous and out.flags.aligned:
        work = out
        if out is not x:
            work[...] = x
    else:
        work = np.array(np.moveaxis(x, axis, -1), order="C", copy=True)
    backends.kernels().fwht_rows(work.reshape(-1, n), 1.0 if norm is None else 1 / math.sqrt(n), threads)
    if work is out:
        return out
    result = np.moveaxis(work, -1, axis)
    if out is None:
        return result if result.flags.c_contiguous else np.ascontiguousarray(result)
    out[...] = result
    return out


def _check_out(out: Any, x: np.ndarray[Any, Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a numpy array, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"out: expected shape {x.shape}, got {out.shape}")
    if out.dtype != x.dtype:
        raise TypeError(f"out: expected dtype {x.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    if out is not x and np.may_share_memory(out, x):
        same = out.__array_interface__["data"][0] == x.__array_interface__["data"][0] and out.strides == x.strides
        if not same:
            raise ValueError("out: expected x itself or memory of its own, got an array that overlaps x")
