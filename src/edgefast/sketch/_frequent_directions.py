"""FrequentDirections: a deterministic sketch of the directions rows have in common."""

from __future__ import annotations

import math
import struct
import threading
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgefast.sketch import _wire
from edgefast.sketch._checks import integer, numeric, row_tiles
from edgefast.sketch.errors import IncompatibleSketchError

__all__ = ["FrequentDirections"]

_MAX_ROWS = 2**31 - 1
_TOO_LARGE = "X: expected numbers whose singular values {} holds, and their squares float64, got larger ones"


class FrequentDirections:
    """The l directions that matter most among any number of rows, with a bound that always holds.

    Keeps a matrix B of l = n_components rows. For every unit vector x and every k < l, with A all rows seen and A_k its
    best approximation of rank k:

        0 <= |A x|^2 - |B x|^2 <= error_bound_ <= |A - A_k|_F^2 / (l - k)

    and a merge of several sketches keeps it. No randomness, no centring: subtract a mean yourself when you want
    principal components. Rows are gathered in a buffer of buffer * l rows; when it is full, one singular value
    decomposition shrinks it to l: the squared singular values lose the largest one that is dropped. How rows are cut
    into calls never matters; the SVD is LAPACK's, so the last digits depend on the machine.

    Args:
        n_components: l, rows kept, at least 1.
        buffer: rows gathered before a decomposition, in multiples of l, at least 2: larger is faster and takes more
            memory.
        dtype: float32 or float64, of the state and of the arithmetic. The bound holds up to rounding.

    Attributes:
        n_features_in_: columns, known after the first `partial_fit`.
        n_seen_: rows seen, merged ones included.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        E. Liberty, "Simple and deterministic matrix sketching", KDD 2013; M. Ghashami, E. Liberty, J. Phillips and
        D. Woodruff, "Frequent directions: simple and deterministic matrix sketching", SIAM J. Comput. 45(5), 2016;
        L. Luo, C. Chen, Z. Zhang, W.-J. Li and T. Zhang, "Robust frequent directions with application in online
        learning", JMLR 20, 2019 (`gram(robust=True)`).

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import FrequentDirections
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 20))
        >>> fd = FrequentDirections(4).partial_fit(X)
        >>> fd.components_.shape, bool(np.allclose(fd.denoise(X), X))
        ((3, 20), True)
    """

    n_components: int
    buffer: int
    dtype: np.dtype[Any]
    n_features_in_: int
    n_seen_: int

    def __init__(self, n_components: int, *, buffer: int = 2, dtype: DTypeLike = np.float64) -> None:
        self.n_components = integer(n_components, "n_components", 1, _MAX_ROWS)
        self.buffer = integer(buffer, "buffer", 2, 2**16)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype: expected float32 or float64, got {self.dtype!s}")
        self.n_seen_ = 0
        self._rows: NDArray[Any] | None = None  # the buffer; its first `_filled` rows are in use
        self._filled = 0
        self._shed = 0.0
        self._final: tuple[NDArray[Any], NDArray[Any], float] | None = None
        self._lock = threading.RLock()

    # ---- adding rows ---------------------------------------------------------------------------------------------

    def partial_fit(self, X: Any, y: object = None) -> FrequentDirections:
        """Add rows. On an error nothing has been added.

        Args:
            X: shape (n, n_features), or (n_features,) for one row; a dtype that converts to the sketch's exactly.
            y: ignored.

        Raises:
            TypeError: X is no array or of a dtype that would be rounded.
            ValueError: another number of features, NaN or infinity, or numbers too large for the sketch's dtype:
                singular values, or their squares in float64, overflow.
        """
        rows = numeric(X, "X", self.dtype)
        if rows.ndim == 1:
            rows = rows[None, :]
        with self._lock:
            width = self.n_features_in_ if self._rows is not None else rows.shape[-1] if rows.ndim else 0
            if rows.ndim != 2 or rows.shape[1] != width or width == 0:
                raise ValueError(f"X: expected shape (n, {width or 'n_features'}), got {np.shape(X)}")
            for tile in row_tiles(*rows.shape):
                if not np.isfinite(rows[tile]).all():
                    raise ValueError("X: expected finite numbers, got NaN or infinity")
            self._start(width)
            self._append(rows)
            self.n_seen_ += rows.shape[0]
        return self

    def _start(self, width: int) -> None:
        if self._rows is None:
            self.n_features_in_ = width
            self._rows = np.zeros((0, width), self.dtype)

    def _append(self, rows: NDArray[Any], extra: float = 0.0) -> None:
        own, filled, lost = self._rows, self._filled, self._shed + extra
        assert own is not None
        room = self.buffer * self.n_components
        at = 0
        while at < rows.shape[0]:
            if filled == room:
                values, vectors, shed = _shrink(own[:room], self.n_components)
                filled = len(values)
                if own is self._rows:
                    own = own.copy()  # an error in a later decomposition leaves the sketch as it was
                own[:filled] = values[:, None] * vectors
                lost += shed
            count = min(room - filled, rows.shape[0] - at)
            if filled + count > len(own):
                # Grows with the data: a large buffer costs nothing before it is used.
                grown = min(room, max(2 * len(own), filled + count))
                own = np.concatenate([own, np.zeros((grown - len(own), own.shape[1]), self.dtype)])
            own[filled : filled + count] = rows[at : at + count]
            filled += count
            at += count
        if not math.isfinite(lost):
            raise ValueError(_TOO_LARGE.format(self.dtype))
        self._rows, self._filled, self._shed = own, filled, lost
        self._final = None

    def merge(self, other: FrequentDirections) -> FrequentDirections:
        """Add everything another sketch has seen, with the same bound for both together; `other` is not changed.

        Raises:
            TypeError: other is no FrequentDirections.
            IncompatibleSketchError: another n_components, dtype or number of features.
            ValueError: the numbers of both together are too large, as in partial_fit; nothing has been added.
        """
        if not isinstance(other, FrequentDirections):
            raise TypeError(f"other: expected a FrequentDirections, got {type(other).__name__}")
        other = other.copy()
        known = self._rows is not None and other._rows is not None
        same = (self.n_components, self.dtype) == (other.n_components, other.dtype)
        if not same or (known and self.n_features_in_ != other.n_features_in_):
            raise IncompatibleSketchError(f"other: expected {self._signature()}, got {other._signature()}")
        if other._rows is None:
            return self
        with self._lock:
            self._start(other.n_features_in_)
            self._append(other._rows[: other._filled], other._shed)
            self.n_seen_ += other.n_seen_
        return self

    def __iadd__(self, other: FrequentDirections) -> FrequentDirections:
        return self.merge(other)

    # ---- what it tells -------------------------------------------------------------------------------------------

    def _result(self) -> tuple[NDArray[Any], NDArray[Any], float]:
        with self._lock:
            if self._rows is None:
                raise ValueError("expected rows first, got none; call partial_fit")
            if self._final is None:
                values, vectors, shed = _shrink(self._rows[: self._filled], self.n_components)
                # Rounding noise of the decompositions is no direction.
                epsilon = float(np.finfo(self.dtype.type).eps)
                noise = epsilon * max(self._filled, self._rows.shape[1], self.n_components)
                kept = values > values.max(initial=0) * noise
                self._final = values[kept], vectors[kept], self._shed + shed
            return self._final

    @property
    def components_(self) -> NDArray[Any]:
        """Orthonormal directions, most important first: at most (n_components, n_features)."""
        return self._result()[1].copy()

    @property
    def singular_values_(self) -> NDArray[Any]:
        """Singular values of B, descending; B is singular_values_[:, None] * components_."""
        return self._result()[0].copy()

    @property
    def shed_mass_(self) -> float:
        """What the shrinking has taken off every squared singular value, added up."""
        return self._result()[2]

    @property
    def error_bound_(self) -> float:
        """Largest possible |A x|^2 - |B x|^2 over unit vectors x; it is never negative. Equals shed_mass_."""
        return self._result()[2]

    def gram(self, *, robust: bool = False) -> NDArray[Any]:
        """B.T @ B, which is A.T @ A minus something between 0 and error_bound_ times the identity.

        Args:
            robust: add half of error_bound_ to the diagonal, which halves the worst case: the error in any direction
                is then at most error_bound_ / 2, of either sign (robust, or compensative, frequent directions).
        """
        values, vectors, shed = self._result()
        b = values[:, None] * vectors
        gram = b.T @ b
        if robust:
            gram[np.diag_indices_from(gram)] += shed / 2
        return gram

    def transform(self, X: Any, *, n_components: int | None = None) -> NDArray[Any]:
        """Coordinates of rows in the leading components: (n, n_components).

        Args:
            X: (n, n_features), or (n_features,) for one row.
            n_components: how many to use; None for all there are.

        Raises:
            TypeError, ValueError: as partial_fit; ValueError before any rows.
        """
        basis = self._basis(n_components)
        return self._rows_of(X) @ basis.T

    def denoise(self, X: Any, *, n_components: int | None = None) -> NDArray[Any]:
        """Rows projected onto the leading components: white noise keeps n_components / n_features of its energy.

        Arguments, errors: as transform.
        """
        basis = self._basis(n_components)
        return self._rows_of(X) @ basis.T @ basis

    def _basis(self, n_components: int | None) -> NDArray[Any]:
        basis = self._result()[1]
        if n_components is None:
            return basis
        return basis[: integer(n_components, "n_components", 1, self.n_components)]

    def _rows_of(self, X: Any) -> NDArray[Any]:
        rows = numeric(X, "X", self.dtype)
        if rows.ndim not in (1, 2) or rows.shape[-1] != self.n_features_in_:
            raise ValueError(f"X: expected shape (n, {self.n_features_in_}), got {rows.shape}")
        return rows.astype(self.dtype, copy=False)

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def _signature(self) -> str:
        features = "none yet" if self._rows is None else self.n_features_in_
        return f"n_components={self.n_components}, dtype={self.dtype!s}, n_features={features}"

    def copy(self) -> FrequentDirections:
        """An independent sketch in the same state."""
        clone = object.__new__(FrequentDirections)
        with self._lock:
            clone.__dict__.update(self.__dict__)
            clone._rows = None if self._rows is None else self._rows.copy()
        clone._lock = threading.RLock()
        return clone

    def __copy__(self) -> FrequentDirections:
        return self.copy()

    def __deepcopy__(self, memo: object) -> FrequentDirections:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, FrequentDirections) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<FrequentDirections {self._signature()}: {self.n_seen_} rows>"

    def __reduce__(self) -> tuple[Any, ...]:
        return FrequentDirections.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/sketch-streams.md."""
        with self._lock:
            rows = np.zeros((0, 0), self.dtype) if self._rows is None else self._rows[: self._filled]
            (shed,) = struct.unpack("<Q", struct.pack("<d", self._shed))
            counts = (self.n_components, rows.shape[1], rows.shape[0], self.n_seen_, self.buffer, shed)
            return _wire.pack(_wire.FREQUENT_DIRECTIONS, rows, operator=bytes(24), counts=counts)

    @classmethod
    def from_bytes(cls, data: bytes) -> FrequentDirections:
        """The sketch of bytes made by `to_bytes`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        record = _wire.unpack(data, _wire.FREQUENT_DIRECTIONS)
        components, features, filled, seen, buffer, word = record.counts
        (shed,) = struct.unpack("<d", struct.pack("<Q", word))
        if record.dtype.kind != "f" or record.flags or any(record.operator):
            raise ValueError(f"data: expected float32 or float64 and no flags, got {record.dtype} and {record.flags}")
        try:
            self = cls(components, buffer=buffer, dtype=record.dtype.newbyteorder("="))
        except ValueError as error:
            raise ValueError(f"data: {error}") from None
        if filled > components * buffer or filled > seen or (features == 0 and seen):
            raise ValueError(f"data: expected at most {components * buffer} rows, got {filled} of {seen}")
        integer(features, "data: n_features", 0, 2**48)
        integer(seen, "data: n_seen", 0, 2**63 - 1)
        rows = _wire.array_of(record, (filled, features))
        if not (math.isfinite(shed) and shed >= 0) or not np.isfinite(rows).all():
            raise ValueError("data: expected finite rows and shed mass")
        if features:
            self._start(features)
            self._rows, self._filled = rows, filled
        self.n_seen_, self._shed = seen, shed
        return self


def _shrink(rows: NDArray[Any], n_components: int) -> tuple[NDArray[Any], NDArray[Any], float]:
    """At most n_components singular values and vectors of rows shrunk, and what each squared value lost."""
    if rows.shape[0] == 0:
        return np.zeros(0, rows.dtype), np.zeros((0, rows.shape[1]), rows.dtype), 0.0
    shed = 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        _, values, vectors = np.linalg.svd(rows, full_matrices=False)
        if len(values) > n_components:
            lost = values[n_components]
            shed = float(lost) * float(lost)
            # (a - b)(a + b) keeps the digits that a^2 - b^2 loses; the product of the roots does not overflow.
            values = np.sqrt(values[:n_components] - lost) * np.sqrt(values[:n_components] + lost)
            vectors = vectors[:n_components]
    # LAPACK may never return from rows that are not finite.
    if not (math.isfinite(shed) and np.isfinite(values).all()):
        raise ValueError(_TOO_LARGE.format(rows.dtype))
    return values, vectors, shed
