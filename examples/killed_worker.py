"""Readings go through two worker processes; one is killed in the middle of its work, and nothing is lost.

    python examples/killed_worker.py

Each worker takes a reading in a `view()` block and answers before it leaves the block. The reading that the killed one
was working on goes to the other.
"""

import signal
import subprocess
import sys
import time

import numpy as np

from edgefast.queues import SharedQueue

READING = np.dtype([("number", "i4"), ("samples", "f4", 64)])
ANSWER = np.dtype([("number", "i4"), ("level", "f4"), ("worker", "i4")])


def work(readings: SharedQueue, answers: SharedQueue, worker: int) -> None:
    while True:
        with readings.view() as batch:
            [reading] = batch
            if worker == 0 and reading["number"] >= 20:
                time.sleep(600)  # here it is killed
            level = np.sqrt(np.mean(reading["samples"] ** 2))
            answers.put((int(reading["number"]), float(level), worker))


def main() -> None:
    with (
        SharedQueue.create(16, dtype=READING) as readings,
        SharedQueue.create(1000, dtype=ANSWER) as answers,
    ):
        workers = [
            subprocess.Popen([sys.executable, __file__, "worker", readings.name, answers.name, str(i)])
            for i in range(2)
        ]
        rng = np.random.default_rng(0)
        try:
            for number in range(100):
                readings.put((number, rng.normal(size=64).astype("f4")))  # waits while 16 are queued
            while readings.qsize():
                time.sleep(0.01)
            workers[0].send_signal(signal.SIGKILL)
            got = [answers.get(timeout=60) for _ in range(100)]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        statistics = readings.statistics()
    numbers = sorted(int(answer["number"]) for answer in got)
    assert numbers == list(range(100))
    print(f"{len(got)} of 100 readings answered, {sum(a['worker'] == 0 for a in got)} by the worker that was killed;")
    print(f"{statistics.redelivered} redelivered, {statistics.lost} lost")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        with SharedQueue.attach(sys.argv[2]) as incoming, SharedQueue.attach(sys.argv[3]) as outgoing:
            work(incoming, outgoing, int(sys.argv[4]))
    else:
        main()
