"""Checks of queue arguments; the queues import nothing beyond the standard library and numpy."""

from __future__ import annotations

__all__ = ["check_choice", "integer"]


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
