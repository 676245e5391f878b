"""Elements of every dtype to and from binary64, bfloat16 included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgefast.backends.table import BF16, Array

__all__ = ["TILE", "round_into", "round_to_brain", "tiles", "widen"]

TILE = 1 << 15  # coordinates at a time: the float64 temporaries stay in cache


def tiles(size: int, step: int = TILE) -> Iterator[slice]:
    for i in range(0, size, step):
        yield slice(i, min(i + step, size))


def widen(x: Array, dtype: type[np.floating] = np.float64) -> Array:
    """x as float64 (or float32), exactly where the dtype allows."""
    if x.dtype == BF16:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return (x.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32).astype(dtype, copy=False)
    return x.astype(dtype)


def round_to_brain(mean: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Bits of float64 (or float32) values rounded once to bfloat16, to nearest even; every NaN is the quiet one."""
    narrow = mean.astype(np.float32)
    bits = narrow.view(np.uint32).copy()
    if mean.dtype == np.float64:
        # Rounded to odd: the second rounding then sees what lay below.
        back = narrow.astype(np.float64)
        inexact = (back != mean) & ~np.isnan(mean)
        bits -= inexact & (np.abs(back) > np.abs(mean))
        bits |= inexact
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    nan = np.isnan(narrow)
    if nan.any():
        rounded[nan] = (bits[nan] >> np.uint32(16) & np.uint32(0x8000)) | np.uint32(0x7FC0)
    return rounded.astype(np.uint16)


def round_into(target: Array, mean: Array) -> None:
    """Means to the target's dtype; see csrc/aggregate/mean.hpp."""
    kind = target.dtype.kind
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "b":
            np.greater(mean, 0.5, out=target)
        elif kind == "f":
            target[...] = mean
        elif kind == "V":
            target.view(np.uint16)[...] = round_to_brain(mean)
        else:
            target[...] = np.rint(mean)
