"""Count sketches of whole updates: what Encoded, accumulators and FetchSGD know about the table they share."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import _describe
from edgefast.aggregate._template import DTYPES
from edgefast.backends.numpy.elements import round_into, widen
from edgefast.backends.table import BF16, Array
from edgefast.sketch._count_sketch import CountSketch

__all__ = ["SketchFormat", "check_numbers", "rounded", "size_of"]

_TILE = 1 << 20
_LARGEST = {np.dtype(np.float16): 65504.0, BF16: float.fromhex("0x1.fep+127")}


def size_of(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def check_numbers(numbers: Any) -> tuple[int, int, int]:
    """width, depth and k of a description.

    Raises:
        ValueError: no three integers within their bounds.
    """
    width, depth, k = numbers
    if not all(type(n) is int for n in numbers) or not (1 <= depth <= 255 and 1 <= width <= (2**31 - 1) // depth):
        raise ValueError(f"sketch {numbers}")
    if not 0 <= k < 1 << 62:
        raise ValueError(f"sketch {numbers}")
    return width, depth, k


def rounded(values: NDArray[Any], dtype: np.dtype[Any]) -> Array:
    """Estimates in a tensor's dtype; those beyond its range, which no entry had, become its largest."""
    if (most := _LARGEST.get(dtype)) is not None:
        values = np.clip(values, -most, most)
    out = np.empty(values.shape, dtype)
    round_into(out, values)
    return out


class SketchFormat(NamedTuple):
    """What two sketched updates need in common to be added, and how many entries are read back.

    The vector that is sketched is that of all float tensors, one after the other in the order of `tensors`.
    """

    seed: int
    width: int
    depth: int
    k: int
    structure: Any
    tensors: list[tuple[np.dtype[Any], tuple[int, ...]]]

    @property
    def floats(self) -> list[int]:
        return [t for t, (dtype, _) in enumerate(self.tensors) if dtype.kind in "fV"]

    @property
    def n_features(self) -> int:
        return sum(size_of(self.tensors[t][1]) for t in self.floats)

    def numbers(self) -> list[int]:
        return [self.width, self.depth, self.k]

    def check(self) -> None:
        if self.n_features >= 1 << 62 or self.k > self.n_features:
            raise ValueError(f"{self.k} entries of {self.n_features}")

    def rows(self) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtypes and shapes of the arrays that stand for a sketch in an accumulator: the table, then other tensors."""
        others = [(dtype, shape) for dtype, shape in self.tensors if dtype.kind not in "fV"]
        return [(np.dtype(np.float32), (self.depth, self.width)), *others]

    def row_structure(self) -> Any:
        return {"list": list(range(len(self.rows())))}

    def describe(self) -> dict[str, Any]:
        """JSON of everything; `restore` reads it."""
        tensors = [[_describe.code(dtype), list(shape)] for dtype, shape in self.tensors]
        return {"seed": self.seed, "sketch": self.numbers(), "structure": self.structure, "tensors": tensors}

    @classmethod
    def restore(cls, meta: Any) -> SketchFormat:
        """The format of a description made by describe().

        Raises:
            ValueError, KeyError, TypeError: it does not hold together.
        """
        if set(meta) != {"seed", "sketch", "structure", "tensors"}:
            raise ValueError("unexpected fields of the sketch")
        if type(meta["seed"]) is not int or not 0 <= meta["seed"] < 1 << 64:
            raise ValueError(f"seed {meta['seed']}")
        known = {_describe.code(d): d for d in DTYPES}
        tensors = []
        for name, dimensions in meta["tensors"]:
            shape = tuple(dimensions)
            if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
                raise ValueError(f"shape {dimensions}")
            tensors.append((known[name], shape))
        found = cls(meta["seed"], *check_numbers(meta["sketch"]), meta["structure"], tensors)
        found.check()
        used: list[int] = []
        _describe.example(found.structure, tensors, used, 0)
        if used != list(range(len(tensors))):
            raise ValueError("structure and tensors differ")
        return found

    def adds_to(self, other: SketchFormat) -> bool:
        """Whether tables of the two may be added: everything agrees but k."""
        return self._replace(k=0) == other._replace(k=0)

    def sketch(self, table: NDArray[Any] | None = None, num_threads: int | None = None) -> CountSketch:
        """A sketch of this format over a table, which it copies: float32 or float64; an empty float64 one for None."""
        n = max(1, self.n_features)
        if table is None:
            return CountSketch(n, self.width, self.depth, seed=self.seed, dtype="float64", num_threads=num_threads)
        return CountSketch.from_table(table, n, seed=self.seed, num_threads=num_threads)

    def table_of(self, arrays: list[Array], num_threads: int | None) -> NDArray[np.float32]:
        """The counters of float tensors in order, each value read as a float32."""
        cs = CountSketch(max(1, self.n_features), self.width, self.depth, seed=self.seed, num_threads=num_threads)
        begin = 0
        for array in arrays:
            flat = array.reshape(-1)
            for i in range(0, flat.size, _TILE):
                part = flat[i : i + _TILE]
                if part.dtype != np.float32:
                    with np.errstate(over="ignore"):
                        part = widen(part, np.float32)
                    if not np.isfinite(part).all():  # float64 beyond float32: the caller looks at the table
                        return np.full(cs.table.shape, np.inf, np.float32)
                cs.update(part, start=begin + i)
            begin += flat.size
        return np.array(cs.table)

    def heavy_hitters(
        self, table: NDArray[Any], num_threads: int | None, k: int | None = None
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[Any]]]:
        """Ascending indices and estimates of the k largest entries, by float tensor."""
        return self.split(*self.sketch(table, num_threads).top_k(self.k if k is None else k))

    def split(
        self, indices: NDArray[np.int64], values: NDArray[Any]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[Any]]]:
        """Entries of the whole vector by float tensor, in ascending order."""
        order = np.argsort(indices)
        indices, values = indices[order], values[order]
        result, begin = {}, 0
        for t in self.floats:
            end = begin + size_of(self.tensors[t][1])
            low, high = np.searchsorted(indices, (begin, end))
            result[t] = (indices[low:high] - begin, values[low:high])
            begin = end
        return result
