"""SimHash: codes whose Hamming distance measures angles."""

from __future__ import annotations

import math
from typing import Any, Final, Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._arrays import threads_for
from edgefast.sketch._checks import integer, numeric
from edgefast.sketch._inputs import all_finite
from edgefast.sketch._operator import SketchOperator

__all__ = ["SimHash", "hamming_codes"]

_KINDS: Final = ("srht", "sparse_stack")
_MAX_BITS: Final = 65535 // 8 * 8  # distances fit 16 bits
_TILE: Final = 1 << 19  # projected numbers held at a time
_SEED_STEP: Final = 0x9E3779B97F4A7C15  # of the blocks of a code longer than a Hadamard transform
_MATCHES: Final = 1 << 12  # of one query, found at a time


class SimHash:
    """Binary codes of vectors: two codes differ in a share theta / pi of their bits, theta being the vectors' angle.

    Bit b of a code is 1 when component b of a random projection is >= 0 (so both zeros give 1). Codes are bytes, bit b
    being bit b % 8 of byte b // 8 (numpy's bitorder="little"); spare bits of the last byte are 0. The same bytes on
    every machine, backend and SIMD level.

    Args:
        n_bits: 1 to 65528.
        kind: "srht" or "sparse_stack", the projection: kinds whose output bytes are the same everywhere. A code longer
            than the padded length p of an srht is made of blocks of p bits; block i has seed + i * 0x9E3779B97F4A7C15
            modulo 2**64.
        seed: 0 to 2**64 - 1.
        num_threads: threads to use at most; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        M. Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002; M. Goemans and
        D. Williamson, JACM 42(6), 1995, for the collision probability.

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import SimHash
        >>> hash = SimHash(256)
        >>> codes = hash.transform(np.eye(2, 64, dtype=np.float32) + 0.5)
        >>> codes.shape, codes.dtype
        ((2, 32), dtype('uint8'))
        >>> int(hash.hamming(codes, codes)[0, 0])
        0
    """

    __slots__ = ("_kind", "_n_bits", "_num_threads", "_seed")

    def __init__(
        self,
        n_bits: int = 256,
        *,
        kind: Literal["srht", "sparse_stack"] = "srht",
        seed: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self._n_bits = integer(n_bits, "n_bits", 1, _MAX_BITS)
        if kind not in _KINDS:
            raise ValueError(
                f"kind: expected one of {', '.join(map(repr, _KINDS))}, whose bytes are the same everywhere, "
                f"got {kind!r}"
            )
        self._kind: str = kind
        self._seed = integer(seed, "seed", 0, 2**64 - 1)
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._num_threads = num_threads

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return self._n_bits

    @property
    def n_bytes(self) -> int:
        """Bytes of a code."""
        return -(-self._n_bits // 8)

    @property
    def kind(self) -> str:
        """The projection: "srht" or "sparse_stack"."""
        return self._kind

    @property
    def seed(self) -> int:
        """The 64-bit seed."""
        return self._seed

    def operators(self, n_features: int) -> tuple[SketchOperator, ...]:
        """The projections whose signs, one after the other, are the code of a vector of n_features numbers."""
        d = integer(n_features, "n_features", 1, 2**62)
        if self._kind != "srht":
            return (SketchOperator(self._kind, d, self._n_bits, seed=self._seed),)
        longest = 1 << (d - 1).bit_length()
        blocks = range(-(-self._n_bits // longest))
        return tuple(
            SketchOperator(
                "srht", d, min(longest, self._n_bits - i * longest), seed=(self._seed + i * _SEED_STEP) % 2**64
            )
            for i in blocks
        )

    def transform(self, X: Any) -> NDArray[np.uint8]:
        """Codes of rows.

        Args:
            X: (n, n_features), or (n_features,) for one row, any strides: float32 or float64, or float16 and integers
                of up to 32 bits, which are hashed as float32 where that is exact, else as float64.

        Returns:
            (n, n_bytes), or (n_bytes,) for one row.

        Raises:
            TypeError: X is no array, or of another dtype.
            ValueError: another number of dimensions, no features, or NaN, infinity or an overflow on the way.
        """
        rows = numeric(X, "X", np.dtype(np.float64))
        if rows.ndim not in (1, 2) or rows.shape[-1] == 0:
            raise ValueError(f"X: expected shape (n, n_features) or (n_features,), got {rows.shape}")
        single = rows.ndim == 1
        rows = rows[None, :] if single else rows
        n, d = rows.shape
        real = rows.dtype
        if real.itemsize < 4 or real.kind != "f":
            real = np.dtype(np.float32 if real.itemsize < 4 else np.float64)
        codes = np.empty((n, self.n_bytes), np.uint8)
        ops = self.operators(d)
        step = max(1, _TILE // max(d if real != rows.dtype else 1, self._n_bits))
        buffer = np.empty((min(step, n), self._n_bits), real)
        parts = [buffer] if len(ops) == 1 else [np.empty((len(buffer), op.n_components), real) for op in ops]
        table = backends.kernels()
        for begin in range(0, n, step):
            tile = rows[begin : begin + step].astype(real, copy=False)
            at = 0
            for op, part in zip(ops, parts, strict=True):
                projected = op.transform(tile, out=part[: len(tile)], num_threads=self._num_threads)
                if not all_finite(projected):  # an overflow may reach one output only
                    raise ValueError("X: expected finite numbers whose projection is finite, got NaN or infinity")
                if part is not buffer:
                    buffer[: len(tile), at : at + op.n_components] = projected
                    at += op.n_components
            table.sign_bits(buffer[: len(tile)], codes[begin : begin + step])
        return codes[0] if single else codes

    # ---- distances -----------------------------------------------------------------------------------------------

    def hamming(self, a: Any, b: Any = None) -> NDArray[np.uint16]:
        """Numbers of differing bits of all pairs.

        Args:
            a, b: codes (n, n_bytes) and (m, n_bytes), or one code (n_bytes,); b=None means a.

        Returns:
            uint16 of shape (n, m); a dimension is missing where one code was given.

        Raises:
            TypeError, ValueError: not uint8, or of another shape.
        """
        left = self._codes(a, "a")
        right = left if b is None else self._codes(b, "b")
        out = np.empty((len(left), len(right)), np.uint16)
        threads = threads_for(out.size * self.n_bytes, 1 << 20, self._num_threads)
        if out.size:
            backends.kernels().hamming_pairs(left, right, out, threads)
        shape = (*np.shape(a)[:-1], *np.shape(a if b is None else b)[:-1])
        return out.reshape(shape)

    def nearest(self, queries: Any, codes: Any) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """The nearest code of every query, the first one on ties.

        Args:
            queries: (n, n_bytes), or (n_bytes,) for one.
            codes: (m, n_bytes), at least one; a memory-mapped array is read once, front to back.

        Returns:
            Index (n,) and distance (n,), scalars in arrays of shape () for one query.

        Raises:
            TypeError, ValueError: not uint8, of another shape, or no codes.
        """
        left, right = self._codes(queries, "queries"), self._codes(codes, "codes")
        if not len(right):
            raise ValueError("codes: expected at least one code, got none")
        index = np.empty(len(left), np.int64)
        distance = np.empty(len(left), np.uint16)
        threads = threads_for(len(left) * right.size, 1 << 20, self._num_threads)
        backends.kernels().hamming_nearest(left, right, index, distance, threads)
        shape = np.shape(queries)[:-1]
        return index.reshape(shape), distance.reshape(shape)

    def search(
        self, queries: Any, codes: Any, *, radius: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
        """All codes within a Hamming distance of each query, without a matrix of distances.

        Args:
            queries: (n, n_bytes), or (n_bytes,) for one.
            codes: (m, n_bytes).
            radius: largest distance to report, at least 0.

        Returns:
            Numbers of queries, indices of codes and distances: one entry a match, by query, then by index.

        Raises:
            TypeError, ValueError: not uint8, of another shape, or a bad radius.
        """
        left, right = self._codes(queries, "queries"), self._codes(codes, "codes")
        limit = integer(radius, "radius", 0, self._n_bits)
        kernels = backends.kernels()
        index = np.empty(_MATCHES, np.int64)
        distance = np.empty(_MATCHES, np.uint16)
        found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]] = []
        for q, query in enumerate(left):
            begin = 0
            while begin < len(right):
                count, begin = kernels.hamming_within(query, right, limit, begin, index, distance)
                found.append((np.full(count, q), index[:count].copy(), distance[:count].copy()))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint16)
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # type: ignore[return-value]

    @overload
    def angle(
        self, a: Any, b: Any = ..., *, return_std: Literal[False] = ..., paired: bool = ...
    ) -> NDArray[np.float64]: ...
    @overload
    def angle(
        self, a: Any, b: Any = ..., *, return_std: Literal[True], paired: bool = ...
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
    def angle(self, a: Any, b: Any = None, *, return_std: bool = False, paired: bool = False) -> Any:
        """Angles of the hashed vectors in radians: pi * distance / n_bits, unbiased when bits are independent.

        That, and the standard deviation, are exact for Gaussian projections and close for dense vectors here; vectors
        with a few large entries deserve a look at docs/sketch-streams.md.

        Args:
            a, b: codes (n, n_bytes) and (m, n_bytes), or one code; b=None means a.
            return_std: also return the estimate's standard deviation sqrt(angle * (pi - angle) / (n_bits - 1)).
            paired: row i of a with row i of b only.

        Returns:
            float64 (n, m), or (n,) when paired; with return_std a pair of them.

        Raises:
            TypeError, ValueError: not uint8, or of another shape; paired without as many rows on both sides.
        """
        if paired:
            left, right = self._codes(a, "a"), self._codes(a if b is None else b, "b")
            if left.shape != right.shape:
                raise ValueError(f"b: expected shape {left.shape} for paired rows, got {right.shape}")
            distances = np.bitwise_count(left ^ right).sum(axis=1, dtype=np.int64).reshape(np.shape(a)[:-1])
        else:
            distances = self.hamming(a, b)
        angles = np.asarray(distances * (math.pi / self._n_bits))
        if not return_std:
            return angles
        return angles, np.sqrt(angles * (math.pi - angles).clip(0) / max(1, self._n_bits - 1))

    def _codes(self, codes: Any, name: str) -> NDArray[np.uint8]:
        return hamming_codes(codes, name, self.n_bytes)

    # ---- value semantics -----------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SimHash):
            return NotImplemented
        return (self._n_bits, self._kind, self._seed) == (other._n_bits, other._kind, other._seed)

    def __hash__(self) -> int:
        return hash((self._n_bits, self._kind, self._seed))

    def __repr__(self) -> str:
        return f"SimHash({self._n_bits}, kind={self._kind!r}, seed={self._seed})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._n_bits, self._kind, self._seed, self._num_threads)


def _restore(n_bits: int, kind: Any, seed: int, num_threads: int | None) -> SimHash:
    return SimHash(n_bits, kind=kind, seed=seed, num_threads=num_threads)


def hamming_codes(codes: Any, name: str, n_bytes: int) -> NDArray[np.uint8]:
    """Codes as (n, n_bytes) uint8 with contiguous rows; TypeError or ValueError naming the argument otherwise."""
    if not isinstance(codes, np.ndarray):
        raise TypeError(f"{name}: expected an array of uint8, got {type(codes).__name__}")
    if codes.dtype != np.uint8:
        raise TypeError(f"{name}: expected dtype uint8, got {codes.dtype!s}")
    if codes.ndim not in (1, 2) or codes.shape[-1] != n_bytes:
        raise ValueError(f"{name}: expected shape (n, {n_bytes}) or ({n_bytes},), got {codes.shape}")
    rows = np.asarray(codes if codes.ndim == 2 else codes[None, :])
    return rows if rows.strides[1] == 1 or n_bytes == 1 else np.ascontiguousarray(rows)
