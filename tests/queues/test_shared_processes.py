"""SharedQueue between processes: start methods, unrelated processes, kills and pauses with exact accounting."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefast.queues
from edgefast.queues import Empty, ShutDown

if edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux":
    pytest.skip("SharedQueue needs the native backend and Linux", allow_module_level=True)

import shared_workers

Make = Callable[..., Any]
SOAK_SECONDS = float(os.environ.get("EDGEFAST_SOAK_SECONDS", "5"))
WORKERS = Path(shared_workers.__file__)

# The pytest process has threads of other tests (hypothesis, timeouts): CPython 3.12 warns when it forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@contextlib.contextmanager
def process(method: str, target: Any, *args: Any) -> Iterator[Any]:
    p = multiprocessing.get_context(method).Process(target=target, args=args, daemon=True)
    p.start()
    try:
        yield p
    finally:
        p.join(0 if sys.exc_info()[0] else 60)
        if p.exitcode is None:
            p.kill()
            p.join()


@contextlib.contextmanager
def program(*args: object) -> Iterator[subprocess.Popen[bytes]]:
    """An unrelated process that runs a function of shared_workers."""
    p = subprocess.Popen([sys.executable, str(WORKERS), *map(str, args)])
    try:
        yield p
    finally:
        if p.poll() is None:
            p.send_signal(signal.SIGCONT)
            p.kill()
        p.wait()


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_start_methods(shared: Make, method: str) -> None:
    there, back = shared(8, itemsize=200, serializer="pickle"), shared(8, itemsize=200, serializer="pickle")
    with process(method, shared_workers.echo, there, back):
        items = [{"i": i, "a": [i] * 3} for i in range(20)]
        for item in items:
            there.put(item, timeout=60)
            assert back.get(timeout=60) == item
        there.shutdown()
        with pytest.raises(ShutDown):
            back.get(timeout=60)


def test_unrelated_processes_by_name(shared: Make) -> None:
    q = shared(1000, dtype=shared_workers.RECORD, name=f"unrelated-{os.getpid()}")
    with program("produce", q.name, 7, 0):
        seen = 0
        while seen < 2000:
            batch = q.get_many(100, timeout=60)
            assert batch.tobytes() == shared_workers.stamped(7, range(seen, seen + len(batch))).tobytes()
            seen += len(batch)


def test_a_queue_travels_through_a_queue(shared: Make) -> None:
    carrier, answers = shared(2, itemsize=1000, serializer="pickle"), shared(2, itemsize=100)
    with process("spawn", shared_workers.count_until_shutdown, carrier, answers):
        for _ in range(3):
            carrier.put(answers, timeout=60)
        carrier.shutdown()
        assert answers.get(timeout=60) == b"3"


@pytest.mark.parametrize("what", ["get", "get_many", "view", "put", "put_many", "reserve", "wait_writable"])
def test_shutdown_wakes_the_sleepers_of_other_processes(shared: Make, what: str) -> None:
    q, answers = shared(2, itemsize=8, high_watermark=2), shared(8, itemsize=50)
    if what in ("put", "put_many", "reserve", "wait_writable"):
        q.put_many([b"a", b"b"])
    with (
        process("fork", shared_workers.wait_in, q, what, answers),
        process("fork", shared_workers.wait_in, q, what, answers),
    ):
        assert [answers.get(timeout=60) for _ in range(2)] == [b"ready"] * 2
        time.sleep(0.05)
        q.shutdown()
        assert [answers.get(timeout=60) for _ in range(2)] == [b"ShutDown"] * 2


def test_fork_with_threads_that_wait(shared: Make) -> None:
    code = """
import os, threading, time
from edgefast.queues import Empty, SharedQueue
with SharedQueue.create(2, itemsize=8) as q, SharedQueue.create(2, itemsize=8) as empty:
    threading.Thread(target=lambda: [None for _ in empty], daemon=True).start()
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        ok = q.get(timeout=60) == b"x" and {p.pid for p in q.participants()} == {os.getpid(), os.getppid()}
        q.put(b"y")
        os._exit(0 if ok else 1)
    q.put(b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert q.get(timeout=60) == b"y"
    empty.shutdown()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0


def test_a_forked_child_takes_part_when_it_first_uses_a_queue() -> None:
    code = """
import os, sys
from edgefast.queues import SharedQueue
with SharedQueue.create(4, itemsize=8, max_participants=3) as q, SharedQueue.create(1, itemsize=8) as other:
    for i in range(3):
        there, back = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:  # a grandchild, whose parent never used the queue
                os.write(back, b"%d" % sum(p.alive for p in other.participants()))
                q.put(b"%d" % i)
                assert q.get(timeout=60)
                q.close()
                assert q.closed
                os._exit(0)
            os._exit(0 if os.wait()[1] == 0 and not q.closed else 1)
        assert os.read(there, 1) == b"2"
        assert os.waitpid(child, 0)[1] == 0
    q.recover()
    other.recover()
    assert [p.pid for p in q.participants()] == [p.pid for p in other.participants()] == [os.getpid()]
    assert q.empty()
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert done.returncode == 0


def test_nothing_is_left_in_shared_memory_and_no_tracker_complains() -> None:
    code = """
import multiprocessing, threading
from edgefast.queues import SharedQueue
q = SharedQueue.create(2, itemsize=8)
print(q.name)
p = multiprocessing.get_context("spawn").Process(target=q.put, args=(b"x",))
p.start()
assert q.get(timeout=60) == b"x"
p.join()
threading.Thread(target=q.get, daemon=True).start()
"""
    code = f"if __name__ == '__main__':\n{''.join(f'    {line}' + chr(10) for line in code.strip().splitlines())}"
    script = Path(os.environ.get("PYTEST_TMPDIR", "/tmp")) / f"shared-exit-{os.getpid()}.py"
    script.write_text(code)
    try:
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    finally:
        script.unlink()
    assert (done.returncode, done.stderr) == (0, "")
    assert not os.path.exists(f"/dev/shm/edgefast-{os.geteuid()}-{done.stdout.strip()}")


# ---- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["redeliver", "drop"])
def test_a_consumer_killed_in_a_view(shared: Make, policy: str) -> None:
    q = shared(2, itemsize=8, on_consumer_death=policy)
    answers = shared(2, itemsize=50)
    q.put(b"work")
    with process("fork", shared_workers.hold, q, "view", answers) as consumer:
        assert answers.get(timeout=60) == b"work"
        with pytest.raises(Empty):
            q.get(timeout=0.3)  # a living owner is never robbed, however slow
        assert q.recover().dead == 0
        consumer.kill()
        if policy == "redeliver":
            assert q.get(timeout=60) == b"work"
            s = q.statistics()
            assert (s.lost, s.redelivered) == (0, 1)
        else:
            consumer.join()
            q.recover()
            assert q.empty()
            s = q.statistics()
            assert (s.lost, s.redelivered, s.dropped_dead) == (0, 0, 1)
    assert s.participants == 1
    assert q.put_many([b"a", b"b"], timeout=60) == 2


def test_a_producer_killed_in_a_reservation(shared: Make) -> None:
    q, answers = shared(2, itemsize=8), shared(2, itemsize=50)
    with process("fork", shared_workers.hold, q, "reserve", answers) as producer:
        assert answers.get(timeout=60) == b"open"
        assert q.put_many([b"a", b"b"], timeout=60) == 2  # nobody waits for the open one
        assert q.get_many(2) == [b"a", b"b"]
        producer.kill()
        producer.join()
        report = q.recover()
        assert (report.dead, report.redelivered) == (1, 0)
        assert report.lost == q.statistics().lost >= 1
    assert q.put_many([b"a", b"b"], timeout=60) == 2
    assert q.get_many(2) == [b"a", b"b"]


def test_a_forked_child_does_not_keep_its_parent_alive(shared: Make) -> None:
    answers = shared(2, itemsize=50)
    with process("fork", shared_workers.create_and_fork, answers) as parent:
        name = answers.get(timeout=60).decode()
        with edgefast.queues.SharedQueue.attach(name) as q:
            until(lambda: len(q.participants()) == 3)  # the child polls is_shutdown
            parent.kill()
            parent.join()
            assert q.get(timeout=60) == b"held"
            assert all(p.alive for p in q.participants())
            q.shutdown()
            until(lambda: len(q.participants()) == 1 or q.recover().dead)
            q.unlink()


@pytest.mark.parametrize("what", ["view", "reserve"])
def test_a_stopped_process_blocks_nobody(shared: Make, what: str) -> None:
    q, answers = shared(2, itemsize=8), shared(2, itemsize=50)
    if what == "view":
        q.put(b"held")
    with process("fork", shared_workers.hold, q, what, answers) as holder:
        answers.get(timeout=60)
        os.kill(holder.pid, signal.SIGSTOP)
        for i in range(200):
            q.put(b"%d" % i, timeout=60)
            assert q.get(timeout=60) == b"%d" % i
        assert q.recover().dead == 0
        holder.kill()
        holder.join()
        q.recover()
        assert q.qsize() == (what == "view")


@pytest.mark.parametrize("what", ["get", "put"])
def test_a_sleeper_that_is_killed_takes_nothing_along(shared: Make, what: str) -> None:
    q, answers = shared(1, itemsize=8), shared(8, itemsize=50)
    if what == "put":
        q.put(b"there")
    with process("fork", shared_workers.wait_in, q, what, answers) as sleeper:
        answers.get(timeout=60)
        time.sleep(0.05)
        sleeper.kill()
        sleeper.join()
    if what == "put":
        assert q.get(timeout=60) == b"there"
    for _ in range(3):
        q.put(b"x", timeout=60)
        assert q.get(timeout=60) == b"x"
    q.recover()
    assert [p.pid for p in q.participants()] == [os.getpid()]


def soak(shared: Make, folder: Path, seconds: float, seed: int) -> int:
    """Producers and consumers that are killed and paused at random; the number of kills.

    Every record got is in exactly one consumer's log unless that consumer was killed between writing the log and
    leaving the view, then the record is redelivered and is there twice; never is one missing, torn or out of nowhere.
    """
    rng = random.Random(seed)
    q = shared(rng.choice([1, 2, 7, 64]), dtype=shared_workers.RECORD, max_participants=16)
    kills = number = 0
    running: list[tuple[str, int, Any]] = []
    logs: list[Path] = []
    context = contextlib.ExitStack()
    end = time.monotonic() + seconds

    def start(kind: str) -> None:
        nonlocal number
        number += 1
        if kind == "produce":
            p = multiprocessing.get_context("fork").Process(
                target=shared_workers.produce, args=(q.name, number, number)
            )
        else:
            logs.append(folder / f"{seed}-{number}.log")
            p = multiprocessing.get_context("fork").Process(
                target=shared_workers.consume, args=(q.name, number, str(logs[-1]))
            )
        p.start()
        running.append((kind, number, p))

    with context:
        for kind in ("produce", "produce", "consume", "consume"):
            start(kind)
        try:
            while time.monotonic() < end:
                time.sleep(rng.uniform(0.005, 0.04))
                kind, who, p = running[rng.randrange(len(running))]
                if rng.random() < 0.3:
                    os.kill(p.pid, signal.SIGSTOP)
                    time.sleep(rng.uniform(0, 0.02))
                    os.kill(p.pid, signal.SIGCONT)
                    continue
                running.remove((kind, who, p))
                p.kill()
                p.join()
                kills += 1
                start(kind)
            for kind, who, p in [r for r in running if r[0] == "produce"]:
                p.kill()
                p.join()
                kills += 1
                running.remove((kind, who, p))
            q.recover()
            until(q.empty)
            q.shutdown()
            for _, _, p in running:
                p.join(60)
                assert p.exitcode == 0
        finally:
            for _, _, p in running:
                p.kill()
                p.join()
    q.recover()
    s = q.statistics()
    assert s.participants == 1
    # Exact, whatever was killed where: what came out in the end, all there is a trace of.
    assert s.current_buffer_used == 0
    assert s.put_count == s.get_count
    got = np.concatenate([np.fromfile(log, shared_workers.RECORD) for log in logs if log.exists()])
    assert (got["check"] == (got["number"] * 31 + got["who"])[:, None]).all()
    pairs = got["who"].astype("i8") << 32 | got["number"]
    unique = np.unique(pairs)
    assert len(got) - len(unique) <= s.redelivered
    assert len(unique) == s.put_count, (len(unique), s)
    return kills


def test_soak_kills(shared: Make, tmp_path: Path) -> None:
    end, seed, kills = time.monotonic() + SOAK_SECONDS, 0, 0
    while time.monotonic() < end:
        kills += soak(shared, tmp_path, 1.5, seed)
        seed += 1
    assert kills > 5
