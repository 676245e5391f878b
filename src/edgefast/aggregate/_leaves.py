"""Leaves of an update, whoever made them, as numpy arrays over the same memory, and results in the same kind.

torch is never imported here: who passes a tensor has done so. Recognised: numpy arrays and scalars (ml_dtypes' bfloat16
among them), torch tensors on the CPU, Flower's Array (.npy bytes), anything with __dlpack__, what numpy.asarray takes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from edgefast.aggregate import _npy
from edgefast.backends.table import BF16, Array

__all__ = ["PLAIN", "LeafError", "Restore", "as_array", "is_message", "new_array", "restorer", "writable"]

#: Array types that kernels take as they are; other subclasses (matrix) have arithmetic of their own.
PLAIN = (np.ndarray, np.memmap)
#: From a new array to what the caller gets; None for the array itself.
Restore = Callable[[Array], Any] | None


class LeafError(Exception):
    """What was expected of a leaf and what came."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got


def _torch_of(node: Any) -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(node, getattr(torch, "Tensor", ())) else None


def is_message(node: Any) -> bool:
    """Flower's Array: .npy bytes and what they are."""
    return isinstance(getattr(node, "stype", None), str) and isinstance(getattr(node, "data", None), bytes)


def _as_brain(array: Array) -> Array:
    """bfloat16 of ml_dtypes as the kernels' own dtype; other arrays as they are."""
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16" and array.dtype.itemsize == 2:
        return array.view(BF16)
    return array


def as_array(node: Any) -> Array:
    """The leaf's numpy array, sharing memory wherever the maker allows.

    Raises:
        LeafError: this is no array, or not one in this machine's memory.
    """
    if isinstance(node, np.ndarray):
        if isinstance(node, np.ma.MaskedArray):
            raise LeafError("an array without a mask", "a masked one (fill the masked values first)")
        return _as_brain(node if type(node) in PLAIN else np.asarray(node))
    if (torch := _torch_of(node)) is not None:
        return _from_torch(node, torch)
    if is_message(node):
        if node.stype != "numpy.ndarray":
            raise LeafError("an Array of stype 'numpy.ndarray'", f"stype {node.stype!r}")
        try:
            return _npy.array_in(node.data)
        except ValueError as error:
            raise LeafError("an Array of .npy bytes", str(error)) from None
    if hasattr(node, "__dlpack__"):
        try:
            return _as_brain(np.from_dlpack(node))
        except Exception as error:
            if not hasattr(node, "__array__"):
                raise LeafError("a DLPack object numpy can read", f"a {type(node).__name__} ({error})") from None
    try:
        return _as_brain(np.asarray(node))
    except Exception as error:
        raise LeafError("an array", f"a {type(node).__name__} ({error})") from None


def _from_torch(tensor: Any, torch: Any) -> Array:
    if tensor.device.type != "cpu":
        raise LeafError("a tensor on the CPU", f"one on {tensor.device} (see Tensor.cpu)")
    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(BF16)
        return tensor.numpy()
    except Exception as error:
        raise LeafError("a dense tensor", f"a {tensor.dtype} tensor ({error})") from None


def restorer(node: Any) -> Restore:
    """How a result at this leaf's place is given back: of the kind of the template's leaf."""
    if (torch := _torch_of(node)) is not None:
        if node.dtype == torch.bfloat16:
            return lambda a: torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy
    if is_message(node):
        kind = type(node)
        return lambda a: kind(dtype=str(a.dtype), shape=a.shape, stype="numpy.ndarray", data=_message(a))
    dtype = getattr(node, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind == "V":
        if dtype.name == "bfloat16":
            return lambda a: a.view(dtype)
        if dtype == BF16 and importlib.util.find_spec("ml_dtypes") is not None:
            return _to_ml_dtypes
    return None


def _to_ml_dtypes(array: Array) -> Array:
    import ml_dtypes

    return array.view(ml_dtypes.bfloat16)


def _message(array: Array) -> bytes:
    return array.base if type(array.base) is bytes else _npy.encode(array)


def new_array(node: Any, array: Array) -> Array:
    """An uninitialised array of `array`'s shape and dtype, allocated the way `node`'s restorer likes it."""
    return _npy.empty(array.shape, array.dtype) if is_message(node) else np.empty(array.shape, array.dtype)


def writable(node: Any) -> Array | None:
    """The numpy array over the memory of an array or tensor that results are to be written to; None for others."""
    if isinstance(node, np.ndarray) or _torch_of(node) is not None:
        return as_array(node)
    return None
