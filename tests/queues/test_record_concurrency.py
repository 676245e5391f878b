"""RecordQueue under threads, signals and forks; native producers; linearizability; a soak."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linearizability import BoundedQueue, explain
from test_linearizability import random_history

import edgefast as ef
from edgefast.queues import Empty, Full, ShutDown

ROOT = Path(__file__).resolve().parent.parent.parent
SOAK_SECONDS = float(os.environ.get("EDGEFAST_SOAK_SECONDS", "1.5"))

RECORD = np.dtype([("who", "i4"), ("number", "i4"), ("check", "i8", 6)])


def stamped(who: int, numbers: range) -> np.ndarray:
    records = np.empty(len(numbers), RECORD)
    records["who"], records["number"] = who, numbers
    records["check"] = (np.asarray(numbers) * 31 + who)[:, None]
    return records


@pytest.mark.parametrize(
    ("maxsize", "gate", "policy"),
    [
        (1, {}, "block"),
        (2, {}, "error"),
        (3, {"high_watermark": 2, "low_watermark": 0}, "block"),
        (1, {}, "drop_newest"),
        (2, {}, "drop_oldest"),
        (2, {}, "latest"),
    ],
)
def test_linearizable(record_class: Any, maxsize: int, gate: dict[str, int], policy: str) -> None:
    model = BoundedQueue(maxsize, *gate.values(), policy=policy)
    for seed in range(60):
        history = random_history(
            lambda: record_class("i8", maxsize, policy=policy, **gate), np.int64, int, seed, policy.startswith("drop_n")
        )
        assert explain(history.operations, model) is None


def soak(record_class: Any, seconds: float, seed: int) -> None:
    """Random operations, batches, time-outs, reservations, views, limits and gates from many threads, then shutdown:
    nothing lost, nothing twice, each producer in order for each consumer, the bound kept."""
    rng = random.Random(seed)
    maxsize = rng.choice([1, 2, 7, 64, 100])
    q = record_class(RECORD, maxsize)
    stop = time.monotonic() + seconds
    put_counts = [0] * rng.choice([1, 2, 4])
    got: list[list[tuple[int, int]]] = [[] for _ in range(rng.choice([1, 2, 4]))]
    problems: list[BaseException] = []

    def timeout(r: random.Random) -> float | None:
        return r.choice([None, 0.0, 0.0003, 0.002])

    def produce(who: int) -> None:
        r, i = random.Random(seed * 100 + who), 0
        while time.monotonic() < stop:
            n = r.randint(1, 5)
            try:
                if r.random() < 0.2:
                    with q.reserve(min(n, maxsize), timeout=timeout(r)) as slots:
                        slots[:] = stamped(who, range(i, i + len(slots)))
                        if r.random() < 0.3:
                            raise KeyError
                    i += len(slots)
                elif r.random() < 0.3:
                    q.put(stamped(who, range(i, i + 1))[0], timeout=timeout(r))
                    i += 1
                else:
                    i += q.put_many(stamped(who, range(i, i + n)), timeout=timeout(r))
            except (Full, KeyError):
                pass
            if r.random() < 0.02:
                q.set_watermarks(*r.choice([(None, None), (maxsize, 0), (maxsize, maxsize // 2)]))
            if r.random() < 0.01:
                q.wait_writable(0.0001)
        put_counts[who] = i

    def keep(mine: list[tuple[int, int]], records: np.ndarray) -> None:
        records = np.atleast_1d(records)
        assert len(records) <= maxsize
        assert (records["check"] == (records["number"] * 31 + records["who"])[:, None]).all()
        mine.extend(zip(records["who"].tolist(), records["number"].tolist(), strict=True))

    def consume(index: int) -> None:
        r, mine, out = random.Random(seed * 100 + 50 + index), got[index], np.empty(8, RECORD)
        while True:
            try:
                if r.random() < 0.2:
                    with q.view(r.randint(1, maxsize), timeout=timeout(r)) as records:
                        keep(mine, records.copy())
                elif r.random() < 0.3:
                    keep(mine, np.asarray(q.get(timeout=timeout(r))))
                elif r.random() < 0.5:
                    keep(mine, q.get_many(8, timeout=timeout(r), out=out))
                else:
                    keep(mine, q.get_many(8, timeout=timeout(r), min_items=r.randint(1, 4), linger=0.0002))
            except Empty:
                pass
            except ShutDown:
                return

    def guarded(work: Any, index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            problems.append(error)
            q.shutdown()

    producers = [threading.Thread(target=guarded, args=(produce, i)) for i in range(len(put_counts))]
    consumers = [threading.Thread(target=guarded, args=(consume, i)) for i in range(len(got))]
    for t in (*producers, *consumers):
        t.start()
    for t in producers:
        t.join()
    q.shutdown()
    for t in consumers:
        t.join()
    if problems:
        raise problems[0]
    everything = sorted(pair for mine in got for pair in mine)
    assert everything == [(who, i) for who, n in enumerate(put_counts) for i in range(n)]
    for mine in got:
        for who in range(len(put_counts)):
            numbers = [i for w, i in mine if w == who]
            assert numbers == sorted(numbers)
    statistics = q.statistics()
    assert statistics.put_count == statistics.get_count == len(everything)
    assert statistics.peak <= maxsize


def test_soak_records(record_class: Any) -> None:
    end, seed = time.monotonic() + SOAK_SECONDS, 0
    while time.monotonic() < end:
        soak(record_class, 0.2, seed)
        seed += 1


def test_ctrl_c_interrupts_a_blocked_call(record_class: Any) -> None:
    q = record_class("i8", 1)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for call in (q.get, lambda: q.get_many(3, min_items=2, linger=30), lambda: q.view(1).__enter__()):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                call()
            timer.join()
        q.put(1)
        for call in (lambda: q.put(2), lambda: q.put_many([2]), lambda: q.reserve(1).__enter__()):
            timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                call()
            timer.join()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert q.get() == 1
    assert q.empty()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_others_wait(record_class: Any, queue_source_of: Any) -> None:
    code = """
import os, threading, time
from edgefast.queues import RecordQueue
q = RecordQueue("i8", 2)
threading.Thread(target=q.get, daemon=True).start()
while q.statistics().tasks_waiting_receive == 0:
    time.sleep(0.001)
child = os.fork()
if child == 0:
    assert q.statistics().tasks_waiting_receive == 0
    q.put(1)
    os._exit(0 if q.get() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
q.put(5)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=queue_source_of(record_class), timeout=60)
    assert done.returncode == 0


def test_exit_with_waiting_threads(record_class: Any, queue_source_of: Any) -> None:
    code = """
import threading, time
from edgefast.queues import RecordQueue
q, full = RecordQueue("i8", 2), RecordQueue("i8", 1)
full.put(1)
for call in (q.get, lambda: full.put(2), lambda: q.view().__enter__()):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.05)
"""
    done = subprocess.run([sys.executable, "-c", code], env=queue_source_of(record_class), timeout=60)
    assert done.returncode == 0


@pytest.fixture
def queue_source_of() -> Any:
    """Environment in which a fresh interpreter's RecordQueue is the given implementation."""

    def environment(record_class: Any) -> dict[str, str]:
        from edgefast.queues import _record_pure

        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFAST_")}
        native = record_class is not _record_pure.RecordQueue
        return {**clean, "EDGEFAST_BACKEND": "native" if native else "numpy"}

    return environment


# ---- native producers ------------------------------------------------------------------------------------------------


def test_the_pure_queue_has_no_handle() -> None:
    from edgefast.queues import _record_pure

    with pytest.raises(NotImplementedError, match="expected the native queue"):
        _record_pure.RecordQueue("i8", 1).native_handle()


@pytest.fixture(scope="module")
def producer_module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """examples/native_producer.pyx, compiled against the installed headers and .pxd."""
    if "native" not in ef.available_backends():
        pytest.skip("backend native is not available")
    pytest.importorskip("Cython", reason="needs Cython")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    source = ROOT / "examples/native_producer.pyx"
    if compiler is None or not source.exists():
        pytest.skip("needs a C++ compiler and the examples")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("needs Python's headers")
    folder = tmp_path_factory.mktemp("native")
    generated = folder / "native_producer.cpp"
    subprocess.run([sys.executable, "-m", "cython", "--cplus", "-3", source, "-o", generated], check=True)
    built = folder / ("native_producer" + sysconfig.get_config_var("EXT_SUFFIX"))
    sanitize = os.environ.get("EDGEFAST_SANITIZE", "")
    options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread"] + [f"-fsanitize={sanitize}"] * bool(sanitize)
    includes = [f"-I{ef.get_include()}", f"-I{sysconfig.get_path('include')}"]
    subprocess.run([compiler, *options, *includes, str(generated), "-o", str(built)], check=True)
    spec = importlib.util.spec_from_file_location("native_producer", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE = np.dtype([("number", "i8"), ("value", "f8")])


@pytest.mark.parametrize("maxsize", [1, 64])
def test_native_threads_produce_while_python_consumes(producer_module: Any, maxsize: int) -> None:
    from edgefast.queues._native_record import RecordQueue

    q = RecordQueue(SAMPLE, maxsize)
    producer = producer_module.Producer(q, 5000)
    parts = []
    while True:
        try:
            parts.append(q.get_many(maxsize))
        except ShutDown:
            break
    producer.join()
    records = np.concatenate(parts)
    assert records["number"].tolist() == list(range(5000))
    assert (records["value"] == records["number"] * 0.5).all()


def test_native_producer_keeps_the_queue_alive_and_checks_it(producer_module: Any) -> None:
    from edgefast.queues._native_record import RecordQueue

    with pytest.raises(TypeError, match="expected records of 16 bytes, got 8"):
        producer_module.Producer(RecordQueue("i8", 1), 1)
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        producer_module.Producer(_Pretender(), 1)
    producer = producer_module.Producer(RecordQueue(SAMPLE, 2), 1000)  # nobody consumes, nobody else holds the queue
    del producer


class _Pretender:
    def native_handle(self) -> object:
        import datetime

        return datetime.datetime_CAPI  # a capsule of somebody else
