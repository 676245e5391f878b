"""RowSketch: B = S X of rows that never stop coming."""

from __future__ import annotations

import hashlib
import math
import threading
from typing import Any, ClassVar, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch import _wire
from edgefast.sketch._arrays import threads_for
from edgefast.sketch._checks import checked_csr, finite_number, integer, numeric, row_tiles, sum_exactly
from edgefast.sketch._operator import SketchOperator
from edgefast.sketch.errors import IncompatibleSketchError, SketchOverflowError

__all__ = ["RowSketch"]

_KINDS: Final = ("sparse_stack", "countsketch", "rademacher")
_N_ROWS: Final = 2**62  # columns of S
_STREAM_BITS: Final = 40
_MAX_STREAM: Final = (_N_ROWS >> _STREAM_BITS) - 1
_MAX_ROWS: Final = 1 << _STREAM_BITS
_DTYPES: Final = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64), "int64": np.dtype(np.int64)}
_LIMIT: Final = 2**63 - 1

Accumulate = Literal["float32", "float64", "int64"]


class RowSketch:
    """Compress rows: B = S X with far fewer rows than X, in constant memory, from any number of devices.

    S is one random matrix for everybody, with `size` rows and 2**62 columns, of which each row of data uses one: row
    number `counter` of device `stream` uses column stream * 2**40 + counter. Devices with different streams therefore
    sketch disjoint rows of one stacked matrix, and the sum of their sketches is the sketch of the whole. B keeps
    what least squares, covariances and leading singular vectors of X need: B.T @ B is close to X.T @ X.

    In "float32" and "float64" cutting the rows into calls never changes a bit, and a merge adds one rounding per
    number. In "int64" numbers become multiples of 2**-fraction_bits (one rounding each, half to even), and everything
    after that is exact: however rows are spread over sketches, the merged one is the same bit for bit.

    Args:
        n_columns: columns of the data.
        size: rows of B; a few times n_columns, see docs/sketch-streams.md.
        kind: "sparse_stack" (nnz additions per number), "countsketch" (one) or "rademacher" (`size`). "srht" and
            "rotation" transform a fixed number of rows together and have no columns for rows without an end;
            "gaussian" is no better than "rademacher" here, and "sparse" would leave rows out.
        nnz: entries per column of S for "sparse_stack"; at most `size` counts.
        seed: 0 to 2**64 - 1, the same for all devices.
        stream: this device's number, 0 to 2**22 - 1; no two devices share one.
        accumulate: number type of B: "float32", "float64" or "int64".
        fraction_bits: for "int64": numbers are rounded to multiples of 2**-fraction_bits, 0 to 62.
        num_threads: threads to use at most; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        K. Clarkson and D. Woodruff, "Low-rank approximation and regression in input sparsity time", JACM 63(6), 2017;
        J. Nelson and H. Nguyen, "OSNAP: faster numerical linear algebra algorithms via sparser subspace embeddings",
        FOCS 2013.

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import RowSketch
        >>> X = np.random.default_rng(0).standard_normal((1000, 4))
        >>> one = RowSketch(4, 64, stream=0).update(X[:600])
        >>> two = RowSketch(4, 64, stream=1).update(X[600:])
        >>> one += RowSketch.from_bytes(two.to_bytes())
        >>> one.n_seen, one.toarray().shape
        (1000, (64, 4))
    """

    def __init__(
        self,
        n_columns: int,
        size: int,
        *,
        kind: str = "sparse_stack",
        nnz: int = 8,
        seed: int = 0,
        stream: int = 0,
        accumulate: Accumulate = "float64",
        fraction_bits: int = 24,
        num_threads: int | None = None,
    ) -> None:
        self._n_columns = integer(n_columns, "n_columns", 1, 2**31 - 1)
        if isinstance(kind, str) and kind in streams.KIND_NUMBERS and kind not in _KINDS:
            raise ValueError(
                f"kind: expected one of {', '.join(map(repr, _KINDS))} for rows without an end, got {kind!r}"
            )
        self._operator = SketchOperator(kind, _N_ROWS, integer(size, "size", 1, 2**31 - 1), seed=seed, nnz=nnz)
        if accumulate not in _DTYPES:
            raise ValueError(f"accumulate: expected one of {', '.join(map(repr, _DTYPES))}, got {accumulate!r}")
        self._stream = integer(stream, "stream", 0, _MAX_STREAM)
        bits = integer(fraction_bits, "fraction_bits", 0, 62)
        self._fraction_bits = bits if accumulate == "int64" else 0
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._sums = np.zeros((self._operator.n_components, self._n_columns), _DTYPES[accumulate])
        self._low = self._next = 0  # row numbers of the own stream in use: [low, next)
        self._n_seen = 0
        self._mass = 0  # int64: no sum can exceed it in magnitude

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def operator(self) -> SketchOperator:
        """S: `size` components, 2**62 features, one for every row number of every stream."""
        return self._operator

    @property
    def n_columns(self) -> int:
        """Columns of the data."""
        return self._n_columns

    @property
    def size(self) -> int:
        """Rows of B."""
        return self._operator.n_components

    @property
    def stream(self) -> int:
        """The device's number."""
        return self._stream

    @property
    def accumulate(self) -> str:
        """ "float32", "float64" or "int64"."""
        return self._sums.dtype.name

    @property
    def fraction_bits(self) -> int:
        """Binary digits after the point of the numbers in "int64"; 0 otherwise."""
        return self._fraction_bits

    @property
    def n_seen(self) -> int:
        """Rows sketched, those of merged sketches included, those of subtracted ones taken off."""
        return self._n_seen

    @property
    def next_row(self) -> int:
        """The row number `update` continues from."""
        return self._next

    @property
    def sums(self) -> NDArray[Any]:
        """The unscaled sums, (size, n_columns): a read-only view of the state."""
        view = self._sums.view()
        view.flags.writeable = False
        return view

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._sums.nbytes

    @property
    def fingerprint(self) -> int:
        """64 bits that name what two sketches need in common to be added."""
        words = (self._n_columns, _wire._CODES[self._sums.dtype], self._fraction_bits)
        text = self._operator.to_bytes() + b"".join(w.to_bytes(8, "little") for w in words)
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    # ---- adding rows ---------------------------------------------------------------------------------------------

    def update(self, X: Any, *, row_start: int | None = None) -> RowSketch:
        """Add rows. On an error nothing has been added.

        Args:
            X: shape (n, n_columns), or (n_columns,) for one row; any strides. Dtypes that convert to the accumulator
                exactly, or, for "int64", any that converts to float64 exactly. SciPy sparse matrices are expanded a
                tile of rows at a time.
            row_start: number of the first row within the stream; None continues after the highest one so far. A row
                number must not be used twice.

        Returns:
            The sketch itself.

        Raises:
            TypeError: X is no array or of a dtype that would be rounded.
            ValueError: X has another number of columns, contains NaN or infinity, or is a malformed sparse matrix; row
                numbers beyond 2**40.
            SketchOverflowError: "int64": a number, or possibly a sum, does not fit.
        """
        exact = self._sums.dtype.kind == "i"
        real = _DTYPES["float64"] if exact else self._sums.dtype
        sparse = hasattr(X, "tocsr")
        rows = checked_csr(X, "X", real) if sparse else numeric(X, "X", real)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self._n_columns:
            raise ValueError(f"X: expected shape (n, {self._n_columns}) or ({self._n_columns},), got {rows.shape}")
        if rows.ndim == 1:
            rows = rows[None, :]
        n = rows.shape[0]
        start = None if row_start is None else integer(row_start, "row_start", 0, _MAX_ROWS)
        with self._lock:
            first = self._next if start is None else start
            if first + n > _MAX_ROWS:
                raise ValueError(f"row_start: expected row numbers below 2**40, got {first} and {n} rows")
            if n == 0:
                return self
            if exact:
                self._add_exact(rows, sparse, first)
            else:
                self._add_float(rows, sparse, first)
            self._low = first if self._low == self._next else min(self._low, first)
            self._next = max(self._next, first + n)
            self._n_seen += n
        return self

    def _add(self, part: NDArray[Any], row: int) -> None:
        op = self._operator
        threads = threads_for(part.size * op.nnz, 1 << 20, self._num_threads)
        number = streams.KIND_NUMBERS[op.kind]
        backends.kernels().row_sketch_add(
            part, number, op.seed, op.nnz, (self._stream << _STREAM_BITS) + row, self._sums, threads
        )

    def _add_float(self, rows: Any, sparse: bool, first: int) -> None:
        direct = not sparse and rows.dtype in (self._sums.dtype, np.float32)
        tiles = [slice(0, rows.shape[0])] if direct else list(row_tiles(*rows.shape))
        # Few rows are looked at before they are added. Many are added first: what is not finite stays visible in the
        # sums, and looking there reads less.
        many = rows.shape[0] >= 4 * self.size
        if not many and not _all_finite(rows.data if sparse else rows):
            raise ValueError("X: expected finite numbers, got NaN or infinity")
        before = self._sums.copy() if many else None
        for tile in tiles:
            part = rows[tile]
            if not direct:
                part = (part.toarray() if sparse else part).astype(self._sums.dtype)
            self._add(part, first + tile.start)
        if before is not None and not _all_finite(self._sums) and not _all_finite(rows.data if sparse else rows):
            self._sums = before
            raise ValueError("X: expected finite numbers, got NaN or infinity")

    def _add_exact(self, rows: Any, sparse: bool, first: int) -> None:
        # Tile by tile, each while it is cached; an error in a later one takes all of them back.
        tiles = list(row_tiles(*rows.shape))
        mass, before = self._mass, self._sums.copy() if len(tiles) > 1 else None
        scaled = np.empty((tiles[0].stop, self._n_columns))
        integers = np.empty(scaled.shape, np.int64)
        try:
            for tile in tiles:
                part, units = scaled[: tile.stop - tile.start], integers[: tile.stop - tile.start]
                source = rows[tile].toarray() if sparse else rows[tile]
                with np.errstate(over="ignore"):  # reported below
                    np.multiply(source, 2.0**self._fraction_bits, out=part, dtype=np.float64)
                np.rint(part, out=part)
                largest = np.maximum(part.max(axis=1), -part.min(axis=1))
                if not (largest <= 2.0**62).all():
                    raise self._unfit(source)
                mass += sum_exactly(largest.astype(np.int64))
                if mass > _LIMIT:
                    raise SketchOverflowError(
                        f"X: expected the largest magnitudes of all rows, in units of 2**-{self._fraction_bits}, to "
                        f"add up to less than 2**63, got {mass}; use fewer fraction_bits or smaller numbers"
                    )
                np.copyto(units, part, casting="unsafe")
                self._add(units, first + tile.start)
        except BaseException:
            if before is not None:
                self._sums = before
            raise
        self._mass = mass

    def _unfit(self, rows: NDArray[Any]) -> ValueError:
        if not _all_finite(rows):
            return ValueError("X: expected finite numbers, got NaN or infinity")
        return SketchOverflowError(
            f"X: expected magnitudes up to 2**{62 - self._fraction_bits} with fraction_bits={self._fraction_bits}, "
            f"got {max(float(rows.max()), -float(rows.min())):g}"
        )

    # ---- arithmetic ----------------------------------------------------------------------------------------------

    def _check(self, other: Any) -> None:
        if not isinstance(other, RowSketch):
            raise TypeError(f"other: expected a RowSketch, got {type(other).__name__}")
        if self.fingerprint != other.fingerprint:
            raise IncompatibleSketchError(f"other: expected {self._signature()}, got {other._signature()}")

    def _signature(self) -> str:
        bits = f", fraction_bits={self._fraction_bits}" if self._sums.dtype.kind == "i" else ""
        op = self._operator
        nnz = f", nnz={op.nnz}" if op.kind == "sparse_stack" else ""
        return (
            f"n_columns={self._n_columns}, size={self.size}, kind={op.kind!r}{nnz}, seed={op.seed}, "
            f"accumulate={self.accumulate!r}{bits}"
        )

    def merge(self, other: RowSketch, *, same_rows: bool = False) -> RowSketch:
        """Add another sketch: B becomes the sketch of both sets of rows. `other` is not changed.

        Args:
            other: a sketch with the same operator, columns and accumulator.
            same_rows: allow both to have used the same row numbers of the same stream; their rows are then added up,
                S (X1 + X2), not stacked.

        Returns:
            The sketch itself.

        Raises:
            TypeError: other is no RowSketch.
            IncompatibleSketchError: the fingerprints differ, or both used the same row numbers of one stream.
            SketchOverflowError: "int64": a sum might not fit.
        """
        return self._combine(other, 1, same_rows)

    def _combine(self, other: RowSketch, sign: int, same_rows: bool) -> RowSketch:
        self._check(other)
        other = other.copy()
        with self._lock:
            used = self._low < self._next and other._low < other._next and self._stream == other._stream
            if not same_rows and used and other._low < self._next and self._low < other._next:
                raise IncompatibleSketchError(
                    f"other: expected rows of another stream or other row numbers, got rows {other._low} to "
                    f"{other._next - 1} of stream {other._stream} twice; give every device its own stream="
                )
            mass = self._mass + other._mass
            if mass > _LIMIT:
                raise SketchOverflowError(f"other: expected sums below 2**63, got up to {mass}")
            with np.errstate(all="ignore"):
                if sign > 0:
                    self._sums += other._sums
                else:
                    self._sums -= other._sums
            self._mass = mass
            self._n_seen += sign * other._n_seen
            if sign > 0 and self._stream == other._stream and other._low < other._next:
                # A sketch without rows of its own takes over those of its stream: they count as used.
                self._low = min(self._low, other._low) if used else other._low
                self._next = max(self._next, other._next)
        return self

    def __iadd__(self, other: RowSketch) -> RowSketch:
        return self.merge(other)

    def __isub__(self, other: RowSketch) -> RowSketch:
        """Take another sketch off: of rows merged before, or to compare two data sets."""
        return self._combine(other, -1, True)

    def __imul__(self, weight: float) -> RowSketch:
        """Weight all rows so far: an integer for "int64", else any finite number of the accumulator's type."""
        if self._sums.dtype.kind == "i":
            factor = integer(weight, "weight", -_LIMIT, _LIMIT)
            with self._lock:
                mass = self._mass * abs(factor)
                if mass > _LIMIT:
                    raise SketchOverflowError(f"weight: expected sums below 2**63, got up to {mass}")
                # Without any sum the factor is of no consequence, however large.
                self._sums *= np.int64(factor)
                self._mass = mass
            return self
        number = finite_number(weight, "weight", self._sums.dtype)
        with self._lock, np.errstate(all="ignore"):
            self._sums *= self._sums.dtype.type(number)
        return self

    # ---- what it tells -------------------------------------------------------------------------------------------

    def toarray(self) -> NDArray[Any]:
        """B = S X, scale included: (size, n_columns), float32 for accumulate="float32", else float64."""
        scale = self._operator.scale
        with np.errstate(all="ignore"):
            if self._sums.dtype.kind == "i":
                return self._sums * (scale * 2.0**-self._fraction_bits)
            return self._sums * self._sums.dtype.type(scale)

    def gram(self) -> NDArray[np.float64]:
        """B.T @ B, an unbiased estimate of X.T @ X: (n_columns, n_columns) in float64."""
        b = self.toarray().astype(np.float64, copy=False)
        return cast("NDArray[np.float64]", b.T @ b)

    def lstsq(self, target: int = -1) -> NDArray[np.float64]:
        """Coefficients of the least-squares fit of one column by all others, from the sketch alone.

        With size well above n_columns the residual is within a factor 1 + O(n_columns / size) of the best.

        Args:
            target: the column to fit; negative ones count from the end.

        Returns:
            n_columns - 1 coefficients, float64, in the order of the remaining columns.

        Raises:
            TypeError: target is no integer.
            ValueError: no such column, or no other one.
            numpy.linalg.LinAlgError: the sums have overflowed.
        """
        c = self._n_columns
        if c < 2:
            raise ValueError("target: expected a sketch of at least two columns, got one")
        column = integer(target, "target", -c, c - 1) % c
        b = self.toarray().astype(np.float64, copy=False)
        fit = np.linalg.lstsq(np.delete(b, column, axis=1), b[:, column], rcond=None)[0]
        return fit.astype(np.float64, copy=False)

    def svd(self, k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Leading singular values and right singular vectors of B, which approximate those of X.

        Args:
            k: how many, at most min(size, n_columns).

        Returns:
            Singular values (k,), descending, and vectors (k, n_columns), each with its largest entry positive.

        Raises:
            TypeError, ValueError: k is no integer or out of range.
            numpy.linalg.LinAlgError: the sums have overflowed.
        """
        count = integer(k, "k", 1, min(self.size, self._n_columns))
        _, values, vectors = np.linalg.svd(self.toarray().astype(np.float64, copy=False), full_matrices=False)
        vectors = vectors[:count]
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], axis=1)
        return values[:count], vectors * np.where(largest < 0, -1.0, 1.0)

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def copy(self) -> RowSketch:
        """An independent sketch in the same state."""
        clone = object.__new__(RowSketch)
        with self._lock:
            clone.__dict__.update(self.__dict__)
            clone._sums = self._sums.copy()
        clone._lock = threading.Lock()
        return clone

    def __copy__(self) -> RowSketch:
        return self.copy()

    def __deepcopy__(self, memo: object) -> RowSketch:
        return self.copy()

    def _state(self) -> tuple[Any, ...]:
        return self._stream, self._low, self._next, self._n_seen, self._mass

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowSketch):
            return NotImplemented
        return (
            self.fingerprint == other.fingerprint
            and self._state() == other._state()
            and self._sums.tobytes() == other._sums.tobytes()
        )

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<RowSketch {self._signature()}, stream={self._stream}: {self._n_seen} rows>"

    def __reduce__(self) -> tuple[Any, ...]:
        return RowSketch.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/sketch-streams.md."""
        with self._lock:
            counts = (self._n_columns, self._stream, self._low, self._next, self._n_seen % 2**64, self._mass)
            return _wire.pack(
                _wire.ROW_SKETCH,
                self._sums,
                operator=self._operator.to_bytes(),
                counts=counts,
                flags=self._fraction_bits,
            )

    @classmethod
    def from_bytes(cls, data: bytes) -> RowSketch:
        """The sketch of bytes made by `to_bytes`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        record = _wire.unpack(data, _wire.ROW_SKETCH)
        op = SketchOperator.from_bytes(record.operator)
        columns, stream, low, following, seen, mass = record.counts
        name = record.dtype.name
        if op.kind not in _KINDS or op.n_features != _N_ROWS or name not in _DTYPES:
            raise ValueError(f"data: expected the operator of a RowSketch, got {op!r} and dtype {name}")
        if (record.flags and name != "int64") or not low <= following <= _MAX_ROWS:
            raise ValueError(f"data: expected fraction bits of int64 and ordered rows, got {record.flags} and {low}")
        integer(columns, "data: n_columns", 1, 2**31 - 1)
        sums = _wire.array_of(record, (op.n_components, columns))
        if name != "int64" and mass:
            raise ValueError(f"data: expected no mass for {name}, got {mass}")
        if name == "int64" and not (mass <= _LIMIT and -mass <= int(sums.min()) and int(sums.max()) <= mass):
            raise ValueError(f"data: expected sums of magnitude up to {mass}, below 2**63")
        self = object.__new__(cls)
        self._n_columns = columns
        self._operator = op
        self._stream = integer(stream, "data: stream", 0, _MAX_STREAM)
        self._fraction_bits = integer(record.flags, "data: fraction_bits", 0, 62)
        self._num_threads = None
        self._lock = threading.Lock()
        self._sums = sums
        self._low, self._next = low, following
        self._n_seen = seen - 2**64 if seen >= 2**63 else seen
        self._mass = mass
        return self


def _all_finite(x: NDArray[Any]) -> bool:
    if x.dtype.kind != "f" or math.prod(x.shape) == 0:
        return True
    if x.ndim == 1:
        return bool(np.isfinite(x).all())
    return all(bool(np.isfinite(x[tile]).all()) for tile in row_tiles(*x.shape))
