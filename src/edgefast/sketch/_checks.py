"""Arguments of the sketches with a state."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.sketch._arrays import as_array
from edgefast.sketch._inputs import check_compressed

__all__ = ["checked_csr", "finite_number", "integer", "numeric", "row_tiles", "sum_exactly"]

TILE_ELEMENTS = 1 << 17  # converted at a time
#: Number types that convert to an accumulator's type without rounding.
_EXACT = {
    np.dtype(np.float32): "float16, float32, int8, uint8, int16 or uint16",
    np.dtype(np.float64): "float16, float32, float64 or an integer of at most 32 bits",
    np.dtype(np.int64): "an integer other than uint64",
}


def integer(value: Any, name: str, low: int, high: int) -> int:
    """An int from `low` to `high`; TypeError or ValueError naming the argument otherwise."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


def finite_number(value: Any, name: str, dtype: np.dtype[Any]) -> float:
    """A float that is finite in `dtype`; TypeError or ValueError naming the argument otherwise."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # of a long integer or fraction
        number = math.inf
    with np.errstate(over="ignore"):
        if not np.isfinite(dtype.type(number)):
            raise ValueError(f"{name}: expected a finite number of {dtype!s}, got {value!s:.40}")
    return number


def numeric(x: Any, name: str, target: np.dtype[Any]) -> NDArray[Any]:
    """`x` as a plain array whose dtype converts to `target` exactly; nothing is converted here.

    Raises:
        TypeError: not an array, or of a dtype that would be rounded.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the masked values first")
    if not isinstance(x, np.ndarray):
        if not hasattr(x, "__array__"):
            raise TypeError(f"{name}: expected an array, got {type(x).__name__}")
        x = as_array(x, name)
    rounds = target.kind == "f" and x.dtype.kind != "f" and x.dtype.itemsize > target.itemsize // 2
    if x.dtype.kind not in "fiu" or not x.dtype.isnative or rounds or not np.can_cast(x.dtype, target):
        raise TypeError(f"{name}: expected {_EXACT[target]} in native byte order, got {x.dtype!s}")
    return x if type(x) is np.ndarray else np.asarray(x)


def checked_csr(x: Any, name: str, target: np.dtype[Any]) -> Any:
    """A SciPy sparse matrix or array as CSR whose indices can be trusted, its numbers as `numeric` takes them.

    Raises:
        TypeError: a dtype that would be rounded.
        ValueError: a malformed matrix.
    """
    numeric(np.empty(0, x.dtype), name, target)
    # SciPy's own routines write wherever an index points.
    rows = x if x.format in ("csr", "csc") else x.tocsr()
    check_compressed(rows, name)
    return rows.tocsr()


def row_tiles(n: int, width: int) -> Any:
    """Slices of at most TILE_ELEMENTS elements over n rows."""
    step = max(1, TILE_ELEMENTS // max(1, width))
    return (slice(begin, min(begin + step, n)) for begin in range(0, n, step))


def sum_exactly(magnitudes: NDArray[np.int64]) -> int:
    """The sum of non-negative integers, whatever its size."""
    high = int((magnitudes >> 32).sum(dtype=np.uint64))
    return (high << 32) + int((magnitudes & 0xFFFFFFFF).sum(dtype=np.uint64))
