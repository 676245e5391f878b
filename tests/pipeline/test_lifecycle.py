"""Pipelines that are forgotten, interrupted or left when the interpreter ends."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pipeline_functions as f
import pytest

from edgefast.pipeline import Pipeline, Stage
from edgefast.queues import ShutDown

WAIT = 30.0


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", script], capture_output=True, text=True, timeout=WAIT
    )


def threads_of(name: str) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(name)]


@pytest.mark.parametrize("kind", ["thread", "asyncio", "max_weight"])
def test_a_forgotten_pipeline_is_stopped(kind: str) -> None:
    options = {"scheduler": "max_weight"} if kind == "max_weight" else {"backend": kind}

    def use() -> weakref.ref[Pipeline]:
        p = Pipeline([f.double, f.minus], name="forgotten", **options)  # type: ignore[arg-type]
        p.submit(1)
        assert threads_of("forgotten")
        return weakref.ref(p)

    with pytest.warns(ResourceWarning, match="pipeline 'forgotten' was not shut down"):
        gone = use()
    assert gone() is None
    give_up = time.monotonic() + WAIT
    while threads_of("forgotten") and time.monotonic() < give_up:
        time.sleep(0.005)
    assert not threads_of("forgotten")


def test_a_pipeline_lives_as_long_as_its_outputs_are_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        assert list(itertools.islice(Pipeline([f.double]).map(itertools.count()), 1000)) == [2 * x for x in range(1000)]
        gc.collect()


def test_pipelines_that_were_shut_down_or_never_started_say_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = Pipeline([f.double])
        p.submit(1)
        p.shutdown()
        assert p.join(WAIT)
        del p
        Pipeline([f.double])
        gc.collect()


def test_no_references_are_left_behind() -> None:
    class Item:
        pass

    with Pipeline([Stage(lambda x: x, name="same", workers=2)]) as p:
        items = [Item() for _ in range(100)]
        alive = [weakref.ref(x) for x in items]
        del items
        assert sum(1 for _ in p.map([x() for x in alive if x() is not None])) == 0
        items = [Item() for _ in range(100)]
        alive = [weakref.ref(x) for x in items]
        for _ in p.map(items):
            pass
        del items, _
        give_up = time.monotonic() + WAIT
        while any(x() is not None for x in alive[:-20]) and time.monotonic() < give_up:
            gc.collect()
        # A worker holds the last ones it worked on until the next comes.
        assert sum(x() is not None for x in alive) <= 20


def test_descriptors_are_closed() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    with Pipeline([Stage(f.double, backend="process"), f.adouble]) as p:  # starts what stays: the fork server
        list(p.map(range(3)))
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Pipeline([Stage(f.double, backend="process"), f.adouble]) as p:
            list(p.map(range(3)))
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    "left",
    [
        "p.submit(1)",
        "outputs = p.map(itertools.count()); next(outputs)",
        "outputs = p.results(); p.submit(1)",
        "p.submit(1); p.shutdown()",
    ],
)
def test_the_interpreter_exits(left: str) -> None:
    done = run(
        f"import itertools\nfrom edgefast.pipeline import Pipeline, Stage\n"
        f"p = Pipeline([Stage(abs, workers=3), Stage(lambda x: x, name='same')])\n{left}\nprint('end')"
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "end", "")


def test_the_interpreter_exits_with_processes_and_tasks() -> None:
    done = run(
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
        "import itertools, pipeline_functions as f\nfrom edgefast.pipeline import Pipeline, Stage\n"
        "p = Pipeline([Stage(f.double, backend='process'), f.adouble])\n"
        "outputs = p.map(itertools.count()); next(outputs); print('end')\n"
        # What multiprocessing finds at its exit it terminates and waits for; a worker would have replaced it.
        "import multiprocessing as mp, multiprocessing.util\n"
        "mp.util.Finalize(None, lambda: print(len(mp.active_children())), exitpriority=10)"
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["end", "0"], "")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no pthread_kill")
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_ctrl_c_ends_a_map(kind: str) -> None:
    script = (
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r})\n"
        "import itertools, signal, threading, pipeline_functions as f\nfrom edgefast.pipeline import Pipeline, Stage\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored\n"
        "try:\n"
        f"    with Pipeline([Stage(f.uneven, workers=2)], backend={kind!r}) as p:\n"
        "        for x in p.map(itertools.count()):\n"
        "            if x == 5: print('ready', flush=True)\n"
        "except KeyboardInterrupt: print('interrupted', p.statistics().state, threading.active_count())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "ready"
            os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to the workers as well
            out, err = child.communicate(timeout=WAIT)
        finally:
            child.kill()
    assert out.strip() == "interrupted closed 1"
    assert "Traceback" not in err
    assert child.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_has_no_pipeline() -> None:
    done = run(
        "import os\nfrom edgefast.pipeline import Pipeline\nfrom edgefast.queues import ShutDown\n"
        "with Pipeline([abs]) as p:\n"
        "    list(p.map([1]))\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        try: p.submit(1)\n"
        "        except ShutDown: os._exit(7)\n"
        "        os._exit(1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), list(p.map([-2])))\n"
    )
    assert done.stdout.strip() == "7 [2]"


def test_shutdown_from_many_threads_at_once() -> None:
    for _ in range(20):
        p = Pipeline([Stage(f.double, workers=2), f.minus])
        outputs = p.results()
        stop = threading.Event()

        def submit(p: Pipeline = p, stop: threading.Event = stop) -> None:
            try:
                while not stop.is_set():
                    p.submit(1)
            except ShutDown:
                pass

        threads = [threading.Thread(target=submit) for _ in range(2)]
        threads += [threading.Thread(target=p.shutdown, args=(i == 0,)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in outputs:
                pass
        except ShutDown:
            pass
        stop.set()
        for thread in threads:
            thread.join(WAIT)
        assert p.join(WAIT)
        assert p.statistics().state == "closed"
