"""Flower with this package's aggregation: `pip install 'edgefast[flower]'` (flwr >= 1.22, < 2).

Three depths: accelerate() makes Flower's own strategies faster; the strategies here stream, keep dtypes, screen
replies and know compressed ones; the mods make replies small. docs/flower.md has the whole picture.
"""

from __future__ import annotations

try:
    from edgefast.integrations.flower import _flwr  # noqa: F401
except ImportError as _error:
    raise ImportError("edgefast.integrations.flower needs Flower; pip install 'edgefast[flower]'") from _error

from edgefast.integrations.flower._asynchronous import FedBuff
from edgefast.integrations.flower._grid import LocalGrid, Replies, StreamingGrid
from edgefast.integrations.flower._mods import Mod, bfloat16_mod, compression_mod
from edgefast.integrations.flower._records import Acceleration, accelerate, aggregate_arrayrecords, select_multikrum
from edgefast.integrations.flower._strategies import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    RobustStrategy,
)

__all__ = [
    "Acceleration",
    "Bulyan",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBuff",
    "FedMedian",
    "FedProx",
    "FedTrimmedAvg",
    "FedYogi",
    "Krum",
    "LocalGrid",
    "Mod",
    "MultiKrum",
    "Replies",
    "RobustStrategy",
    "StreamingGrid",
    "accelerate",
    "aggregate_arrayrecords",
    "bfloat16_mod",
    "compression_mod",
    "select_multikrum",
]
