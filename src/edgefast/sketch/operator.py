"""SketchOperator: a random projection as a 24-byte description."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any, ClassVar, Final, Literal

import numpy as np

from edgefast import backends
from edgefast._validate import array_out, as_float_array, integer
from edgefast.backends import entries

__all__ = ["IncompatibleSketchError", "SketchOperator"]

_VERSION: Final = 1
# version, kind, nnz, flags, n_components, n_features, seed; little-endian
_DESCRIPTOR: Final = struct.Struct("<BBBBIQQ")
_KINDS: Final = {
    "sparse_stack": entries.KIND_SPARSE_STACK,
    "rademacher": entries.KIND_RADEMACHER,
    "srht": entries.KIND_SRHT,
}
_NAMES: Final = {number: name for name, number in _KINDS.items()}
_MAX_COMPONENTS: Final = 2**31 - 1
_MAX_FEATURES: Final = 2**48

Kind = Literal["sparse_stack", "srht", "rademacher"]


class IncompatibleSketchError(ValueError):
    """Bytes or sketches that do not belong to the operator at hand, or are damaged."""


class SketchOperator:
    """A random projection from n_features to n_components, described by 24 bytes and generated where it is used.

    Immutable and hashable. Holds no arrays: entries come from a counter-based generator (Philox4x64-10), so two
    devices that share the description share the operator, on every platform, backend and version.

    Every kind keeps squared distances in expectation (a Johnson-Lindenstrauss transform):

    - "sparse_stack": nnz stacked CountSketches, nnz entries +-1/sqrt(nnz) per feature. The default.
    - "srht": subsampled randomised Hadamard transform; n_components must not exceed the padded width.
    - "rademacher": dense +-1/sqrt(n_components).

    The output bytes of `transform` depend on nothing but input and description: not on backend, SIMD level, threads
    or batching.

    Args:
        kind: one of the above.
        n_features: width d of the input, 1 <= d <= 2**48.
        n_components: width k of the output, 1 <= k < 2**31.
        seed: 0 <= seed < 2**64. Sent in clear by `to_bytes`.
        nnz: entries per feature of "sparse_stack", 1..255, clipped to n_components; the other kinds ignore it.

    Raises:
        TypeError: an argument is not of its type.
        ValueError: an argument is out of range, the kind unknown, or k too large for "srht".

    References:
        Kane, Nelson, "Sparser Johnson-Lindenstrauss transforms", J. ACM 2014 (sparse_stack); Tropp, "Improved
        analysis of the subsampled randomized Hadamard transform", 2011 (srht); Achlioptas, "Database-friendly random
        projections", JCSS 2003 (rademacher).

    Examples:
        >>> import numpy as np
        >>> from edgefast.sketch import SketchOperator
        >>> op = SketchOperator("sparse_stack", 1000, 64, seed=7)
        >>> X = np.ones((3, 1000), np.float32)
        >>> op.transform(X).shape
        (3, 64)
        >>> SketchOperator.from_bytes(op.to_bytes()) == op
        True
    """

    __slots__ = ("_descriptor", "_kind", "_n_components", "_n_features", "_nnz", "_scale", "_seed")

    kinds: ClassVar[tuple[str, ...]] = tuple(sorted(_KINDS))

    _descriptor: bytes
    _kind: Kind
    _n_components: int
    _n_features: int
    _nnz: int
    _scale: float
    _seed: int

    def __init__(self, kind: Kind, n_features: int, n_components: int, *, seed: int = 0, nnz: int = 8) -> None:
        if not isinstance(kind, str):
            raise TypeError(f"kind: expected a string, got {type(kind).__name__}")
        if kind not in _KINDS:
            raise ValueError(f"kind: expected one of {', '.join(sorted(_KINDS))}, got {kind!r}")
        d = integer(n_features, "n_features", low=1, high=_MAX_FEATURES)
        k = integer(n_components, "n_components", low=1, high=_MAX_COMPONENTS)
        seed = integer(seed, "seed", low=0, high=2**64 - 1)
        nnz = min(integer(nnz, "nnz", low=1, high=255), k)
        if kind == "srht" and k > (padded := 1 << (d - 1).bit_length()):
            raise ValueError(
                f"n_components: expected at most {padded} for srht of {d} features (the next power of two), got {k}"
            )
        put = object.__setattr__
        if kind != "sparse_stack":
            nnz = 0
        put(self, "_kind", kind)
        put(self, "_n_features", d)
        put(self, "_n_components", k)
        put(self, "_seed", seed)
        put(self, "_nnz", nnz)
        put(self, "_scale", 1 / math.sqrt(nnz if kind == "sparse_stack" else k))
        put(self, "_descriptor", _DESCRIPTOR.pack(_VERSION, _KINDS[kind], nnz, 0, k, d, seed))

    # ---- description -------------------------------------------------------------------------------------------

    @property
    def kind(self) -> Kind:
        """Name of the family of operators."""
        return self._kind

    @property
    def n_features(self) -> int:
        """Width d of the input."""
        return self._n_features

    @property
    def n_components(self) -> int:
        """Width k of the output."""
        return self._n_components

    @property
    def seed(self) -> int:
        """The 64-bit seed."""
        return self._seed

    @property
    def nnz(self) -> int:
        """Non-zero entries per feature: clipped to n_components for "sparse_stack", n_components for dense kinds."""
        return self._nnz or self._n_components

    @property
    def scale(self) -> float:
        """The factor applied once to the sum of +-x_j: 1/sqrt(nnz) or 1/sqrt(n_components)."""
        return self._scale

    @property
    def fingerprint(self) -> int:
        """64-bit integer that identifies the operator: the first 8 bytes of the description's SHA-256."""
        return int.from_bytes(hashlib.sha256(self._descriptor).digest()[:8], "little")

    def to_bytes(self) -> bytes:
        """The description: 24 bytes, little-endian, layout in docs/sketch.md. It contains the seed."""
        return self._descriptor

    @classmethod
    def from_bytes(cls, data: bytes) -> SketchOperator:
        """The operator of a description made by `to_bytes`, on any machine.

        Raises:
            TypeError: data is not bytes-like.
            IncompatibleSketchError: not 24 bytes, an unknown version or kind, or values out of range.
        """
        try:
            raw = bytes(memoryview(data))
        except TypeError:
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}") from None
        if len(raw) != _DESCRIPTOR.size:
            raise IncompatibleSketchError(f"expected a description of {_DESCRIPTOR.size} bytes, got {len(raw)}")
        version, kind, nnz, flags, k, d, seed = _DESCRIPTOR.unpack(raw)
        if version != _VERSION:
            raise IncompatibleSketchError(f"expected a description of version {_VERSION}, got version {version}")
        if kind not in _NAMES:
            raise IncompatibleSketchError(f"expected a kind out of {sorted(_NAMES)}, got {kind}")
        try:
            operator = cls(_NAMES[kind], d, k, seed=seed, nnz=nnz or 1)  # type: ignore[arg-type]
        except ValueError as error:
            raise IncompatibleSketchError(f"damaged description: {error}") from None
        if operator._descriptor != raw:
            raise IncompatibleSketchError(f"damaged description: flags {flags}, nnz {nnz} do not fit {_NAMES[kind]}")
        return operator

    # ---- application -------------------------------------------------------------------------------------------

    def transform(
        self, X: Any, *, out: np.ndarray[Any, Any] | None = None, num_threads: int | None = None
    ) -> np.ndarray[Any, Any]:
        """Project rows: X @ S.T.

        Rows are independent: splitting X into batches changes no bit. NaN and infinities reach the outputs their
        feature contributes to, as in plain arithmetic.

        Args:
            X: (n, d) or (d,) float32 or float64, any strides (C, F, slices, read-only, unaligned). Never copied.
            out: (n, k) or (k,) array of X's dtype for the result, not overlapping X.
            num_threads: threads to use; None for the default (see edgefast.using). The result does not depend on it.

        Returns:
            (n, k), or (k,) for a 1-D X, of X's dtype; `out` when given.

        Raises:
            TypeError: X or out is not float32 or float64, or their dtypes differ.
            ValueError: X has another width or more than 2 dimensions, or out does not fit.
        """
        X = as_float_array(X, "X")
        if X.ndim == 1:
            if out is not None:
                if X.shape[0] == self._n_features:
                    array_out(out, (self._n_components,), X.dtype, X)
                    self.transform(X[None], out=out[None], num_threads=num_threads)
                    return out
            elif X.shape[0] == self._n_features:
                return self.transform(X[None], num_threads=num_threads)[0]
        if X.ndim != 2 or X.shape[1] != self._n_features:
            raise ValueError(f"X: expected shape (n, {self._n_features}) or ({self._n_features},), got {X.shape}")
        shape = (X.shape[0], self._n_components)
        if out is None:
            target = np.empty(shape, X.dtype)
        else:
            array_out(out, shape, X.dtype, X)
            target = out if out.flags.c_contiguous and out.flags.aligned else np.empty(shape, X.dtype)
        threads = backends.num_threads(num_threads)
        table = backends.kernels()
        if self._kind == "sparse_stack":
            table.sparse_stack_transform(X, target, self._seed, self._nnz, self._scale, threads)
        elif self._kind == "srht":
            rows = entries.srht_rows(self._seed, self._n_components, 1 << (self._n_features - 1).bit_length())
            table.srht_transform(X, target, self._seed, rows, self._scale, threads)
        else:
            table.rademacher_transform(X, target, self._seed, self._scale, threads)
        if out is not None and out is not target:
            out[...] = target
            return out
        return target

    def toarray(self) -> np.ndarray[Any, Any]:
        """The matrix S, (n_components, n_features) float64, scale included. For tests and small problems.

        Raises:
            MemoryError: it does not fit.
        """
        d, k = self._n_features, self._n_components
        if self._kind == "sparse_stack":
            matrix = np.zeros((k, d))
            buckets, signs = entries.sparse_stack_table(self._seed, k, self._nnz, 0, d)
            np.add.at(matrix, (buckets, np.arange(d)[:, None]), signs.astype(np.float64))
        elif self._kind == "srht":
            padded = 1 << (d - 1).bit_length()
            rows = entries.srht_rows(self._seed, k, padded)
            # Entry (i, j) of the Sylvester matrix is (-1)^popcount(i & j).
            parity = np.bitwise_count(rows[:, None] & np.arange(d)[None, :]) & 1
            matrix = (1.0 - 2.0 * parity) * entries.srht_signs(self._seed, 0, d)
        else:
            matrix = entries.rademacher_signs(self._seed, k, 0, d).T.astype(np.float64)
        matrix *= self._scale
        return matrix

    # ---- value semantics ---------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SketchOperator) and self._descriptor == other._descriptor

    def __hash__(self) -> int:
        return hash(self._descriptor)

    def __copy__(self) -> SketchOperator:
        return self

    def __deepcopy__(self, memo: object) -> SketchOperator:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SketchOperator.from_bytes, (self._descriptor,)

    def __repr__(self) -> str:
        nnz = f", nnz={self._nnz}" if self._kind == "sparse_stack" else ""
        return f"SketchOperator({self._kind!r}, {self._n_features}, {self._n_components}, seed={self._seed}{nnz})"
