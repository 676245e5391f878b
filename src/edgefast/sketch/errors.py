"""What goes wrong between sketches."""

from __future__ import annotations

__all__ = ["IncompatibleSketchError", "SketchOverflowError"]


class IncompatibleSketchError(ValueError):
    """Two sketches that do not add up: another operator, size, number type, or the same rows twice."""


class SketchOverflowError(OverflowError, ValueError):
    """A number, or a sum that could be reached, does not fit the 64-bit integers of an exact sketch."""
