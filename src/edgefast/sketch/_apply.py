"""The operator applied in every direction to every kind of input: validation, then one kernel call a block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch._adjoint import adjoint_rows
from edgefast.sketch._arrays import check_out, threads_for
from edgefast.sketch._inputs import compressed_array, dense_array, is_sparse, require_finite
from edgefast.sketch._kinds import KINDS
from edgefast.sketch._sparse import HASH_KINDS, EntryChunks, sketch_compressed, sketch_dense_window

if TYPE_CHECKING:
    from edgefast.sketch._operator import SketchOperator

__all__ = ["Nonfinite", "adjoint", "check_nonfinite", "sketch_rows", "transform_sparse", "transform_typed"]

Nonfinite = Literal["propagate", "raise"]

_CONVERTED = 1 << 20  # numbers converted at a time
#: Kinds the row accumulation kernel has.
_ROW_KINDS = ("sparse_stack", "rademacher")


def check_nonfinite(value: Any) -> None:
    """Raises ValueError for an unknown policy."""
    if value != "propagate" and value != "raise":
        raise ValueError(f"nonfinite: expected 'propagate' or 'raise', got {value!r}")


def _target(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *inputs: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(what to return, C-contiguous memory to compute into).

    Raises:
        TypeError, ValueError: `out` cannot take the result, or shares memory with an input.
    """
    if out is None:
        result = np.empty(shape, dtype)
        return result, result
    check_out(out, shape, dtype)
    for x in inputs:
        if np.may_share_memory(x, out) and np.shares_memory(x, out):
            raise ValueError("out: expected memory of its own, got an array that overlaps the input")
    return out, out if out.flags.carray else np.empty(shape, dtype)


def _blocks(x: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[tuple[int, int, NDArray[Any]]]:
    """Rows of `x` in `dtype`: as they are, or converted a block at a time."""
    n = x.shape[0]
    if x.dtype == dtype:
        yield 0, n, x
        return
    step = max(1, _CONVERTED // max(1, x.shape[1]))
    for begin in range(0, n, step):
        end = min(begin + step, n)
        yield begin, end, x[begin:end].astype(dtype)


def transform_typed(op: SketchOperator, x: NDArray[Any], out: NDArray[Any], num_threads: int) -> None:
    """Rows of x (n, d), of a type that converts to out's, into out (n, k), C-contiguous."""
    table = backends.kernels()
    for begin, end, rows in _blocks(x, out.dtype):
        KINDS[op.kind].transform(op, table, rows, out[begin:end], num_threads)


def transform_sparse(
    op: SketchOperator, X: Any, out: NDArray[Any] | None, nonfinite: Nonfinite, num_threads: int | None
) -> NDArray[Any]:
    """SketchOperator.transform of a CSR or CSC matrix."""
    x = compressed_array(X, "X", num_threads)
    d, k = op.n_features, op.n_components
    if x.columns != d:
        raise ValueError(f"X: expected shape (n, {d}) or ({d},), got {tuple(X.shape)}")
    shape = (x.rows, k) if x.ndim == 2 else (k,)
    result, target = _target(out, shape, x.dtype, x.data, x.indices, x.indptr)
    threads = threads_for(x.entries * min(op.nnz, 16) + x.rows * k, 1 << 20, num_threads)
    if x.rows:
        sketch_compressed(op, x, 0, op.scale, False, target.reshape(x.rows, k), threads)
    if target is not result:
        result[...] = target
    if nonfinite == "raise":
        require_finite(result, x, "X")
    return result


def adjoint(
    op: SketchOperator, Y: Any, out: NDArray[Any] | None, nonfinite: Nonfinite, num_threads: int | None
) -> NDArray[Any]:
    """SketchOperator.adjoint."""
    if is_sparse(Y):
        raise TypeError(f"Y: expected a dense array, got {type(Y).__name__}; a sketch has no zeros to save")
    check_nonfinite(nonfinite)
    y, dtype = dense_array(Y, "Y")
    d, k = op.n_features, op.n_components
    if y.ndim not in (1, 2) or y.shape[-1] != k:
        raise ValueError(f"Y: expected shape (n, {k}) or ({k},), got {y.shape}")
    rows = y if y.ndim == 2 else y[None, :]
    result, target = _target(out, (*y.shape[:-1], d), dtype, y)
    threads = threads_for(rows.shape[0] * KINDS[op.kind].work(op), 1 << 20, num_threads)
    if rows.shape[0]:
        adjoint_rows(op, rows, target.reshape(rows.shape[0], d), threads)
    if target is not result:
        result[...] = target
    if nonfinite == "raise":
        require_finite(result, y, "Y")
    return result


def sketch_rows(
    op: SketchOperator,
    X: Any,
    row_start: int,
    out: NDArray[Any] | None,
    accumulate: bool,
    scaled: bool,
    nonfinite: Nonfinite,
    num_threads: int | None,
) -> NDArray[Any]:
    """SketchOperator.sketch_rows, row_start being an integer from 0 to d."""
    check_nonfinite(nonfinite)
    if accumulate and (out is None or scaled):
        raise ValueError("accumulate: expected out= and scaled=False with it, since the scale comes after the sum")
    d, k = op.n_features, op.n_components
    scale = op.scale if scaled else 1.0
    x: Any
    if is_sparse(X):
        x = compressed_array(X, "X", num_threads)
        m, columns = (x.columns, 1) if x.ndim == 1 else (x.rows, x.columns)
        dtype, ndim, inputs = x.dtype, x.ndim, (x.data, x.indices, x.indptr)
        work = x.entries * min(op.nnz, 16)
    else:
        x, dtype = dense_array(X, "X")
        if x.ndim not in (1, 2):
            raise ValueError(f"X: expected shape (m,) or (m, columns), got {x.shape}")
        ndim, inputs = x.ndim, (x,)
        m, columns = x.shape[0], x.shape[1] if ndim == 2 else 1
        work = x.size * min(op.nnz, 16)
    if m > d - row_start:
        raise ValueError(f"X: expected at most {d - row_start} rows from row_start={row_start} on, got {m}")
    shape = (k, columns) if ndim == 2 else (k,)
    result, target = _target(out, shape, dtype, *inputs)
    if accumulate and target is not result:
        target[...] = result
    threads = threads_for(work + k * columns, 1 << 20, num_threads)
    sums = target.reshape(k, columns)
    if is_sparse(X):
        turned = x if ndim == 1 else x.transposed()
        rows = sums.T.copy() if accumulate else np.empty((columns, k), dtype)
        if columns:
            sketch_compressed(op, turned, row_start, scale, accumulate, rows, threads)
        sums[...] = rows.T
    else:
        _dense_rows(op, x if ndim == 2 else x[:, None], row_start, scale, accumulate, sums, threads)
    if target is not result:
        result[...] = target
    if nonfinite == "raise":
        require_finite(result, x, "X")
    return result


def _dense_rows(
    op: SketchOperator,
    x: NDArray[Any],
    first: int,
    scale: float,
    more: bool,
    sums: NDArray[Any],
    num_threads: int,
) -> None:
    """S x for rows first, first + 1, ... of the operator's features into sums (k, columns), C-contiguous."""
    table, kind = backends.kernels(), op.kind
    if kind in _ROW_KINDS:
        if not more:
            sums[...] = 0
        for begin, _, rows in _blocks(x, sums.dtype):
            table.row_sketch_add(rows, streams.KIND_NUMBERS[kind], op.seed, op.nnz, first + begin, sums, num_threads)
        with np.errstate(all="ignore"):
            sums *= sums.dtype.type(scale)
        sums[np.isnan(sums)] = np.nan
        return
    turned = sums.T.copy() if more else np.empty(sums.shape[::-1], sums.dtype)
    if kind in HASH_KINDS:
        if not more:
            turned[...] = 0
        for begin, end, entries, starts in EntryChunks(op, first, x.shape[0]):
            for row, past, rows in _blocks(x[begin:end], sums.dtype):
                part = entries[row:past] if starts is None else entries[starts[row] : starts[past]]
                local = None if starts is None else starts[row : past + 1] - starts[row]
                last = begin + past == x.shape[0]
                table.hash_transform(rows.T, part, local, scale, True, last, turned, num_threads)
    else:
        sketch_dense_window(op, x, first, scale, more, turned, num_threads)
    sums[...] = turned.T
