"""Queue under threads, signals, forks and interpreter exit."""

from __future__ import annotations

import collections
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
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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


# ---- against a model -----------------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Non-blocking operations against a deque with the gate's two rules."""

    queue_class: Any = None

    @initialize(maxsize=st.integers(0, 6), gate=st.none() | st.tuples(st.integers(1, 6), st.integers(0, 5)))
    def create(self, maxsize: int, gate: tuple[int, int] | None) -> None:
        if gate and ((maxsize and gate[0] > maxsize) or gate[1] >= gate[0]):
            gate = None
        self.maxsize, self.high, self.low = maxsize, *(gate or (0, 0))
        self.q = self.queue_class(
            maxsize, high_watermark=self.high or None, low_watermark=self.low if self.high else None
        )
        self.model: collections.deque[int] = collections.deque()
        self.closed = self.down = False
        self.unfinished = 0
        self.next = 0

    def room(self) -> bool:
        return not self.closed and (not self.maxsize or len(self.model) < self.maxsize)

    def model_put(self) -> None:
        self.model.append(self.next)
        self.next += 1
        self.unfinished += 1
        if self.high and len(self.model) >= self.high:
            self.closed = True

    def model_get(self) -> int:
        item = self.model.popleft()
        if self.closed and len(self.model) <= self.low:
            self.closed = False
        return item

    @rule()
    def put(self) -> None:
        if self.down or not self.room():
            with pytest.raises(ShutDown if self.down else Full):
                self.q.put_nowait(self.next)
        else:
            self.q.put_nowait(self.next)
            self.model_put()

    @rule(n=st.integers(0, 9))
    def put_many(self, n: int) -> None:
        items = list(range(self.next, self.next + n))
        if self.down and n:
            with pytest.raises(ShutDown):
                self.q.put_many(items, block=False)
            return
        accepted = self.q.put_many(items, block=False)
        expected = 0
        while expected < n and self.room():
            self.model_put()
            expected += 1
        assert accepted == expected

    @rule()
    def get(self) -> None:
        if self.model:
            assert self.q.get_nowait() == self.model_get()
        else:
            with pytest.raises(ShutDown if self.down else Empty):
                self.q.get_nowait()

    @rule(n=st.integers(1, 9))
    def get_many(self, n: int) -> None:
        if self.model:
            assert self.q.get_many(n, block=False) == [self.model_get() for _ in range(min(n, len(self.model)))]
        else:
            with pytest.raises(ShutDown if self.down else Empty):
                self.q.get_many(n, block=False)

    @rule()
    def drain(self) -> None:
        assert self.q.drain() == [self.model_get() for _ in range(len(self.model))]

    @rule()
    def clear(self) -> None:
        n = len(self.model)
        assert self.q.clear() == n
        for _ in range(n):
            self.model_get()
        self.unfinished -= min(n, self.unfinished)

    @rule()
    def task_done(self) -> None:
        if self.unfinished:
            self.q.task_done()
            self.unfinished -= 1
        else:
            with pytest.raises(ValueError, match="too many times"):
                self.q.task_done()

    @rule(size=st.integers(0, 8))
    def resize(self, size: int) -> None:
        if size and self.high > size:
            with pytest.raises(ValueError, match="high_watermark"):
                self.q.maxsize = size
        else:
            self.q.maxsize = self.maxsize = size

    @precondition(lambda self: self.next > 8)
    @rule(immediate=st.booleans())
    def shutdown(self, immediate: bool) -> None:
        self.q.shutdown(immediate=immediate)
        self.down = True
        if immediate:
            self.unfinished -= min(len(self.model), self.unfinished)
            while self.model:
                self.model_get()

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "q"):
            return
        assert self.q.qsize() == len(self.model)
        assert self.q.empty() == (not self.model)
        assert self.q.full() == (not self.room())
        assert self.q.writable == (not self.closed)
        assert self.q.unfinished_tasks == self.unfinished
        assert self.q.is_shutdown == self.down
        if self.model:
            assert self.q.peek() == self.model[0]


def test_against_a_model(queue_class: Any) -> None:
    machine = type("QueueModel", (Model,), {"queue_class": queue_class})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


# ---- CPython's own tests -------------------------------------------------------------------------------------------


def cpython_cases(queue_class: Any) -> unittest.TestSuite:
    """The interpreter's own cases for queue.Queue with our class in its place."""
    try:
        module = importlib.import_module("test.test_queue")
    except ImportError:
        pytest.skip("this interpreter ships without its test package")
    substitute = types.SimpleNamespace(Queue=queue_class, Full=Full, Empty=Empty, ShutDown=ShutDown)
    cases = type("CPythonQueueTest", (module.QueueTest, unittest.TestCase), {"queue": substitute})
    return unittest.TestLoader().loadTestsFromTestCase(cases)


def test_cpython_test_queue(queue_class: Any) -> None:
    result = unittest.TestResult()
    suite = cpython_cases(queue_class)
    count = suite.countTestCases()
    suite.run(result)
    problems = [f"{case}: {text}" for case, text in result.failures + result.errors]
    assert not problems, "\n".join(problems)
    assert result.testsRun == count > 5
