"""What the processes of the SharedQueue tests run: importable, so that spawn and forkserver find it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from edgefast.queues import Empty, Full, SharedQueue, ShutDown

RECORD = np.dtype([("who", "i4"), ("number", "i4"), ("check", "i8", 6)])


def stamped(who: int, numbers: range) -> np.ndarray:
    records = np.empty(len(numbers), RECORD)
    records["who"], records["number"] = who, numbers
    records["check"] = (np.asarray(numbers) * 31 + who)[:, None]
    return records


def echo(there: Any, back: Any) -> None:
    for item in there:
        back.put(item)
    back.shutdown()


def count_until_shutdown(q: Any, answers: Any) -> None:
    try:
        n = sum(1 for _ in q)
        answers.put(b"%d" % n)
    except BaseException as error:
        answers.put(repr(error).encode()[:200])
        raise


def wait_in(q: Any, what: str, answers: Any) -> None:
    """Blocks in one call; reports how it ended."""
    answers.put(b"ready")
    try:
        if what == "get":
            q.get()
        elif what == "put":
            q.put(b"x")
        elif what == "put_many":
            q.put_many([b"x"])
        elif what == "get_many":
            q.get_many(4, min_items=4, linger=100)
        elif what == "view":
            with q.view():
                pass
        elif what == "reserve":
            with q.reserve():
                pass
        else:
            q.wait_writable()
        answers.put(b"returned")
    except ShutDown:
        answers.put(b"ShutDown")


def hold(q: Any, what: str, answers: Any) -> None:
    """Sleeps inside a block, to be killed there."""
    with getattr(q, what)() as items:
        answers.put(bytes(items[0]) if what == "view" else b"open")
        time.sleep(600)


def create_and_fork(answers: Any) -> None:
    """Makes a queue, has a forked child live on with it, holds an item, to be killed."""
    q = SharedQueue.create(2, itemsize=8, name=f"parent-{os.getpid()}")
    q.put(b"held")
    child = os.fork()
    if child == 0:
        end = time.monotonic() + 60
        while not q.is_shutdown and time.monotonic() < end:
            time.sleep(0.01)
        os._exit(0)
    with q.view():
        answers.put(q.name.encode())
        time.sleep(600)


def produce(name: str, who: int, seed: int) -> None:
    """Puts numbered records until killed; the numbers that count are those the shared ledger shows."""
    rng = np.random.default_rng(seed)
    q = SharedQueue.attach(name)
    i = 0
    while True:
        n = int(rng.integers(1, 6))
        kind = rng.random()
        try:
            if kind < 0.3:
                q.put(stamped(who, range(i, i + 1))[0], timeout=0.01)
                i += 1
            elif kind < 0.6:
                with q.reserve(min(n, q.maxsize), timeout=0.01) as slots:
                    slots[:] = stamped(who, range(i, i + len(slots)))
                i += len(slots)
            else:
                i += q.put_many(stamped(who, range(i, i + n)), timeout=0.01)
        except Full as full:
            i += getattr(full, "accepted", 0)


def consume(name: str, seed: int, log: str) -> None:
    """Gets records until the queue is shut down and appends each to a file before it lets go of it (view), or after
    it has got it (get): then a kill between the two loses it from the log, as documented."""
    rng = np.random.default_rng(seed)
    q = SharedQueue.attach(name)
    with open(log, "ab", buffering=0) as out:
        while True:
            try:
                with q.view(int(rng.integers(1, min(6, q.maxsize + 1))), timeout=0.05) as records:
                    out.write(records.tobytes())
            except Empty:
                continue
            except ShutDown:
                return


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = [int(a) if a.lstrip("-").isdigit() else a for a in sys.argv[2:]]
    globals()[sys.argv[1]](*arguments)
    os._exit(0)
