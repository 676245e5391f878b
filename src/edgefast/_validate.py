"""Checks shared by the public functions. Messages: what was expected, then what came."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["array_out", "as_float_array", "integer"]

_F32 = np.dtype(np.float32)
_F64 = np.dtype(np.float64)


def integer(value: object, name: str, *, low: int, high: int) -> int:
    """A Python int in low..high out of anything with __index__, bool excepted."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = value.__index__()  # type: ignore[attr-defined]
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {number}")
    return number


def as_float_array(x: Any, name: str) -> np.ndarray[Any, Any]:
    """`x` itself when it is a native float32 or float64 array, else a TypeError; lists of floats become float64."""
    if not isinstance(x, np.ndarray):
        x = np.asarray(x)
    dtype = x.dtype
    if dtype is not _F32 and dtype is not _F64 and dtype not in (_F32, _F64):
        raise TypeError(f"{name}: expected a float32 or float64 array in native byte order, got {dtype}")
    return x


def array_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: np.ndarray[Any, Any]) -> None:
    """Checks a caller's `out`: an ndarray of that shape and dtype, writeable, sharing no memory with the inputs."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected a numpy array, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out: expected shape {shape}, got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out: expected dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out: expected a writeable array, got a read-only one")
    for x in inputs:
        if np.may_share_memory(out, x):
            raise ValueError("out: expected memory of its own, got an array that overlaps the input")
