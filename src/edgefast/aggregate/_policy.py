"""Arguments weighted_mean and MeanAccumulator share: weights, and the policies for integers and non-finite values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from edgefast.aggregate.errors import DtypeMismatch, IntegerRange
from edgefast.backends.table import Array

__all__ = ["Ints", "Nonfinite", "check_accumulate", "check_choice", "check_integers", "one_weight", "weights_of"]

Ints = Literal["round", "max", "first", "skip", "error"]
Nonfinite = Literal["raise", "drop", "propagate"]
INTS = ("round", "max", "first", "skip", "error")
NONFINITE = ("raise", "drop", "propagate")
_EXACT = 2**53
_LEAST, _MOST = 2.0**-900, 2.0**900


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_accumulate(value: object) -> None:
    check_choice(value, "accumulate", ("float64",))


def one_weight(value: Any, name: str) -> float:
    """0, or a weight that neither overflows nor loses digits in a product, as a float."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{name}: expected a finite weight >= 0, got {weight}")
    if weight and not _LEAST <= weight <= _MOST:
        raise ValueError(f"{name}: expected 0 or a weight from 2**-900 to 2**900, got {weight}")
    return weight


def weights_of(weights: Sequence[float] | Array | None, count: int) -> list[float]:
    """`count` weights; all one when None."""
    if weights is None:
        return [1.0] * count
    try:
        found = list(weights)
    except TypeError:
        raise TypeError(f"weights: expected a sequence of numbers, got {type(weights).__name__}") from None
    if len(found) != count:
        raise ValueError(f"weights: expected {count} weights, one per update, got {len(found)}")
    return [one_weight(w, f"weights[{i}]") for i, w in enumerate(found)]


def is_float(array: Array) -> bool:
    return array.dtype.kind == "f"


def averaged(template: list[Array], keys: list[str], ints: Ints) -> list[int]:
    """Indices of the tensors that go through the mean; integer policies other than "round" take theirs out."""
    if ints == "round":
        return list(range(len(template)))
    floats = [t for t, a in enumerate(template) if is_float(a)]
    if ints == "error" and len(floats) < len(template):
        t = next(t for t, a in enumerate(template) if not is_float(a))
        raise DtypeMismatch.of(0, keys[t] or None, "floating-point tensors (ints='error')", template[t].dtype)
    return floats


def check_integers(arrays: list[Array], keys: list[str], client: object) -> None:
    """Raises IntegerRange when a 64-bit integer lies beyond 2**53, where binary64 no longer holds every integer."""
    for key, a in zip(keys, arrays, strict=True):
        if a.dtype.kind in "iu" and a.dtype.itemsize == 8 and a.size:
            for value in (int(a.max()), int(a.min())):
                if abs(value) > _EXACT:
                    expected = "integers within +-2**53 (ints='round'; 'max', 'first' and 'skip' keep any)"
                    raise IntegerRange.of(client, key or None, expected, value)


def maximum(values: list[Array], out: Array) -> None:
    np.copyto(out, values[0])
    for value in values[1:]:
        np.maximum(out, value, out=out)
