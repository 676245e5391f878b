"""What a pipeline computes, on every kind of worker and over both queues."""

from __future__ import annotations

import asyncio
import functools
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pipeline_functions as f
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.pipeline import Decision, Pipeline, PipelineError, Stage, size_of
from edgefast.queues import Full, ShutDown

WAIT = 30.0  # seconds after which a test gives up: far more than it needs


def until(condition: Callable[[], bool]) -> None:
    """Wait for what will happen."""
    give_up = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def read(outputs: Iterable[Any], into: list[Any]) -> None:
    """All outputs, those before an error too."""
    for output in outputs:
        into.append(output)


def submit_until_full(p: Pipeline, items: Iterable[Any], timeout: float | None) -> int:
    """How many get in before one does not."""
    for n, item in enumerate(items):
        try:
            p.submit(item, timeout=timeout)
        except Full:
            return n
    pytest.fail("all of them got in")


def held(stage: Any) -> bool:
    """Whether every item of a closed stage is accounted for."""
    put = stage.served + stage.dropped_oldest + stage.expired + stage.cleared + stage.depth
    return stage.arrived == put and stage.served == stage.completed + stage.failed + stage.lost


# ---- values and order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", ["debloat", "none"])
def test_map_is_the_composition_in_order(how: dict[str, Any], queues: str, adapt: Any) -> None:
    stages = [Stage(f.double, workers=2), Stage(f.uneven, workers=3), Stage(f.minus)]
    with Pipeline(stages, adapt=adapt, **how) as p:
        assert list(p.map(range(60))) == [-2 * x for x in range(60)]
        assert list(p.map([])) == []
        assert list(p.map(iter(range(5)))) == [0, -2, -4, -6, -8]
    statistics = p.statistics()
    assert statistics.state == "closed"
    assert statistics.submitted == statistics.delivered == 65
    assert statistics.unread == 0
    for stage in statistics.stages:
        assert held(stage)
        assert stage.arrived == stage.completed == stage.emitted == 65


def test_unordered_stages_lose_and_double_nothing(how: dict[str, Any]) -> None:
    stages = [Stage(f.uneven, workers=3, ordered=False), Stage(f.double, workers=2, ordered=False)]
    with Pipeline(stages, **how) as p:
        assert sorted(p.map(range(100))) == [2 * x for x in range(100)]


def test_unordered_outputs_do_not_wait_for_a_slow_one() -> None:
    gate = threading.Event()

    def slow_0(x: int) -> int:
        if x == 0:
            assert gate.wait(WAIT)
        return x

    with Pipeline([Stage(slow_0, workers=2, ordered=False)]) as p:
        outputs = p.map(range(10))
        first = [next(outputs) for _ in range(9)]
        gate.set()
        assert sorted(first) == list(range(1, 10))
        assert list(outputs) == [0]


def test_generators_yield_any_number(how: dict[str, Any], queues: str) -> None:
    expected = [-x for x in range(40) for _ in range(x % 3)]
    with Pipeline([Stage(f.repeat, workers=2), f.minus], **how) as p:
        assert list(p.map(range(40))) == expected


def test_long_generators_take_turns() -> None:
    """Outputs of one that is not at the head wait, but no more than a bounded number of them."""
    made: list[int] = [0, 0, 0]

    def count_up(x: int) -> Iterator[tuple[int, int]]:
        for i in range(500):
            made[x] += 1
            yield x, i

    with Pipeline([Stage(count_up, workers=3)], adapt="none") as p:
        outputs = p.map(range(3))
        assert next(outputs) == (0, 0)
        assert list(outputs) == [(x, i) for x in range(3) for i in range(500)][1:]


def test_a_generator_streams_while_it_runs() -> None:
    go_on = threading.Event()

    def two(x: int) -> Iterator[int]:
        yield x
        assert go_on.wait(WAIT)
        yield x + 1

    with Pipeline([two]) as p:
        outputs = p.map([10])
        assert next(outputs) == 10
        go_on.set()
        assert list(outputs) == [11]


def test_coroutines_and_asynchronous_generators_run_as_tasks(queues: str) -> None:
    running = most = 0

    async def wait_a_little(x: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return x

    stages = [f.adouble, Stage(f.arepeat, workers=2), Stage(wait_a_little, workers=8)]
    with Pipeline(stages) as p:
        assert list(p.map(range(40))) == [2 * x for x in range(40) for _ in range(2 * x % 3)]
        assert {s.backend for s in p.statistics().stages} == {"asyncio"}
    assert 1 < most <= 8


def test_stages_of_different_kinds_mix() -> None:
    stages = [
        Stage(f.double, backend="process"),
        f.adouble,
        Stage(f.minus, backend="thread"),
        Stage(f.square, backend="asyncio"),
    ]
    with Pipeline(stages) as p:
        assert list(p.map(range(20))) == [16 * x * x for x in range(20)]
        assert [s.backend for s in p.statistics().stages] == ["process", "asyncio", "thread", "asyncio"]


class Adder:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, x: int) -> int:
        return x + self.n

    async def later(self, x: int) -> int:
        return x + self.n


class Splitter:
    def __call__(self, text: str) -> Iterator[str]:
        yield from text.split()


@pytest.mark.parametrize(
    ("fn", "kind", "name"),
    [
        (abs, "plain", "abs"),
        (functools.partial(f.repeat), "generator", "repeat"),
        (Adder(3), "plain", "Adder"),
        (Adder(3).later, "coroutine", "later"),
        (Splitter(), "generator", "Splitter"),
        (f.arepeat, "async generator", "arepeat"),
    ],
)
def test_kinds_and_names_of_functions(fn: Any, kind: str, name: str) -> None:
    stage = Stage(fn)
    assert (stage.kind, stage.name) == (kind, name)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches(how: dict[str, Any], queues: str) -> None:
    with Pipeline([Stage(f.double_all, batch=8, workers=2), f.minus], **how) as p:
        assert list(p.map(range(50))) == [-2 * x for x in range(50)]


def test_a_batch_is_full_while_there_is_enough() -> None:
    sizes: list[int] = []

    def note(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return batch

    with Pipeline([Stage(note, batch=16, linger=WAIT, maxsize=64)], adapt="none") as p:
        # The first 96 fill six batches whatever the timing; the end of the input does not, so that shutdown() sends it.
        reader = p.results()
        p.submit_many(list(range(100)))
        assert [next(reader) for _ in range(96)] == list(range(96))
        p.shutdown()
        assert list(reader) == [96, 97, 98, 99]
    assert sizes == [16] * 6 + [4]


def test_a_closed_queue_does_not_hold_up_a_batch() -> None:
    """Whatever the limits, fewer items than a batch wait in an open queue."""
    from edgefast.pipeline._runtime import Edge

    for limit in range(5, 40):
        edge = Edge("edge", False, maxsize=40, least=5, floor=4)
        edge.set_limit(limit)
        edge.set_low(0)
        assert edge.low >= 4
        assert edge.low < edge.limit
        edge.queue.shutdown()
    with Pipeline([Stage(f.double_all, batch=5, linger=WAIT, maxsize=7, low_watermark=0)], adapt="none") as p:
        outputs = p.results()
        p.submit_many(range(50))
        assert [next(outputs) for _ in range(50)] == [2 * x for x in range(50)]


def test_linger_ends() -> None:
    with Pipeline([Stage(lambda batch: batch, name="batch", batch=1000, linger=0.01)]) as p:
        assert list(p.map(range(3))) == [0, 1, 2]


def test_a_batch_reduces_with_a_generator_function(how: dict[str, Any]) -> None:
    with Pipeline([Stage(f.sums, batch=10)], **how) as p:
        assert sum(p.map(range(100))) == sum(range(100))


def test_a_batch_may_return_an_array() -> None:
    with Pipeline([Stage(np.asarray, name="array", batch=4)]) as p:
        assert [int(x) for x in p.map(range(10))] == list(range(10))


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ([1], ValueError, "expected 3 outputs, one for each item of the batch, got 1; use a generator function"),
        (7, TypeError, "expected a sequence of 3 outputs, got int; use a generator function"),
        ("abc", TypeError, "expected a sequence of 3 outputs, got str"),
    ],
)
def test_a_batch_function_returns_one_output_an_item(result: Any, error: type, message: str) -> None:
    stage = Stage(lambda batch: result, name="wrong", batch=3, linger=WAIT, maxsize=3)
    with pytest.raises(PipelineError, match="stage 'wrong' failed") as caught, Pipeline([stage]) as p:
        list(p.map(range(3)))
    assert type(caught.value.__cause__) is error
    assert message in str(caught.value.__cause__)
    assert caught.value.item == [0, 1, 2]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_stops_the_pipeline_behind_what_came_before(how: dict[str, Any], queues: str) -> None:
    got: list[int] = []
    with pytest.raises(PipelineError) as caught, Pipeline([Stage(f.fail_on_7, workers=2), f.minus], **how) as p:
        read(p.map(range(1000)), got)
    assert got == [-x for x in range(7)]
    assert str(caught.value) == "stage 'fail_on_7' failed on 7: ValueError: seven"
    assert (caught.value.stage, caught.value.item) == ("fail_on_7", 7)
    assert isinstance(caught.value.__cause__, ValueError)
    statistics = p.statistics()
    assert statistics.state == "failed"
    assert all(map(held, statistics.stages))
    assert statistics.stages[0].failed >= 1


def test_submit_and_join_tell_of_the_error_too() -> None:
    p = Pipeline([f.fail_on_7])
    p.submit(7)
    with pytest.raises(PipelineError, match="seven"):
        p.join()
    with pytest.raises(PipelineError, match="seven"):
        p.submit(1)
    with pytest.raises(PipelineError, match="seven"):
        p.submit_many([1])
    with pytest.raises(PipelineError, match="seven"):
        p.map([1])
    p.shutdown()


def test_an_error_nobody_asked_for_shows_at_the_end_of_the_with_block() -> None:
    with pytest.raises(PipelineError, match="seven"), Pipeline([f.fail_on_7]) as p:
        p.submit(7)


def test_an_error_that_was_shown_is_not_shown_twice() -> None:
    with Pipeline([f.fail_on_7]) as p, pytest.raises(PipelineError):
        list(p.map([7]))


def test_skip(how: dict[str, Any], queues: str) -> None:
    with Pipeline([Stage(f.fail_on_7, workers=2, on_error="skip"), f.double], **how) as p:
        assert list(p.map(range(20))) == [2 * x for x in range(20) if x != 7]
    stage = p.statistics().stages[0]
    assert (stage.failed, stage.completed) == (1, 19)
    assert all(map(held, p.statistics().stages))


def test_dead_letters(how: dict[str, Any]) -> None:
    letters: list[tuple[int, Exception]] = []
    with Pipeline([Stage(f.fail_on_7, on_error=lambda item, error: letters.append((item, error)))], **how) as p:
        assert list(p.map(range(10))) == [x for x in range(10) if x != 7]
    assert [(item, str(error)) for item, error in letters] == [(7, "seven")]


def test_a_dead_letter_function_that_fails_stops_the_pipeline() -> None:
    def complain(item: int, error: Exception) -> None:
        raise KeyError("no post")

    with (
        pytest.raises(PipelineError, match="no post") as caught,
        Pipeline([Stage(f.fail_on_7, on_error=complain)]) as p,
    ):
        list(p.map(range(10)))
    assert isinstance(caught.value.__cause__, KeyError)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)


@pytest.mark.parametrize("kind", ["thread", "asyncio"])
def test_retries(kind: Any) -> None:
    tries: dict[int, int] = {}

    def flaky(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if tries[x] < 3 and x % 2:
            raise OSError(x)
        return x

    with Pipeline([Stage(flaky, retries=2, backoff=0.001, workers=2)], backend=kind) as p:
        assert list(p.map(range(10))) == list(range(10))
    assert tries == {x: 3 if x % 2 else 1 for x in range(10)}
    assert p.statistics().stages[0].retried == 10


def test_retries_run_out_and_only_serve_their_exceptions() -> None:
    tries: list[int] = []

    def always(x: int) -> int:
        tries.append(x)
        raise OSError if x else ValueError

    with Pipeline([Stage(always, retries=3, backoff=0.0, retry_on=OSError, on_error="skip")]) as p:
        assert list(p.map([0, 1])) == []
    assert tries == [0, 1, 1, 1, 1]
    assert p.statistics().stages[0].failed == 2


def test_backoff_doubles_up_to_its_maximum() -> None:
    stage = Stage(abs, retries=9, backoff=0.5, max_backoff=3.0)
    assert [stage.delay(n) for n in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_waiting_for_a_retry_ends_with_the_pipeline() -> None:
    failed = threading.Event()

    def fails(x: int) -> int:
        failed.set()
        raise OSError

    p = Pipeline([Stage(fails, retries=1, backoff=1000.0, max_backoff=1000.0)])
    p.submit(1)
    assert failed.wait(WAIT)
    p.shutdown(immediate=True)
    assert p.join(WAIT)
    stage = p.statistics().stages[0]
    assert (stage.lost, stage.failed) == (1, 0)


@pytest.mark.parametrize("kind", ["thread", "asyncio", "process"])
def test_a_generator_that_has_yielded_is_not_tried_again(kind: Any) -> None:
    with Pipeline([Stage(f.spell, retries=5, backoff=0.0, on_error="skip")], backend=kind) as p:
        assert list(p.map([1, 3, 5])) == [1, -1, 3, 5, -5]
    stage = p.statistics().stages[0]
    assert (stage.retried, stage.failed, stage.completed) == (0, 1, 2)


def test_what_is_no_exception_ends_the_pipeline_whatever_on_error_says() -> None:
    def leave(x: int) -> int:
        raise SystemExit(4)

    with pytest.raises(PipelineError, match="SystemExit"), Pipeline([Stage(leave, on_error="skip", workers=2)]) as p:
        list(p.map(range(10)))
    assert all(map(held, p.statistics().stages))


def test_a_coroutine_that_raises_no_exception_ends_the_pipeline() -> None:
    async def leave(x: int) -> int:
        raise SystemExit(4)

    with pytest.raises(PipelineError, match="SystemExit"), Pipeline([Stage(leave, workers=2)]) as p:
        list(p.map(range(10)))


def test_an_error_of_the_input_comes_after_the_outputs_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise KeyError("broken")

    with Pipeline([f.double]) as p:
        got: list[int] = []
        with pytest.raises(KeyError, match="broken"):
            read(p.map(source()), got)
        assert got == [0, 2, 4, 6, 8]
        assert list(p.map(range(2))) == [0, 2]  # and nothing is wrong with the pipeline


def test_an_error_stops_a_source_that_waits() -> None:
    """Upstream of a failure puts do not wait for ever, downstream what has passed is done."""
    go = threading.Event()

    def fail(x: int) -> int:
        assert go.wait(WAIT)
        raise ValueError("late")

    with Pipeline([Stage(f.double, maxsize=2), Stage(fail, maxsize=2)], adapt="none") as p:
        try:
            submit_until_full(p, itertools.count(), timeout=0.05)
        finally:
            threading.Timer(0.05, go.set).start()
        with pytest.raises(PipelineError, match="late"):
            submit_until_full(p, itertools.count(), timeout=WAIT)


# ---- map() reads no more than it has to ------------------------------------------------------------------------------


def test_an_infinite_input_is_read_a_bounded_number_ahead(how: dict[str, Any], queues: str) -> None:
    read = itertools.count()
    seen = 0

    def source() -> Iterator[int]:
        nonlocal seen
        for x in read:
            seen = x
            yield x

    stages = [Stage(f.double, maxsize=8), Stage(f.minus, maxsize=8, workers=2)]
    with Pipeline(stages, adapt="none", **how) as p, p.map(source()) as outputs:
        for n, output in enumerate(itertools.islice(outputs, 300)):
            assert output == -2 * n
            # two queues of 8 and the one of the outputs, and what workers and readers have in their hands
            assert seen <= n + 8 + 8 + 128 + 60
    assert seen < 300 + 8 + 8 + 128 + 60


def test_leaving_a_loop_early_stops_the_input(how: dict[str, Any]) -> None:
    with Pipeline([f.double, Stage(f.minus, workers=2)], **how) as p:
        for output in p.map(itertools.count()):
            if output == -100:
                break
        # Nothing of the abandoned map() shows up in the next one.
        assert list(p.map(range(100, 110))) == [-2 * x for x in range(100, 110)]
        outputs = p.map(itertools.count())
        assert next(outputs) == 0
        outputs.close()
        outputs.close()
        assert list(outputs) == []
        p.submit(1)
        assert p.join(WAIT)


def test_a_with_block_is_left_with_a_map_open() -> None:
    with Pipeline([f.double]) as p:
        outputs = p.map(itertools.count())
        assert next(outputs) == 0
    with pytest.raises(ShutDown):
        list(outputs)


def test_one_reader_at_a_time() -> None:
    with Pipeline([f.double]) as p:
        with p.map(itertools.count()) as outputs:
            next(outputs)
            with pytest.raises(RuntimeError, match="another map"):
                p.map([1])
            with pytest.raises(RuntimeError, match="another map"):
                p.results()
            with pytest.raises(RuntimeError, match="close it before submitting"):
                p.submit(1)
        assert list(p.map([1])) == [2]


def test_a_slow_input_does_not_hold_up_the_end() -> None:
    """close() does not wait for an input that is waiting itself."""
    wait = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        wait.wait(WAIT)
        yield 2

    with Pipeline([f.double]) as p:
        outputs = p.map(source())
        assert next(outputs) == 2
        outputs.close()
        assert list(p.map([5])) == [10]
    wait.set()


# ---- submit, results, join, shutdown ---------------------------------------------------------------------------------


def test_submit_and_results(how: dict[str, Any], queues: str) -> None:
    with Pipeline([f.double, Stage(f.minus, workers=2)], **how) as p:
        outputs = p.results()
        producer = threading.Thread(target=lambda: ([p.submit(x) for x in range(200)], p.shutdown()))
        producer.start()
        assert list(outputs) == [-2 * x for x in range(200)]
        producer.join()


def test_outputs_nobody_reads_are_counted() -> None:
    with Pipeline([f.double]) as p:
        assert p.submit_many(range(50)) == 50
        assert p.join(WAIT)
        assert p.statistics().unread == 50
        outputs = p.results()
        p.submit(1)
        assert next(outputs) == 2
        assert p.statistics().delivered == 1


def test_results_can_be_read_after_the_end() -> None:
    with Pipeline([Stage(f.double, maxsize=1000)], adapt="none") as p:
        outputs = p.results()
        p.submit_many(range(500))  # more than the queue of the outputs holds
    assert list(outputs) == [2 * x for x in range(500)]


def test_join_waits_for_what_is_in_the_workers_hands(how: dict[str, Any]) -> None:
    with Pipeline([f.uneven, Stage(f.double, workers=2)], **how) as p:
        for n in (1, 30, 30):
            before = p.statistics().stages[-1].completed
            p.submit_many(list(range(n)))
            assert p.join(WAIT)
            assert p.statistics().stages[-1].completed == before + n


def test_join_times_out() -> None:
    go = threading.Event()
    with Pipeline([lambda x: go.wait(WAIT)]) as p:
        assert p.join(0.0)  # nothing to wait for
        p.submit(1)
        assert not p.join(0.01)
        go.set()
        assert p.join(WAIT)


def test_shutdown_finishes_what_is_in(how: dict[str, Any], queues: str) -> None:
    p = Pipeline([f.uneven, f.double], **how)
    p.submit_many(list(range(20)))
    p.shutdown()
    with pytest.raises(ShutDown):
        p.submit(1)
    assert p.join(WAIT)
    assert p.statistics().state == "closed"
    assert p.statistics().stages[-1].completed == 20
    p.shutdown()
    p.shutdown(immediate=True)


def test_immediate_shutdown_drops_what_is_queued(queues: str) -> None:
    began, go = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        began.set()
        assert go.wait(WAIT)
        return x

    p = Pipeline([Stage(wait, maxsize=100), f.double], adapt="none")
    p.submit_many(list(range(50)))
    assert began.wait(WAIT)
    p.shutdown(immediate=True)
    assert not p.join(0.02)  # the call in progress is finished
    go.set()
    assert p.join(WAIT)
    first, second = p.statistics().stages
    assert first.cleared + first.lost == 50
    assert first.cleared >= 40
    assert second.completed == 0
    assert held(first)
    assert held(second)


def test_an_exception_in_the_with_block_ends_at_once() -> None:
    stage = Stage(lambda x: f.uneven(0), name="slow", maxsize=1000)

    def leave(p: Pipeline) -> None:
        p.submit_many(range(1000))
        raise KeyError

    with pytest.raises(KeyError), Pipeline([stage], adapt="none") as p:
        leave(p)
    assert p.statistics().stages[0].completed < 1000
    assert p.statistics().state == "closed"


def test_map_says_so_when_the_pipeline_is_shut_down_under_it() -> None:
    with Pipeline([f.double]) as p:
        outputs = p.map(itertools.count())
        next(outputs)
        p.shutdown()
        with pytest.raises(ShutDown, match="before everything was done"):
            list(outputs)


def test_a_pipeline_that_did_nothing() -> None:
    with Pipeline([f.double]) as p:
        assert p.statistics().state == "idle"
        assert p.join()
    assert p.statistics().state == "closed"
    with pytest.raises(ShutDown):
        p.submit(1)
    with pytest.raises(ShutDown), p:
        pass
    assert threading.active_count() == 1 or not any("double" in t.name for t in threading.enumerate())


# ---- backpressure, limits, policies ----------------------------------------------------------------------------------


def test_backpressure_reaches_the_source(how: dict[str, Any], queues: str) -> None:
    """The last stage stands still: every queue before it fills up and closes, and then the source has to wait."""
    if how.get("backend") == "process":
        pytest.skip("the last stage is held by an event of this process")
    go = threading.Event()

    def held_up(x: int) -> int:
        assert go.wait(WAIT)
        return x

    last = Stage(held_up, maxsize=4, backend="thread" if "backend" in how else None)
    stages = [Stage(f.double, maxsize=4), Stage(f.minus, maxsize=4), last]
    if "pool" in how:
        how = {**how, "pool": 3}
    with Pipeline(stages, adapt="none", **how) as p:
        try:
            accepted = submit_until_full(p, itertools.count(), timeout=0.1)
            statistics = p.statistics()
            assert not any(stage.writable for stage in statistics.stages)
            # Closed at 4 and not yet down to 2.
            assert all(stage.depth in (3, 4) for stage in statistics.stages)
            assert 9 <= accepted <= 12 + 3 * 4
        finally:
            go.set()
        p.submit(-1, timeout=WAIT)  # and goes on when the last one does
    assert p.statistics().stages[-1].completed == accepted + 1
    assert all(stage.peak <= 4 for stage in p.statistics().stages)


def test_a_stage_accepts_again_at_its_low_watermark() -> None:
    step = threading.Semaphore(0)

    def one(x: int) -> int:
        assert step.acquire(timeout=WAIT)
        return x

    with Pipeline([Stage(one, maxsize=10, low_watermark=3)], adapt="none") as p:
        try:
            p.submit(0)
            until(lambda: p.statistics().stages[0].served == 1)
            assert p.submit_many(range(20), timeout=0.05) == 10
            assert not p.statistics().stages[0].writable
            step.release(6)
            until(lambda: p.statistics().stages[0].depth == 4)
            with pytest.raises(Full):
                p.submit(11, timeout=0.02)
            step.release()
            p.submit(11, timeout=WAIT)
        finally:
            step.release(100)


@pytest.mark.parametrize(
    ("policy", "kept"), [("drop_newest", [0, 1, 2, 3, 4]), ("drop_oldest", [0, 16, 17, 18, 19]), ("latest", [0, 19])]
)
def test_drop_policies_and_their_accounts(queues: str, policy: Any, kept: list[int]) -> None:
    began, go = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        began.set()
        assert go.wait(WAIT)
        return x

    with Pipeline([Stage(wait, maxsize=4, policy=policy)], adapt="none") as p:
        outputs = p.results()
        p.submit(0)
        assert began.wait(WAIT)
        for x in range(1, 20):
            p.submit(x, timeout=WAIT)  # never waits
        go.set()
        p.shutdown()
        assert list(outputs) == kept
    stage = p.statistics().stages[0]
    assert stage.dropped_newest + stage.dropped_oldest == 20 - len(kept)
    assert held(stage)
    assert stage.completed == len(kept)


def test_policy_error_is_for_the_source() -> None:
    go = threading.Event()
    with Pipeline([Stage(lambda x: go.wait(WAIT), name="wait", maxsize=2, policy="error")], adapt="none") as p:
        assert submit_until_full(p, range(20), timeout=None) < 20
        go.set()
    with pytest.raises(ValueError, match="first stage only"):
        Pipeline([f.double, Stage(f.minus, policy="error")])


def test_old_items_are_dropped() -> None:
    began, go = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        began.set()
        assert go.wait(WAIT)
        return x

    with Pipeline([Stage(wait, max_age=0.02)]) as p:
        p.submit(0)
        assert began.wait(WAIT)
        p.submit(1)
        threading.Timer(0.1, go.set).start()
        assert p.join(WAIT)
    stage = p.statistics().stages[0]
    assert (stage.expired, stage.completed) == (1, 1)
    assert held(stage)


def test_the_byte_budget_stops_the_source(queues: str) -> None:
    go = threading.Event()

    def wait(x: bytes) -> bytes:
        assert go.wait(WAIT)
        return x

    with Pipeline(
        [Stage(bytes, name="copy", maxsize=100), Stage(wait, maxsize=100)], max_bytes=1000, adapt="none"
    ) as p:
        accepted = submit_until_full(p, itertools.repeat(b"x" * 100), timeout=0.1)
        assert p.statistics().bytes <= 1000
        assert 10 <= accepted <= 12  # ten queued, two in hand
        with pytest.raises(ValueError, match="at most max_bytes"):
            p.submit(b"x" * 1001)
        go.set()
        p.submit(b"x" * 1000, timeout=WAIT)
    assert all(s.peak_bytes <= 1000 for s in p.statistics().stages)


def test_bytes_of_a_stage() -> None:
    go = threading.Event()
    stage = Stage(lambda x: go.wait(WAIT), name="wait", max_bytes=10, sizer=len)
    with Pipeline([stage]) as p:
        assert submit_until_full(p, ["abcd"] * 20, timeout=0.02) < 20
        assert p.statistics().stages[0].bytes == 8
        go.set()


def test_an_output_that_cannot_be_queued_is_an_error_of_its_stage() -> None:
    stages = [Stage(lambda n: "x" * n, name="blow up", on_error="skip"), Stage(len, max_bytes=100, sizer=len)]
    with Pipeline(stages) as p:
        assert list(p.map([1, 500, 2, 100])) == [1, 2, 100]
    assert p.statistics().stages[0].failed == 1
    assert all(map(held, p.statistics().stages))
    with (
        pytest.raises(PipelineError, match="max_bytes"),
        Pipeline([lambda n: "x" * n, Stage(len, max_bytes=100, sizer=len)]) as p,
    ):
        list(p.map([1, 500, 2]))


def test_size_of() -> None:
    assert size_of(np.zeros(4)) == 32
    assert size_of([b"12", "345", {"a": np.zeros(2, np.uint8)}]) == 2 + 3 + 1 + 2
    assert size_of(7) > 0


def test_decisions_are_carried_out_and_remembered() -> None:
    asked: list[list[str]] = []

    def step(now: float, samples: Any) -> list[Decision]:
        asked.append([s.name for s in samples])
        if len(asked) > 1:
            return []
        return [
            Decision(now, "double", "limit", samples[0].limit, 40, "because"),
            Decision(now, "double", "gate", 1, 30, "why not"),
            Decision(now, "output", "limit", samples[-1].limit, 9, "readers"),
            Decision(now, "double", "workers", 1, 3, "more"),
            Decision(now, "double", "workers", 3, 1000, "too many"),
        ]

    with Pipeline([Stage(f.double, max_workers=4)], adapt=step, period=0.01) as p:
        outputs = p.results()
        p.submit(1)
        assert next(outputs) == 2
        until(lambda: len(p.statistics().decisions) >= 5)
        statistics = p.statistics()
        assert (statistics.stages[0].limit, statistics.stages[0].low) == (40, 30)
        assert statistics.output_limit == 9
        assert statistics.stages[0].workers == 4
        assert [d.reason for d in statistics.decisions] == ["because", "why not", "readers", "more", "too many"]
    assert asked[0] == ["double", "output"]


def test_a_controller_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def step(now: float, samples: Any) -> Any:
        raise KeyError("no idea")

    with Pipeline([f.double], adapt=step, period=0.005) as p:
        while "switched off" not in caplog.text:
            assert list(p.map(range(10))) == [2 * x for x in range(10)]


def test_the_controller_adapts_limits() -> None:
    """Two stages that hand over in turns: the queue between them grows beyond where it began."""
    with Pipeline([f.double, f.minus, f.square], period=0.02) as p:
        outputs = p.map(itertools.count())
        for _ in outputs:
            if any(d.what == "limit" for d in p._core.decisions):
                break
        outputs.close()
    decision = next(d for d in p.statistics().decisions if d.what == "limit")
    assert decision.new > decision.old
    assert decision.reason


def test_resize(queues: str) -> None:
    running, at_once, lock = 0, [], threading.Lock()
    go = threading.Semaphore(0)

    def count(x: int) -> int:
        nonlocal running
        with lock:
            running += 1
            at_once.append(running)
        assert go.acquire(timeout=WAIT)
        with lock:
            running -= 1
        return x

    with Pipeline([Stage(count, maxsize=1000)], adapt="none") as p:
        outputs = p.results()
        p.resize("count", workers=2)  # before the start
        p.submit_many(list(range(400)))
        until(lambda: running == 2)
        p.resize("count", workers=5)
        until(lambda: running == 5)
        p.resize("count", workers=1)
        go.release(5)
        until(lambda: p.statistics().stages[0].completed >= 5)
        go.release(1000)
        p.shutdown()
        assert list(outputs) == list(range(400))
        statistics = p.statistics()
        assert [(d.what, d.old, d.new, d.reason) for d in statistics.decisions] == [
            ("workers", 1, 2, "resize()"),
            ("workers", 2, 5, "resize()"),
            ("workers", 5, 1, "resize()"),
        ]
        stage = statistics.stages[0]
        assert (stage.workers, stage.min_workers, stage.max_workers) == (1, 1, 5)
        with pytest.raises(ValueError, match="expected one of count, got 'other'"):
            p.resize("other", workers=1)
        with pytest.raises(ValueError, match="workers"):
            p.resize("count", workers=0)
    assert max(at_once) == 5
    assert set(at_once[-100:]) == {1}


def test_times_of_workers_add_up() -> None:
    with Pipeline([Stage(f.uneven, workers=2), f.double]) as p:
        list(p.map(range(60)))
        statistics = p.statistics()
    for stage in statistics.stages:
        total = stage.busy + stage.blocked + stage.starved
        assert total == pytest.approx(stage.workers * statistics.elapsed, rel=0.25, abs=0.05)
    assert statistics.stages[0].busy >= 20 * 0.004


def test_progress() -> None:
    seen = []
    with Pipeline([f.uneven], on_progress=seen.append, period=0.01, adapt="none") as p:
        list(p.map(range(60)))
    assert len(seen) > 1
    assert seen[-1].state == "closed"
    assert seen[-1].delivered == 60
    submitted = [s.submitted for s in seen]
    assert submitted == sorted(submitted)


def test_a_progress_hook_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def hook(statistics: Any) -> None:
        raise KeyError("hook")

    with Pipeline([f.uneven], on_progress=hook, period=0.005) as p:
        assert len(list(p.map(range(30)))) == 30
        until(lambda: "observer failed" in caplog.text)
    assert caplog.text.count("observer failed") == 1


# ---- max_weight ------------------------------------------------------------------------------------------------------


def test_max_weight_serves_a_stage_by_no_more_than_its_workers() -> None:
    running, most, lock = [0, 0], [0, 0], threading.Lock()

    def tracked(i: int) -> Callable[[int], int]:
        def run(x: int) -> int:
            with lock:
                running[i] += 1
                most[i] = max(most[i], running[i])
            f.uneven(x)
            with lock:
                running[i] -= 1
            return x

        return run

    stages = [Stage(tracked(0), name="one", workers=1), Stage(tracked(1), name="two", workers=2)]
    with Pipeline(stages, scheduler="max_weight", pool=4) as p:
        assert list(p.map(range(100))) == list(range(100))
    assert most[0] == 1
    assert 1 <= most[1] <= 2


def test_max_weight_with_one_thread_and_short_queues_does_not_deadlock() -> None:
    stages = [
        Stage(f.repeat, maxsize=1),
        Stage(f.double, maxsize=1),
        Stage(f.repeat, name="again", maxsize=2),
        Stage(f.minus, maxsize=1),
    ]
    with Pipeline(stages, scheduler="max_weight", pool=1, adapt="none") as p:
        expected = [-2 * x for x in range(100) for _ in range(x % 3) for _ in range(2 * x % 3)]
        assert list(p.map(range(100))) == expected


# ---- properties ------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[list[int]], list[int]]]] = {
    "double": (f.double, lambda xs: [2 * x for x in xs]),
    "minus": (f.minus, lambda xs: [-x for x in xs]),
    "repeat": (f.repeat, lambda xs: [x for x in xs for _ in range(x % 3)]),
    "adouble": (f.adouble, lambda xs: [2 * x for x in xs]),
    "arepeat": (f.arepeat, lambda xs: [x for x in xs for _ in range(x % 3)]),
    "batch": (f.double_all, lambda xs: [2 * x for x in xs]),
    "skip": (f.fail_on_7, lambda xs: [x for x in xs if x != 7]),
}


@st.composite
def stage_lists(draw: st.DrawFn) -> list[tuple[str, dict[str, Any]]]:
    stages = []
    for i in range(draw(st.integers(1, 4))):
        name = draw(st.sampled_from(sorted(FUNCTIONS)))
        options: dict[str, Any] = {
            "name": f"{name} {i}",
            "workers": draw(st.integers(1, 3)),
            "ordered": draw(st.booleans()),
            "maxsize": draw(st.sampled_from([None, 1, 2, 5])),
            "on_error": "skip",
        }
        if name == "batch":
            options["batch"] = draw(st.integers(2, 5))
            options["maxsize"] = None
        stages.append((name, options))
    return stages


@pytest.mark.parametrize("adapt", ["none", "debloat"])
@settings(max_examples=60)
@given(
    stages=stage_lists(), items=st.lists(st.integers(0, 20), max_size=40), kind=st.sampled_from(["thread", "asyncio"])
)
def test_any_pipeline_is_the_composition_of_its_functions(
    adapt: Any, stages: list[tuple[str, dict[str, Any]]], items: list[int], kind: Any
) -> None:
    expected = items
    for name, _ in stages:
        expected = FUNCTIONS[name][1](expected)
    specs = [Stage(FUNCTIONS[name][0], **options) for name, options in stages]
    with Pipeline(specs, adapt=adapt, backend=kind) as p:
        got = list(p.map(items))
    if not all(options["ordered"] for _, options in stages):
        got, expected = sorted(got), sorted(expected)
    assert got == expected
    statistics = p.statistics()
    assert all(map(held, statistics.stages))
    assert statistics.delivered == len(expected)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Stage(3), TypeError, "fn: expected a callable, got int"),
        (lambda: Stage(abs, workers=0), ValueError, "workers: expected 1 <= workers"),
        (lambda: Stage(abs, workers=2, max_workers=1), ValueError, "max_workers: expected 2 <="),
        (lambda: Stage(abs, workers=2, min_workers=3), ValueError, "min_workers: expected 1 <= min_workers <= 2"),
        (lambda: Stage(abs, batch=0), ValueError, "batch"),
        (lambda: Stage(abs, batch=8, maxsize=4), ValueError, "maxsize: expected at least batch (8), got 4"),
        (lambda: Stage(abs, linger=0.1), ValueError, "linger: expected 0 with batch=1"),
        (lambda: Stage(abs, on_error="retry"), ValueError, "on_error: expected one of stop, skip"),
        (lambda: Stage(abs, on_error=3), TypeError, "on_error"),
        (lambda: Stage(abs, policy="drop"), ValueError, "policy"),
        (lambda: Stage(abs, retry_on=KeyboardInterrupt), TypeError, "retry_on: expected Exception classes"),
        (lambda: Stage(abs, sizer=3), TypeError, "sizer"),
        (lambda: Stage(abs, low_watermark=2), ValueError, "low_watermark: expected below maxsize"),
        (lambda: Stage(abs, backend="fork"), ValueError, "backend: expected one of thread, asyncio, process"),
        (lambda: Stage(f.adouble, backend="thread"), ValueError, 'a coroutine function runs as "asyncio"'),
        (lambda: Stage(abs, name=3), TypeError, "name"),
        (lambda: Pipeline([]), ValueError, "stages: expected at least one"),
        (lambda: Pipeline([abs, abs]), ValueError, "stage 'abs': the name is used twice"),
        (lambda: Pipeline([Stage(abs, name="output")]), ValueError, "the name is the pipeline's own"),
        (lambda: Pipeline([3]), TypeError, "fn: expected a callable"),
        (lambda: Pipeline([abs], backend="gpu"), ValueError, "backend"),
        (lambda: Pipeline([abs], scheduler="fair"), ValueError, "scheduler"),
        (lambda: Pipeline([abs], adapt="more"), ValueError, "adapt: expected one of debloat, none"),
        (lambda: Pipeline([abs], adapt=3), TypeError, "adapt"),
        (lambda: Pipeline([abs], target_delay=0), ValueError, "target_delay"),
        (lambda: Pipeline([abs], period=-1), ValueError, "period"),
        (lambda: Pipeline([abs], max_bytes=0), ValueError, "max_bytes"),
        (lambda: Pipeline([abs], pool=2), ValueError, "pool: expected None unless"),
        (lambda: Pipeline([abs], on_progress=3), TypeError, "on_progress"),
        (lambda: Pipeline([abs], start_method="clone"), ValueError, "start_method"),
        (
            lambda: Pipeline([f.adouble], scheduler="max_weight"),
            ValueError,
            "stage 'adouble': expected backend \"thread\" with scheduler=\"max_weight\", got 'asyncio'",
        ),
        (
            lambda: Pipeline([lambda x: x], backend="process"),
            TypeError,
            "stage '<lambda>': expected a function that can be pickled",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_bad_input_of_methods() -> None:
    with Pipeline([f.double]) as p:
        with pytest.raises(TypeError, match="iterable: expected an iterable, got int"):
            p.map(3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="items: expected a sequence"):
            p.submit_many(x for x in range(3))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot pickle Pipeline"):
            pickle.dumps(p)
        assert repr(p).endswith(": double, idle>")
