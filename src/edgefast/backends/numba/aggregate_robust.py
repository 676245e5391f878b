"""The robust rules of edgefast.aggregate in numba: sorting and pair sums as loops, the rest as in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgefast.backends.numba.aggregate import weighted_mean
from edgefast.backends.numba.jit import jit
from edgefast.backends.numpy import aggregate_robust as plain
from edgefast.backends.numpy.aggregate_robust import square_norms, trim_push
from edgefast.backends.table import Array

__all__ = ["mix", "order_mean", "pair_sums", "square_norms", "trim_push"]


@jit
def _network(images: Any) -> None:
    """Batcher's odd-even merge sort of the rows, comparator by comparator over all columns."""
    wires = images.shape[0]
    size = 1
    while size < wires:
        size *= 2
    p = 1
    while p < size:
        k = p
        while k >= 1:
            for j in range(k % p, wires - k, 2 * k):
                for i in range(min(k, wires - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        for c in range(images.shape[1]):
                            a, b = images[i + j, c], images[i + j + k, c]
                            images[i + j, c], images[i + j + k, c] = min(a, b), max(a, b)
            k //= 2
        p *= 2


def _sort(images: Array) -> Array:
    _network(images)
    return images


@jit
def _pairs(x: Any, difference: bool, out: Any) -> None:
    lanes = np.zeros(8)
    for i in range(x.shape[0]):
        for j in range(i, x.shape[0]):
            total = 0.0
            for s in range(0, x.shape[1], 512):
                lanes[:] = 0.0
                for p in range(s, s + 512, 8):
                    for k in range(8):
                        a, b = x[i, p + k], x[j, p + k]
                        if difference:
                            lanes[k] += (b - a) * (b - a)
                        else:
                            lanes[k] += b * a
                total += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + (
                    (lanes[1] + lanes[5]) + (lanes[3] + lanes[7])
                )
            out[i, j] += total


def order_mean(
    rows: list[list[Array]], rule: int, low: int, high: int, nan: int, out: list[Array], num_threads: int, /
) -> bool:
    return plain.order_mean(rows, rule, low, high, nan, out, num_threads, sort=_sort)


def pair_sums(rows: list[list[Array]], distances: Array | None, products: Array | None, num_threads: int, /) -> None:
    plain.pair_sums(rows, distances, products, num_threads, triangle=_pairs)


def mix(
    rows: list[list[Array]],
    members: list[list[int]],
    weights: list[list[float]],
    totals: list[float],
    outs: list[list[Array]],
    num_threads: int,
    /,
) -> None:
    for chosen, used, total, out in zip(members, weights, totals, outs, strict=True):
        weighted_mean([rows[k] for k in chosen], used, total, False, out, num_threads)
