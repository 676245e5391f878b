"""Random rotations: every length kept, exactly invertible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._arrays import check_out, float_array, threads_for
from edgefast.sketch._kinds import rotation_signs_of
from edgefast.sketch._operator import SketchOperator

__all__ = ["inverse_rotate", "rotate"]


def rotate(
    x: NDArray[Any], seed: int = 0, *, out: NDArray[Any] | None = None, num_threads: int | None = None
) -> NDArray[Any]:
    """Rotate the vectors along the last axis: SketchOperator("rotation", d, d, seed=seed) applied to each.

    Three rounds of random signs and Hadamard transforms, of overlapping windows when d is no power of two: O(d log d),
    nothing stored. Coordinates of the result look normal with variance |x|^2 / d whatever x is, which is what a
    quantiser wants. The output bytes do not depend on threads, SIMD level or backend.

    Args:
        x: float32 or float64 array of any layout, vectors of length d along its last axis.
        seed: 0 to 2**64 - 1; the same seed undoes the rotation.
        out: where to write, an array of x's shape and dtype; `out=x` rotates in place. No other overlap.
        num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

    Returns:
        The rotated vectors, shape and dtype of `x`; `out` when given.

    Raises:
        TypeError: `x` or `out` is no array of float32 or float64, or `seed` no integer.
        ValueError: `x` without dimensions or with d = 0, `seed` out of range, or an `out` of another shape or dtype,
            read-only, or overlapping x without being x.

    References:
        A. Andoni et al., "Practical and optimal LSH for angular distance", NeurIPS 2015 (three rounds); the mixing of
        halves is a step of Kac's random walk.

    Examples:
        >>> import numpy as np
        >>> x = np.eye(1, 1000)
        >>> y = rotate(x, 7)
        >>> bool(np.isclose(np.linalg.norm(y), 1)), bool(np.abs(y).max() < 0.2)
        (True, True)
        >>> bool(np.allclose(inverse_rotate(y, 7), x))
        True
    """
    return _apply(x, seed, False, out, num_threads)


def inverse_rotate(
    x: NDArray[Any], seed: int = 0, *, out: NDArray[Any] | None = None, num_threads: int | None = None
) -> NDArray[Any]:
    """Undo `rotate` with the same seed, up to rounding: about log2(d) * eps relative to the length.

    Args:
        x: rotated vectors along the last axis, shape (..., d), float32 or float64.
        seed: what they were rotated with.
        out: where to write, an array of x's shape and dtype; `out=x` works in place.
        num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

    Returns:
        The vectors, shape and dtype of `x`; `out` when given.

    Raises:
        TypeError, ValueError: as `rotate`.
    """
    return _apply(x, seed, True, out, num_threads)


def _apply(x: Any, seed: int, inverse: bool, out: NDArray[Any] | None, num_threads: int | None) -> NDArray[Any]:
    x = float_array(x, "x")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: expected vectors of at least one element along the last axis, got shape {x.shape}")
    d = x.shape[-1]
    op = SketchOperator("rotation", d, d, seed=seed)
    same = False
    if out is None:
        result = target = np.empty(x.shape, x.dtype)
    else:
        check_out(out, x.shape, x.dtype)
        result = out
        same = out is x or (
            out.__array_interface__["data"][0] == x.__array_interface__["data"][0] and out.strides == x.strides
        )
        if not same and np.may_share_memory(x, out) and np.shares_memory(x, out):
            raise ValueError("out: expected x itself or memory of its own, got an array that overlaps x")
        target = out if out.flags.carray else np.empty(x.shape, x.dtype)
    source = x.reshape(-1, d)
    threads = threads_for(16 * x.size, 1 << 20, num_threads)
    if x.size:
        view = target.reshape(-1, d)
        if same and target is out:
            source = view
        backends.kernels().rotate(source, rotation_signs_of(op), inverse, view, threads)
    if target is not result:
        result[...] = target
    return result
