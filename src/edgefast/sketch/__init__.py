"""Random projections that are described, never stored, and the transforms behind them."""

from __future__ import annotations

from edgefast.sketch.hadamard import fwht
from edgefast.sketch.operator import IncompatibleSketchError, SketchOperator

__all__ = ["IncompatibleSketchError", "SketchOperator", "fwht"]
