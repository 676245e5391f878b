"""What a pipeline shows of itself: statistics, samples for a controller, decisions."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Decision", "PipelineStatistics", "StageSample", "StageStatistics", "State"]

#: "idle" before the first item, "running", "draining" after shutdown() until all is done, "closed", "failed".
State = Literal["idle", "running", "draining", "closed", "failed"]


class StageSample(NamedTuple):
    """What a controller sees of a stage, once a period.

    Attributes:
        name: of the stage.
        depth: items in its queue now.
        bytes: bytes in its queue now; 0 when not counted.
        arrived, served: items put into and taken from its queue since the start.
        min_sojourn: the smallest time in seconds that an item taken in the last period spent in the queue; None if none
            was taken.
        busy, blocked, starved: worker-seconds since the start, calls in progress included: in the function, waiting to
            put downstream, waiting for input.
        workers, min_workers, max_workers: how many serve the stage now, at least, at most.
        limit, min_limit, max_limit: items at which its queue closes now, at least, at most.
        item_bytes: moving average of an item's bytes; 0 if unknown.
    """

    name: str
    depth: int
    bytes: int
    arrived: int
    served: int
    min_sojourn: float | None
    busy: float
    blocked: float
    starved: float
    workers: int
    min_workers: int
    max_workers: int
    limit: int
    min_limit: int
    max_limit: int
    item_bytes: float


class Decision(NamedTuple):
    """One change a controller made, or a person through resize().

    Attributes:
        time: seconds on time.monotonic()'s clock.
        stage: name of the stage.
        what: "limit", the items at which its queue closes (the level at which it reopens moves in proportion);
            "gate", the level at which it reopens; "workers", how many serve it.
        old, new: the value before and after.
        reason: why, in a few words.
    """

    time: float
    stage: str
    what: Literal["limit", "workers", "gate"]
    old: float
    new: float
    reason: str


class StageStatistics(NamedTuple):
    """One moment of a stage and the queue in front of it.

    Attributes:
        name: of the stage.
        backend: "thread", "asyncio" or "process".
        workers, min_workers, max_workers: how many serve it now, at least, at most.
        depth: items in its queue.
        limit: items at which the queue closes; `low` is the level at which it reopens.
        low: see limit.
        writable: whether the queue accepts items now.
        bytes, max_bytes: bytes in the queue (0 when not counted) and their limit (math.inf without).
        peak, peak_bytes: most items and bytes held at once.
        arrived, served: items put into and taken from the queue since the start.
        completed: items whose work is done and whose outputs are with the next stage.
        emitted: outputs.
        failed: items given up on: skipped or handed to a dead-letter function, or the one that stopped the pipeline.
        retried: attempts after the first.
        restarts: workers replaced after they died (processes).
        redelivered: items given to another worker because theirs died.
        lost: items taken and not completed when the pipeline was stopped, or whose workers died once too often.
        dropped_newest, dropped_oldest, expired, cleared: items the queue dropped by its policy, for their age, and when
            the pipeline was stopped or a map() closed early.
        refused: puts that ended with Full.
        full_waits: puts that had to wait for room.
        closings: how often the queue closed.
        arrival_rate, service_rate: items per second since the previous statistics() of the pipeline.
        sojourn: moving average of the seconds an item spends in the queue, sampled; None before the first.
        time_to_drain: seconds until the queue is empty at service_rate; math.inf when nothing is being taken.
        busy, blocked, starved: worker-seconds since the start, calls in progress included: in the function, waiting to
            put downstream, waiting for input.

    Always arrived == served + dropped_oldest + expired + cleared + depth, and served == completed + failed + lost + the
    items in the workers' hands.
    """

    name: str
    backend: str
    workers: int
    min_workers: int
    max_workers: int
    depth: int
    limit: float
    low: int
    writable: bool
    bytes: int
    max_bytes: float
    peak: int
    peak_bytes: int
    arrived: int
    served: int
    completed: int
    emitted: int
    failed: int
    retried: int
    restarts: int
    redelivered: int
    lost: int
    dropped_newest: int
    dropped_oldest: int
    expired: int
    cleared: int
    refused: int
    full_waits: int
    closings: int
    arrival_rate: float
    service_rate: float
    sojourn: float | None
    time_to_drain: float
    busy: float
    blocked: float
    starved: float


class PipelineStatistics(NamedTuple):
    """One moment of a pipeline.

    Attributes:
        name: of the pipeline.
        state: "idle" before the first item, "running", "draining" after shutdown() until all is done, "closed",
            "failed".
        backend, scheduler, target_delay: as given.
        elapsed: seconds since the first item; 0 before.
        submitted: items accepted from outside.
        delivered: outputs of the last stage that somebody took over: map(), results().
        unread: outputs of the last stage that nobody was there to read.
        output_depth, output_limit: outputs waiting for their reader, and where the last stage has to wait for it.
        throughput: outputs of the last stage per second since the previous statistics().
        bytes, max_bytes: bytes in all queues (0 when not counted) and their budget (math.inf without).
        stages: in their order.
        decisions: the newest ones, oldest first.
    """

    name: str
    state: State
    backend: str
    scheduler: str
    target_delay: float
    elapsed: float
    submitted: int
    delivered: int
    unread: int
    output_depth: int
    output_limit: int
    throughput: float
    bytes: int
    max_bytes: float
    stages: tuple[StageStatistics, ...]
    decisions: tuple[Decision, ...]
