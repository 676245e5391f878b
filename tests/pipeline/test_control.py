"""The rules of the controllers, one at a time, on samples made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.pipeline import Decision, StageSample
from edgefast.pipeline.control import Controller, WorkerController, fair_shares, low_watermark


def sample(name: str = "a", **values: Any) -> StageSample:
    start: dict[str, Any] = {
        "depth": 0,
        "bytes": 0,
        "arrived": 0,
        "served": 0,
        "min_sojourn": 0.0,
        "busy": 0.0,
        "blocked": 0.0,
        "starved": 0.0,
        "workers": 1,
        "min_workers": 1,
        "max_workers": 1,
        "limit": 8,
        "min_limit": 1,
        "max_limit": 1000,
        "item_bytes": 0.0,
    }
    return StageSample(name, **{**start, **values})


def two(
    controller: Controller, blocked: float, starved: float, *, limit: int = 8, served: int = 200, **state: Any
) -> list[Decision]:
    """One period of 1 s between two stages; the limits of the second are what is tested."""
    controller.step(0.0, [sample("a", limit=1), sample("b", limit=limit)])
    busy = state.pop("busy", 0.5)
    a = sample("a", served=served, blocked=blocked, busy=busy, limit=1)
    b = sample("b", served=served, starved=starved, busy=busy, limit=limit)
    return [d for d in controller.step(1.0, [a, b], **state) if d.what == "limit"]


class TestGrowth:
    def test_both_waited(self) -> None:
        (decision,) = two(Controller(), 0.1, 0.06)
        assert decision[1:5] == ("b", "limit", 8, 14)  # sqrt(6 % / 2 %)
        assert decision.reason == "waited for input 6% of the time although its producer waited for room 10%"

    def test_at_most_twofold_but_for_the_shortest(self) -> None:
        assert [d.new for d in two(Controller(), 0.9, 0.9)] == [16]
        assert [d.new for d in two(Controller(), 0.9, 0.9, limit=2)] == [6]

    def test_at_least_the_dead_band(self) -> None:
        assert [d.new for d in two(Controller(), 0.03, 0.03)] == [10]

    @pytest.mark.parametrize(("blocked", "starved"), [(0.0, 0.9), (0.9, 0.0), (0.02, 0.9), (0.9, 0.02)])
    def test_one_side_is_no_loss(self, blocked: float, starved: float) -> None:
        assert two(Controller(), blocked, starved) == []

    def test_not_while_a_stage_is_at_work_all_the_time(self) -> None:
        assert two(Controller(), 0.1, 0.06, busy=0.99) == []

    def test_not_while_the_machine_is_busy(self) -> None:
        assert two(Controller(), 0.1, 0.06, cpu=0.97) == []
        assert two(Controller(), 0.1, 0.06, cpu=0.5) != []

    def test_the_source_is_the_producer_of_the_first_queue(self) -> None:
        controller = Controller()
        controller.step(0.0, [sample()])
        after = [sample(served=100, starved=0.3)]
        assert [d.new for d in controller.step(1.0, after, source_blocked=0.5) if d.what == "limit"] == [16]

    def test_up_to_what_leaves_in_the_target_delay(self) -> None:
        # 50 items in 0.5 s at work: 100 a second, 20 in 0.2 s.
        assert [d.new for d in two(Controller(), 0.5, 0.5, limit=10, served=50)] == [20]

    def test_up_to_the_maximum(self) -> None:
        controller = Controller()
        controller.step(0.0, [sample(max_limit=9)])
        after = [sample(served=100, starved=0.3, max_limit=9)]
        assert [d.new for d in controller.step(1.0, after, source_blocked=0.5) if d.what == "limit"] == [9]

    def test_the_wait_for_a_single_item_is_chance(self) -> None:
        assert two(Controller(), 0.1, 0.1, limit=2, served=10) == []
        assert two(Controller(), 0.1, 0.1, limit=2, served=50) != []

    def test_the_worst_of_a_row_goes_first(self) -> None:
        controller = Controller()
        names = "abcde"
        controller.step(0.0, [sample(n) for n in names])
        lost = [0.1, 0.2, 0.15, 0.05, 0.08]
        after = [sample(n, served=500, blocked=0.5, starved=x) for n, x in zip(names, lost, strict=True)]
        grown = [d.stage for d in controller.step(1.0, after, source_blocked=0.5) if d.what == "limit"]
        assert grown == ["b", "e"]

    def test_steps_come_faster_while_limits_grow(self) -> None:
        controller = Controller(period=0.4)
        assert controller.next_period == pytest.approx(0.05)
        assert two(controller, 0.1, 0.06)
        assert controller.next_period == pytest.approx(0.05)
        waits = []
        for k in range(7):
            a, b = (sample(n, served=300 + 100 * k, limit=14, busy=0.5, blocked=0.1, starved=0.06) for n in "ab")
            controller.step(1.2 + 0.1 * k, [a, b])
            waits.append(controller.next_period)
        # One period more, in case that another step follows.
        assert waits == pytest.approx([0.05, 0.05, 0.1, 0.2, 0.4, 0.4, 0.4])


class TestShrink:
    def run(self, controller: Controller, until: float, wait: float = 0.1, limit: int = 100) -> list[Decision]:
        """A queue of `limit` items that is never empty, 200 items a second; every item waits `wait` or longer."""
        decisions = []
        for k in range(round(until * 10) + 1):
            now = k / 10
            s = sample(limit=limit, served=200 * k // 10, busy=now, min_sojourn=wait)
            made = [d for d in controller.step(now, [s]) if d.what == "limit"]
            decisions += made
            limit = int(made[0].new) if made else limit
        return decisions

    def test_not_for_less_than_a_quarter(self) -> None:
        """20 of 100 items are never needed: the other 80 and a quarter are what there is."""
        assert self.run(Controller(target_delay=1.0, interval=1.0, standing_delay=0.02), 5.0, wait=0.1) == []

    def test_to_what_was_used_and_a_quarter(self) -> None:
        controller = Controller(target_delay=1.0, interval=1.0, standing_delay=0.02)
        (decision,) = self.run(controller, 1.2, wait=0.2)
        assert decision.time == pytest.approx(1.1)  # an interval after the first sample with items, at 0.1
        assert decision[2:5] == ("limit", 100, 75)
        assert decision.reason == "no item waited less than 0.2 s for 1 s: part of the queue is never used"

    def test_at_most_by_half_and_sooner_each_time(self) -> None:
        controller = Controller(target_delay=10.0, interval=1.0, standing_delay=0.02)
        decisions = self.run(controller, 3.6, wait=0.5)
        assert [d.new for d in decisions[:3]] == [50, 25, 13]
        # The control law of CoDel: interval / sqrt(k), on a grid of 0.1 s.
        gaps = np.diff([d.time for d in decisions[:4]])
        assert gaps == pytest.approx([0.8, 0.6, 0.5])

    def test_not_below_the_minimum(self) -> None:
        controller = Controller(target_delay=10.0, interval=0.5, standing_delay=0.02)
        assert self.run(controller, 60.0, wait=0.5)[-1].new == 1

    def test_not_while_some_item_was_quick(self) -> None:
        controller = Controller(target_delay=1.0, interval=1.0, standing_delay=0.02)
        for k in range(50):
            wait = 0.01 if k % 9 == 8 else 0.2
            s = sample(limit=100, served=20 * k, busy=k / 10, min_sojourn=wait)
            assert not [d for d in controller.step(k / 10, [s]) if d.what == "limit"]

    def test_not_while_the_stage_also_starves(self) -> None:
        controller = Controller(target_delay=1.0, interval=1.0, standing_delay=0.02)
        for k in range(50):
            s = sample(limit=100, served=20 * k, busy=k * 0.09, starved=k * 0.01, min_sojourn=0.2)
            assert not [d for d in controller.step(k / 10, [s]) if d.what == "limit"]

    def test_a_shrink_that_was_wrong_is_not_soon_repeated(self) -> None:
        """Load that seems to stand still and then loses, again and again: the pauses double."""
        controller = Controller(target_delay=10.0, interval=1.0, standing_delay=0.02)
        limit, now, served, busy, starved, blocked = 100, 0.0, 0, 0.0, 0.0, 0.0
        shrinks = []
        for _ in range(4000):
            losing = limit < 100
            now, served = now + 0.1, served + 100
            busy += 0.05 if losing else 0.1
            starved += 0.05 if losing else 0.0
            blocked += 0.05
            s = sample(limit=limit, served=served, busy=busy, starved=starved, min_sojourn=0.0 if losing else 0.5)
            for d in controller.step(now, [s], source_blocked=blocked):
                if d.what == "limit":
                    shrinks += [now] if d.new < d.old else []
                    limit = int(min(d.new, 100)) if d.new > d.old else int(d.new)
        gaps = np.diff(shrinks)
        doubling = gaps[gaps < 60]
        assert len(doubling) >= 5
        assert (doubling[1:] > 1.6 * doubling[:-1]).all()
        assert len(shrinks) < 12


class TestBounds:
    def test_a_slower_stage_gets_a_shorter_queue(self) -> None:
        controller = Controller(target_delay=0.2)
        controller.step(0.0, [sample(limit=100)])
        (decision, *_) = controller.step(1.0, [sample(limit=100, served=50, busy=1.0)])
        assert decision[2:5] == ("limit", 100, 10)
        assert decision.reason == "50 items/s leave it: this many are 0.2 s of work"

    def test_dead_band(self) -> None:
        for limit, expected in ((12, []), (13, [10])):
            controller = Controller(target_delay=0.2, dead_band=0.25)
            controller.step(0.0, [sample(limit=limit)])
            decisions = controller.step(1.0, [sample(limit=limit, served=50, busy=1.0)])
            assert [d.new for d in decisions if d.what == "limit"] == expected

    def test_the_rate_is_that_of_a_stage_that_has_work(self) -> None:
        """10 items a second arrive; it could do 100."""
        controller = Controller()
        controller.step(0.0, [sample()])
        controller.step(1.0, [sample(served=10, busy=0.1, starved=0.9)])
        assert controller.rates == pytest.approx([100.0])
        controller.step(2.0, [sample(served=10, busy=0.1, starved=1.9)])
        assert controller.rates == pytest.approx([100.0])  # nothing new: as before

    def test_outside_its_bounds(self) -> None:
        (decision,) = Controller().step(0.0, [sample(limit=5000)])
        assert (decision.new, decision.reason) == (1000, "outside its bounds of 1 to 1000")
        (decision,) = Controller().step(0.0, [sample(limit=2, min_limit=3)])
        assert decision.new == 3

    def test_byte_budget_at_once_and_fairly(self) -> None:
        controller = Controller(max_bytes=1000)
        decisions = controller.step(
            0.0,
            [sample("a", limit=10, item_bytes=10.0), sample("b", limit=90, item_bytes=10.0), sample("c", limit=90)],
        )
        assert [d[1:5] for d in decisions] == []  # 100 + 900 bytes, and c's items have no known size
        controller = Controller(max_bytes=1000)
        decisions = controller.step(
            0.0, [sample("a", limit=10, item_bytes=10.0), sample("b", limit=91, item_bytes=10.0)]
        )
        assert [d[1:5] for d in decisions] == [("b", "limit", 91, 90)]
        assert decisions[0].reason == "its share of the byte budget of 1000, at 10 bytes an item"

    def test_a_stage_always_may_hold_its_least(self) -> None:
        decisions = Controller(max_bytes=10).step(0.0, [sample(n, limit=4, item_bytes=100.0) for n in "ab"])
        assert [d.new for d in decisions] == [1, 1]


class TestState:
    def test_other_stages_start_anew(self) -> None:
        controller = Controller()
        controller.step(5.0, [sample("a")])
        assert controller.step(1.0, [sample("b", served=10**6, busy=1e6)]) == []
        assert np.isnan(controller.rates).all()

    def test_time_does_not_go_back(self) -> None:
        for controller in (Controller(), WorkerController()):
            controller.step(5.0, [sample()])
            assert controller.step(5.0, [sample()]) == []
            with pytest.raises(ValueError, match=r"now: expected at least 5\.0"):
                controller.step(4.0, [sample()])

    def test_counters_that_went_back_are_no_evidence(self) -> None:
        controller = Controller()
        controller.step(0.0, [sample(served=1000, busy=50.0, starved=50.0)], source_blocked=100.0)
        assert controller.step(1.0, [sample(served=5)], source_blocked=0.0) == []
        assert controller.losses == pytest.approx([0.0])

    def test_no_stages(self) -> None:
        assert Controller().step(0.0, []) == Controller().step(1.0, []) == []
        assert WorkerController().step(0.0, []) == []

    @pytest.mark.parametrize(
        ("option", "value", "error", "message"),
        [
            ("target_delay", 0, ValueError, "target_delay: expected a number between 0 and inf, got 0"),
            ("target_delay", "1", TypeError, "target_delay: expected a number, got str"),
            ("period", float("nan"), ValueError, "period"),
            ("dead_band", 1.0, ValueError, "dead_band: expected a number between 0 and 1"),
            ("tolerance", 2, ValueError, "tolerance"),
            ("max_bytes", 0, ValueError, "max_bytes: expected 1 <= max_bytes"),
            ("max_bytes", 1.5, TypeError, "max_bytes: expected an integer, got float"),
            ("interval", -1, ValueError, "interval"),
            ("standing_delay", True, TypeError, "standing_delay"),
        ],
    )
    def test_bad_arguments(self, option: str, value: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Controller(**{option: value})


counts = st.integers(0, 50)
seconds = st.floats(0, 3, allow_nan=False)
stage_steps = st.tuples(counts, seconds, seconds, seconds, st.none() | seconds, st.floats(0, 1e4))


@given(
    st.lists(st.lists(stage_steps, min_size=3, max_size=3), min_size=2, max_size=12),
    st.none() | st.integers(1, 10**6),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 500), st.integers(1, 3)), min_size=3, max_size=3),
)
def test_whatever_is_measured(steps: Any, max_bytes: int | None, bounds: Any) -> None:
    """Bounds, budget and dead band hold after every step, for two controllers alike."""
    controllers = [Controller(max_bytes=max_bytes) for _ in range(2)]
    limits = [least for least, _, _ in bounds]
    totals = np.zeros((3, 4))
    for k, step in enumerate(steps):
        totals += np.array([row[:4] for row in step], float)
        samples = [
            sample(
                str(i),
                served=int(totals[i, 0]),
                busy=totals[i, 1],
                blocked=totals[i, 2],
                starved=totals[i, 3],
                min_sojourn=step[i][4],
                item_bytes=step[i][5],
                limit=limits[i],
                min_limit=bounds[i][0],
                max_limit=bounds[i][0] + bounds[i][1],
                workers=bounds[i][2],
            )
            for i in range(3)
        ]
        decisions, same = (c.step(k * 0.2, samples, source_blocked=float(k)) for c in controllers)
        assert decisions == same
        for d in decisions:
            i = int(d.stage)
            if d.what == "limit":
                assert (d.old, d.new) == (limits[i], d.new)
                assert d.new != d.old
                limits[i] = int(d.new)
        for i, (least, more, _) in enumerate(bounds):
            assert least <= limits[i] <= least + more
            assert 0 <= controllers[0].low_watermarks[i] < limits[i]
        if max_bytes is not None:
            held = sum(n * s.item_bytes for n, s in zip(limits, samples, strict=True))
            least_held = sum(b[0] * s.item_bytes for b, s in zip(bounds, samples, strict=True))
            assert held <= max(max_bytes, least_held) * (1 + 1e-9)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=20), st.floats(0, 1e9))
def test_fair_shares(demands: list[float], total: float) -> None:
    shares = fair_shares(np.array(demands), total)
    assert (shares <= np.array(demands)).all()
    assert shares.sum() == pytest.approx(min(total, sum(demands)), rel=1e-9, abs=1e-6)
    # Who gets less than he wants gets as much as anybody.
    short = shares < np.array(demands)
    if short.any():
        assert shares[short] == pytest.approx(np.full(short.sum(), shares.max()))


@given(st.integers(1, 10**9), st.floats(0, 1e9))
def test_low_watermark(limit: int, rate: float) -> None:
    low = low_watermark(limit, rate)
    assert 0 <= low < limit
    assert low >= limit // 4 - 1
    assert low_watermark(limit, float("nan")) == limit - 1


class TestWorkers:
    def run(
        self, costs: Sequence[float], workers: list[int], steps: int = 30, *, most: int = 99, **options: Any
    ) -> tuple[list[int], list[Decision]]:
        """Stages in line that are as fast as the slowest allows, measured without noise."""
        controller = WorkerController(**options)
        workers = list(workers)
        n = len(costs)
        served, busy = np.zeros(n), np.zeros(n)
        decisions: list[Decision] = []
        for k in range(steps):
            samples = [
                sample(str(i), served=int(served[i]), busy=busy[i], workers=workers[i], max_workers=most)
                for i in range(n)
            ]
            for d in controller.step(float(k), samples):
                decisions.append(d)
                assert d.old == workers[int(d.stage)]
                assert abs(d.new - d.old) == 1
                workers[int(d.stage)] = int(d.new)
                assert 1 <= d.new <= most
            rate = min(w / c for w, c in zip(workers, costs, strict=True))
            served += rate
            busy += rate * np.array(costs)
        return workers, decisions

    @pytest.mark.parametrize(
        ("costs", "workers", "expected"),
        [
            ([0.001, 0.004, 0.001], [2, 2, 2], [1, 4, 1]),
            ([0.004, 0.001, 0.001], [1, 1, 4], [4, 1, 1]),
            ([0.002, 0.002, 0.002], [2, 2, 2], [2, 2, 2]),
            ([0.001, 0.002], [1, 1], [1, 1]),
        ],
    )
    def test_they_go_where_the_work_is(self, costs: list[float], workers: list[int], expected: list[int]) -> None:
        got, decisions = self.run(costs, workers)
        assert got == expected
        assert len(decisions) == 2 * sum(max(e - w, 0) for e, w in zip(expected, workers, strict=True))

    def test_free_workers_need_no_giver(self) -> None:
        workers, decisions = self.run([0.001, 0.004], [1, 1], total=5)
        assert workers == [1, 4]
        assert {d.stage for d in decisions} == {"1"}
        assert decisions[0].reason.startswith("slowest stage: an item every 4 ms")

    def test_not_above_the_maximum_of_the_stage(self) -> None:
        assert self.run([0.001, 0.004], [3, 1], most=3)[0] == [1, 3]

    def test_not_while_nobody_is_short(self) -> None:
        """A quiet source: every stage is idle most of the time."""
        controller = WorkerController()
        for k in range(20):
            samples = [
                sample(n, served=10 * k, busy=10 * k * c, workers=2, max_workers=9)
                for n, c in (("a", 0.01), ("b", 0.04))
            ]
            assert controller.step(float(k), samples) == []

    @pytest.mark.parametrize(
        ("option", "value"), [("total", 0), ("band", -2), ("rise", 0), ("fall", 1.5), ("busy_share", 0), ("settle", 0)]
    )
    def test_bad_arguments(self, option: str, value: Any) -> None:
        with pytest.raises(ValueError, match=option):
            WorkerController(**{option: value})

    @given(
        st.lists(st.tuples(st.integers(1, 9), st.floats(1e-4, 1e-2)), min_size=2, max_size=6),
    )
    def test_each_move_makes_the_slowest_faster(self, stages: list[tuple[int, float]]) -> None:
        workers, costs = [w for w, _ in stages], [c for _, c in stages]
        before = min(w / c for w, c in stages)
        after, decisions = self.run(costs, workers, steps=80)
        assert sum(after) == sum(workers)
        assert min(w / c for w, c in zip(after, costs, strict=True)) >= before
        assert len(decisions) <= 2 * sum(workers)
