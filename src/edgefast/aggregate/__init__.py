"""Weighted combination of model updates: read once, in place, dtypes kept."""

from __future__ import annotations

from edgefast.aggregate.accumulator import MeanAccumulator
from edgefast.aggregate.asynchronous import FedBuff, fedprox_gradient, gossip, metropolis_mixing
from edgefast.aggregate.average import average_checkpoints
from edgefast.aggregate.checkpoints import map_checkpoint
from edgefast.aggregate.compress import ErrorFeedback, Quantizer
from edgefast.aggregate.encoded import Encoded
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
from edgefast.aggregate.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer

__all__ = [
    "DtypeMismatch",
    "Encoded",
    "ErrorFeedback",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedYogi",
    "IntegerRange",
    "MeanAccumulator",
    "NonFiniteUpdate",
    "Quantizer",
    "ServerOptimizer",
    "ShapeMismatch",
    "StructureMismatch",
    "UpdateError",
    "ZeroWeightError",
    "average_checkpoints",
    "fedprox_gradient",
    "gossip",
    "map_checkpoint",
    "metropolis_mixing",
    "weighted_mean",
]
