"""How many threads a kernel may use."""

from __future__ import annotations

import functools
import math
import os

__all__ = ["MOST", "available_cpus", "parse_num_threads"]

MOST = 1 << 16


@functools.cache  # a container's quota is fixed when it starts; the affinity mask is not, and is cheap to ask
def _cgroup_quota() -> float:
    """CPUs granted by the cgroup's bandwidth controller (v2, then v1); infinity when there is no limit."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()[:2]
        if quota != "max":
            return int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f:
            quota_us = int(f.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as f:
            period_us = int(f.read())
        if quota_us > 0 and period_us > 0:
            return quota_us / period_us
    except (OSError, ValueError):
        pass
    return math.inf


def available_cpus() -> int:
    """CPUs this process may use: its affinity mask, capped by the cgroup quota rounded up. At least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    if quota < count:
        count = max(1, math.ceil(quota))
    return max(1, count)


def parse_num_threads(value: object, source: str) -> int:
    """A positive int out of an environment variable or argument, or ValueError/TypeError naming `source`.

    What no machine has counts as MOST: kernels take a C int.
    """
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            raise ValueError(f"{source}: expected a positive integer, got {value!r}") from None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{source}: expected a positive integer, got {type(value).__name__}")
    number = value.__index__()  # type: ignore[attr-defined]
    if number < 1:
        raise ValueError(f"{source}: expected a positive integer, got {number}")
    return min(number, MOST)
