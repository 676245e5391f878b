"""Stages joined by bounded queues, with backpressure from the last one up to the source."""

from __future__ import annotations

from edgefast.pipeline._types import Decision, PipelineStatistics, StageSample, StageStatistics, State

__all__ = ["Decision", "PipelineStatistics", "StageSample", "StageStatistics", "State"]
