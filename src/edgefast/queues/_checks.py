"""Checks of queue arguments; the queues import nothing beyond the standard library and numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["batch_of", "check_choice", "count", "integer", "seconds"]


def integer(value: object, name: str, *, low: int, high: int) -> int:
    """A Python int in low..high out of anything with __index__, bool excepted."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = value.__index__()  # type: ignore[attr-defined]
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {number}")
    return number


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def count(value: Any, name: str) -> int:
    """A Python int from 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = value.__index__()
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def seconds(value: Any, name: str) -> float:
    """A float from 0, not NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            value = float(value)
        except TypeError:
            raise TypeError(f"'{name}' must be a number or None, not {type(value).__name__}") from None
    number = float(value)
    if not number >= 0:
        raise ValueError(f"'{name}' must be a non-negative number")
    return number


def batch_of(items: Any) -> tuple[Any, ...]:
    """The items of a sequence, as they are now."""
    sequence = isinstance(items, Sequence) or (hasattr(items, "__getitem__") and hasattr(items, "__len__"))
    if not sequence or isinstance(items, (str, bytes)) or hasattr(items, "keys"):
        raise TypeError(
            f"items: expected a sequence such as a list, got {type(items).__name__} "
            "(an iterator would lose what does not fit)"
        )
    return tuple(items)
