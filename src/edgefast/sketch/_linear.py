"""A sketch operator in matrix notation: op @ x, op.T @ y, X @ op.T, and SciPy's LinearOperator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgefast.sketch._operator import SketchOperator

__all__ = ["TransposedOperator", "linear_operator"]


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
        return self._operator.adjoint(np.asarray(y).T).T

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
        from scipy.sparse.linalg import LinearOperator
    except ImportError:
        raise ImportError("aslinearoperator needs SciPy: pip install scipy") from None
    real = np.dtype(dtype)
    if real not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {real!s}")

    def given(x: Any) -> NDArray[Any]:
        return np.asarray(x) if np.iscomplexobj(x) else np.asarray(x, real)

    def columns(x: Any) -> NDArray[Any]:
        return op.transform(given(x).T).T

    def adjoint_columns(y: Any) -> NDArray[Any]:
        return op.adjoint(given(y).T).T

    return LinearOperator(
        shape=(op.n_components, op.n_features),
        matvec=lambda x: op.transform(given(x).ravel()),
        rmatvec=lambda y: op.adjoint(given(y).ravel()),
        matmat=columns,
        rmatmat=adjoint_columns,
        dtype=real,
    )
