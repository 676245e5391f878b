"""Weighted combination of model updates: read once, in place, dtypes kept."""

from __future__ import annotations

from edgefast.aggregate.accumulator import MeanAccumulator
from edgefast.aggregate.average import average_checkpoints
from edgefast.aggregate.checkpoints import map_checkpoint
from edgefast.aggregate.errors import (
    DtypeMismatch,
    IntegerRange,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    UpdateError,
    ZeroWeightError,
)
from edgefast.aggregate.mean import weighted_mean

__all__ = [
    "DtypeMismatch",
    "IntegerRange",
    "MeanAccumulator",
    "NonFiniteUpdate",
    "ShapeMismatch",
    "StructureMismatch",
    "UpdateError",
    "ZeroWeightError",
    "average_checkpoints",
    "map_checkpoint",
    "weighted_mean",
]
