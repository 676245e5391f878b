"""Ctrl-C wherever CPython looks for signals: leaving the with block ends the pipeline, and without it goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pipeline_functions as f
import pytest

from edgefast.pipeline import (
    Pipeline,
    PipelineError,
    Stage,
    _order,
    _pool,
    _results,
    _runtime,
    _tasks,
    _threads,
    pipeline,
)

WAIT = 10.0
MODULES = (pipeline, _runtime, _results, _threads, _tasks, _pool, _order)

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no alarm ends a call that hangs")


@pytest.fixture(autouse=True)
def alarm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Whatever takes longer than WAIT seconds from the call on hangs."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    monkeypatch.setattr(_runtime, "LOOK_AGAIN", 0.05)  # an interrupted call may have told nobody
    before = signal.signal(signal.SIGALRM, late)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, WAIT) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["thread", "asyncio", "max_weight"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"scheduler": "max_weight", "pool": 2} if request.param == "max_weight" else {"backend": request.param}


def test_the_end_of_the_block_is_the_end(
    options: dict[str, Any], ctrl_c_at_every_call: Callable[..., Iterator[int]], alarm: Callable[[], None]
) -> None:
    p: Any = None

    def work() -> None:
        nonlocal p
        p = Pipeline([Stage(f.double, workers=2), f.minus], **options)
        with p:
            assert list(p.map([1, 2])) == [-2, -4]
            p.submit(1)
            p.join()

    alarm()
    for n in ctrl_c_at_every_call(work, *MODULES, step=5):
        if p is not None and p._core.state != "idle":  # the block was entered
            if p._core.state == "running":  # Ctrl-C came before the first line of __exit__
                p.shutdown(immediate=True)
            assert p._core.closed.wait(WAIT), n
            p._core.collect(WAIT)
        p = None
        alarm()
    assert n > 200


def test_it_goes_on(
    options: dict[str, Any], ctrl_c_at_every_call: Callable[..., Iterator[int]], alarm: Callable[[], None]
) -> None:
    p = Pipeline([Stage(f.double, workers=2), f.minus], **options)

    def work() -> None:
        assert list(p.map([1, 2])) == [-2, -4]
        results = p.map(range(100))
        next(results)
        results.close()
        p.submit(1)
        p.resize("double", workers=3)
        p.join()

    alarm()
    failed = 0
    for n in ctrl_c_at_every_call(work, *MODULES, step=5):
        try:
            with p:
                p.join()
                assert list(p.map([1, 2, 3])) == [-2, -4, -6], n
        except PipelineError as error:  # it was interrupted while it started
            if not isinstance(error.__cause__, KeyboardInterrupt):
                raise
            failed += 1
            p.shutdown()
            assert p._core.closed.wait(WAIT), n
        for s in p.statistics().stages:
            assert s.depth == 0, n
            assert s.arrived == s.served + s.cleared, n
            assert s.served == s.completed + s.failed + s.lost, n
        p = Pipeline([Stage(f.double, workers=2), f.minus], **options)
        alarm()
    assert n > 200
    assert 0 < failed < n / 5
