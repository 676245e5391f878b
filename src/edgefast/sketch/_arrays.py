"""Validation shared by the sketch functions: one look at an array, then straight to the kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends

__all__ = ["as_array", "check_out", "float_array", "threads_for"]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)


def float_array(x: Any, name: str) -> NDArray[Any]:
    """`x` as a plain ndarray of native float32 or float64; no copy, no conversion of numbers.

    Raises:
        TypeError: not an array, or of another dtype.
    """
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name}: masked arrays are not supported; fill the masked values first")
        if not (isinstance(x, np.ndarray) or hasattr(x, "__array__")) or hasattr(x, "tocsr"):
            raise TypeError(f"{name}: expected an array of float32 or float64, got {type(x).__name__}")
        x = as_array(x, name)
    dtype = x.dtype
    if dtype is not _FLOAT32 and dtype is not _FLOAT64 and dtype != _FLOAT32 and dtype != _FLOAT64:
        raise TypeError(f"{name}: expected dtype float32 or float64 in native byte order, got {dtype!s}")
    return x


def as_array(x: Any, name: str) -> NDArray[Any]:
    """`x` by its `__array__`; TypeError when it will not (a tensor with a gradient, on a GPU or of a foreign type)."""
    try:
        return np.asarray(x)
    except Exception as error:
        raise TypeError(f"{name}: {type(x).__name__} does not give its memory as an array: {error}") from error


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raises TypeError or ValueError unless `out` is a writeable ndarray of that shape and dtype."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an array of {dtype!s}, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise ValueError(f"out: expected dtype {dtype!s}, got {out.dtype!s}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")


def threads_for(work: int, grain: int, requested: int | None) -> int:
    """Threads for `work` units; the default costs more to find than a small call, so only above `grain`.

    Raises:
        TypeError, ValueError: `requested` is not a positive integer.
    """
    if requested is None and work < grain:
        return 1
    return backends.num_threads(requested)
