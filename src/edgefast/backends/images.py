"""Numbers as integers that sort alike: what csrc/aggregate/order.hpp calls images, for the backends without it.

-0 sorts before +0, every NaN after +inf. float16 and bfloat16 have 16-bit images, float64 and the large integers 64-bit
ones, the rest 32-bit ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.numpy.elements import widen
from edgefast.backends.table import BF16, Array

__all__ = ["image_dtype", "images_of", "values_of"]

#: Integer and bits of infinity.
_FLOATS: dict[Any, tuple[Any, int]] = {
    np.dtype(np.float16): (np.int16, 0x7C00),
    BF16: (np.int16, 0x7F80),
    np.dtype(np.float32): (np.int32, 0x7F800000),
    np.dtype(np.float64): (np.int64, 0x7FF << 52),
}
_TOP_BIT = np.uint64(1 << 63)


def image_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype in _FLOATS:
        return np.dtype(_FLOATS[dtype][0])
    return np.dtype(np.int64 if dtype.itemsize == 8 or dtype == np.uint32 else np.int32)


def images_of(x: Array) -> Array:
    """A new array of x's shape."""
    integer = image_dtype(x.dtype)
    if x.dtype in _FLOATS:
        infinity = integer.type(_FLOATS[x.dtype][1])
        bits = np.array(x, copy=True).view(integer)
        most = np.iinfo(integer).max
        nan = (bits & most) > infinity
        bits ^= (bits >> (8 * integer.itemsize - 1)) & most
        bits[nan] = most
        return bits
    if x.dtype == np.uint64:
        return (x ^ _TOP_BIT).view(np.int64)
    return x.astype(integer)


def values_of(images: Array, dtype: np.dtype[Any]) -> Array:
    """binary64 values of images of `dtype`; a NaN is a NaN of any payload."""
    if dtype in _FLOATS:
        most = np.iinfo(images.dtype).max
        bits = images ^ ((images >> (8 * images.dtype.itemsize - 1)) & most)
        return widen(bits.view(dtype))
    if dtype == np.uint64:
        return (images.view(np.uint64) ^ _TOP_BIT).astype(np.float64)
    return images.astype(np.float64)
