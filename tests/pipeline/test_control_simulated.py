"""The controllers in closed loop with simulated pipelines, in virtual time: seeds are fixed, so nothing here varies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgefast.pipeline.control import Controller, WorkerController
from edgefast.pipeline.simulate import (
    Result,
    Simulation,
    Stage,
    Times,
    bursts,
    exponential,
    gamma,
    phases,
    spikes,
)

SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
SEEDS = (0, 1, 2)
SECONDS = 8.0


def line(*service: Times) -> list[Stage]:
    return [Stage(f"s{i}", times, item_bytes=1000.0) for i, times in enumerate(service)]


WORKLOADS: dict[str, Callable[[], tuple[list[Stage], Times]]] = {
    "balanced": lambda: (line(*[exponential(2e-3)] * 3), 0.0),
    "balanced, steadier": lambda: (line(*[gamma(2e-3, 0.5)] * 3), 0.0),
    "skewed": lambda: (line(gamma(1e-3, 0.7), gamma(4e-3, 0.7), gamma(1e-3, 0.7)), 0.0),
    "hiccups": lambda: (line(spikes(1e-3, 50e-3, 0.02), gamma(3e-3, 0.5), spikes(1e-3, 40e-3, 0.02)), 0.0),
    "bursty": lambda: (line(gamma(1e-3, 0.5), gamma(3e-3, 0.5), gamma(1e-3, 0.5)), bursts(40, 0.1)),
}


def simulated(workload: str, limit: int, seed: int, controller: Controller | None = None) -> Result:
    stages, source = WORKLOADS[workload]()
    return Simulation(stages, source, limit=limit, controller=controller, seed=seed, wake_time=5e-5).run(SECONDS)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_as_fast_as_the_best_fixed_size_with_the_memory_of_the_smallest_good_one(workload: str) -> None:
    """Start-up included. Nothing is tuned to the workload, the fixed sizes are all of a sweep."""
    fixed = {size: [simulated(workload, size, seed) for seed in SEEDS] for size in SIZES}
    speed = {size: np.mean([r.throughput for r in results]) for size, results in fixed.items()}
    best = max(speed.values())
    smallest = min(size for size in SIZES if speed[size] >= 0.95 * best)
    adaptive = [simulated(workload, 1, seed, Controller()) for seed in SEEDS]
    assert np.mean([r.throughput for r in adaptive]) >= 0.95 * best
    # At the smallest sizes an item more or less is a factor.
    memory = max(np.mean([r.peak_bytes for r in fixed[smallest]]), 6000)
    assert np.mean([r.peak_bytes for r in adaptive]) <= 1.5 * memory
    late = np.mean([r.latency(0.99) for r in fixed[1000]])
    assert np.mean([r.latency(0.99) for r in adaptive]) <= 0.5 * late


@pytest.mark.parametrize("workload", WORKLOADS)
def test_steady_load_ends_in_steady_limits(workload: str) -> None:
    """100 s: most changes come at the start, and what a shrink takes by mistake it does not take again soon."""
    stages, source = WORKLOADS[workload]()
    simulation = Simulation(stages, source, limit=1, controller=Controller(), seed=7, wake_time=5e-5)
    result = simulation.run(100.0)
    for stage in stages:
        changes = [d for d in result.decisions if d.stage == stage.name and d.what == "limit"]
        assert len(changes) <= 30, stage.name
        assert len([d for d in changes if d.time > 50]) <= 8, stage.name
        late = [d.new for d in changes if d.time > 50]
        assert not late or max(late) <= 4 * min(late), stage.name


@pytest.mark.parametrize(("before", "after"), [(1e-3, 8e-3), (8e-3, 1e-3)])
def test_a_step_in_the_load_is_followed_within_ten_periods(before: float, after: float) -> None:
    """The last stage becomes 8 times slower, or faster: after 10 periods it runs at its new pace, and no item waits
    longer in a queue than the target delay allows."""
    target = 0.1
    stages = line(gamma(1e-3, 0.5), gamma(1.2e-3, 0.5), phases((5.0, gamma(before, 0.5)), (50.0, gamma(after, 0.5))))
    simulation = Simulation(stages, limit=1, controller=Controller(target_delay=target), seed=1)
    simulation.run(5.0)
    at = simulation.run(10 * 0.2)
    settled = simulation.run(5.0)
    rate = (settled.completed - at.completed) / 5.0
    assert rate >= 0.92 / max(after, 1.2e-3)
    assert (settled.latencies[at.completed :]).max() <= 3 * 2 * target  # three queues, each at twice its target at most


def test_the_budget_of_bytes_holds() -> None:
    """Items of 1 to 100 kB in a pipeline that wants longer queues than there is memory for."""
    budget = 400_000
    stages = [
        Stage(f"s{i}", exponential(2e-3), item_bytes=size, min_limit=1) for i, size in enumerate((1e3, 1e5, 1e4, 1e3))
    ]
    simulation = Simulation(stages, limit=1, controller=Controller(max_bytes=budget), seed=2)
    for _ in range(100):
        result = simulation.run(0.1)
        allowed = sum(n * s.item_bytes for n, s in zip(result.limits, stages, strict=True))  # type: ignore[operator]
        assert allowed <= budget
    assert result.peak_bytes <= budget
    # The queue of large items got as much as the others left, and those got what they wanted.
    unbounded = Simulation(stages, limit=1, controller=Controller(), seed=2).run(10.0)
    assert unbounded.peak_bytes > 2 * budget
    assert result.throughput > 0.75 * unbounded.throughput


class TestWorkers:
    def run(self, service: Sequence[Times], workers: Sequence[int], seconds: float, seed: int = 0) -> Result:
        stages = [Stage(f"s{i}", s, workers=w) for i, (s, w) in enumerate(zip(service, workers, strict=True))]
        return Simulation(
            stages, limit=2, controller=Controller(), worker_controller=WorkerController(), seed=seed
        ).run(seconds)

    def test_moves_converge(self) -> None:
        result = self.run([gamma(1e-3, 0.7), gamma(4e-3, 0.7), gamma(1e-3, 0.7)], (2, 2, 2), 20.0)
        assert result.workers == (1, 4, 1)
        moves = [d for d in result.decisions if d.what == "workers"]
        assert len(moves) == 4
        assert moves[-1].time < 2.0

    def test_a_balanced_pool_is_left_alone(self) -> None:
        result = self.run([exponential(2e-3)] * 3, (2, 2, 2), 20.0)
        assert len([d for d in result.decisions if d.what == "workers"]) <= 4
        assert result.workers == (2, 2, 2)

    def test_they_follow_the_work(self) -> None:
        """What is slow changes every 4 s; no fixed size reaches this with two workers a stage."""
        service = [
            phases((4.0, gamma(a * 1e-3, 0.7)), (4.0, gamma(b * 1e-3, 0.7))) for a, b in ((4, 1), (1, 1), (1, 4))
        ]
        adaptive = self.run(service, (2, 2, 2), 16.0)
        stages = [Stage(f"s{i}", s, workers=2) for i, s in enumerate(service)]
        fixed = max(Simulation(stages, limit=size, seed=0).run(16.0).throughput for size in (10, 100))
        assert adaptive.throughput > 1.4 * fixed
        assert sum(adaptive.workers) == 6


def test_ten_thousand_stages() -> None:
    """A wave of work through 10,000 stages; each step of both controllers sees all of them."""
    stages = [Stage(f"s{i}", 1e-3, item_bytes=100.0) for i in range(10_000)]
    simulation = Simulation(
        stages,
        bursts(10, pause=1000.0),
        limit=2,
        controller=Controller(max_bytes=5_000_000),
        worker_controller=WorkerController(),
        period=1.0,
    )
    result = simulation.run(10.02)
    assert result.completed == 10
    assert result.latencies.min() == pytest.approx(10.0)
    assert sum(limit * 100 for limit in result.limits) <= 5_000_000


def test_ten_thousand_devices() -> None:
    """10,000 devices send one reading in 20 s each to a gateway that can do 625 a second."""
    stages = [Stage("receive", exponential(1e-3)), Stage("store", exponential(1.6e-3))]
    simulation = Simulation(stages, [exponential(20.0)] * 10_000, limit=1, controller=Controller(), seed=3)
    result = simulation.run(60.0)
    assert result.throughput == pytest.approx(500, rel=0.03)
    assert max(result.limits) <= 200
    assert result.latency(0.99) < 0.2
