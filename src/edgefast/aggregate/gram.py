"""GramAccumulator: the geometry of K updates whose parts come one after the other."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate._batch import Batch, check_count
from edgefast.aggregate._policy import Ints
from edgefast.aggregate._wire import Format
from edgefast.aggregate.errors import StructureMismatch
from edgefast.backends.table import Array

__all__ = ["GramAccumulator"]

# magic, version, K, coordinates; then two K x K matrices and the CRC-32
_FORMAT: Final = Format("accumulator", b"EFGR", (1,), struct.Struct("<4sHxxQQ"))


class GramAccumulator:
    """Squared distances and Gram matrix of K updates, from their parts: layers, files, or shares of the coordinates.

    Holds 16 K^2 bytes whatever the size of the models: Krum, NNM and the geometric median of models that never are in
    memory as a whole, or that lie in pieces on several machines. Parts may come in any order and be merged; sums over
    parts are rounded once per part, so other orders may differ in the last bits.

    Args:
        n_updates: K.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import GramAccumulator, krum_scores
        >>> acc = GramAccumulator(5)
        >>> for layer in range(2):
        ...     acc.add([np.full(10, x + layer) for x in (1.0, 1.1, 1.2, 1.4, 99.0)])
        >>> int(krum_scores(acc.sq_distances(), f=1).argmin())
        1
    """

    def __init__(self, n_updates: int) -> None:
        self._count = check_count(n_updates, "n_updates", 1)
        self._lock = threading.Lock()
        self._size = 0
        self._distances = np.zeros((self._count, self._count))
        self._products = np.zeros((self._count, self._count))

    @property
    def n_updates(self) -> int:
        """K."""
        return self._count

    @property
    def size(self) -> int:
        """Coordinates seen so far."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of the accumulated state."""
        return self._distances.nbytes + self._products.nbytes

    def add(
        self,
        parts: Sequence[Any] | Array,
        *,
        ints: Ints = "round",
        nonfinite: Literal["raise", "propagate"] = "raise",
        num_threads: int | None = None,
    ) -> None:
        """Add coordinates: the same part of every update, in the order of the updates. On an error nothing is added.

        Args:
            parts: K of anything weighted_mean takes as updates.
            ints, nonfinite, num_threads: as in pairwise_sq_distances.

        Raises:
            StructureMismatch: not K parts; and what pairwise_sq_distances raises.
        """
        batch = Batch(
            parts,
            "GramAccumulator",
            ints=ints,
            nonfinite=nonfinite,
            num_threads=num_threads,
            policies=("raise", "propagate"),
        )
        if batch.count != self._count:
            raise StructureMismatch.of("parts", None, f"{self._count} parts, one per update", batch.count)
        distances, products = np.zeros_like(self._distances), np.zeros_like(self._products)

        def compute() -> tuple[None, bool]:
            backends.kernels().pair_sums(batch.rows, distances, products, batch.threads)
            return None, not bool(np.isfinite(distances).all())

        batch.screened(lambda: None, compute)
        with self._lock, np.errstate(invalid="ignore"):
            self._add_up(distances, products, sum(a.size for a in batch.rows[0]))

    def _add_up(self, distances: Array, products: Array, size: int) -> None:
        """Add to the sums, all of it or, after Ctrl-C, nothing."""
        sums = self._distances + distances, self._products + products
        (self._distances, self._products), self._size = sums, self._size + size

    def merge(self, other: GramAccumulator) -> None:
        """Add the coordinates another accumulator of the same K updates has seen; `other` is not changed.

        Raises:
            TypeError: other is no GramAccumulator.
            StructureMismatch: it is about another number of updates.
        """
        if not isinstance(other, GramAccumulator):
            raise TypeError(f"other: expected a GramAccumulator, got {type(other).__name__}")
        if other._count != self._count:
            raise StructureMismatch.of("other", None, f"{self._count} updates", other._count)
        seen = other.copy()
        with self._lock, np.errstate(invalid="ignore"):
            self._add_up(seen._distances, seen._products, seen._size)

    def __iadd__(self, other: GramAccumulator) -> GramAccumulator:
        self.merge(other)
        return self

    def sq_distances(self) -> NDArray[np.float64]:
        """Squared distances so far, (K, K): see pairwise_sq_distances; input of krum_scores."""
        with self._lock:
            return self._distances.copy()

    def gram(self) -> NDArray[np.float64]:
        """Inner products around the coordinate-wise median so far, (K, K): input of weiszfeld_weights."""
        with self._lock:
            return self._products.copy()

    # ---- value semantics and wire form -------------------------------------------------------------------------

    def copy(self) -> GramAccumulator:
        """An independent accumulator in the same state."""
        other = GramAccumulator(self._count)
        with self._lock:
            other._size = self._size
            other._distances, other._products = self._distances.copy(), self._products.copy()
        return other

    __copy__ = copy

    def __deepcopy__(self, memo: object) -> GramAccumulator:
        return self.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return GramAccumulator.from_bytes, (self.to_bytes(),)

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GramAccumulator) and self.to_bytes() == other.to_bytes()

    def __repr__(self) -> str:
        return f"<GramAccumulator of {self._count} updates: {self._size} coordinates>"

    def to_bytes(self) -> bytes:
        """The whole state, little-endian, with a CRC-32; see docs/robust.md for the layout."""
        with self._lock:
            matrices = [self._distances.astype("<f8").tobytes(), self._products.astype("<f8").tobytes()]
            return _FORMAT.seal(1, (self._count, self._size), matrices)

    @classmethod
    def from_bytes(cls, data: bytes) -> GramAccumulator:
        """The accumulator of bytes made by `to_bytes`.

        Raises:
            TypeError: data is not bytes-like.
            ValueError: the bytes are damaged, truncated, of an unknown version, or of the wrong length.
        """
        _, (count, size), body = _FORMAT.open(data)
        if count == 0 or len(body) != 16 * count * count:
            raise ValueError(f"accumulator: expected the matrices of {count} updates, got {len(body)} bytes")
        matrices = np.frombuffer(body, "<f8").reshape(2, count, count).astype(np.float64)
        self = cls(count)
        self._size = size
        self._distances, self._products = matrices[0].copy(), matrices[1].copy()
        return self
