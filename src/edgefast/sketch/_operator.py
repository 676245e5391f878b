"""SketchOperator: a random projection described by 24 bytes."""

from __future__ import annotations

import hashlib
import math
import operator
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch._arrays import check_out, float_array, threads_for

__all__ = ["SketchOperator"]

_VERSION = 1
_LAYOUT = struct.Struct("<BBBBIQQ")
_NAMES = {number: name for name, number in streams.KIND_NUMBERS.items()}
_MAX_FEATURES = 2**62
_MAX_COMPONENTS = 2**31 - 1
#: Tables up to this size are kept between calls; larger ones are generated tile by tile inside the kernel.
_MAX_TABLE_BYTES = 16 << 20
_MAX_CACHE_BYTES = 64 << 20


class _Cache:
    """Drawn integers by operator, least recently used out first, bounded in bytes. An entry is never changed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._entries: OrderedDict[Any, tuple[NDArray[Any], ...]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
                return found
        made = make()
        for array in made:
            array.flags.writeable = False
        size = sum(array.nbytes for array in made)
        with self._lock:
            if key not in self._entries and size <= self._limit:
                self._entries[key] = made
                self._bytes += size
                while self._bytes > self._limit:
                    _, old = self._entries.popitem(last=False)
                    self._bytes -= sum(array.nbytes for array in old)
        return made


_cache = _Cache(_MAX_CACHE_BYTES)


def _integer(value: Any, name: str, low: int, high: int) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got bool")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


class SketchOperator:
    """A random linear map from n_features to n_components that preserves lengths on average.

    The operator is a description: kind, sizes and one 64-bit seed. Its entries are +-1 integers drawn by a
    counter-based generator and are the same on every platform, backend and version; what leaves a device is
    `to_bytes()`, 24 bytes. Instances are immutable, hashable and picklable. Sketches made by equal operators add up:
    transform(a + b) is transform(a) + transform(b), up to rounding.

    Kinds:
        "sparse_stack": `nnz` entries per feature, one in each of `nnz` stacked CountSketches. The default choice:
            fastest, and every feature is used whatever the size.
        "srht": random signs, Hadamard transform, `n_components` of its outputs sampled without replacement.
        "rademacher": dense +-1 entries.

    Args:
        kind: one of the above.
        n_features: d, features of the input; 1 to 2**62.
        n_components: k, features of the output; 1 to 2**31 - 1. For "srht" at most d rounded up to a power of two.
        seed: 0 to 2**64 - 1. Stored in clear: who knows it can craft inputs that collide.
        nnz: entries per feature of "sparse_stack", 1 to 255, clipped to `n_components`; 8 is a good default, 4 faster.
            Other kinds ignore it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind or a number out of range.

    References:
        D. Kane and J. Nelson, "Sparser Johnson-Lindenstrauss transforms", JACM 61(1), 2014 (sparse_stack is their
        block construction); N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform", SIAM J. Comput.
        39(1), 2009, and J. Tropp, "Improved analysis of the subsampled randomized Hadamard transform", 2011 (srht);
        D. Achlioptas, "Database-friendly random projections", JCSS 66(4), 2003 (rademacher).

    Examples:
        >>> import numpy as np
        >>> op = SketchOperator("sparse_stack", n_features=1000, n_components=64, seed=7)
        >>> X = np.ones((5, 1000), np.float32)
        >>> op.transform(X).shape
        (5, 64)
        >>> SketchOperator.from_bytes(op.to_bytes()) == op
        True
    """

    __slots__ = ("_descriptor", "_kind", "_n_components", "_n_features", "_nnz", "_seed")

    _descriptor: bytes
    _kind: str
    _n_components: int
    _n_features: int
    _nnz: int
    _seed: int

    def __init__(self, kind: str, n_features: int, n_components: int, *, seed: int = 0, nnz: int = 8) -> None:
        if not isinstance(kind, str):
            raise TypeError(f"kind: expected a string, got {type(kind).__name__}")
        if kind not in streams.KIND_NUMBERS:
            raise ValueError(f"kind: expected one of {', '.join(map(repr, streams.KIND_NUMBERS))}, got {kind!r}")
        d = _integer(n_features, "n_features", 1, _MAX_FEATURES)
        k = _integer(n_components, "n_components", 1, _MAX_COMPONENTS)
        word = _integer(seed, "seed", 0, 2**64 - 1)
        entries = _integer(nnz, "nnz", 1, 255)
        entries = min(entries, k) if kind == "sparse_stack" else 0
        if kind == "srht" and k > _padded(d):
            raise ValueError(
                f"n_components: expected at most {_padded(d)} for 'srht' (n_features={d} rounded up to a power of "
                f"two), got {k}"
            )
        set_ = object.__setattr__
        set_(self, "_kind", kind)
        set_(self, "_n_features", d)
        set_(self, "_n_components", k)
        set_(self, "_seed", word)
        set_(self, "_nnz", entries)
        set_(self, "_descriptor", _LAYOUT.pack(_VERSION, streams.KIND_NUMBERS[kind], entries, 0, k, d, word))

    @property
    def kind(self) -> str:
        """ "sparse_stack", "srht" or "rademacher"."""
        return self._kind

    @property
    def n_features(self) -> int:
        """d, features of the input."""
        return self._n_features

    @property
    def n_components(self) -> int:
        """k, features of the output."""
        return self._n_components

    @property
    def seed(self) -> int:
        """The 64-bit seed."""
        return self._seed

    @property
    def nnz(self) -> int:
        """Nonzero entries per feature of the matrix, at most `n_components`."""
        return self._nnz or self._n_components

    @property
    def scale(self) -> float:
        """What the +-1 entries are multiplied by: 1/sqrt(nnz) for "sparse_stack", 1/sqrt(n_components) otherwise."""
        return 1.0 / math.sqrt(self.nnz)

    @property
    def fingerprint(self) -> int:
        """64 bits that name the operator: the first 8 bytes, little-endian, of SHA-256 of the descriptor.

        Examples:
            >>> hex(SketchOperator("srht", 100, 10).fingerprint)
            '0x926d7f0c5dd9fb51'
        """
        return int.from_bytes(hashlib.sha256(self._descriptor).digest()[:8], "little")

    def to_bytes(self) -> bytes:
        """The 24-byte descriptor, little-endian: u8 version, u8 kind, u8 nnz, u8 flags, u32 k, u64 d, u64 seed."""
        return self._descriptor

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> SketchOperator:
        """The operator a descriptor describes.

        Args:
            data: the 24 bytes of `to_bytes`.

        Raises:
            TypeError: not a bytes-like object.
            ValueError: another length, an unknown version, kind or flag, or sizes no operator can have.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected bytes, got {type(data).__name__}")
        raw = bytes(data)
        if len(raw) != _LAYOUT.size:
            raise ValueError(f"data: expected {_LAYOUT.size} bytes, got {len(raw)}")
        version, number, nnz, flags, k, d, seed = _LAYOUT.unpack(raw)
        if version != _VERSION:
            raise ValueError(f"data: expected descriptor version {_VERSION}, got {version}")
        if number not in _NAMES:
            known = ", ".join(f"{n} ({name})" for n, name in _NAMES.items())
            raise ValueError(f"data: expected kind {known}, got {number}")
        if flags != 0:
            raise ValueError(f"data: expected flags 0, got {flags}")
        kind = _NAMES[number]
        made = cls(kind, d, k, seed=seed, nnz=nnz if kind == "sparse_stack" else 1)
        if made._descriptor != raw:
            raise ValueError(f"data: expected nnz {made._nnz} for this operator, got {nnz}")
        return made

    def transform(
        self, X: NDArray[Any], *, out: NDArray[Any] | None = None, num_threads: int | None = None
    ) -> NDArray[Any]:
        """Project rows: X @ toarray().T without the matrix.

        For "sparse_stack" and "srht" the output bytes are the same whatever the threads, the SIMD level, the backend
        and the way rows are batched. For "rademacher" that holds on the native and numba backends; the numpy one is
        within 2 * d * eps * scale * sum |x|. A NaN or an infinity reaches the outputs its feature feeds (all of them
        for "srht" and "rademacher"); every NaN result is the one quiet NaN.

        Args:
            X: shape (n, n_features), or (n_features,) for one row; float32 or float64; any strides and alignment.
            out: where to write, an array of the result's shape and dtype that does not overlap X.
            num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

        Returns:
            Shape (n, n_components), or (n_components,) for one-dimensional X, in X's dtype; `out` when given.

        Raises:
            TypeError: X is no array of float32 or float64, or `out` no array.
            ValueError: X has another number of features or dimensions; `out` has another shape or dtype, is read-only
                or overlaps X.
        """
        X = float_array(X, "X")
        d, k = self._n_features, self._n_components
        if X.ndim not in (1, 2) or X.shape[-1] != d:
            raise ValueError(f"X: expected shape (n, {d}) or ({d},), got {X.shape}")
        rows = X if X.ndim == 2 else X[None, :]
        n = rows.shape[0]
        shape = (n, k) if X.ndim == 2 else (k,)
        if out is None:
            result = np.empty(shape, X.dtype)
            target = result
        else:
            check_out(out, shape, X.dtype)
            if np.may_share_memory(X, out) and np.shares_memory(X, out):
                raise ValueError("out: expected memory of its own, got an array that overlaps X")
            result = out
            target = out if out.flags.carray else np.empty(shape, X.dtype)
        threads = threads_for(n * d * (self._nnz or 16), 1 << 20, num_threads)
        if n:
            view = target if X.ndim == 2 else target[None, :]
            table = backends.kernels()
            if self._kind == "sparse_stack":
                nnz = self._nnz
                entries = self._table(table) if 4 * d * nnz <= _MAX_TABLE_BYTES else None
                table.stack_transform(rows, entries, self._seed, nnz, self.scale, view, threads)
            elif self._kind == "srht":
                signs, index = self._srht()
                table.srht_transform(rows, signs, index, _padded(d), self.scale, view, threads)
            else:
                table.rademacher_transform(rows, self._seed, self.scale, view, threads)
        if target is not result:
            result[...] = target
        return result

    def toarray(self) -> NDArray[np.float64]:
        """The matrix, scale included: float64 of shape (n_components, n_features). For tests and small operators."""
        d, k = self._n_features, self._n_components
        if self._kind == "sparse_stack":
            entries = streams.stack_table(self._seed, k, self._nnz, 0, d)
            matrix = np.zeros((k, d))
            signs = 1.0 - 2.0 * (entries >> np.uint32(31))
            matrix[entries & np.uint32(0x7FFFFFFF), np.arange(d)[:, None]] = signs
        elif self._kind == "srht":
            words, index = self._srht()
            bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), bitorder="little")[:d]
            # H[i, j] = (-1) ** popcount(i & j): the parity is folded out of the bits of i & j.
            parity = index[:, None] & np.arange(d)
            for shift in (32, 16, 8, 4, 2, 1):
                parity = parity ^ (parity >> shift)
            matrix = np.asarray(1.0 - 2.0 * ((parity & 1) ^ bits), np.float64)
        else:
            matrix = np.asarray(1.0 - 2.0 * streams.rademacher_bits(self._seed, k, 0, d).T, np.float64)
        matrix *= self.scale
        return matrix

    def _table(self, table: backends.Kernels) -> NDArray[np.uint32]:
        def make() -> tuple[NDArray[Any], ...]:
            entries = np.empty((self._n_features, self._nnz), np.uint32)
            table.stack_table(self._seed, self._n_components, 0, entries)
            return (entries,)

        return _cache.get(self._descriptor, make)[0]

    def _srht(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        def make() -> tuple[NDArray[Any], ...]:
            return (
                streams.srht_signs(self._seed, self._n_features),
                streams.srht_index(self._seed, self._n_components, _padded(self._n_features)),
            )

        signs, index = _cache.get(self._descriptor, make)
        return signs, index

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._descriptor == other._descriptor if isinstance(other, SketchOperator) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._descriptor)

    def __repr__(self) -> str:
        nnz = f", nnz={self._nnz}" if self._kind == "sparse_stack" else ""
        return (
            f"SketchOperator({self._kind!r}, n_features={self._n_features}, n_components={self._n_components}, "
            f"seed={self._seed}{nnz})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SketchOperator.from_bytes, (self._descriptor,)

    def __copy__(self) -> SketchOperator:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SketchOperator:
        return self


def _padded(n: int) -> int:
    return 1 << (n - 1).bit_length()
