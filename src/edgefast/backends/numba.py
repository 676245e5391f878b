"""The numba backend: the loops of the C++ kernels, compiled on first call. Nothing is compiled at import."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from edgefast.backends import entries
from edgefast.backends.numpy import finish_mean, first_mismatch
from edgefast.backends.table import Array

# Nothing to win in a loop: the same code as the numpy backend's.
__all__ = ["finish_mean", "first_mismatch"]


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.njit on first call. fastmath stays off: results have to match the other backends bit for bit."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import numba

        # Caching needs a writable directory at decoration time and fails in read-only installations: opt-in.
        return numba.njit(cache=os.environ.get("EDGEFAST_NUMBA_CACHE") == "1", nogil=True)(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return compiled()(*args)

    return call


# --- sketch -----------------------------------------------------------------------------------------------------

_FEATURES = 2048  # features at a time: bounds the tables


@_jit
def _stack_add(x: Any, sums: Any, buckets: Any, signs: Any) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j]
            for r in range(buckets.shape[1]):
                if signs[j, r] > 0:
                    sums[i, buckets[j, r]] += v
                else:
                    sums[i, buckets[j, r]] -= v


@_jit
def _fwht(a: Any) -> None:
    n = a.shape[1]
    for row in range(a.shape[0]):
        h = 1
        while h < n:
            for base in range(0, n, 2 * h):
                for i in range(base, base + h):
                    x = a[row, i]
                    y = a[row, i + h]
                    a[row, i] = x + y
                    a[row, i + h] = x - y
            h *= 2


@_jit
def _rademacher_add(x: Any, sums: Any, signs: Any) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[i, j]
            for o in range(sums.shape[1]):
                sums[i, o] += v * signs[j, o]


def _plain(x: Array) -> Array:
    """An array numba has a type for: aligned and writeable flags as it expects, C order so one compilation serves."""
    return np.require(x, requirements=["C", "A", "W"])


def sparse_stack_transform(x: Array, out: Array, seed: int, nnz: int, scale: float, num_threads: int, /) -> None:
    out[...] = 0
    for j0 in range(0, x.shape[1], _FEATURES):
        block = _plain(x[:, j0 : j0 + _FEATURES])
        _stack_add(block, out, *entries.sparse_stack_table(seed, out.shape[1], nnz, j0, j0 + block.shape[1]))
    out *= out.dtype.type(scale)


def srht_transform(x: Array, out: Array, seed: int, rows: Array, scale: float, num_threads: int, /) -> None:
    n, d = x.shape
    padded = 1 << max(0, d - 1).bit_length()
    signs = entries.srht_signs(seed, 0, d).astype(out.dtype)
    step = max(1, (1 << 22) // padded)
    for r0 in range(0, n, step):
        block = np.zeros((min(step, n - r0), padded), out.dtype)
        np.multiply(x[r0 : r0 + step], signs, out=block[:, :d])
        _fwht(block)
        np.multiply(block[:, rows], out.dtype.type(scale), out=out[r0 : r0 + len(block)])


def rademacher_transform(x: Array, out: Array, seed: int, scale: float, num_threads: int, /) -> None:
    out[...] = 0
    for j0 in range(0, x.shape[1], _FEATURES):
        block = _plain(x[:, j0 : j0 + _FEATURES])
        signs = entries.rademacher_signs(seed, out.shape[1], j0, j0 + block.shape[1])
        _rademacher_add(block, out, signs.astype(out.dtype))
    out *= out.dtype.type(scale)


def fwht_rows(a: Array, scale: float, num_threads: int, /) -> None:
    _fwht(a)
    if scale != 1.0:
        a *= a.dtype.type(scale)


# --- aggregate --------------------------------------------------------------------------------------------------


@_jit
def _axpy(x: Any, weight: float, sums: Any) -> None:
    for i in range(sums.size):
        sums[i] += x[i] * weight


@_jit
def _finite(x: Any) -> bool:
    for i in range(x.size):  # noqa: SIM110 - numba compiles the loop
        if not np.isfinite(x[i]):
            return False
    return True


def _readable(x: Array) -> Array:
    """Flat, and of a type numba compiles: it has no float16, and read-only or unaligned arrays are other types."""
    flat = x.reshape(-1)
    if x.dtype == np.float16:
        return flat.astype(np.float64)
    return np.require(flat, requirements=["A", "W"])


def weighted_mean(
    rows: list[list[Array]], weights: list[float], total: float, out: list[Array], num_threads: int, /
) -> bool:
    suspicious = False
    for t, target in enumerate(out):
        sums = np.zeros(target.size)
        for row, weight in zip(rows, weights, strict=True):
            _axpy(_readable(row[t]), weight, sums)
        suspicious = suspicious or not _finite(sums)
        finish_mean([sums], total, [target], num_threads)
    return suspicious


def add_weighted(update: list[Array], weight: float, sums: list[Array], num_threads: int, /) -> None:
    for x, total in zip(update, sums, strict=True):
        _axpy(_readable(x), weight, total.reshape(-1))


def all_finite(update: list[Array], num_threads: int, /) -> bool:
    return all(_finite(_readable(a)) for a in update if a.dtype.kind == "f")
