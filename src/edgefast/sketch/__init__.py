"""Random projections and sketches whose operator is a 24-byte description, never a matrix.

See docs/sketch.md for the definition of every operator, entry by entry, and for what is promised about its output, and
docs/sketch-streams.md for the sketches that take rows or values as they come and add up.
"""

from __future__ import annotations

from edgefast.sketch._count_sketch import CountSketch
from edgefast.sketch._dedup import DedupFilter
from edgefast.sketch._frequent_directions import FrequentDirections
from edgefast.sketch._fwht import fwht
from edgefast.sketch._operator import SketchOperator
from edgefast.sketch._rotate import inverse_rotate, rotate
from edgefast.sketch._row_sketch import RowSketch
from edgefast.sketch._simhash import SimHash
from edgefast.sketch._theory import johnson_lindenstrauss_min_dim
from edgefast.sketch.errors import IncompatibleSketchError, SketchOverflowError

__all__ = [
    "CountSketch",
    "DedupFilter",
    "FrequentDirections",
    "IncompatibleSketchError",
    "RowSketch",
    "SimHash",
    "SketchOperator",
    "SketchOverflowError",
    "fwht",
    "inverse_rotate",
    "johnson_lindenstrauss_min_dim",
    "rotate",
]
