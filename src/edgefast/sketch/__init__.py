"""Random projections and sketches whose operator is a 24-byte description, never a matrix.

See docs/sketch.md for the definition of every operator, entry by entry, and for what is promised about its output.
"""

from __future__ import annotations

from edgefast.sketch._fwht import fwht
from edgefast.sketch._operator import SketchOperator
from edgefast.sketch._rotate import inverse_rotate, rotate
from edgefast.sketch._theory import johnson_lindenstrauss_min_dim

__all__ = ["SketchOperator", "fwht", "inverse_rotate", "johnson_lindenstrauss_min_dim", "rotate"]
