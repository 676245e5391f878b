"""SketchOperator: a random projection described by 24 bytes."""

from __future__ import annotations

import hashlib
import operator
import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends.streams import KIND_NUMBERS
from edgefast.sketch._apply import Nonfinite, adjoint, check_nonfinite, sketch_rows, transform_sparse, transform_typed
from edgefast.sketch._arrays import check_out, threads_for
from edgefast.sketch._inputs import dense_array, is_sparse, require_finite
from edgefast.sketch._kinds import KINDS, Kind
from edgefast.sketch._linear import TransposedOperator, linear_operator, sparse_matrix

__all__ = ["SketchOperator"]

_VERSION = 1
_LAYOUT = struct.Struct("<BBBBIQQ")
_NAMES = {number: name for name, number in KIND_NUMBERS.items()}
_MAX_FEATURES = 2**62
_MAX_COMPONENTS = 2**31 - 1


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


def _density(value: Any) -> float | Literal["auto"]:
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, (str, bool, np.bool_)) or not hasattr(value, "__float__"):
        raise TypeError(f"density: expected 'auto' or a float, got {type(value).__name__}")
    number = float(value)
    inverse = round(1 / number) if 1 / 256 < number <= 1 else 0
    if not 1 <= inverse <= 255 or abs(number * inverse - 1) > 1e-9:
        raise ValueError(f"density: expected 'auto' or 1/s with an integer s from 1 to 255, got {value!r}")
    return 1 / inverse


class SketchOperator:
    """A random linear map from n_features to n_components that preserves lengths on average.

    The operator is a description: kind, sizes and one 64-bit seed. Its entries come from integers drawn by a
    counter-based generator and are the same on every platform, backend and version; what leaves a device is
    `to_bytes()`, 24 bytes. Instances are immutable, hashable and picklable. Sketches made by equal operators add up:
    transform(a + b) is transform(a) + transform(b), up to rounding.

    Kinds:
        "sparse_stack": `nnz` entries +-1 per feature, one in each of `nnz` stacked CountSketches. The default choice:
            fast, and every feature is used whatever the size.
        "countsketch": one entry +-1 per feature. The fastest, with the weakest tails.
        "srht": random signs, Hadamard transform, `n_components` of its outputs sampled without replacement.
        "rademacher": dense +-1 entries.
        "gaussian": dense normal entries, multiples of 2**-16 up to 4.4 standard deviations.
        "sparse": independent entries, +-1 with probability `density` and else 0. For comparison with scikit-learn's
            SparseRandomProjection: with density="auto" it can miss features altogether.
        "rotation": orthogonal, `n_components` == `n_features`: keeps every length and spreads every vector over all
            coordinates. `inverse_rotate` undoes it.

    Args:
        kind: one of the above.
        n_features: d, features of the input; 1 to 2**62.
        n_components: k, features of the output; 1 to 2**31 - 1. For "srht" at most d rounded up to a power of two, for
            "rotation" d.
        seed: 0 to 2**64 - 1. Stored in clear: who knows it can craft inputs that collide.
        nnz: entries per feature of "sparse_stack", 1 to 255, clipped to `n_components`; 8 is a good default, 4 faster.
            Other kinds ignore it.
        density: share of nonzero entries of "sparse": 1/s for an integer s from 1 to 255 (1/3 is Achlioptas'), or
            "auto" for 1 / sqrt(n_features) (Li, Hastie and Church). Other kinds ignore it.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind or a number out of range.

    References:
        D. Kane and J. Nelson, "Sparser Johnson-Lindenstrauss transforms", JACM 61(1), 2014 (sparse_stack is their
        block construction); N. Ailon and B. Chazelle, "The fast Johnson-Lindenstrauss transform", SIAM J. Comput.
        39(1), 2009, and J. Tropp, "Improved analysis of the subsampled randomized Hadamard transform", 2011 (srht);
        M. Charikar, K. Chen and M. Farach-Colton, "Finding frequent items in data streams", ICALP 2002, and K. Clarkson
        and D. Woodruff, "Low-rank approximation and regression in input sparsity time", JACM 63(6), 2017
        (countsketch); D. Achlioptas, "Database-friendly random projections", JCSS 66(4), 2003 (rademacher, sparse);
        P. Li, T. Hastie and K. Church, "Very sparse random projections", KDD 2006 (sparse); A. Andoni et al.,
        "Practical and optimal LSH for angular distance", NeurIPS 2015 (three rounds of rotation).

    Examples:
        >>> import numpy as np
        >>> op = SketchOperator("sparse_stack", n_features=1000, n_components=64, seed=7)
        >>> X = np.ones((5, 1000), np.float32)
        >>> op.transform(X).shape
        (5, 64)
        >>> SketchOperator.from_bytes(op.to_bytes()) == op
        True
    """

    __slots__ = ("_code", "_descriptor", "_kind", "_n_components", "_n_features", "_scale", "_seed")

    _code: int
    _descriptor: bytes
    _kind: Kind
    _n_components: int
    _n_features: int
    _scale: float
    _seed: int

    def __init__(
        self,
        kind: str,
        n_features: int,
        n_components: int,
        *,
        seed: int = 0,
        nnz: int = 8,
        density: float | Literal["auto"] = 1 / 3,
    ) -> None:
        if not isinstance(kind, str):
            raise TypeError(f"kind: expected a string, got {type(kind).__name__}")
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        d = _integer(n_features, "n_features", 1, _MAX_FEATURES)
        k = _integer(n_components, "n_components", 1, _MAX_COMPONENTS)
        word = _integer(seed, "seed", 0, 2**64 - 1)
        family = KINDS[kind]
        code = family.code(d, k, _integer(nnz, "nnz", 1, 255), _density(density))
        set_ = object.__setattr__
        set_(self, "_kind", family)
        set_(self, "_n_features", d)
        set_(self, "_n_components", k)
        set_(self, "_seed", word)
        set_(self, "_code", code)
        set_(self, "_descriptor", _LAYOUT.pack(_VERSION, KIND_NUMBERS[kind], code, 0, k, d, word))
        set_(self, "_scale", family.scale(self))

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return self._kind.name

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
        """Nonzero entries per feature of the matrix, at most `n_components`; for "sparse" that is all one can say."""
        return self._kind.nnz(self)

    @property
    def density(self) -> float:
        """Share of the matrix that is not zero, for "sparse" its expectation."""
        return self._kind.density(self)

    @property
    def scale(self) -> float:
        """What the entries are multiplied by, so that lengths are kept on average.

        1/sqrt(nnz) for "sparse_stack" and "countsketch", 1/sqrt(n_components) for "srht" and "rademacher", and with
        the entries' variance under the root too for "gaussian" and "sparse"; 1 for "rotation".
        """
        return self._scale

    @property
    def fingerprint(self) -> int:
        """64 bits that name the operator: the first 8 bytes, little-endian, of SHA-256 of the descriptor.

        Examples:
            >>> hex(SketchOperator("srht", 100, 10).fingerprint)
            '0x926d7f0c5dd9fb51'
        """
        return int.from_bytes(hashlib.sha256(self._descriptor).digest()[:8], "little")

    def to_bytes(self) -> bytes:
        """The 24-byte descriptor, little-endian: u8 version, u8 kind, u8 code, u8 flags, u32 k, u64 d, u64 seed.

        The code is nnz for "sparse_stack", for "sparse" 1/density or 0 for "auto", else 0.
        """
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
        version, number, code, flags, k, d, seed = _LAYOUT.unpack(raw)
        if version != _VERSION:
            raise ValueError(f"data: expected descriptor version {_VERSION}, got {version}")
        if number not in _NAMES:
            known = ", ".join(f"{n} ({name})" for n, name in _NAMES.items())
            raise ValueError(f"data: expected kind {known}, got {number}")
        if flags != 0:
            raise ValueError(f"data: expected flags 0, got {flags}")
        kind = KINDS[_NAMES[number]]
        made = cls(kind.name, d, k, seed=seed, **kind.arguments(code))
        if made._descriptor != raw:
            raise ValueError(f"data: expected {made._code} as the third byte of this operator, got {code}")
        return made

    def transform(
        self,
        X: Any,
        *,
        out: NDArray[Any] | None = None,
        nonfinite: Nonfinite = "propagate",
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Project rows: X @ toarray().T without the matrix.

        The output bytes are the same whatever the threads, the SIMD level, the backend and the way rows are batched,
        but for the dense kinds: "rademacher" on the numpy backend, and "gaussian", are within
        2 * d * eps * scale * sum |x * entry|. A sparse X gives the bytes of the dense array with its values. A NaN or an
        infinity reaches the outputs its feature feeds (all of them for "srht", "rademacher", "gaussian" and
        "rotation"); every NaN result is the one quiet NaN.

        Args:
            X: shape (n, n_features), or (n_features,) for one row. A dense array of any strides and alignment
                (memory-mapped ones too), an object that shares its memory by DLPack, `__array__` or the buffer
                protocol, or a SciPy CSR or CSC matrix or array, which is never expanded. Real numbers in native byte
                order.
            out: where to write, an array of the result's shape and dtype that does not overlap X.
            nonfinite: "raise" makes a NaN or an infinity in the result an error, after `out` has been written.
            num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

        Returns:
            Shape (n, n_components), or (n_components,) for one-dimensional X; `out` when given. float32 for float32,
            float16, bool and integers of at most 16 bits, whose values it holds exactly; float64 for float64 and wider
            integers. No value of the input is rounded.

        Raises:
            TypeError: X is none of these or its dtype is not real or not native, or `out` is no array.
            ValueError: X has another number of features or dimensions, holds an integer beyond 2**53, or is a malformed
                sparse matrix; `out` has another shape or dtype, is read-only or overlaps X; an unknown or violated
                `nonfinite`.
        """
        if nonfinite != "propagate":
            check_nonfinite(nonfinite)
        if type(X) is not np.ndarray and is_sparse(X):
            return transform_sparse(self, X, out, nonfinite, num_threads)
        X, dtype = dense_array(X, "X")
        d, k = self._n_features, self._n_components
        if X.ndim not in (1, 2) or X.shape[-1] != d:
            raise ValueError(f"X: expected shape (n, {d}) or ({d},), got {X.shape}")
        rows = X if X.ndim == 2 else X[None, :]
        n = rows.shape[0]
        shape = (n, k) if X.ndim == 2 else (k,)
        if out is None:
            result = np.empty(shape, dtype)
            target = result
        else:
            check_out(out, shape, dtype)
            if np.may_share_memory(X, out) and np.shares_memory(X, out):
                raise ValueError("out: expected memory of its own, got an array that overlaps X")
            result = out
            target = out if out.flags.carray else np.empty(shape, dtype)
        if n:
            view = target if X.ndim == 2 else target[None, :]
            threads = threads_for(n * self._kind.work(self), 1 << 20, num_threads)
            if X.dtype == dtype:
                self._kind.transform(self, backends.kernels(), rows, view, threads)
            else:
                transform_typed(self, rows, view, threads)
        elif num_threads is not None:
            threads_for(0, 0, num_threads)
        if target is not result:
            result[...] = target
        if nonfinite != "propagate":
            require_finite(result, X, "X")
        return result

    def adjoint(
        self,
        Y: Any,
        *,
        out: NDArray[Any] | None = None,
        nonfinite: Nonfinite = "propagate",
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Map sketches back to features: Y @ toarray() without the matrix.

        On average the adjoint of a sketch is the input: E[S.T S] is the identity. It is unbiased, not denoised: each
        entry carries noise of variance about |x|^2 / n_components. For "rotation" it is the inverse. Promises about
        output bytes as in `transform`; sums run over the components in ascending order.

        Args:
            Y: shape (n, n_components) or (n_components,); dense, of every type `transform` takes.
            out: where to write, an array of the result's shape and dtype that does not overlap Y.
            nonfinite: as in `transform`.
            num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

        Returns:
            Shape (n, n_features), or (n_features,) for one-dimensional Y, in the dtype `transform` would give.

        Raises:
            TypeError, ValueError: as `transform`; a sparse Y is a TypeError.
        """
        return adjoint(self, Y, out, nonfinite, num_threads)

    def sketch_rows(
        self,
        X: Any,
        row_start: int = 0,
        *,
        out: NDArray[Any] | None = None,
        accumulate: bool = False,
        scaled: bool = True,
        nonfinite: Nonfinite = "propagate",
        num_threads: int | None = None,
    ) -> NDArray[Any]:
        """Sketch the rows of a matrix: S X, where row i of X is feature row_start + i of the operator.

        Blocks of rows add up: with disjoint ranges of rows the sketches of the blocks sum to that of the whole, up to
        one rounding an addition. With `accumulate` and scaled=False a block continues the sums of the blocks before
        it: for the hash kinds and "rademacher" the bytes are then those of one call for all rows (in ascending order of
        rows, whatever the threads); scale them by `scale` at the end. For "srht", "gaussian" and "rotation" a block
        costs a transform of its own, and is added as a whole for the first and the last.

        Args:
            X: shape (m, columns), or (m,) for one column, m at most n_features - row_start; of every type `transform`
                takes, SciPy CSR and CSC included.
            row_start: the feature of the first row, 0 to n_features.
            out: where to write, an array of the result's shape and dtype that does not overlap X.
            accumulate: add to `out` instead of overwriting it; needs scaled=False.
            scaled: multiply by `scale` at the end.
            nonfinite: as in `transform`.
            num_threads: threads to use at most; None means the default of `edgefast.using` and the environment.

        Returns:
            Shape (n_components, columns), or (n_components,), in the dtype `transform` would give.

        Raises:
            TypeError, ValueError: as `transform`; more rows than features are a ValueError.
        """
        start = _integer(row_start, "row_start", 0, self._n_features)
        return sketch_rows(self, X, start, out, accumulate, scaled, nonfinite, num_threads)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_components, n_features), as of the matrix."""
        return self._n_components, self._n_features

    @property
    def T(self) -> TransposedOperator:
        """The transpose: `op.T @ y` is the adjoint, `X @ op.T` is `op.transform(X)`."""
        return TransposedOperator(self)

    # numpy's @ leaves the work to ours.
    __array_ufunc__ = None

    def __matmul__(self, x: Any) -> NDArray[Any]:
        """S x for a vector (n_features,) or the columns of a matrix (n_features, m), dense or sparse."""
        rows = getattr(x, "shape", (self._n_features,))
        if len(rows) not in (1, 2) or rows[0] != self._n_features:
            raise ValueError(f"x: expected shape ({self._n_features},) or ({self._n_features}, m), got {tuple(rows)}")
        return self.transform(x) if len(rows) == 1 else self.sketch_rows(x)

    def __rmatmul__(self, y: Any) -> NDArray[Any]:
        """y S, the adjoint of rows (n, n_components)."""
        return self.adjoint(y)

    def aslinearoperator(self, dtype: Any = np.float64) -> Any:
        """The operator as a scipy.sparse.linalg.LinearOperator of shape (n_components, n_features).

        Args:
            dtype: float32 or float64, the type vectors are converted to.

        Raises:
            ImportError: SciPy is not installed.
            TypeError: another dtype.
        """
        return linear_operator(self, dtype)

    def tosparse(self, format: Literal["csr", "csc"] = "csc", *, dtype: Any = np.float64) -> Any:
        """The matrix, scale included, as a SciPy sparse array of shape (n_components, n_features).

        Args:
            format: "csc" (as it is drawn) or "csr".
            dtype: float32 or float64.

        Raises:
            ValueError: a kind without zeros ("srht", "rademacher", "gaussian", "rotation"), or an unknown format.
            TypeError: another dtype.
            ImportError: SciPy is not installed.
        """
        return sparse_matrix(self, format, dtype)

    def toarray(self) -> NDArray[np.float64]:
        """The matrix, scale included: float64 of shape (n_components, n_features). For tests and small operators."""
        matrix = self._kind.matrix(self)
        matrix *= self._scale
        return matrix

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"SketchOperator is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return self._descriptor == other._descriptor if isinstance(other, SketchOperator) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._descriptor)

    def __repr__(self) -> str:
        extra = "".join(f", {name}={value!r}" for name, value in self._kind.arguments(self._code).items())
        return (
            f"SketchOperator({self.kind!r}, n_features={self._n_features}, n_components={self._n_components}, "
            f"seed={self._seed}{extra})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SketchOperator.from_bytes, (self._descriptor,)

    def __copy__(self) -> SketchOperator:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> SketchOperator:
        return self
