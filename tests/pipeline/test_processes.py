"""Workers that are processes: what travels, what happens when one dies."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pipeline_functions as f
import pytest

from edgefast.pipeline import Pipeline, PipelineError, Stage, WorkerDied, _channel

WAIT = 30.0


@pytest.fixture(params=["shared memory", "pipe"])
def channel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How objects travel."""
    if request.param == "pipe":

        class Absent:
            @staticmethod
            def create(*args: Any, **kwargs: Any) -> Any:
                raise ImportError("not here")

        monkeypatch.setattr(_channel, "SharedQueue", Absent)
    else:
        try:
            _channel.SharedQueue.create(1, itemsize=1).close()
        except ImportError as error:
            pytest.skip(str(error))
    return request.param


def test_functions_run_elsewhere(channel: str) -> None:
    with Pipeline([Stage(f.pid_of, workers=2, ordered=False)], backend="process") as p:
        pids = set(p.map(range(200)))
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


@pytest.mark.parametrize("shape", [(0,), (3,), (100, 100), (1 << 18,)])
def test_arrays_travel(channel: str, shape: tuple[int, ...]) -> None:
    a = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    with Pipeline([Stage(f.double)], backend="process") as p:
        (b,) = p.map([a])
        np.testing.assert_array_equal(b, 2 * a)
        b[...] = 0  # what arrives is the receiver's own
        (c,) = p.map([np.asfortranarray(a)[::2]])
        np.testing.assert_array_equal(c, 2 * a[::2])
        many = [a, a + 1]
        assert sum(1 for _ in p.map(many * 5)) == 10


def test_generators_and_batches_in_processes(channel: str) -> None:
    stages = [Stage(f.repeat), Stage(f.double_all, batch=4), Stage(f.sums, batch=5)]
    with Pipeline(stages, backend="process") as p:
        assert sum(p.map(range(50))) == sum(2 * x * (x % 3) for x in range(50))


def test_an_error_brings_its_traceback() -> None:
    with pytest.raises(PipelineError) as caught, Pipeline([f.fail_on_7], backend="process") as p:
        list(p.map(range(10)))
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError)
    assert "in fail_on_7" in str(cause.__cause__)


def test_outputs_that_cannot_be_pickled_fail_alone() -> None:
    with Pipeline([Stage(f.function_of, on_error="skip")], backend="process") as p:
        assert list(p.map(range(6))) == [0, 1, 3, 4, 5]
        assert p.statistics().stages[0].failed == 1


def test_inputs_that_cannot_be_pickled_fail_alone() -> None:
    with Pipeline([Stage(f.double, on_error="skip")], backend="process") as p:
        assert list(p.map([1, threading.Lock(), 2])) == [2, 4]
        assert p.statistics().stages[0].failed == 1


# ---- death -----------------------------------------------------------------------------------------------------------


def test_the_item_of_a_killed_worker_goes_to_the_next(channel: str, tmp_path: Path) -> None:
    path = str(tmp_path / "killed")
    with Pipeline([Stage(f.kill_once, workers=2)], backend="process") as p:
        assert list(p.map((x, path) for x in range(20))) == list(range(20))
    stage = p.statistics().stages[0]
    assert stage.restarts == 1
    assert stage.redelivered >= 1
    assert (stage.completed, stage.lost, stage.failed) == (20, 0, 0)


def test_an_item_that_kills_every_worker_fails(channel: str) -> None:
    with Pipeline([Stage(f.exit_on_5, on_error="skip")], backend="process") as p:
        assert list(p.map(range(10))) == [x for x in range(10) if x != 5]
    stage = p.statistics().stages[0]
    assert stage.restarts >= 2
    assert (stage.completed, stage.failed, stage.lost) == (9, 1, 0)


def test_an_item_that_kills_every_worker_stops_the_pipeline_by_default() -> None:
    with Pipeline([f.exit_on_5], backend="process") as p:
        outputs = p.map(range(10))
        assert [next(outputs) for _ in range(5)] == list(range(5))
        with pytest.raises(PipelineError, match="the process ended with status 3") as caught:
            next(outputs)
    assert isinstance(caught.value.__cause__, WorkerDied)
    assert caught.value.item == 5


def test_items_of_dead_workers_may_be_dropped(channel: str) -> None:
    with Pipeline([Stage(f.exit_on_5, on_worker_death="drop", workers=2)], backend="process") as p:
        assert list(p.map(range(10))) == [x for x in range(10) if x != 5]
    stage = p.statistics().stages[0]
    assert (stage.restarts, stage.redelivered) == (1, 0)
    assert (stage.completed, stage.failed, stage.lost) == (9, 0, 1)


def test_a_generator_that_died_after_an_output_is_not_repeated() -> None:
    with Pipeline([Stage(f.spell_then_exit, on_error="skip")], backend="process") as p:
        got = list(p.map([1, 2, 3]))
    assert got[:2] == [1, 2]
    assert got[-1] == 3
    assert got.count(2) == 1
    assert p.statistics().stages[0].failed == 1


def test_workers_killed_from_outside_at_random(channel: str) -> None:
    rng = np.random.default_rng(0)
    with Pipeline([Stage(f.uneven, workers=2, retries=20), f.double], backend="process") as p:
        outputs = p.map(range(300))
        got = [next(outputs)]
        for _ in range(4):
            worker = list(p._core.stages[0].workers)[int(rng.integers(2))]
            pid = worker.pid  # type: ignore[attr-defined]
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            got += [next(outputs) for _ in range(20)]
        got += outputs
    assert got == [2 * x for x in range(300)]
    stage = p.statistics().stages[0]
    assert stage.restarts >= 1
    assert stage.completed == 300


def test_immediate_shutdown_does_not_wait_for_processes(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    p = Pipeline([f.sleep_for_ever], backend="process")
    p.submit(str(path))
    give_up = time.monotonic() + WAIT
    while not (path.exists() and path.read_text()) and time.monotonic() < give_up:
        time.sleep(0.005)
    p.shutdown(immediate=True)
    assert p.join(WAIT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)
    assert p.statistics().stages[0].lost == 1


def test_shared_memory_is_not_left_over(channel: str) -> None:
    if channel == "pipe":
        pytest.skip("there is none")
    with Pipeline([f.double], backend="process") as p:
        outputs = p.map(itertools.count())
        assert next(outputs) == 0
        (worker,) = p._core.stages[0].workers
        ends = worker._channel  # type: ignore[attr-defined]
        paths = [ends._inbox._path, ends._outbox._path]
        # Nameless by now: nothing stays even if all of us are killed.
        assert not any(map(os.path.exists, paths))


# ---- starting --------------------------------------------------------------------------------------------------------


def test_a_function_only_found_here_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a function that can be pickled.*start_method=\"fork\""):
        Pipeline([Stage(lambda x: x, backend="process")])


SCRIPT = """
import sys
from edgefast.pipeline import Pipeline, PipelineError, Stage

def main():
    with Pipeline([Stage(lambda x: x + offset, name="add", workers=2)], backend="process", start_method="fork") as p:
        print(list(p.map(range(5))))

offset = 100
main()
"""


def run(script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT, check=check)


def test_forked_processes_take_any_function() -> None:
    done = run(SCRIPT)
    assert done.stdout.strip() == "[100, 101, 102, 103, 104]"


def test_a_process_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vanishing.py").write_text(
        "import os\nif os.environ.get('VANISH') and __name__ != '__main__':\n    os._exit(9)\ndef f(x): return x\n"
    )
    done = run(
        f"import os, sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import vanishing; os.environ['VANISH'] = '1'\n"
        "from edgefast.pipeline import Pipeline, PipelineError\n"
        "try:\n"
        "    with Pipeline([vanishing.f], backend='process', start_method='spawn') as p: list(p.map([1]))\n"
        "except PipelineError as error: print(error)\n"
    )
    assert "the process ended with status 9 before it was ready" in done.stdout


def test_processes_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import pipeline_functions as f, time\n"
        "from edgefast.pipeline import Pipeline\n"
        "p = Pipeline([f.pid_of], backend='process')\n"
        "outputs = p.results()\n"
        f"p.submit(1); open({str(path)!r}, 'w').write(str(next(outputs)))\n"
        "print('ready', flush=True); time.sleep(1000)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == "ready"
    child.kill()
    child.wait()
    child.stdout.close()
    worker = int(path.read_text())
    give_up = time.monotonic() + WAIT
    while time.monotonic() < give_up:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")
