"""The fast Walsh-Hadamard transform."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._arrays import check_out, float_array, threads_for
from edgefast.sketch._checks import integer

__all__ = ["fwht"]


def fwht(
    x: NDArray[Any],
    *,
    axis: int = -1,
    norm: Literal["ortho"] | None = None,
    out: NDArray[Any] | None = None,
    num_threads: int | None = None,
) -> NDArray[Any]:
    """Walsh-Hadamard transform of every vector along an axis: H @ x with Sylvester's H, in O(n log n).

    H[i, j] is -1 to the number of ones in i & j. fwht(fwht(x)) is n * x, and x again with norm="ortho". The output
    bytes do not depend on threads, SIMD level or backend (the payload of NaN results excepted).

    Args:
        x: float32 or float64 array of any layout; the length along `axis` is a power of two.
        axis: the axis to transform.
        norm: None leaves the entries of H at +-1, "ortho" divides by sqrt(n).
        out: where to write, an array of x's shape and dtype; `out=x` transforms in place.
        num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

    Returns:
        The transform, shape and dtype of `x`; `out` when given.

    Raises:
        TypeError: `x` or `out` is no array of float32 or float64, or `axis` no integer.
        ValueError: a length that is no power of two, an unknown norm, a zero-dimensional `x`, or an `out` of another
            shape or dtype or that is read-only.
        numpy.exceptions.AxisError: `axis` is out of bounds.

    References:
        B. J. Fino and V. R. Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform", IEEE Trans.
        Computers C-25, 1976.

    Examples:
        >>> import numpy as np
        >>> fwht(np.array([1.0, 0.0, 1.0, 0.0]))
        array([2., 2., 0., 0.])
    """
    x = float_array(x, "x")
    if x.ndim == 0:
        raise ValueError("x: expected at least one dimension, got a zero-dimensional array")
    if norm is not None and (not isinstance(norm, str) or norm != "ortho"):
        raise ValueError(f"norm: expected None or 'ortho', got {norm!r}")
    axis = integer(axis, "axis", -(2**63), 2**63 - 1)
    if not -x.ndim <= axis < x.ndim:
        raise np.exceptions.AxisError(axis, x.ndim)
    length = x.shape[axis]
    if length < 1 or length & (length - 1):
        raise ValueError(f"x: expected a power of two as the length of axis {axis}, got {length}")
    if out is not None:
        check_out(out, x.shape, x.dtype)
    original, given = x, out
    threads = threads_for(x.size, 1 << 18, num_threads)
    scale = 1.0 / math.sqrt(length) if norm == "ortho" else 1.0

    # A contiguous array, C or Fortran, is (outer, length, inner) as it stands; anything else is copied first, into
    # memory that then takes the result.
    if x.ndim > 1 and x.flags.f_contiguous and not x.flags.c_contiguous:
        x, axis = x.T, -1 - axis % x.ndim
        out = None if out is None else out.T
    source = x if x.flags.c_contiguous and x.flags.aligned else np.array(x, order="C")
    if out is None or not out.flags.carray:
        target = np.empty(x.shape, x.dtype) if source is x else source
    elif out.ctypes.data == source.ctypes.data:  # both contiguous and of one shape: the same memory
        target = source
    else:
        target = out
        if np.may_share_memory(source, out):
            source = source.copy()
    if source.size:
        inner = math.prod(x.shape[axis % x.ndim + 1 :])
        shape = (-1, length) if inner == 1 else (-1, length, inner)
        table = backends.kernels()
        kernel = table.fwht if inner == 1 else table.fwht_axis
        rows = source.reshape(shape)
        kernel(rows, scale, rows if target is source else target.reshape(shape), threads)
    if given is None:
        return target if x is original else target.T
    assert out is not None
    if target.ctypes.data != out.ctypes.data or not out.flags.carray:
        out[...] = target
    return given
