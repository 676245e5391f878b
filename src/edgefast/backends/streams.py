"""The integers of every operator, drawn with numpy: the definition the compiled kernels are tested against.

numpy.random.Philox(key=k, counter=c) emits the blocks c + 1, c + 2, ...: block j + 1 belongs to feature j.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GAUSSIAN_CUBICS",
    "GAUSSIAN_UNIT",
    "GAUSSIAN_VARIANCE",
    "KIND_NUMBERS",
    "countsketch_entries",
    "countsketch_table",
    "gaussian_entries",
    "gaussian_rows",
    "gaussian_table",
    "philox_words",
    "philox_words_at",
    "rademacher_bits",
    "rademacher_rows",
    "rotation_signs",
    "rotation_steps",
    "sparse_entries",
    "sparse_probability",
    "sparse_thresholds",
    "srht_index",
    "srht_signs",
    "stack_entries",
    "stack_table",
]

#: The kind byte of the descriptor and the low byte of the second key word. Frozen.
KIND_NUMBERS = {
    "sparse_stack": 2,
    "countsketch": 1,
    "srht": 5,
    "rademacher": 3,
    "gaussian": 4,
    "sparse": 7,
    "rotation": 6,
}
_SRHT_INDEX_STREAM = KIND_NUMBERS["srht"] | 1 << 8

#: Gaussian entries are integers in units of 2**-16.
GAUSSIAN_UNIT = 2.0**-16
#: The variance of a Gaussian entry, exactly: the mean of its square over all 65536 draws.
GAUSSIAN_VARIANCE = 140736649329751 / 2**47
#: The normal quantile in units of 2**-16: row e holds c0..c3 of the cubic for draws whose odd number 2 v + 1 has e + 1
#: bits, its argument being the fraction of that octave. Least squares fits of the mean of |x| over each of the 2**15
#: bins of equal probability. Frozen.
GAUSSIAN_CUBICS = (
    (287540, 0, 0, 0),
    (267415, 0, 0, 0),
    (262029, -10737, 0, 0),
    (251797, -15767, 5948, -1575),
    (240401, -16446, 6223, -1655),
    (228518, -17205, 6487, -1725),
    (216071, -18072, 6774, -1799),
    (202967, -19078, 7095, -1881),
    (189097, -20264, 7461, -1974),
    (174313, -21690, 7883, -2081),
    (158419, -23446, 8376, -2205),
    (141137, -25679, 8955, -2351),
    (122055, -28640, 9634, -2524),
    (100518, -32811, 10401, -2734),
    (75365, -39260, 11103, -3021),
    (44178, -51023, 10836, -4008),
)


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


def countsketch_entries(seed: int, n_components: int, features: NDArray[np.int64]) -> NDArray[np.uint32]:
    """countsketch_table for any features in any order, shape (len(features), 1)."""
    number = features.astype(np.uint64)
    words = philox_words_at(seed, KIND_NUMBERS["countsketch"], (number >> np.uint64(3)) + np.uint64(1), 0)
    lanes = words.astype("<u8", copy=False).view("<u4")
    lane = lanes[np.arange(features.size), (number & np.uint64(7)).astype(np.intp)].astype(np.uint64)
    buckets = (lane >> np.uint64(1)) * np.uint64(n_components) >> np.uint64(31)
    return (buckets | (lane & np.uint64(1)) << np.uint64(31)).astype(np.uint32)[:, None]


def gaussian_rows(seed: int, n_components: int, features: NDArray[np.int64]) -> NDArray[np.int32]:
    """gaussian_entries for any features in any order."""
    counters = features.astype(np.uint64) + np.uint64(1)
    draws = [
        philox_words_at(seed, KIND_NUMBERS["gaussian"], counters, block).astype("<u8", copy=False).view("<u2")
        for block in range(-(-n_components // 16))
    ]
    return gaussian_table()[np.concatenate(draws, axis=1)[:, :n_components]]


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


def countsketch_table(seed: int, n_components: int, first: int, count: int) -> NDArray[np.uint32]:
    """Entries of features [first, first + count): bucket | negative << 31, shape (count, 1); 8 features a block."""
    block, lane = divmod(first, 8)
    words = philox_words(seed, KIND_NUMBERS["countsketch"], (block + 1, 0, 0, 0), -(-(lane + count) // 8))
    lanes = words.astype("<u8", copy=False).view("<u4").ravel()[lane : lane + count].astype(np.uint64)
    buckets = (lanes >> np.uint64(1)) * np.uint64(n_components) >> np.uint64(31)
    return (buckets | (lanes & np.uint64(1)) << np.uint64(31)).astype(np.uint32)[:, None]


@functools.cache
def gaussian_table() -> NDArray[np.int32]:
    """The entry of every 16-bit draw u: negative when bit 15 is set, the quantile of v = u mod 2**15 otherwise.

    P(|x| > quantile) is (v + 1/2) / 2**15. Integer arithmetic only: c0 + (f (c1 + (f (c2 + (f c3 >> 14)) >> 14)) >> 14)
    with the 14-bit fraction f; every product is below 2**31.
    """
    odd = 2 * np.arange(1 << 15, dtype=np.int64) + 1
    octave = np.frexp(odd)[1] - 1  # exact: the number of bits
    fraction = (odd - (1 << octave) << 15 - octave) >> 1
    c0, c1, c2, c3 = np.array(GAUSSIAN_CUBICS, np.int64).T[:, octave]
    magnitude = ((((c3 * fraction >> 14) + c2) * fraction >> 14) + c1) * fraction >> 14
    half = (magnitude + c0).astype(np.int32)
    table = np.concatenate([half, -half])
    table.flags.writeable = False
    return table


def gaussian_entries(seed: int, n_components: int, first: int, count: int) -> NDArray[np.int32]:
    """Entries in units of GAUSSIAN_UNIT; shape (count, n_components). A block holds 16 draws."""
    draws = [
        philox_words(seed, KIND_NUMBERS["gaussian"], (first + 1, block, 0, 0), count)
        .astype("<u8", copy=False)
        .view("<u2")
        for block in range(-(-n_components // 16))
    ]
    return gaussian_table()[np.concatenate(draws, axis=1)[:, :n_components]]


def sparse_probability(code: int, n_features: int) -> int:
    """The probability of an entry in units of 2**-63, rounded down: 1 / code, for code 0 1 / sqrt(n_features)."""
    return (1 << 63) // code if code else math.isqrt((1 << 126) // n_features)


def sparse_thresholds(probability: int, n_components: int) -> NDArray[np.uint64]:
    """P(gap > g) in units of 2**-63 for g = 0, 1, ... as far as a gap can matter; descending."""
    thresholds = []
    left = 1 << 63
    while left and len(thresholds) < n_components:
        left -= left * probability >> 63
        thresholds.append(left)
    return np.array(thresholds, np.uint64)


def sparse_entries(
    seed: int, n_components: int, thresholds: NDArray[np.uint64], first: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Entries of features [first, first + count), feature after feature: bucket | negative << 31, buckets ascending.

    Returns their starts too, shape (count + 1,). Independent entries by skipping: gap after gap, each the number of
    thresholds above the upper 63 bits of a word, whose lowest bit is the sign of the entry the gap leads to.
    """
    ascending = thresholds[::-1]
    position = np.full(count, -1, np.int64)
    alive = np.arange(count)
    features, entries = [], []
    block = 0
    while alive.size:
        # Features are dropped as they finish; the words of the others are drawn with them.
        low, high = int(alive[0]), int(alive[-1]) + 1
        words = philox_words(seed, KIND_NUMBERS["sparse"], (first + low + 1, block, 0, 0), high - low)
        words = words[alive - low].astype(np.uint64, copy=False)
        for lane in range(4):
            draw = words[:, lane]
            gap = thresholds.size - np.searchsorted(ascending, draw >> np.uint64(1), side="right")
            position[alive] += 1 + gap
            keep = position[alive] < n_components
            alive, words, draw = alive[keep], words[keep], draw[keep]
            features.append(alive)
            negative = ((draw & np.uint64(1)) << np.uint64(31)).astype(np.uint32)
            entries.append(position[alive].astype(np.uint32) | negative)
        block += 1
    feature = np.concatenate(features) if features else np.zeros(0, np.int64)
    order = np.argsort(feature, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(feature, minlength=count))]).astype(np.int64)
    packed = np.concatenate(entries) if entries else np.zeros(0, np.uint32)
    return starts, packed[order]


def rotation_steps(n_features: int) -> int:
    """Signed Hadamard transforms of a rotation: three, or for a length that is no power of two three pairs."""
    return 6 if n_features & (n_features - 1) else 3


def rotation_signs(seed: int, n_features: int) -> NDArray[np.uint64]:
    """Sign bits of every step, shape (steps, words): bit j % 64 of word j // 64, set where feature j is negated."""
    blocks = -(-n_features // 256)
    return np.stack(
        [
            philox_words(seed, KIND_NUMBERS["rotation"], (1, step, 0, 0), blocks).ravel()
            for step in range(rotation_steps(n_features))
        ]
    )
