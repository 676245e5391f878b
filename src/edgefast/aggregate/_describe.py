"""Structures, dtypes and arrays as JSON and bytes: what the wire formats have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from edgefast.aggregate._template import Template
from edgefast.backends.table import BF16, Array

__all__ = ["code", "example", "little", "plain", "shapes"]

_MAX_DEPTH: Final = 64


def code(dtype: np.dtype[Any]) -> str:
    return "bf16" if dtype == BF16 else dtype.str[1:]


def little(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def plain(structure: Any) -> Any:
    """The template's structure as JSON: a leaf is its index, a dict is {"dict": [[key, child], ..]}."""
    if isinstance(structure, int):
        return structure
    if structure[0] == "dict":
        for key in structure[1]:
            if not isinstance(key, str):
                raise TypeError(f"dict keys: expected strings, got {type(key).__name__}")
        return {"dict": [[k, plain(c)] for k, c in zip(structure[1], structure[2], strict=True)]}
    return {structure[0]: [plain(c) for c in structure[1]]}


def example(structure: Any, arrays: Sequence[Any], used: list[int], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("structure too deep")
    if type(structure) is int:
        if structure != len(used):
            raise ValueError("tensors out of order")
        used.append(structure)
        return arrays[structure]
    ((kind, children),) = structure.items()
    if kind == "dict":
        pairs = [(k, example(c, arrays, used, depth + 1)) for k, c in children]
        if len({k for k, _ in pairs}) != len(pairs) or not all(isinstance(k, str) for k, _ in pairs):
            raise ValueError("dict keys")
        return dict(pairs)
    found = [example(c, arrays, used, depth + 1) for c in children]
    if kind == "tuple":
        return tuple(found)
    if kind == "list":
        return found
    raise ValueError(f"container {kind!r}")


def shapes(template: Template) -> tuple[Any, list[tuple[Any, tuple[int, ...]]]]:
    return plain(template.structure), [(a.dtype, a.shape) for a in template.arrays]
