"""The fast Walsh-Hadamard transform."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._arrays import check_out, float_array, threads_for

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
        TypeError: `x` or `out` is no array of float32 or float64.
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
    if norm is not None and norm != "ortho":
        raise ValueError(f"norm: expected None or 'ortho', got {norm!r}")
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
    if out is not None and out.flags.carray:
        target = out
        if source is not out and np.may_share_memory(source, out):
            source = source.copy()
    else:
        target = np.empty(x.shape, x.dtype) if source is x else source
    if source.size:
        position = axis % x.ndim
        inner = math.prod(x.shape[position + 1 :])
        shape = (-1, length) if inner == 1 else (-1, length, inner)
        table = backends.kernels()
        from_, to = source.reshape(shape), target.reshape(shape)
        (table.fwht if inner == 1 else table.fwht_axis)(from_, scale, from_ if source is target else to, threads)
    if out is not None and out is not target:
        out[...] = target
    if given is not None:
        return given
    return target if x is original else target.T
