"""The workloads of the pipeline benchmark, and the meter that every contender runs under.

A workload is a source and three stages whose times are drawn beforehand, one for each item and stage, so that all
contenders do the same work. Stages sleep (as those that wait for a disk, a network or a device do) or hash (as those
that compute with the GIL released do).
"""

from __future__ import annotations

import hashlib
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

PAYLOAD = 16 * 1024
STAGES = 3


class Workload(NamedTuple):
    """`seconds[stage, item]` of work, `gaps[item]` of silence of the source before the item, workers of each stage."""

    name: str
    seconds: np.ndarray[Any, Any]
    gaps: np.ndarray[Any, Any]
    workers: int
    computes: bool


def _gamma(rng: np.random.Generator, mean: Any, cv: float, n: int) -> np.ndarray[Any, Any]:
    return rng.gamma(1 / cv**2, np.asarray(mean) * cv**2, n)


def make(name: str, items: int) -> Workload:
    rng = np.random.default_rng(2026)
    gaps = np.zeros(items)
    workers, computes = 1, False
    if name == "balanced":
        seconds = np.stack([_gamma(rng, 3e-3, 0.7, items) for _ in range(STAGES)])
    elif name == "balanced, computing":
        seconds, computes = np.stack([_gamma(rng, 2e-3, 0.7, items) for _ in range(STAGES)]), True
    elif name == "skewed":
        seconds = np.stack([_gamma(rng, mean, 0.7, items) for mean in (1e-3, 5e-3, 1e-3)])
        seconds[0, rng.random(items) < 0.01] += 60e-3  # and a slow read now and then
    elif name == "bursty":
        seconds = np.stack([_gamma(rng, mean, 0.5, items) for mean in (1e-3, 4e-3, 1e-3)])
        gaps[40::40] = 0.1
    elif name == "phase-changing":
        # Four phases: first the first stage has four times the work of the others, then the last.
        heavy = (np.arange(items) * 4 // items) % 2
        means = (np.where(heavy, 2e-3, 8e-3), np.full(items, 2e-3), np.where(heavy, 8e-3, 2e-3))
        seconds = np.stack([_gamma(rng, mean, 0.7, items) for mean in means])
        workers = 2
    else:
        raise ValueError(name)
    return Workload(name, seconds, gaps, workers, computes)


WORKLOADS = {"balanced": 1600, "balanced, computing": 1600, "skewed": 1200, "bursty": 1200, "phase-changing": 2400}


class Item:
    __slots__ = ("number", "offered", "payload")

    def __init__(self, number: int) -> None:
        self.number = number
        self.payload = bytearray(PAYLOAD)
        self.offered = time.perf_counter()


class Meter:
    """Runs a workload through a contender and counts, from the outside, the items between its stages: what a stage has
    finished and the next one has not begun, whoever holds it."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._lock = threading.Lock()
        self._waiting = self.peak = 0
        self.latencies: list[float] = []
        self.stages: list[Callable[[Item], Item]] = [self._stage(i) for i in range(STAGES)]
        self.began = 0.0

    def _move(self, step: int) -> None:
        with self._lock:
            self._waiting += step
            self.peak = max(self.peak, self._waiting)

    def source(self) -> Iterator[Item]:
        self.began = time.perf_counter()
        for number, gap in enumerate(self.workload.gaps):
            if gap:
                time.sleep(gap)
            item = Item(number)
            self._move(1)
            yield item

    def _stage(self, i: int) -> Callable[[Item], Item]:
        seconds = self.workload.seconds[i].tolist()
        last = i + 1 == STAGES
        work = _hash_for if self.workload.computes else time.sleep

        def stage(item: Item) -> Item:
            self._move(-1)
            work(seconds[item.number])
            if last:
                self.latencies.append(time.perf_counter() - item.offered)
            else:
                self._move(1)
            return item

        stage.__name__ = ("read", "work", "write")[i]
        return stage

    def run(self, contender: Callable[[Meter], int]) -> dict[str, float]:
        """Figures of one run, from the first item offered until the last one is out and its threads have ended."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        got = contender(self)
        ended = time.perf_counter()
        after = resource.getrusage(resource.RUSAGE_SELF)
        items = len(self.workload.gaps)
        assert got == items == len(self.latencies), (got, items, len(self.latencies))
        assert self._waiting == 0
        return {
            "seconds": ended - self.began,
            "items_per_s": items / (ended - self.began),
            "p50_ms": float(np.quantile(self.latencies, 0.5)) * 1e3,
            "p99_ms": float(np.quantile(self.latencies, 0.99)) * 1e3,
            "peak_items": self.peak,
            "peak_kib": self.peak * PAYLOAD / 1024,
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        }


_BLOCK = bytes(64 * 1024)


def _rate() -> float:
    """Bytes per second of the hash, alone on the machine."""
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        hashlib.sha256(_BLOCK * 16)
        best = max(best, 16 * len(_BLOCK) / (time.perf_counter() - began))
    return best


_per_second = 0.0


def _hash_for(seconds: float) -> None:
    """What takes so many seconds of a processor that is free: a fixed number of bytes."""
    global _per_second
    if not _per_second:
        _per_second = _rate()
    left = int(seconds * _per_second)
    while left > 0:
        hashlib.sha256(memoryview(_BLOCK)[:left])
        left -= len(_BLOCK)
