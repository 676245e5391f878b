"""CountSketch: a long vector in a small table."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch import _wire
from edgefast.sketch._arrays import threads_for
from edgefast.sketch._checks import checked_csr, finite_number, integer, numeric, sum_exactly
from edgefast.sketch._operator import SketchOperator
from edgefast.sketch.errors import IncompatibleSketchError, SketchOverflowError

__all__ = ["CountSketch"]

_DTYPES: Final = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64), "int64": np.dtype(np.int64)}
_LIMIT: Final = 2**63 - 1
_TILE: Final = 1 << 18  # values looked at, or estimated, at a time

Counters = Literal["float32", "float64", "int64"]


class CountSketch:
    """Frequencies, gradients or model updates with millions of coordinates in depth x width counters.

    Every coordinate adds +-its value to one counter in each of `depth` rows; the median of the depth counters gives it
    back with an error of about l2() / sqrt(width). Sketches add, subtract and scale like the vectors they stand for.
    The table is that of SketchOperator("sparse_stack", n_features, depth * width, nnz=depth), unscaled: coordinates
    are drawn as they come, and no hash table of them is kept.

    Args:
        n_features: length of the vector, up to 2**62.
        width: counters in a row.
        depth: rows, at most 255; odd, 5 is usual. The chance of a larger error falls exponentially in it.
        seed: 0 to 2**64 - 1.
        dtype: "float32", "float64" or "int64", of the counters. int64 counts exactly: sums of integers in any order
            and any number of merges are the same bit for bit.
        num_threads: threads to use at most; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        M. Charikar, K. Chen and M. Farach-Colton, "Finding frequent items in data streams", ICALP 2002;
        D. Rothchild et al., "FetchSGD: communication-efficient federated learning with sketching", ICML 2020.

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import CountSketch
        >>> cs = CountSketch(1_000_000, width=500, dtype="int64")
        >>> cs.update(np.array([70, 20]), indices=np.array([123_456, 7])).update(np.array([5]), indices=np.array([7]))
        <CountSketch n_features=1000000, width=500, depth=5, seed=0, dtype='int64': 3 values>
        >>> cs.top_k(2)
        (array([123456,      7]), array([70., 25.]))
    """

    def __init__(
        self,
        n_features: int,
        width: int,
        depth: int = 5,
        *,
        seed: int = 0,
        dtype: Counters = "float32",
        num_threads: int | None = None,
    ) -> None:
        rows = integer(depth, "depth", 1, 255)
        columns = integer(width, "width", 1, (2**31 - 1) // rows)
        self._operator = SketchOperator("sparse_stack", n_features, rows * columns, seed=seed, nnz=rows)
        if dtype not in _DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(repr, _DTYPES))}, got {dtype!r}")
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._table = np.zeros((rows, columns), _DTYPES[dtype])
        self._n_seen = 0
        self._mass = 0  # int64: no counter can exceed it in magnitude

    @classmethod
    def from_table(
        cls, table: NDArray[Any], n_features: int, *, seed: int = 0, num_threads: int | None = None
    ) -> CountSketch:
        """A sketch with given counters, as after a sum of tables elsewhere; nothing counts as seen.

        Args:
            table: (depth, width) of float32, float64 or int64; it is copied.
            n_features, seed, num_threads: of the sketches the counters come from.

        Raises:
            TypeError: no such array.
            ValueError: a size out of range, or NaN or infinity.
        """
        if not isinstance(table, np.ndarray) or table.dtype.name not in _DTYPES or table.ndim != 2:
            got = f"{table.dtype} {table.shape}" if isinstance(table, np.ndarray) else type(table).__name__
            raise TypeError(f"table: expected a (depth, width) array of {', '.join(_DTYPES)}, got {got}")
        depth, width = table.shape
        self = cls(n_features, width, depth, seed=seed, dtype=table.dtype.name, num_threads=num_threads)  # type: ignore[arg-type]
        if not np.isfinite(table).all():
            raise ValueError("table: expected finite numbers, got NaN or infinity")
        if table.dtype.kind == "i":
            self._mass = max(abs(int(table.min())), abs(int(table.max())))
            if self._mass > _LIMIT:
                raise ValueError("table: expected magnitudes below 2**63, got -2**63")
        self._table[...] = table
        return self

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def operator(self) -> SketchOperator:
        """The map from vectors to flattened tables, which leaves out its scale here."""
        return self._operator

    @property
    def n_features(self) -> int:
        """Length of the vector."""
        return self._operator.n_features

    @property
    def width(self) -> int:
        """Counters in a row."""
        return self._table.shape[1]

    @property
    def depth(self) -> int:
        """Rows of counters."""
        return self._table.shape[0]

    @property
    def seed(self) -> int:
        """The 64-bit seed."""
        return self._operator.seed

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the counters."""
        return self._table.dtype

    @property
    def table(self) -> NDArray[Any]:
        """The counters, (depth, width): a read-only view of the state."""
        view = self._table.view()
        view.flags.writeable = False
        return view

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._table.nbytes

    @property
    def n_seen(self) -> int:
        """Values added, those of merged sketches included, those of subtracted ones taken off."""
        return self._n_seen

    @property
    def fingerprint(self) -> int:
        """64 bits that name what two sketches need in common to be added."""
        text = self._operator.to_bytes() + bytes([_wire._CODES[self.dtype]])
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    # ---- adding --------------------------------------------------------------------------------------------------

    def update(self, values: Any, *, indices: Any = None, start: int | None = None, weight: float = 1) -> CountSketch:
        """Add a vector, part of one, or several. On an error nothing has been added.

        Args:
            values: (n_features,) for a whole vector; (n, n_features) for n of them; (m,) with `indices` for m of its
                coordinates or with `start` for a contiguous piece; or a SciPy sparse matrix of n_features columns.
                Dtypes that convert to the counters exactly; int64 counters take integers only.
            indices: coordinates of the values, integers from 0 to n_features - 1, repeated ones allowed.
            start: first coordinate of a piece.
            weight: multiplies all values, with one rounding each; an integer for int64.

        Returns:
            The sketch itself.

        Raises:
            TypeError: no arrays, or of a dtype that would be rounded.
            ValueError: another shape, indices out of range, a malformed sparse matrix, NaN or infinity, or a weight
                that the counters' dtype does not hold.
            SketchOverflowError: int64: a counter might not fit.
        """
        exact = self.dtype.kind == "i"
        factor = integer(weight, "weight", -_LIMIT, _LIMIT) if exact else finite_number(weight, "weight", self.dtype)
        where: NDArray[np.int64] | None = None
        first, d = 0, self.n_features
        if hasattr(values, "tocsr"):
            rows = checked_csr(values, "values", self.dtype)
            if rows.ndim != 2 or rows.shape[1] != d:
                raise ValueError(f"values: expected a sparse matrix of {d} columns, got {rows.shape}")
            if indices is not None or start is not None:
                raise ValueError("values: expected neither indices nor start beside a sparse matrix")
            stored = slice(0, int(rows.indptr[-1]))
            flat, where = rows.data[stored], rows.indices[stored].astype(np.int64, copy=False)
        else:
            flat = numeric(values, "values", self.dtype)
            if indices is not None:
                if start is not None:
                    raise ValueError("start: expected None beside indices")
                where = numeric(indices, "indices", _DTYPES["int64"]).astype(np.int64, copy=False)
                if where.ndim != 1:
                    raise ValueError(f"indices: expected shape (m,), got {where.shape}")
                if flat.shape != where.shape:
                    raise ValueError(f"values: expected the shape of indices {where.shape}, got {flat.shape}")
            elif start is not None:
                first = integer(start, "start", 0, d)
                if flat.ndim != 1 or first + flat.size > d:
                    raise ValueError(f"values: expected shape (m,), m at most {d - first}, got {flat.shape}")
            elif flat.ndim not in (1, 2) or flat.shape[-1] != d:
                raise ValueError(f"values: expected shape ({d},) or (n, {d}), got {flat.shape}")
        if where is not None and where.size and not (where.min() >= 0 and where.max() < d):
            raise ValueError(f"indices: expected values from 0 to {d - 1}, got {where.min()} to {where.max()}")
        vectors = flat if flat.ndim == 2 else flat[None, :]
        with self._lock:
            mass = self._mass
            for vector, part in self._tiles(vectors):
                piece = vectors[vector, part]
                if exact:
                    # The magnitude of -2**63 does not fit its own type.
                    if piece.size and int(piece.min()) < -_LIMIT:
                        raise SketchOverflowError("values: expected magnitudes below 2**63, got -2**63")
                    mass += sum_exactly(np.abs(piece.astype(np.int64, copy=False))) * abs(int(factor))
                elif piece.dtype.kind == "f" and not np.isfinite(piece).all():
                    raise ValueError("values: expected finite numbers, got NaN or infinity")
            if mass > _LIMIT:
                raise SketchOverflowError(f"values: expected magnitudes to add up to less than 2**63, got {mass}")
            for vector, part in self._tiles(vectors):
                self._add(vectors[vector, part], None if where is None else where[part], first + part.start, factor)
            self._mass = mass
            self._n_seen += flat.size
        return self

    def _tiles(self, vectors: NDArray[Any]) -> Any:
        # Whole vectors when nothing has to be converted: the kernel has tiles of its own.
        n, d = vectors.shape
        return ((i, slice(at, min(at + 16 * _TILE, d))) for i in range(n) for at in range(0, d, 16 * _TILE))

    def _add(self, values: NDArray[Any], where: NDArray[np.int64] | None, first: int, factor: float) -> None:
        if values.dtype != self.dtype and (values.dtype != np.float32 or self.dtype.kind == "i"):
            values = values.astype(self.dtype)
        if factor != 1:
            with np.errstate(all="ignore"):
                values = values.astype(self.dtype, copy=False) * self.dtype.type(factor)
        values = np.ascontiguousarray(values)
        values = np.require(values, requirements="A")
        if where is not None:
            where = np.require(where, requirements=["C", "A"])
        threads = threads_for(values.size * self.depth, 1 << 16, self._num_threads)
        backends.kernels().count_sketch_add(values, where, first, self.seed, self._table, threads)

    def _check(self, other: Any) -> None:
        if not isinstance(other, CountSketch):
            raise TypeError(f"other: expected a CountSketch, got {type(other).__name__}")
        if self.fingerprint != other.fingerprint:
            raise IncompatibleSketchError(f"other: expected {self._signature()}, got {other._signature()}")

    def _signature(self) -> str:
        return (
            f"n_features={self.n_features}, width={self.width}, depth={self.depth}, seed={self.seed}, "
            f"dtype={self.dtype.name!r}"
        )

    def merge(self, other: CountSketch) -> CountSketch:
        """Add another sketch: the table becomes that of the sum of both vectors. `other` is not changed.

        Raises:
            TypeError: other is no CountSketch.
            IncompatibleSketchError: another size, seed or dtype.
            SketchOverflowError: int64: a counter might not fit.
        """
        return self._combine(other, 1)

    def _combine(self, other: CountSketch, sign: int) -> CountSketch:
        self._check(other)
        other = other.copy()
        with self._lock, np.errstate(all="ignore"):
            mass = self._mass + other._mass
            if mass > _LIMIT:
                raise SketchOverflowError(f"other: expected counters below 2**63, got up to {mass}")
            if sign > 0:
                self._table += other._table
            else:
                self._table -= other._table
            self._mass = mass
            self._n_seen += sign * other._n_seen
        return self

    def __iadd__(self, other: CountSketch) -> CountSketch:
        return self.merge(other)

    def __isub__(self, other: CountSketch) -> CountSketch:
        return self._combine(other, -1)

    def __imul__(self, weight: float) -> CountSketch:
        """Scale the vector: by an integer for int64, else by any finite number of the counters' type."""
        with self._lock, np.errstate(all="ignore"):
            if self.dtype.kind == "i":
                factor = integer(weight, "weight", -_LIMIT, _LIMIT)
                mass = self._mass * abs(factor)
                if mass > _LIMIT:
                    raise SketchOverflowError(f"weight: expected counters below 2**63, got up to {mass}")
                self._table *= np.int64(factor)
                self._mass = mass
            else:
                self._table *= self.dtype.type(finite_number(weight, "weight", self.dtype))
        return self

    # ---- what it tells -------------------------------------------------------------------------------------------

    def estimate(self, indices: Any = None) -> NDArray[Any]:
        """Coordinates of the vector, with an error of about l2() / sqrt(width).

        Args:
            indices: which, integers from 0 to n_features - 1, of any shape; None for all of them.

        Returns:
            The shape of `indices`, or (n_features,): float32 for float32 counters, else float64.

        Raises:
            TypeError, ValueError: indices of another type or out of range.
        """
        d = self.n_features
        if indices is None:
            out = np.empty(d, self._estimate_dtype())
            self._estimate(None, 0, out)
            return out
        if not hasattr(indices, "__array__"):
            indices = np.asarray(indices)
        where = numeric(indices, "indices", _DTYPES["int64"])
        if where.size and not (where.min() >= 0 and where.max() < d):
            raise ValueError(f"indices: expected values from 0 to {d - 1}, got {where.min()} to {where.max()}")
        flat = np.ascontiguousarray(where, np.int64).reshape(-1)
        out = np.empty(flat.size, self._estimate_dtype())
        self._estimate(flat, 0, out)
        return out.reshape(where.shape)

    def _estimate_dtype(self) -> np.dtype[Any]:
        return self.dtype if self.dtype.kind == "f" else _DTYPES["float64"]

    def _estimate(self, where: NDArray[np.int64] | None, first: int, out: NDArray[Any]) -> None:
        threads = threads_for(out.size * self.depth, 1 << 16, self._num_threads)
        backends.kernels().count_sketch_estimate(self._table, where, first, self.seed, out, threads)

    def top_k(self, k: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The coordinates with the largest estimates in magnitude, in memory for a tile of them.

        Args:
            k: how many, at most n_features.

        Returns:
            Indices (k,) and estimates (k,), by descending magnitude, lower indices first among equals.
        """
        count = integer(k, "k", 0, self.n_features)
        best_index = np.empty(0, np.int64)
        best = np.empty(0, self._estimate_dtype())
        tile = max(_TILE, 2 * count)
        buffer = np.empty(min(tile, self.n_features), best.dtype)
        for first in range(0, self.n_features if count else 0, tile):
            part = buffer[: min(tile, self.n_features - first)]
            self._estimate(None, first, part)
            size = np.abs(part)
            if best.size == count:
                near = np.flatnonzero(size > np.abs(best[-1]))
            elif part.size > count:
                near = np.flatnonzero(size >= np.partition(size, part.size - count)[part.size - count])
            else:
                near = np.arange(part.size)
            best_index = np.concatenate([best_index, first + near])
            best = np.concatenate([best, part[near]])
            order = np.lexsort((best_index, -np.abs(best)))[:count]
            best_index, best = best_index[order], best[order]
        return best_index, best

    def l2(self) -> float:
        """Estimate of the vector's Euclidean length: the median over rows of the length of a row of counters."""
        counters = self._table.astype(np.float64)
        return float(np.median(np.sqrt(np.einsum("rc,rc->r", counters, counters))))

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def copy(self) -> CountSketch:
        """An independent sketch in the same state."""
        clone = object.__new__(CountSketch)
        with self._lock:
            clone.__dict__.update(self.__dict__)
            clone._table = self._table.copy()
        clone._lock = threading.Lock()
        return clone

    def __copy__(self) -> CountSketch:
        return self.copy()

    def __deepcopy__(self, memo: object) -> CountSketch:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CountSketch):
            return NotImplemented
        return (
            self.fingerprint == other.fingerprint
            and (self._n_seen, self._mass) == (other._n_seen, other._mass)
            and self._table.tobytes() == other._table.tobytes()
        )

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<CountSketch {self._signature()}: {self._n_seen} values>"

    def __reduce__(self) -> tuple[Any, ...]:
        return CountSketch.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/sketch-streams.md."""
        with self._lock:
            counts = (self._n_seen % 2**64, self._mass)
            return _wire.pack(_wire.COUNT_SKETCH, self._table, operator=self._operator.to_bytes(), counts=counts)

    @classmethod
    def from_bytes(cls, data: bytes) -> CountSketch:
        """The sketch of bytes made by `to_bytes`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        record = _wire.unpack(data, _wire.COUNT_SKETCH)
        op = SketchOperator.from_bytes(record.operator)
        seen, mass, *rest = record.counts
        name, depth = record.dtype.name, op.nnz
        if op.kind != "sparse_stack" or op.n_components % depth or name not in _DTYPES or record.flags or any(rest):
            raise ValueError(f"data: expected the operator of a CountSketch, got {op!r} and dtype {name}")
        table = _wire.array_of(record, (depth, op.n_components // depth))
        if name != "int64" and mass:
            raise ValueError(f"data: expected no mass for {name}, got {mass}")
        if name == "int64" and not (mass <= _LIMIT and -mass <= int(table.min()) and int(table.max()) <= mass):
            raise ValueError(f"data: expected counters of magnitude up to {mass}, below 2**63")
        self = object.__new__(cls)
        self._operator = op
        self._num_threads = None
        self._lock = threading.Lock()
        self._table = table
        self._n_seen = seen - 2**64 if seen >= 2**63 else seen
        self._mass = mass
        return self
