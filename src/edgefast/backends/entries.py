"""Entries of the random operators, in numpy: what every backend must generate, number by number.

All integers come from Philox4x64-10 with key (seed, kind); `numpy.random.Philox(counter=c)` emits block c+1 first.
docs/sketch.md defines the entries in words.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = [
    "KIND_RADEMACHER",
    "KIND_SPARSE_STACK",
    "KIND_SRHT",
    "rademacher_signs",
    "sparse_stack_table",
    "srht_rows",
    "srht_signs",
]

KIND_SPARSE_STACK = 2
KIND_RADEMACHER = 3
KIND_SRHT = 5


def _words(seed: int, kind: int, first_block: int, blocks: int, word1: int = 0) -> npt.NDArray[np.uint64]:
    """The 4 * blocks 64-bit words of counters (first_block + 1, word1, 0, 0) onwards."""
    generator = np.random.Philox(
        key=np.array([seed, kind], np.uint64), counter=np.array([first_block, word1, 0, 0], np.uint64)
    )
    return np.asarray(generator.random_raw(4 * blocks), np.uint64)


def _bits(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Bits of the words, least significant first."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")


def sparse_stack_table(
    seed: int, k: int, nnz: int, first: int, last: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Buckets and signs of features first..last-1, each (last - first, nnz)."""
    count = last - first
    buckets = np.empty((count, nnz), np.int64)
    signs = np.empty((count, nnz), np.int8)
    base, larger = divmod(k, nnz)
    for group in range(0, nnz, 8):
        words = _words(seed, KIND_SPARSE_STACK, first, count, group // 8)
        lanes = words.astype("<u8").view("<u4").reshape(count, 8)[:, : nnz - group].astype(np.uint64)
        block = np.arange(group, group + lanes.shape[1], dtype=np.uint64)
        height = np.uint64(base) + (block < larger).astype(np.uint64)
        offset = block * np.uint64(base) + np.minimum(block, np.uint64(larger))
        columns = slice(group, group + lanes.shape[1])
        buckets[:, columns] = ((lanes >> np.uint64(1)) * height >> np.uint64(31)) + offset
        signs[:, columns] = 1 - 2 * (lanes & np.uint64(1)).astype(np.int8)
    return buckets, signs


def srht_signs(seed: int, first: int, last: int) -> npt.NDArray[np.int8]:
    """Signs of features first..last-1 (`first` a multiple of 256)."""
    blocks = -(-(last - first) // 256)
    bits = _bits(_words(seed, KIND_SRHT, first // 256, blocks))[: last - first]
    return 1 - 2 * bits.astype(np.int8)


@functools.lru_cache(maxsize=64)
def srht_rows(seed: int, k: int, padded: int) -> npt.NDArray[np.int64]:
    """k distinct Hadamard rows of [0, padded), uniform without replacement; a longer k only appends.

    The first k steps of a Fisher-Yates shuffle, in a dict: memory O(k), whatever `padded`.
    """
    words = _words(seed, KIND_SRHT, 0, -(-k // 4), 1)
    moved: dict[int, int] = {}
    rows = np.empty(k, np.int64)
    for i in range(k):
        pick = i + (int(words[i]) * (padded - i) >> 64)
        rows[i] = moved.get(pick, pick)
        moved[pick] = moved.get(i, i)
    rows.flags.writeable = False
    return rows


def rademacher_signs(seed: int, k: int, first: int, last: int) -> npt.NDArray[np.int8]:
    """Signs of features first..last-1 for outputs 0..k-1: (last - first, k)."""
    count = last - first
    signs = np.empty((count, k), np.int8)
    for block in range(0, k, 256):
        bits = _bits(_words(seed, KIND_RADEMACHER, first, count, block // 256)).reshape(count, 256)
        end = min(k, block + 256)
        signs[:, block:end] = 1 - 2 * bits[:, : end - block].astype(np.int8)
    return signs
