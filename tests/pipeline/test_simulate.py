"""The simulator against queueing theory."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.pipeline import Decision, simulate
from edgefast.pipeline.control import Controller, WorkerController
from edgefast.pipeline.simulate import Simulation, Stage, exponential


@pytest.mark.parametrize("limit", [1, 2, 4, 10])
def test_two_stages_and_a_buffer(limit: int) -> None:
    """A server that always has work in front of a buffer and an equal server is M/M/1/K with K = limit + 2 (the item in
    service and the finished one that has no room included): throughput mu K / (K + 1)."""
    stages = [Stage("a", exponential(1e-3)), Stage("b", exponential(1e-3))]
    result = Simulation(stages, limit=limit, low=lambda limit, rate: limit - 1, seed=5).run(60.0)
    k = limit + 2
    assert result.throughput == pytest.approx(1000 * k / (k + 1), rel=0.015)


def test_one_server_open_arrivals() -> None:
    """M/M/1 at 70 %: mean time in system 1 / (mu - lambda), and its quantiles are those of an exponential."""
    stage = Stage("a", exponential(1e-3))
    result = Simulation([stage], exponential(1 / 700), limit=100_000, seed=2).run(200.0)
    assert result.latencies.mean() == pytest.approx(1 / 300, rel=0.05)
    assert result.latency(0.9) == pytest.approx(math.log(10) / 300, rel=0.08)
    assert result.busy[0] / result.time == pytest.approx(0.7, rel=0.02)


def test_a_pool_of_workers() -> None:
    """M/M/3 at 80 %: mean wait by Erlang's C formula."""
    load, servers = 2.4, 3
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) / (1 - load / servers)
    wait = last / (sum(terms) + last) / (servers - load) * 1e-3
    stage = Stage("a", exponential(1e-3), workers=servers)
    result = Simulation([stage], exponential(1 / 2400), limit=100_000, seed=4).run(60.0)
    assert result.latencies.mean() == pytest.approx(wait + 1e-3, rel=0.05)


def test_worker_seconds_add_up() -> None:
    stages = [Stage("a", 1e-3, workers=2), Stage("b", exponential(2e-3), workers=3), Stage("c", 1e-3)]
    simulation = Simulation(stages, limit=3, wake_time=1e-4, seed=1)
    for _ in range(4):
        result = simulation.run(1.25)
        for k, stage in enumerate(stages):
            total = result.busy[k] + result.blocked[k] + result.starved[k]
            assert total == pytest.approx(stage.workers * result.time)
        assert result.throughput <= 1000
    assert result.time == 5.0
    assert result.completed == len(result.latencies)
    assert sum(result.depths) <= 9


def test_the_gate_has_hysteresis() -> None:
    """A queue that closed stays closed until it is down to the low mark: its source goes on in runs."""
    simulation = Simulation([Stage("a", 1e-3)], limit=8, low=lambda limit, rate: 2)
    simulation.run(0.0995)
    depths = [simulation.run(1e-3).depths[0] for _ in range(18)]
    start = depths.index(8)
    assert depths[start : start + 12] == [8, 7, 6, 5, 4, 3, 8, 7, 6, 5, 4, 3]
    assert simulation.run(1.0).throughput == pytest.approx(1000, rel=0.01)


def test_a_smaller_limit_drains_first() -> None:
    class Shrink(Controller):
        def step(self, now: float, samples: Any, **state: float) -> list[Decision]:
            return [Decision(now, "a", "limit", 50, 5, "test")] if now > 0.5 and samples[0].limit == 50 else []

        @property
        def rates(self) -> Any:
            return np.array([1000.0])

    simulation = Simulation([Stage("a", 1e-3)], limit=50, controller=Shrink(), period=0.1)
    assert simulation.run(0.45).depths[0] >= 49
    after = simulation.run(0.2)
    assert after.limits == (5,)
    assert 3 <= after.depths[0] <= 5
    assert after.throughput == pytest.approx(1000, rel=0.01)  # nobody starved meanwhile


def test_times() -> None:
    rng = random.Random(0)
    draw = simulate.gamma(2e-3, 0.5)
    values = np.array([draw(rng, 0.0) for _ in range(20_000)])
    assert values.mean() == pytest.approx(2e-3, rel=0.02)
    assert values.std() / values.mean() == pytest.approx(0.5, rel=0.03)
    parts = simulate.phases((1.0, 1e-3), (2.0, 5e-3))
    assert [parts(rng, t) for t in (0.0, 0.9, 1.0, 2.9, 3.0, 4.5)] == [1e-3, 1e-3, 5e-3, 5e-3, 1e-3, 5e-3]
    source = simulate.bursts(3, pause=1.0, gap=0.1)
    assert [source(rng, 0.0) for _ in range(7)] == [0.1, 0.1, 1.0, 0.1, 0.1, 1.0, 0.1]
    rare = simulate.spikes(1.0, 2.0, 0.25)
    assert np.mean([rare(rng, 0.0) for _ in range(10_000)]) == pytest.approx(1.25, rel=0.02)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([0.0, 1e-3, 3e-3])), min_size=1, max_size=4),
    st.integers(1, 5),
    st.sampled_from([0.0, 2e-4]),
    st.booleans(),
    st.integers(0, 100),
)
@settings(max_examples=40)
def test_any_pipeline_moves_and_loses_nothing(
    line: list[tuple[int, float]], limit: int, wake_time: float, adapts: bool, seed: int
) -> None:
    """With controllers that change limits and workers at every step, too."""
    stages = [Stage(f"s{i}", exponential(t + 1e-4), workers=w) for i, (w, t) in enumerate(line)]
    controllers: dict[str, Any] = (
        {"controller": Controller(), "worker_controller": WorkerController()} if adapts else {}
    )
    simulation = Simulation(stages, exponential(1e-3), limit=limit, wake_time=wake_time, seed=seed, **controllers)
    result = simulation.run(0.5)
    assert result.completed > 20
    samples = simulation.samples()
    for k, (s, depth) in enumerate(zip(samples, result.depths, strict=True)):
        assert s.arrived == s.served + s.depth == s.served + depth
        following = samples[k + 1].arrived if k + 1 < len(samples) else result.completed
        assert 0 <= s.served - following <= sum(w for w, _ in line)  # in the hands of workers
    assert sum(result.workers) == sum(w for w, _ in line)
    assert (result.latencies > 0).all()


def test_nothing_to_simulate() -> None:
    with pytest.raises(ValueError, match="stages: expected at least one, got none"):
        Simulation([])
