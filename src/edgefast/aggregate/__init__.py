"""Combination of model updates, weighted and robust: read once, in place, dtypes kept."""

from __future__ import annotations

from edgefast.aggregate._info import RuleInfo
from edgefast.aggregate.accounting import dp_epsilon, dp_noise_multiplier, gaussian_noise_multiplier
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
    ProtocolError,
    SecureAggregationError,
    ShapeMismatch,
    StructureMismatch,
    TamperedMessage,
    TooFewSurvivors,
    TooFewUpdates,
    UnequalWeights,
    UpdateError,
    ZeroWeightError,
)
from edgefast.aggregate.fetchsgd import FetchSGD
from edgefast.aggregate.geometry import (
    bucketing,
    centered_clip,
    clip_by_global_norm,
    geometric_median,
    nnm,
    weiszfeld_weights,
)
from edgefast.aggregate.gram import GramAccumulator
from edgefast.aggregate.mean import weighted_mean
from edgefast.aggregate.optimizers import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer
from edgefast.aggregate.order import meamed, median, trimmed_mean
from edgefast.aggregate.privacy import AdaptiveClipper, GaussianMechanism
from edgefast.aggregate.secure import SecureAggregator, SecureClient
from edgefast.aggregate.secure_messages import SecureMessage
from edgefast.aggregate.selection import bulyan, krum, krum_scores, multi_krum, pairwise_sq_distances
from edgefast.aggregate.trimmed import TrimmedMeanAccumulator

__all__ = [
    "AdaptiveClipper",
    "DtypeMismatch",
    "Encoded",
    "ErrorFeedback",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedYogi",
    "FetchSGD",
    "GaussianMechanism",
    "GramAccumulator",
    "IntegerRange",
    "MeanAccumulator",
    "NonFiniteUpdate",
    "ProtocolError",
    "Quantizer",
    "RuleInfo",
    "SecureAggregationError",
    "SecureAggregator",
    "SecureClient",
    "SecureMessage",
    "ServerOptimizer",
    "ShapeMismatch",
    "StructureMismatch",
    "TamperedMessage",
    "TooFewSurvivors",
    "TooFewUpdates",
    "TrimmedMeanAccumulator",
    "UnequalWeights",
    "UpdateError",
    "ZeroWeightError",
    "average_checkpoints",
    "bucketing",
    "bulyan",
    "centered_clip",
    "clip_by_global_norm",
    "dp_epsilon",
    "dp_noise_multiplier",
    "fedprox_gradient",
    "gaussian_noise_multiplier",
    "geometric_median",
    "gossip",
    "krum",
    "krum_scores",
    "map_checkpoint",
    "meamed",
    "median",
    "metropolis_mixing",
    "multi_krum",
    "nnm",
    "pairwise_sq_distances",
    "trimmed_mean",
    "weighted_mean",
    "weiszfeld_weights",
]
