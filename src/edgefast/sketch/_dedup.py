"""DedupFilter: drop rows that nearly repeat a recent one."""

from __future__ import annotations

import struct
import threading
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch import _wire
from edgefast.sketch._checks import integer
from edgefast.sketch._simhash import SimHash, hamming_codes

__all__ = ["DedupFilter"]

_OPERATOR: Final = struct.Struct("<BBBBIQQ")  # as SketchOperator's, for n_bits of any number
_NAMES: Final = {streams.KIND_NUMBERS[kind]: kind for kind in ("srht", "sparse_stack")}
_MAX_WINDOW: Final = 2**24
_STEP: Final = 1 << 12  # rows filtered at a time


class DedupFilter:
    """Keep a row only when none of the last `window` kept rows is nearly the same, in constant memory.

    Rows are hashed by SimHash; two rows are near-duplicates when their codes differ in at most max_hamming of n_bits
    bits, which is an angle of about pi * max_hamming / n_bits. Length is ignored: a row and its multiples are
    duplicates. One pass, row by row: how a stream is cut into calls never matters, nor does the machine.

    Args:
        n_bits: bits of a code, 1 to 65528.
        max_hamming: largest distance of duplicates, 0 to n_bits.
        window: kept rows remembered, at most 2**24; the oldest is forgotten first.
        kind, seed: of the SimHash.
        num_threads: threads for hashing; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        G. Manku, A. Jain and A. Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007.

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import DedupFilter
        >>> rows = np.random.default_rng(0).standard_normal((4, 64))
        >>> DedupFilter().add(np.concatenate([rows, 1.001 * rows[:2]])).tolist()
        [True, True, True, True, False, False]
    """

    def __init__(
        self,
        n_bits: int = 256,
        max_hamming: int = 8,
        window: int = 1024,
        *,
        kind: Literal["srht", "sparse_stack"] = "srht",
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self._hash = SimHash(n_bits, kind=kind, seed=seed, num_threads=num_threads)
        self._max_hamming = integer(max_hamming, "max_hamming", 0, self._hash.n_bits)
        self._window = integer(window, "window", 1, _MAX_WINDOW)
        self._n_features = 0  # 0: not known yet
        self._ring = np.zeros((-(-self._hash.n_bytes // 8), 8), np.uint64)  # word w of slot s; grows up to the window
        self._filled = self._next = 0
        self._n_seen = self._n_kept = 0
        self._lock = threading.Lock()

    # ---- what it is ----------------------------------------------------------------------------------------------

    @property
    def simhash(self) -> SimHash:
        """What hashes the rows."""
        return self._hash

    @property
    def max_hamming(self) -> int:
        """Largest distance of duplicates."""
        return self._max_hamming

    @property
    def window(self) -> int:
        """Kept rows remembered at most."""
        return self._window

    @property
    def n_features(self) -> int | None:
        """Numbers in a row, known after the first `add`."""
        return self._n_features or None

    @property
    def n_seen(self) -> int:
        """Rows looked at."""
        return self._n_seen

    @property
    def n_kept(self) -> int:
        """Rows kept."""
        return self._n_kept

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return self._ring.nbytes

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Codes of the rows remembered, oldest first: (at most window, n_bytes)."""
        with self._lock:
            slots = (np.arange(self._filled) + (self._next if self._filled == self._window else 0)) % self._window
            words = np.ascontiguousarray(self._ring[:, slots].T)
        return words.astype("<u8", copy=False).view(np.uint8)[:, : self._hash.n_bytes]

    # ---- filtering -----------------------------------------------------------------------------------------------

    def add(self, X: Any) -> NDArray[np.bool_]:
        """Which rows to keep. On an error nothing has been added.

        Args:
            X: (n, n_features), or (n_features,) for one row; dtypes as SimHash.transform.

        Returns:
            bool (n,), or an array of shape () for one row: False for near-duplicates of a kept row, of the same call
            too.

        Raises:
            TypeError, ValueError: as SimHash.transform, or another number of features than before.
        """
        width = np.shape(X)[-1] if np.ndim(X) else 0
        self._check_width(width)
        codes = self._hash.transform(X)
        with self._lock:
            self._check_width(width)  # again: another thread may have been the first
            self._n_features = width
        return self.add_codes(codes)

    def _check_width(self, width: int) -> None:
        if self._n_features and width and width != self._n_features:
            raise ValueError(f"X: expected {self._n_features} features as before, got {width}")

    def add_codes(self, codes: Any) -> NDArray[np.bool_]:
        """`add` for rows hashed already by `simhash`: uint8 (n, n_bytes), or (n_bytes,) for one."""
        rows = hamming_codes(codes, "codes", self._hash.n_bytes)
        spare = -self._hash.n_bits % 8
        if spare and (rows[:, -1] >> (8 - spare)).any():
            raise ValueError(f"codes: expected the {spare} spare bits of the last byte to be 0")
        keep = np.empty(len(rows), np.bool_)
        kernels = backends.kernels()
        with self._lock:
            for begin in range(0, len(rows), _STEP):
                part = slice(begin, begin + _STEP)
                self._reserve(min(self._window, self._filled + len(rows[part])))
                self._filled, self._next = kernels.hamming_filter(
                    rows[part], self._max_hamming, self._window, self._filled, self._next, self._ring, keep[part]
                )
            self._n_seen += len(rows)
            self._n_kept += int(np.count_nonzero(keep))
        return keep.reshape(np.shape(codes)[:-1])

    def _reserve(self, slots: int) -> None:
        words, capacity = self._ring.shape
        if slots > capacity:
            # The ring grows before it has wrapped around for the first time, so that slots keep their places.
            grown = np.zeros((words, -(-min(self._window, max(slots, 2 * capacity)) // 8) * 8), np.uint64)
            grown[:, : self._filled] = self._ring[:, : self._filled]
            self._ring = grown

    # ---- value semantics and wire form ---------------------------------------------------------------------------

    def copy(self) -> DedupFilter:
        """An independent filter in the same state."""
        clone = object.__new__(DedupFilter)
        with self._lock:
            clone.__dict__.update(self.__dict__)
            clone._ring = self._ring.copy()
        clone._lock = threading.Lock()
        return clone

    def __copy__(self) -> DedupFilter:
        return self.copy()

    def __deepcopy__(self, memo: object) -> DedupFilter:
        return self.copy()

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, DedupFilter) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<DedupFilter n_bits={self._hash.n_bits}, max_hamming={self._max_hamming}, window={self._window}, "
            f"kind={self._hash.kind!r}, seed={self._hash.seed}: {self._n_kept} of {self._n_seen} rows kept>"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return DedupFilter.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The whole state, versioned, little-endian, with a checksum; layout in docs/sketch-streams.md."""
        codes = self.codes
        h = self._hash
        number = streams.KIND_NUMBERS[h.kind]
        operator = _OPERATOR.pack(1, number, 0, 0, h.n_bits, self._n_features, h.seed)
        counts = (self._max_hamming, self._window, len(codes), self._n_seen, self._n_kept)
        return _wire.pack(_wire.DEDUP_FILTER, codes, operator=operator, counts=counts)

    @classmethod
    def from_bytes(cls, data: bytes) -> DedupFilter:
        """The filter of bytes made by `to_bytes`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or contradict themselves.
        """
        record = _wire.unpack(data, _wire.DEDUP_FILTER)
        version, number, nnz, flags, n_bits, features, seed = _OPERATOR.unpack(record.operator)
        max_hamming, window, filled, seen, kept, spare = record.counts
        if (version, nnz, flags, record.flags, spare) != (1, 0, 0, 0, 0) or number not in _NAMES:
            raise ValueError("data: expected the operator of a DedupFilter")
        if record.dtype != np.uint8 or filled != min(kept, window) or kept > seen or features > 2**62:
            raise ValueError(f"data: expected the codes of {min(kept, window)} rows, got {filled}")
        integer(n_bits, "data: n_bits", 1, 65528)
        integer(seen, "data: n_seen", 0, 2**63 - 1)
        codes = _wire.array_of(record, (filled, -(-n_bits // 8)))
        try:
            self = cls(n_bits, max_hamming, window, kind=_NAMES[number], seed=seed)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"data: {error}") from None
        padded = np.zeros((filled, self._ring.shape[0] * 8), np.uint8)
        padded[:, : codes.shape[1]] = codes
        if n_bits % 8 and filled and (codes[:, -1] >> (n_bits % 8)).any():
            raise ValueError("data: expected spare bits of the codes to be 0")
        self._reserve(filled)
        self._ring[:, :filled] = padded.view("<u8").astype(np.uint64).T
        self._n_features, self._n_seen, self._n_kept = features, seen, kept
        self._filled, self._next = filled, filled % window
        return self
