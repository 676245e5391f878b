"""How full queues were: samples over time, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MAX_SAMPLES", "Depths", "fullest"]

#: Samples of a whole run.
MAX_SAMPLES = 2000


class Depths:
    """Depth of a queue over time, thinned so that memory stays bounded however long the run."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.interval: float = 0.001
        self.samples: list[tuple[float, int]] = []
        self._recent = 0

    def add(self, now: float, depth: int) -> None:
        """Depth at a time.perf_counter(), later than that of the call before."""
        self._recent = max(self._recent, depth)
        if not self.samples or now - self.samples[-1][0] >= self.interval:
            self.samples.append((now, depth))
            if len(self.samples) > self._most:
                self.samples = self.samples[::2]
                self.interval = 2 * self.interval

    def take(self) -> list[tuple[float, int]]:
        """The samples since the last call."""
        samples, self.samples = self.samples, []
        return samples

    def recent(self) -> int:
        """The largest depth since the last call."""
        depth, self._recent = self._recent, 0
        return depth


def fullest(samples: Sequence[tuple[float, int]], most: int) -> list[tuple[float, int]]:
    """At most so many samples, in the order of time: the largest depth of each of as many equal spans."""
    if len(samples) <= most:
        return sorted(samples)
    first, last = min(samples)[0], max(samples)[0]
    span = max(last - first, 1e-9) / (most - 1)
    largest: dict[int, tuple[float, int]] = {}
    for t, depth in samples:
        slot = int((t - first) / span)
        if slot not in largest or depth > largest[slot][1]:
            largest[slot] = (t, depth)
    return sorted(largest.values())
