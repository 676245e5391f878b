"""The transposed map of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch._kinds import KINDS, padded
from edgefast.sketch._sparse import HASH_KINDS

if TYPE_CHECKING:
    from edgefast.sketch._operator import SketchOperator

__all__ = ["adjoint_rows"]


def adjoint_rows(op: SketchOperator, y: NDArray[Any], out: NDArray[Any], num_threads: int) -> None:
    """Rows of y (n, k), any strides and element type, into out (n, d), C-contiguous."""
    table, kind, scale = backends.kernels(), op.kind, op.scale
    family: Any = KINDS[kind]
    if kind in HASH_KINDS:
        nnz = 0 if kind == "sparse" else op.nnz
        for first, entries, starts in family.chunks(op, table):
            count = len(entries) if starts is None else len(starts) - 1
            table.hash_adjoint(y, first, first + count, entries, starts, nnz, scale, out, num_threads)
    elif kind == "srht":
        signs, index = family.integers(op)
        table.srht_adjoint(y, signs, index, padded(op.n_features), scale, out, num_threads)
    elif kind == "rotation":
        if y.dtype != out.dtype:
            out[...] = y
            y = out
        table.rotate(y, family.signs(op), True, out, num_threads)
    else:
        normal = streams.gaussian_table() if kind == "gaussian" else None
        table.dense_adjoint(y, op.seed, normal, scale, out, num_threads)
