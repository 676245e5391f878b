"""A sketch operator in matrix notation: op @ x, op.T @ y, X @ op.T, and SciPy's LinearOperator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgefast.sketch._inputs import dense_array, is_sparse
from edgefast.sketch._sparse import HASH_KINDS, EntryChunks

if TYPE_CHECKING:
    from edgefast.sketch._operator import SketchOperator

__all__ = ["TransposedOperator", "linear_operator", "sparse_matrix"]


class TransposedOperator:
    """`op.T`: the (n_features, n_components) transpose of a SketchOperator, a view of it without a matrix.

    `op.T @ y` is the adjoint of a vector or of columns, `X @ op.T` is `op.transform(X)`.
    """

    __slots__ = ("_operator",)
    # numpy's @ leaves the work to ours.
    __array_ufunc__ = None

    def __init__(self, operator: SketchOperator) -> None:
        self._operator = operator

    @property
    def shape(self) -> tuple[int, int]:
        """(n_features, n_components)."""
        return self._operator.n_features, self._operator.n_components

    @property
    def T(self) -> SketchOperator:
        """The operator itself."""
        return self._operator

    def __matmul__(self, y: Any) -> NDArray[Any]:
        """The adjoint of y, shape (n_components,), or of the columns of y, shape (n_components, m)."""
        if getattr(y, "ndim", 1) == 1:
            return self._operator.adjoint(y)
        if is_sparse(y):
            return self._operator.adjoint(y)  # says what is expected
        return self._operator.adjoint(dense_array(y, "y")[0].T).T

    def __rmatmul__(self, x: Any) -> NDArray[Any]:
        return self._operator.transform(x)

    def __eq__(self, other: object) -> bool:
        return self._operator == other._operator if isinstance(other, TransposedOperator) else NotImplemented

    def __hash__(self) -> int:
        return hash(("T", self._operator))

    def __repr__(self) -> str:
        return f"{self._operator!r}.T"


def linear_operator(op: SketchOperator, dtype: Any) -> Any:
    """`op` as a scipy.sparse.linalg.LinearOperator; see SketchOperator.aslinearoperator."""
    try:
        from scipy.sparse import linalg
    except ImportError:
        raise ImportError("aslinearoperator needs SciPy: pip install scipy") from None
    real = _real(dtype)

    def given(x: Any) -> NDArray[Any]:
        return np.asarray(x) if np.iscomplexobj(x) else np.asarray(x, real)

    def columns(x: Any) -> NDArray[Any]:
        return op.transform(given(x).T).T

    def adjoint_columns(y: Any) -> NDArray[Any]:
        return op.adjoint(given(y).T).T

    make: Any = linalg.LinearOperator  # its stubs know the constructor of the subclass only
    return make(
        shape=(op.n_components, op.n_features),
        matvec=lambda x: op.transform(given(x).ravel()),
        rmatvec=lambda y: op.adjoint(given(y).ravel()),
        matmat=columns,
        rmatmat=adjoint_columns,
        dtype=real,
    )


def sparse_matrix(op: SketchOperator, layout: str, dtype: Any) -> Any:
    """`op` as a SciPy sparse array; see SketchOperator.tosparse."""
    if layout not in ("csr", "csc"):
        raise ValueError(f"format: expected 'csr' or 'csc', got {layout!r}")
    real = _real(dtype)
    if op.kind not in HASH_KINDS:
        raise ValueError(f"tosparse: a {op.kind!r} operator has no zeros; see toarray()")
    try:
        from scipy.sparse import csc_array
    except ImportError:
        raise ImportError("tosparse needs SciPy: pip install scipy") from None
    parts = list(EntryChunks(op, 0, op.n_features))
    packed = np.concatenate([entries.ravel() for _, _, entries, _ in parts])
    counts = [np.full(end - begin, op.nnz) if starts is None else np.diff(starts) for begin, end, _, starts in parts]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    rows = (packed & np.uint32(0x7FFFFFFF)).astype(np.int32)
    values = np.where(packed >> np.uint32(31), -op.scale, op.scale).astype(real)
    if indptr[-1] < 2**31:
        indptr = indptr.astype(np.int32)
    matrix = csc_array((values, rows, indptr), shape=op.shape)
    return matrix if layout == "csc" else matrix.tocsr()


def _real(dtype: Any) -> np.dtype[Any]:
    real = np.dtype(dtype)
    if real not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {real!s}")
    return real
