"""Arguments weighted_mean and MeanAccumulator share: weights, and the policies for integers and non-finite values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgefast.aggregate.errors import DtypeMismatch, IntegerRange
from edgefast.backends.table import Array

__all__ = [
    "MOST_UPDATES",
    "RANGE",
    "Accumulate",
    "Ints",
    "Nonfinite",
    "check_choice",
    "check_integers",
    "check_options",
    "check_sequence",
    "count_of",
    "exact_float",
    "exact_weight",
    "one_weight",
    "weights_of",
]

Accumulate = Literal["float64", "float32", "reproducible"]
Ints = Literal["round", "max", "first", "skip", "error"]
Nonfinite = Literal["raise", "drop", "propagate"]
ACCUMULATE = ("float64", "float32", "reproducible")
INTS = ("round", "max", "first", "skip", "error")
NONFINITE = ("raise", "drop", "propagate")
_EXACT = 2**53
#: Exponents of the smallest and largest weight: products then neither overflow nor lose digits by themselves.
RANGE = {"float64": 900, "reproducible": 900, "float32": 60}
#: What one reproducible sum may hold (csrc/aggregate/binned.hpp: kBinnedTerms).
MOST_UPDATES = 2**20 - 1
_UNIT_BITS = 952  # 2**-900 with its 52 digits after the first is a multiple of 2**-952


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_options(accumulate: object, ints: object, nonfinite: object) -> None:
    check_choice(accumulate, "accumulate", ACCUMULATE)
    check_choice(ints, "ints", INTS)
    check_choice(nonfinite, "nonfinite", NONFINITE)
    if accumulate == "reproducible" and ints == "first":
        raise ValueError("ints: expected other than 'first' with accumulate='reproducible': it depends on the order")


def one_weight(value: Any, name: str, accumulate: str = "float64") -> float:
    """0, or a weight that neither overflows nor loses digits in a product, as a float."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        weight = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:  # an integer beyond float64
        weight = math.inf
    if not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{name}: expected a finite weight >= 0, got {weight}")
    most = RANGE[accumulate]
    if weight and not 2.0**-most <= weight <= 2.0**most:
        raise ValueError(f"{name}: expected 0 or a weight from 2**-{most} to 2**{most}, got {weight}")
    return weight


def check_sequence(updates: Any) -> None:
    """Raises TypeError unless this has a length, and updates[k] is the k-th update."""
    kind = type(updates).__name__
    if (
        isinstance(updates, (Mapping, str, bytes))
        or not hasattr(updates, "__len__")
        or not hasattr(updates, "__getitem__")
    ):
        raise TypeError(f"updates: expected a sequence of updates, got {kind}")
    if getattr(updates, "ndim", None) == 0:
        raise TypeError("updates: expected a sequence of updates, got a 0-d array")
    # In pandas updates[k] is a column, sparse matrices and memoryviews of matrices have no rows to take out.
    if hasattr(updates, "iloc") or hasattr(updates, "tocsr") or (isinstance(updates, memoryview) and updates.ndim > 1):
        raise TypeError(f"updates: expected a sequence of updates or a numpy array, got {kind}")


def count_of(updates: Any) -> int:
    """How many updates there are, in something that has a length and can be indexed."""
    check_sequence(updates)
    count = len(updates)
    if count == 0:
        raise ValueError("updates: expected at least one update, got none")
    return count


def weights_of(weights: Sequence[float] | Array | None, count: int, accumulate: str = "float64") -> list[float]:
    """`count` weights; all one when None."""
    if weights is None:
        return [1.0] * count
    try:
        found = list(weights)
    except (TypeError, NotImplementedError):  # the latter: a memoryview of a matrix
        raise TypeError(f"weights: expected a sequence of numbers, got {type(weights).__name__}") from None
    if len(found) != count:
        raise ValueError(f"weights: expected {count} weights, one per update, got {len(found)}")
    return [one_weight(w, f"weights[{i}]", accumulate) for i, w in enumerate(found)]


def exact_weight(weight: float) -> int:
    """A weight in units of 2**-952: sums of these do not depend on the order."""
    numerator, denominator = weight.as_integer_ratio()
    return (numerator << _UNIT_BITS) // denominator


def exact_float(units: int) -> float:
    """The float nearest to a sum of exact_weight."""
    return units / (1 << _UNIT_BITS)


def total_of(weights: Iterable[float], accumulate: str) -> float:
    """Sum of weights: in their order, or for "reproducible" the float nearest to the exact sum."""
    if accumulate == "reproducible":
        return exact_float(sum(map(exact_weight, weights)))
    total = 0.0
    for w in weights:
        total += w
    return total


def is_float(array: Array) -> bool:
    return array.dtype.kind in "fV"


def averaged(template: list[Array], keys: list[str], ints: Ints) -> list[int]:
    """Indices of the tensors that go through the mean; integer policies other than "round" take theirs out."""
    if ints == "round":
        return list(range(len(template)))
    floats = [t for t, a in enumerate(template) if is_float(a)]
    if ints == "error" and len(floats) < len(template):
        t = next(t for t, a in enumerate(template) if not is_float(a))
        raise DtypeMismatch.of(0, keys[t] or None, "floating-point tensors (ints='error')", template[t].dtype)
    return floats


def check_integers(arrays: list[Any], keys: list[str], client: object) -> None:
    """Raises IntegerRange when a 64-bit integer lies beyond 2**53, where binary64 no longer holds every integer."""
    for key, a in zip(keys, arrays, strict=True):
        if a is not None and a.dtype.kind in "iu" and a.dtype.itemsize == 8 and a.size:
            for value in (int(a.max()), int(a.min())):
                if abs(value) > _EXACT:
                    expected = "integers within +-2**53 (ints='round'; 'max', 'first' and 'skip' keep any)"
                    raise IntegerRange.of(client, key or None, expected, value)


def maximum(values: list[Array], out: Array) -> None:
    np.copyto(out, values[0])
    for value in values[1:]:
        np.maximum(out, value, out=out)
