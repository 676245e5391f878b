"""Queue under threads, signals, forks and interpreter exit."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
import types
import unittest
from typing import Any

import pytest

from edgefast.queues import Empty, Full, ShutDown


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 4), (1, 4), (4, 1)])
@pytest.mark.parametrize("gate", [None, 12])
def test_nothing_lost_nothing_duplicated(queue_class: Any, producers: int, consumers: int, gate: int | None) -> None:
    q = queue_class(16, high_watermark=gate)
    each = 3000
    got: list[list[tuple[int, int]]] = [[] for _ in range(consumers)]
    sizes: list[int] = []

    def produce(who: int) -> None:
        i = 0
        while i < each:
            if i % 7 == 0:
                n = q.put_many([(who, j) for j in range(i, min(each, i + 5))], timeout=0.01)
                i += n
            elif i % 5 == 0:
                try:
                    q.put_nowait((who, i))
                    i += 1
                except Full:
                    time.sleep(0)
            else:
                q.put((who, i))
                i += 1

    def consume(mine: list[tuple[int, int]]) -> None:
        while True:
            try:
                if len(mine) % 3:
                    mine.append(q.get(timeout=5))
                else:
                    mine.extend(q.get_many(4))
                sizes.append(q.qsize())
            except ShutDown:
                return

    makers = [threading.Thread(target=produce, args=(p,)) for p in range(producers)]
    takers = [threading.Thread(target=consume, args=(mine,)) for mine in got]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for t in makers + takers:
            t.start()
        for t in makers:
            t.join(60)
        q.shutdown()
        for t in takers:
            t.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(t.is_alive() for t in makers + takers)
    assert sorted(x for mine in got for x in mine) == [(p, i) for p in range(producers) for i in range(each)]
    for mine in got:
        for p in range(producers):
            order = [i for who, i in mine if who == p]
            assert order == sorted(order)
    assert max(sizes) <= (gate or 16)
    assert q.statistics().peak <= (gate or 16)


def test_waiters_are_served_in_turn(queue_class: Any) -> None:
    q = queue_class()
    order: list[int] = []
    threads = []
    for i in range(4):
        threads.append(threading.Thread(target=lambda i=i: order.append((i, q.get())[0])))
        threads[-1].start()
        deadline = time.monotonic() + 20
        while q.statistics().tasks_waiting_receive <= i:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    for i in range(4):
        q.put(i)
        threads[i].join(20)
    assert order == [0, 1, 2, 3]


def test_waiting_costs_no_cpu(queue_class: Any) -> None:
    q, full = queue_class(), queue_class(1)
    full.put(0)
    calls = [q.get, q.get, lambda: q.get(timeout=60), lambda: q.get_many(3), lambda: full.put(1), full.join]
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for t in threads:
        t.start()
    while q.statistics().tasks_waiting_receive < 4 or not full.statistics().tasks_waiting_send:
        time.sleep(0.001)
    time.sleep(0.01)  # the last moments of falling asleep
    before = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - before
    q.put_many(range(6))
    full.get()
    full.get()
    full.task_done()
    full.task_done()
    for t in threads:
        t.join(20)
        assert not t.is_alive()
    assert used < 0.1


def test_bursts_and_single_items_by_turns(queue_class: Any) -> None:
    """After a burst a waiting getter looks for itself for a while: one that comes alone must reach it too."""
    q, back = queue_class(1024), queue_class()
    got: list[int] = []

    def consume() -> None:
        try:
            while True:
                got.append(q.get())
                if got[-1] < 0:
                    back.put(got[-1])
        except ShutDown:
            pass

    thread = threading.Thread(target=consume)
    thread.start()
    sent: list[int] = []
    for round_ in range(20):
        for i in range(5000):
            q.put(i)
            sent.append(i)
        for i in range(5):
            q.put(-1 - i)
            sent.append(-1 - i)
            assert back.get(timeout=20) == -1 - i  # nobody puts more until it came
        time.sleep(0.003 if round_ % 2 else 0)
    q.shutdown()
    thread.join(20)
    assert got == sent


SCRIPTS = {
    "interrupt": """
import os, signal, sys, threading, time
from edgefast.queues import Queue
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
q = Queue(1)
if sys.argv[1] == "put": q.put(0)
calls = {"get": q.get, "put": lambda: q.put(1), "get_timeout": lambda: q.get(timeout=60),
         "join": lambda: (q.put(1), q.join()), "get_many": lambda: q.get_many(3),
         "put_many": lambda: q.put_many([1, 2, 3])}
def kick():
    time.sleep(0.2)
    print(time.monotonic(), flush=True)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=kick, daemon=True).start()
try:
    calls[sys.argv[1]]()
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
    q.drain(); q.put_nowait("works"); print(q.get_nowait())
""",
    "fork": """
import os, threading, time
from edgefast.queues import Queue
q = Queue(2)
threads = [threading.Thread(target=q.get, daemon=True) for _ in range(3)]
for t in threads: t.start()
while q.statistics().tasks_waiting_receive < 3: time.sleep(0.001)
pid = os.fork()
if pid == 0:
    assert q.statistics().tasks_waiting_receive == 0
    done = []
    t = threading.Thread(target=lambda: done.append(q.get()))
    t.start()
    while q.statistics().tasks_waiting_receive < 1: time.sleep(0.001)
    q.put("child"); t.join(10)
    os._exit(0 if done == ["child"] else 1)
_, status = os.waitpid(pid, 0)
q.put_many([1, 2]); q.put(3)
for t in threads: t.join(10)
print(os.waitstatus_to_exitcode(status), any(t.is_alive() for t in threads))
""",
    "exit": """
import threading, time
from edgefast.queues import Queue
q, full = Queue(), Queue(1)
full.put(1)
for f in (q.get, q.join, lambda: full.put(2), lambda: q.get(timeout=100), lambda: full.put_many([1, 2])):
    threading.Thread(target=f, daemon=True).start()
time.sleep(0.1)
q.put(object()); time.sleep(0.05)
print("bye", flush=True)
""",
}


def run(script: str, env: dict[str, str], *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPTS[script], *args],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("call", ["get", "put", "get_timeout", "join", "get_many", "put_many"])
def test_ctrl_c_ends_a_blocked_call(queue_source: dict[str, str], call: str) -> None:
    sent, caught, word = run("interrupt", queue_source, call).split()
    assert float(caught) - float(sent) < 2  # 0.1 s on an idle machine
    assert word == "works"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_with_waiting_threads(queue_class: Any, queue_source: dict[str, str]) -> None:
    assert run("fork", queue_source).split() == ["0", "False"]


def test_exit_with_waiting_threads(queue_source: dict[str, str]) -> None:
    assert run("exit", queue_source).split() == ["bye"]


# ---- CPython's own tests -------------------------------------------------------------------------------------------


def cpython_cases(queue_class: Any) -> unittest.TestSuite:
    """The interpreter's own cases for queue.Queue with our class in its place."""
    try:
        module = importlib.import_module("test.test_queue")
    except ImportError:
        pytest.skip("this interpreter ships without its test package")
    substitute = types.SimpleNamespace(Queue=queue_class, Full=Full, Empty=Empty, ShutDown=ShutDown)
    loader = unittest.TestLoader()
    suite = unittest.TestSuite()
    for base in (module.QueueTest, module.FailingQueueTest):
        cases = type(f"CPython{base.__name__}", (base, unittest.TestCase), {"queue": substitute})
        suite.addTests(loader.loadTestsFromTestCase(cases))
    return suite


def test_cpython_test_queue(queue_class: Any) -> None:
    """With FailingQueueTest, which overrides the storage, and from CPython 3.13 on with the cases of shutdown()."""
    result = unittest.TestResult()
    suite = cpython_cases(queue_class)
    count = suite.countTestCases()
    suite.run(result)
    problems = [f"{case}: {text}" for case, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
    assert result.testsRun == count > (20 if sys.version_info >= (3, 13) else 6)
