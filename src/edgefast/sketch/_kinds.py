"""What differs between the kinds of operator: sizes, scale, matrix and the kernel that applies it.

One class a kind, without state: everything an operator has is in its descriptor. `KINDS` is the only place that lists
them.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams

if TYPE_CHECKING:
    from edgefast.backends import Kernels
    from edgefast.sketch._operator import SketchOperator

__all__ = ["KINDS", "Kind", "cache", "padded", "rotation_signs_of"]

_MAX_CACHE_BYTES = 1 << 20
#: Entries of hash kinds drawn at a time: what a call holds does not grow with the number of features.
_CHUNK_ENTRIES = 1 << 17


class _Cache:
    """Drawn integers by operator, least recently used out first, bounded in bytes. An entry is never changed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._entries: OrderedDict[Any, tuple[NDArray[Any], ...]] = OrderedDict()
        self._newest: tuple[Any, tuple[NDArray[Any], ...]] = (None, ())  # used last, if it is an entry at all
        self._lock = threading.Lock()

    def newest(self, key: Any) -> tuple[NDArray[Any], ...] | None:
        """The entry used last, when it is this one."""
        newest = self._newest  # one read: key and value belong together
        return newest[1] if newest[0] == key else None

    def get(self, key: Any, make: Callable[[], tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                self._newest = (key, found)
                return found
        made = make()
        for array in made:
            array.flags.writeable = False
        size = sum(array.nbytes for array in made)
        with self._lock:
            if key not in self._entries and size <= self._limit:
                self._entries[key] = made
                self._newest = (key, made)
                self._bytes += size
                while self._bytes > self._limit:
                    _, old = self._entries.popitem(last=False)
                    self._bytes -= sum(array.nbytes for array in old)
        return made


cache = _Cache(_MAX_CACHE_BYTES)


def padded(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


class Kind:
    """Base of all kinds: a matrix of +-1 without zeros."""

    name: str

    def code(self, d: int, k: int, nnz: int, density: float | Literal["auto"]) -> int:
        """The third byte of the descriptor.

        Raises:
            ValueError: sizes this kind does not have.
        """
        return 0

    def arguments(self, code: int) -> dict[str, Any]:
        """Constructor arguments that give the code."""
        return {}

    def nnz(self, op: SketchOperator) -> int:
        """Entries per feature that are not zero, at most."""
        return op.n_components

    def density(self, op: SketchOperator) -> float:
        """Expected share of entries that are not zero."""
        return self.nnz(op) / op.n_components

    def scale(self, op: SketchOperator) -> float:
        """What the entries are multiplied by."""
        return 1.0 / math.sqrt(self.nnz(op))

    def work(self, op: SketchOperator) -> int:
        """Rough cost of a row, in additions of a vectorised loop: decides when threads are worth starting."""
        return 16 * op.n_features

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        """The entries without the scale, shape (n_components, n_features)."""
        raise NotImplementedError

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        """Rows of x, shape (n, n_features), into out, shape (n, n_components), C-contiguous; n > 0."""
        raise NotImplementedError


class _Hash(Kind):
    """Few +-1 entries per feature, each in a row of its own."""

    #: Memory a feature takes beside its entries, in entries.
    overhead = 0

    def entries(
        self, op: SketchOperator, table: Kernels, first: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64] | None]:
        """Entries bucket | negative << 31 of features [first, first + count).

        Shape (count, nnz), or one-dimensional with their starts, shape (count + 1,).
        """
        raise NotImplementedError

    def expected_entries(self, op: SketchOperator) -> float:
        """Expected entries of a feature."""
        return self.nnz(op)

    def chunk(self, op: SketchOperator) -> int:
        """Features whose entries fit the budget."""
        return max(1, min(op.n_features, int(_CHUNK_ENTRIES / (self.expected_entries(op) + self.overhead))))

    def kept(self, op: SketchOperator, table: Kernels) -> tuple[NDArray[Any], ...]:
        """All entries, and their starts if they have any; kept for the next call."""

        def make() -> tuple[NDArray[Any], ...]:
            entries, starts = self.entries(op, table, 0, op.n_features)
            return (entries,) if starts is None else (entries, starts)

        return cache.get(op.to_bytes(), make)

    def chunks(
        self, op: SketchOperator, table: Kernels
    ) -> Iterator[tuple[int, NDArray[np.uint32], NDArray[np.int64] | None]]:
        """All entries, so many features at a time that they fit the budget: (first, entries, starts)."""
        d, step = op.n_features, self.chunk(op)
        if step == d:
            entries, *starts = self.kept(op, table)
            yield 0, entries, starts[0] if starts else None
            return
        for first in range(0, d, step):
            yield first, *self.entries(op, table, first, min(step, d - first))

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        from edgefast.backends import numpy as table

        d = op.n_features
        entries, starts = self.entries(op, table, 0, d)
        matrix = np.zeros((op.n_components, d))
        if starts is None:
            feature = np.repeat(np.arange(d), entries.shape[1])
        else:
            feature = np.repeat(np.arange(d), np.diff(starts))
        packed = entries.ravel()
        matrix[packed & np.uint32(0x7FFFFFFF), feature] = 1.0 - 2.0 * (packed >> np.uint32(31))
        return matrix

    def work(self, op: SketchOperator) -> int:
        return int(op.n_features * self.expected_entries(op))

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        d = op.n_features
        kept = cache.newest(op.to_bytes())
        if kept is not None:  # short, for the sake of single rows
            starts = kept[1] if len(kept) == 2 else None
            table.hash_transform(x, kept[0], starts, op.scale, False, True, out, num_threads)
            return
        for first, entries, starts in self.chunks(op, table):
            count = entries.shape[0] if starts is None else starts.shape[0] - 1
            last = first + count == d
            part = x if count == d else x[:, first : first + count]
            table.hash_transform(part, entries, starts, op.scale, first > 0, last, out, num_threads)


class _SparseStack(_Hash):
    name = "sparse_stack"

    def code(self, d: int, k: int, nnz: int, density: float | Literal["auto"]) -> int:
        return min(nnz, k)

    def arguments(self, code: int) -> dict[str, Any]:
        return {"nnz": code}

    def nnz(self, op: SketchOperator) -> int:
        return op._code

    def entries(
        self, op: SketchOperator, table: Kernels, first: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64] | None]:
        entries = np.empty((count, op._code), np.uint32)
        table.stack_table(op.seed, op.n_components, first, entries)
        return entries, None


class _CountSketch(_Hash):
    name = "countsketch"

    def nnz(self, op: SketchOperator) -> int:
        return 1

    def entries(
        self, op: SketchOperator, table: Kernels, first: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64] | None]:
        entries = np.empty((count, 1), np.uint32)
        table.countsketch_table(op.seed, op.n_components, first, entries)
        return entries, None


@functools.lru_cache(maxsize=4)
def _thresholds(probability: int, k: int) -> NDArray[np.uint64]:
    thresholds = streams.sparse_thresholds(probability, k)
    thresholds.flags.writeable = False
    return thresholds


class _Sparse(_Hash):
    name = "sparse"
    overhead = 2  # where its entries start

    def code(self, d: int, k: int, nnz: int, density: float | Literal["auto"]) -> int:
        return 0 if density == "auto" else round(1 / density)

    def arguments(self, code: int) -> dict[str, Any]:
        return {"density": 1 / code if code else "auto"}

    def density(self, op: SketchOperator) -> float:
        return 1 / op._code if op._code else 1 / math.sqrt(op.n_features)

    def scale(self, op: SketchOperator) -> float:
        return math.sqrt((op._code or math.sqrt(op.n_features)) / op.n_components)

    def expected_entries(self, op: SketchOperator) -> float:
        return op.n_components * self.density(op)

    def entries(
        self, op: SketchOperator, table: Kernels, first: int, count: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64] | None]:
        k = op.n_components
        thresholds = _thresholds(streams.sparse_probability(op._code, op.n_features), k)
        starts = np.empty(count + 1, np.int64)
        table.sparse_starts(op.seed, k, thresholds, first, starts)
        entries = np.empty(int(starts[-1]), np.uint32)
        table.sparse_table(op.seed, k, thresholds, first, starts, entries)
        return entries, starts


class _Srht(Kind):
    name = "srht"

    def code(self, d: int, k: int, nnz: int, density: float | Literal["auto"]) -> int:
        if k > padded(d):
            raise ValueError(
                f"n_components: expected at most {padded(d)} for 'srht' (n_features={d} rounded up to a power of "
                f"two), got {k}"
            )
        return 0

    def integers(self, op: SketchOperator) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Sign bits of the features and rows of the Hadamard matrix."""

        def make() -> tuple[NDArray[Any], ...]:
            return (
                streams.srht_signs(op.seed, op.n_features),
                streams.srht_index(op.seed, op.n_components, padded(op.n_features)),
            )

        signs, index = cache.newest(op.to_bytes()) or cache.get(op.to_bytes(), make)
        return signs, index

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        words, index = self.integers(op)
        d = op.n_features
        bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), bitorder="little")[:d]
        # H[i, j] = (-1) ** popcount(i & j): the parity is folded out of the bits of i & j.
        parity = index[:, None] & np.arange(d)
        for shift in (32, 16, 8, 4, 2, 1):
            parity = parity ^ (parity >> shift)
        return np.asarray(1.0 - 2.0 * ((parity & 1) ^ bits), np.float64)

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        signs, index = self.integers(op)
        table.srht_transform(x, signs, index, padded(op.n_features), op.scale, out, num_threads)


class _Rademacher(Kind):
    name = "rademacher"

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        bits = streams.rademacher_bits(op.seed, op.n_components, 0, op.n_features)
        return np.asarray(1.0 - 2.0 * bits.T, np.float64)

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        table.rademacher_transform(x, op.seed, op.scale, out, num_threads)


class _Gaussian(Kind):
    name = "gaussian"

    def scale(self, op: SketchOperator) -> float:
        return 1.0 / math.sqrt(op.n_components * streams.GAUSSIAN_VARIANCE)

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        entries = streams.gaussian_entries(op.seed, op.n_components, 0, op.n_features)
        return np.asarray(np.ascontiguousarray(entries.T) * streams.GAUSSIAN_UNIT, np.float64)

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        table.gaussian_transform(x, op.seed, op.scale, out, num_threads)


def rotation_signs_of(op: SketchOperator) -> NDArray[np.uint64]:
    """Sign bits of every step of a rotation, shape (steps, words)."""
    return cache.get(op.to_bytes(), lambda: (streams.rotation_signs(op.seed, op.n_features),))[0]


class _Rotation(Kind):
    name = "rotation"

    def code(self, d: int, k: int, nnz: int, density: float | Literal["auto"]) -> int:
        if k != d:
            raise ValueError(f"n_components: expected n_features ({d}) for 'rotation', got {k}")
        return 0

    def scale(self, op: SketchOperator) -> float:
        return 1.0

    def matrix(self, op: SketchOperator) -> NDArray[np.float64]:
        from edgefast.backends import numpy as table

        d = op.n_features
        columns = np.empty((d, d))
        table.rotate(np.eye(d), rotation_signs_of(op), False, columns, 1)
        return np.ascontiguousarray(columns.T)

    def transform(
        self, op: SketchOperator, table: Kernels, x: NDArray[Any], out: NDArray[Any], num_threads: int
    ) -> None:
        table.rotate(x, rotation_signs_of(op), False, out, num_threads)


#: By name, in the order of the documentation.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (_SparseStack(), _CountSketch(), _Srht(), _Rademacher(), _Gaussian(), _Sparse(), _Rotation())
}
