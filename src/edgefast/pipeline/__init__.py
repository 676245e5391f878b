"""Stages joined by bounded queues, with backpressure from the last one up to the source. Imports nothing beyond the
standard library, numpy and the queues."""

from __future__ import annotations

from edgefast.pipeline._errors import PipelineError, WorkerDied
from edgefast.pipeline._results import AsyncResults, Results
from edgefast.pipeline._types import Decision, PipelineStatistics, StageSample, StageStatistics, State
from edgefast.pipeline.pipeline import Pipeline, size_of
from edgefast.pipeline.stage import Stage

__all__ = [
    "AsyncResults",
    "Decision",
    "Pipeline",
    "PipelineError",
    "PipelineStatistics",
    "Results",
    "Stage",
    "StageSample",
    "StageStatistics",
    "State",
    "WorkerDied",
    "size_of",
]
