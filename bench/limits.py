"""What this machine can do at most: read and copy bandwidth and the GEMM peak, measured in the run that quotes them.

Read: the best of three reductions that BLAS and numpy vectorise, one contiguous share per thread: dot product and
maximum of one stream over a buffer of 512 MB, and dot products of two streams over ten arrays as long as the updates
of the aggregation benchmark (one stream alone does not keep every memory busy, and a large last-level cache serves
both alike). Copy counts both directions. GEMM is float32, 2 n^3 operations.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypedDict

import numpy as np
from threadpoolctl import threadpool_limits

BUFFER_BYTES = 512 << 20
STREAMS, STREAM = 10, 5_000_000
BLOCK = 1 << 20  # elements per call: long enough to hide the call, short enough to keep threads in step


class Limits(TypedDict):
    threads: int
    read_gb_s: float
    copy_gb_s: float
    gemm_gflop_s: float


def _best(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        t = time.perf_counter()
        work()
        times.append(time.perf_counter() - t)
    return min(times)


def _shares(n: int, threads: int) -> list[slice]:
    edges = np.linspace(0, n, threads + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(edges)]


def measure(threads: int, repeats: int = 7) -> Limits:
    """Bandwidths in GB/s (1e9 bytes) and GEMM rate in GFLOP/s for `threads` threads; best of `repeats`."""
    n = BUFFER_BYTES // 4
    source = np.ones(n, np.float32)
    target = np.zeros(n, np.float32)
    shares = _shares(n, threads)

    def dot(share: slice) -> None:
        part = source[share]
        for i in range(0, len(part), BLOCK):
            block = part[i : i + BLOCK]
            np.dot(block, block)

    def maximum(share: slice) -> None:
        part = source[share]
        for i in range(0, len(part), BLOCK):
            part[i : i + BLOCK].max()

    arrays = [np.ones(STREAM, np.float32) for _ in range(STREAMS)]
    columns = _shares(STREAM, threads)

    def two_streams(share: slice) -> None:
        for a, b in zip(arrays[::2], arrays[1::2], strict=True):
            np.dot(a[share], b[share])

    def copy(share: slice) -> None:
        np.copyto(target[share], source[share])

    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1):
        reads = [source.nbytes / _best(lambda f=f: list(pool.map(f, shares)), repeats) for f in (dot, maximum)]
        reads.append(sum(a.nbytes for a in arrays) / _best(lambda: list(pool.map(two_streams, columns)), repeats))
        copies = _best(lambda: list(pool.map(copy, shares)), repeats)
    m = 2048
    a, b = np.ones((m, m), np.float32), np.ones((m, m), np.float32)
    with threadpool_limits(threads):
        gemm = _best(lambda: a @ b, max(3, repeats // 2))
    return {
        "threads": threads,
        "read_gb_s": max(reads) / 1e9,
        "copy_gb_s": 2 * source.nbytes / copies / 1e9,
        "gemm_gflop_s": 2 * m**3 / gemm / 1e9,
    }


if __name__ == "__main__":
    print(json.dumps([measure(1), measure(2)], indent=2))
