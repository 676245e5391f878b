"""The integers of every operator, drawn with numpy: the definition the compiled kernels are tested against.

numpy.random.Philox(key=k, counter=c) emits the blocks c + 1, c + 2, ...: block j + 1 belongs to feature j.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KIND_NUMBERS",
    "philox_words",
    "philox_words_at",
    "rademacher_bits",
    "rademacher_rows",
    "srht_index",
    "srht_signs",
    "stack_entries",
    "stack_table",
]

#: The kind byte of the descriptor and the low byte of the second key word. Frozen; 1, 4, 6 and 7 are taken too
#: (countsketch, gaussian, rotation, sparse).
KIND_NUMBERS = {"sparse_stack": 2, "rademacher": 3, "srht": 5}
_SRHT_INDEX_STREAM = KIND_NUMBERS["srht"] | 1 << 8


def philox_words(k0: int, k1: int, counter: tuple[int, int, int, int], blocks: int) -> NDArray[np.uint64]:
    """Words of `blocks` consecutive Philox4x64-10 blocks, the first at `counter`; shape (blocks, 4)."""
    number = sum(word << (64 * i) for i, word in enumerate(counter))
    number = (number - 1) % (1 << 256)  # numpy increments before it draws
    before = np.array([number >> (64 * i) & 0xFFFFFFFFFFFFFFFF for i in range(4)], np.uint64)
    generator = np.random.Philox(key=np.array([k0, k1], np.uint64), counter=before)
    return generator.random_raw(4 * blocks).reshape(blocks, 4)


def philox_words_at(k0: int, k1: int, c0: NDArray[np.uint64], c1: int) -> NDArray[np.uint64]:
    """Words of the Philox4x64-10 blocks at counters (c0, c1, 0, 0), c0 any numbers in any order; shape (len(c0), 4)."""
    mask = 0xFFFFFFFFFFFFFFFF
    low32, by32 = np.uint64(0xFFFFFFFF), np.uint64(32)

    def multiply(factor: int, x: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        # High and low word of the product, by halves.
        f0, f1 = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
        x0, x1 = x & low32, x >> by32
        middle = x1 * f0 + (x0 * f0 >> by32)
        other = x0 * f1 + (middle & low32)
        return x1 * f1 + (middle >> by32) + (other >> by32), x * np.uint64(factor)

    w0 = np.array(c0, np.uint64)
    w1, w2, w3 = np.full_like(w0, c1), np.zeros_like(w0), np.zeros_like(w0)
    for _ in range(10):
        high0, low0 = multiply(0xD2E7470EE14C6C93, w0)
        high1, low1 = multiply(0xCA5A826395121157, w2)
        w0, w1, w2, w3 = high1 ^ w1 ^ np.uint64(k0), low1, high0 ^ w3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return np.stack([w0, w1, w2, w3], axis=1)


def stack_table(seed: int, n_components: int, nnz: int, first: int, count: int) -> NDArray[np.uint32]:
    """Entries of features [first, first + count): bucket | negative << 31, shape (count, nnz)."""

    def words(group: int) -> NDArray[np.uint64]:
        return philox_words(seed, KIND_NUMBERS["sparse_stack"], (first + 1, group, 0, 0), count)

    return _stack(words, n_components, nnz, count)


def stack_entries(seed: int, n_components: int, nnz: int, features: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The same for any features in any order, shape (len(features), nnz); slower per feature than a range."""

    def words(group: int) -> NDArray[np.uint64]:
        return philox_words_at(seed, KIND_NUMBERS["sparse_stack"], features.astype(np.uint64) + np.uint64(1), group)

    return _stack(words, n_components, nnz, features.size)


def _stack(
    words: Callable[[int], NDArray[np.uint64]], n_components: int, nnz: int, count: int
) -> NDArray[np.uint32]:
    table = np.empty((count, nnz), np.uint32)
    base, rest = divmod(n_components, nnz)
    heights = np.full(nnz, base, np.uint64)
    heights[:rest] += np.uint64(1)
    offsets = np.zeros(nnz, np.uint64)
    np.cumsum(heights[:-1], out=offsets[1:])
    for group in range(0, nnz, 8):
        lanes = words(group // 8).astype("<u8", copy=False).view("<u4")[:, : nnz - group].astype(np.uint64)
        part = slice(group, group + lanes.shape[1])
        buckets = ((lanes >> np.uint64(1)) * heights[part] >> np.uint64(31)) + offsets[part]
        table[:, part] = buckets | (lanes & np.uint64(1)) << np.uint64(31)
    return table


def rademacher_bits(seed: int, n_components: int, first: int, count: int) -> NDArray[np.uint8]:
    """1 where the entry of (feature, component) is negative; shape (count, n_components)."""
    blocks = range(-(-n_components // 256))
    words = [philox_words(seed, KIND_NUMBERS["rademacher"], (first + 1, block, 0, 0), count) for block in blocks]
    return np.concatenate([_bits(block) for block in words], axis=1)[:, :n_components]


def rademacher_rows(seed: int, n_components: int, features: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The same for any features in any order."""
    counters = features.astype(np.uint64) + np.uint64(1)
    blocks = range(-(-n_components // 256))
    words = [philox_words_at(seed, KIND_NUMBERS["rademacher"], counters, block) for block in blocks]
    return np.concatenate([_bits(block) for block in words], axis=1)[:, :n_components]


def _bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), axis=1, bitorder="little")


def srht_signs(seed: int, n_features: int) -> NDArray[np.uint64]:
    """One bit a feature, bit j % 64 of word j // 64, set where the feature is negated."""
    return philox_words(seed, KIND_NUMBERS["srht"], (1, 0, 0, 0), -(-n_features // 256)).ravel()


def srht_index(seed: int, n_components: int, length: int) -> NDArray[np.int64]:
    """`n_components` distinct rows of the length x length Hadamard matrix, ascending.

    Floyd's algorithm: a uniform subset without replacement in O(n_components) memory whatever the length
    (R. W. Floyd in J. Bentley, "Programming pearls: a sample of brilliance", CACM 30(9), 1987).
    """
    start = length - n_components
    draws = philox_words(seed, _SRHT_INDEX_STREAM, (1, 0, 0, 0), -(-n_components // 4)).ravel()
    chosen: set[int] = set()
    for last, word in enumerate(draws[:n_components].tolist(), start):
        pick = word * (last + 1) >> 64
        chosen.add(last if pick in chosen else pick)
    return np.array(sorted(chosen), np.int64)
