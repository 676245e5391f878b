"""What the sketch operators accept: dense arrays of many kinds and types, and compressed sparse matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.sketch._arrays import threads_for

__all__ = [
    "Compressed",
    "all_finite",
    "check_compressed",
    "compressed_array",
    "dense_array",
    "is_sparse",
    "require_finite",
]

_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)
#: Type of the sums and of the result: the narrowest of float32 and float64 that holds every value of the input type,
#: as in numpy's promotion with float32. 64-bit integers are held to 2**53 by a check of their values.
RESULT_DTYPES = {
    np.dtype(name): np.result_type(name, np.float32)
    for name in ("?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
}
_EXACT = 2**53


@dataclass(frozen=True, slots=True)
class Compressed:
    """A canonical compressed matrix seen as rows to sketch: its CSR when `by_rows`, else the CSR of its transpose."""

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    rows: int
    columns: int
    by_rows: bool
    dtype: np.dtype[Any]  # of the result
    ndim: int

    @property
    def entries(self) -> int:
        return int(self.indptr[-1])

    def transposed(self) -> Compressed:
        """The transpose, sharing memory."""
        return Compressed(
            self.data, self.indices, self.indptr, self.columns, self.rows, not self.by_rows, self.dtype, self.ndim
        )


def is_sparse(x: Any) -> bool:
    """True for SciPy's sparse matrices and arrays, without importing SciPy."""
    return hasattr(x, "tocsr") and hasattr(x, "nnz")


def dense_array(x: Any, name: str) -> tuple[NDArray[Any], np.dtype[Any]]:
    """`x` as a plain ndarray without a copy, and the dtype of its sketch.

    Raises:
        TypeError: nothing that shares its memory as an array, or of another dtype.
        ValueError: a 64-bit integer that float64 cannot hold.
    """
    if type(x) is not np.ndarray:
        x = _shared(x, name)
    dtype = x.dtype
    if dtype is _FLOAT32 or dtype is _FLOAT64:
        return x, dtype
    return x, _result_dtype(x, name)


def _result_dtype(x: NDArray[Any], name: str) -> np.dtype[Any]:
    result = RESULT_DTYPES.get(x.dtype)
    if result is None:
        raise TypeError(
            f"{name}: expected a dtype of bool, int8 to int64, uint8 to uint64, float16, float32 or float64 in native "
            f"byte order, got {x.dtype!s}"
        )
    if x.dtype.itemsize == 8 and x.dtype.kind != "f" and x.size:
        low, high = int(x.min()), int(x.max())
        if low < -_EXACT or high > _EXACT:
            worst = high if high > _EXACT else low
            raise ValueError(f"{name}: expected integers that float64 holds exactly, up to 2**53, got {worst}")
    return result


def _shared(x: Any, name: str) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the masked values first")
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    try:
        if hasattr(x, "__dlpack__"):
            return np.from_dlpack(x)
        if hasattr(x, "__array__") or hasattr(x, "__array_interface__"):
            return np.asarray(x)
        view = memoryview(x)
    except Exception as error:
        if isinstance(error, TypeError) and "bytes-like" in str(error):
            raise TypeError(
                f"{name}: expected an array, a SciPy CSR or CSC matrix or a buffer, got {type(x).__name__}"
            ) from None
        raise TypeError(f"{name}: {type(x).__name__} does not give its memory as an array: {error}") from error
    return np.asarray(view)


def compressed_array(x: Any, name: str, num_threads: int | None) -> Compressed:
    """A SciPy CSR or CSC matrix or array, checked: after this the kernels may trust its indices.

    Canonical matrices are used where they are. The entries of others (unsorted, or a place stored twice: its values
    add up, in the order they are stored) are put in order in a copy; the caller's matrix is never touched.

    Raises:
        TypeError: another sparse format, or an unsuitable dtype.
        ValueError: a malformed matrix.
    """
    found, ordered = _checked(x, name, num_threads)
    if ordered:
        return found
    data, indices, indptr = _canonical(found.data, found.indices, found.indptr, found.dtype)
    return replace(found, data=data, indices=indices, indptr=indptr)


def check_compressed(x: Any, name: str) -> None:
    """Raises what compressed_array would."""
    _checked(x, name, None)


def _checked(x: Any, name: str, num_threads: int | None) -> tuple[Compressed, bool]:
    """The matrix where it is, and whether it is canonical."""
    layout = getattr(x, "format", None)
    if layout not in ("csr", "csc"):
        raise TypeError(f"{name}: expected a sparse matrix in CSR or CSC format, got {layout}; see its tocsr()")
    shape = tuple(x.shape)
    rows, columns = shape if len(shape) == 2 else (1, shape[0])
    major, minor = (rows, columns) if layout == "csr" else (columns, rows)
    data, indices, indptr = (_vector(getattr(x, part), f"{name}.{part}") for part in ("data", "indices", "indptr"))
    dtype = _result_dtype(data, name)
    for part, array in (("indices", indices), ("indptr", indptr)):
        if array.dtype != np.int32 and array.dtype != np.int64:
            raise TypeError(f"{name}.{part}: expected dtype int32 or int64, got {array.dtype!s}")
    if indptr.size != major + 1:
        raise ValueError(f"{name}: malformed matrix, expected {major + 1} numbers in indptr, got {indptr.size}")
    starts = indptr.astype(np.int64, copy=False)
    entries = min(data.size, indices.size)
    data, indices = data[:entries], indices[:entries]
    found, row = backends.kernels().check_compressed(indices, starts, minor, threads_for(entries, 1 << 21, num_threads))
    if found >= 2:
        _malformed(name, layout, found, row, indices, starts, minor)
    return Compressed(data, indices, starts, rows, columns, layout == "csr", dtype, len(shape)), found != 1


def _vector(x: Any, name: str) -> NDArray[Any]:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported; fill the masked values first")
    if not isinstance(x, np.ndarray) or x.ndim != 1:
        raise ValueError(f"{name}: malformed matrix, expected a one-dimensional array")
    return np.require(x.view(np.ndarray), requirements=["C", "A"])


def _malformed(
    name: str, layout: str, found: int, row: int, indices: NDArray[Any], indptr: NDArray[np.int64], minor: int
) -> None:
    major, other = ("row", "column") if layout == "csr" else ("column", "row")
    if found == 2:
        raise ValueError(
            f"{name}: malformed matrix, expected indptr to begin at 0 and to ascend to at most {indices.size}, got "
            f"{indptr[0] if indptr[0] else indptr[row + 1]} at {major} {row}"
        )
    index = indices[indptr[row] : indptr[row + 1]]
    wrong = index[(index < 0) | (index >= minor)][0]
    raise ValueError(
        f"{name}: malformed matrix, expected {other} indices from 0 to {minor - 1}, got {wrong} in {major} {row}"
    )


def _canonical(
    data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[np.int64], dtype: np.dtype[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    entries = int(indptr[-1])
    rows = np.repeat(np.arange(indptr.size - 1), np.diff(indptr))
    order = np.lexsort((indices[:entries], rows))  # stable: equal places keep their order
    rows, index, values = rows[order], indices[:entries][order], data[:entries][order]
    first = np.r_[True, (rows[1:] != rows[:-1]) | (index[1:] != index[:-1])]
    if first.all():
        return values, index, indptr
    sums = np.zeros(int(first.sum()), dtype)
    with np.errstate(all="ignore"):
        np.add.at(sums, np.cumsum(first) - 1, values.astype(dtype))
    counts = np.bincount(rows[first], minlength=indptr.size - 1)
    return sums, np.ascontiguousarray(index[first]), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def all_finite(x: NDArray[Any]) -> bool:
    """Whether all numbers are finite."""
    with np.errstate(all="ignore"):
        # One pass without temporaries of its size: a sum is not finite when a term is not.
        return bool(np.isfinite(x.sum(dtype=np.float64)) or np.isfinite(x).all())


def require_finite(result: NDArray[Any], x: Any, name: str) -> None:
    """Raises ValueError when a result is not finite. Every number of `x` that counts reaches some result.

    Only the result is read, which is the smaller of the two; `x` when there is something to report.
    """
    if all_finite(result):
        return
    if isinstance(x, Compressed):
        bad = np.flatnonzero(~np.isfinite(x.data[: x.entries]))
        if bad.size:
            major = int(np.searchsorted(x.indptr, bad[0], "right")) - 1
            place = (major, int(x.indices[bad[0]])) if x.by_rows else (int(x.indices[bad[0]]), major)
            raise ValueError(f"{name}: expected finite numbers, got {x.data[bad[0]]} at {place}")
    else:
        rows = x if x.ndim == 2 else x[None, :]
        for i in range(rows.shape[0]):
            bad = np.flatnonzero(~np.isfinite(rows[i]))
            if bad.size:
                place = (i, int(bad[0])) if x.ndim == 2 else (int(bad[0]),)
                raise ValueError(f"{name}: expected finite numbers, got {rows[i, bad[0]]} at {place}")
    raise ValueError(f"{name}: expected finite results, got an overflow of {result.dtype!s}")
