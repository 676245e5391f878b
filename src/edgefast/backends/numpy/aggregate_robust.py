"""The robust rules of edgefast.aggregate in numpy; csrc/aggregate/order.hpp and gram.hpp fix the arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefast.backends.images import images_of, values_of
from edgefast.backends.numpy.aggregate import finish_mean, weighted_mean
from edgefast.backends.numpy.elements import widen
from edgefast.backends.table import NEAR_MEDIAN, PROPAGATE, Array

__all__ = ["mix", "order_mean", "pair_sums", "square_norms", "trim_push"]

_TILE_BYTES = 1 << 20  # of one tile of images
_CHUNK, _SEGMENT, _LANES = 1 << 15, 512, 8


def _finish(total: Array, count: int, least: Array, most: Array, rescaled: Callable[[], Array]) -> Array:
    mean = total / count
    overflow = ~np.isfinite(total) & np.isfinite(least) & np.isfinite(most)
    if overflow.any():
        mean = np.where(overflow, rescaled(), mean)
    mean = np.where(mean < least, least, mean)
    mean = np.where(mean > most, most, mean)
    mean[np.isnan(mean)] = np.nan
    return mean


def mean_of_ranks(column: Array, low: int, high: int) -> Array:
    """Of sorted columns (clients, n) in binary64."""
    if high - low == 1:
        single = column[low].copy()
        single[np.isnan(single)] = np.nan
        return single

    def add(scale: float) -> Array:
        total = column[low] * scale
        for k in range(low + 1, high):
            total += column[k] * scale
        return total

    return _finish(add(1.0), high - low, column[low], column[high - 1], lambda: add(2.0**-32) / (high - low) * 2.0**32)


def _mean_near_median(column: Array, keep: int) -> Array:
    clients, n = column.shape
    median = mean_of_ranks(column, (clients - 1) // 2, clients // 2 + 1)
    first = np.zeros(n, np.int64)
    for s in range(clients - keep):
        first += column[s + keep] - median < median - column[s]
    here = np.arange(n)

    def add(scale: float) -> Array:
        total = column[first, here] * scale
        for k in range(1, keep):
            total += column[first + k, here] * scale
        return total

    return _finish(
        add(1.0), keep, column[first, here], column[first + keep - 1, here], lambda: add(2.0**-32) / keep * 2.0**32
    )


def _sort(images: Array) -> Array:
    images.sort(axis=0)
    return images


def order_mean(
    rows: list[list[Array]],
    rule: int,
    low: int,
    high: int,
    nan: int,
    out: list[Array],
    num_threads: int,
    /,
    sort: Callable[[Array], Array] = _sort,
) -> bool:
    suspicious = False
    with np.errstate(over="ignore", invalid="ignore"):
        for t, target in enumerate(out):
            flat = [row[t].reshape(-1) for row in rows]
            result = target.reshape(-1)
            tile = max(64, _TILE_BYTES // (len(rows) * target.itemsize))
            for i in range(0, result.size, tile):
                parts = [x[i : i + tile] for x in flat]
                if target.dtype.kind in "fV":
                    suspicious = suspicious or (nan == 0 and not all(np.isfinite(widen(p)).all() for p in parts))
                images = sort(np.stack([images_of(p) for p in parts]))
                column = values_of(images, target.dtype)
                values = _mean_near_median(column, high) if rule == NEAR_MEDIAN else mean_of_ranks(column, low, high)
                if nan == PROPAGATE:
                    values[np.isnan(column[-1])] = np.nan
                finish_mean([values], 1.0, False, [result[i : i + tile]], num_threads)
    return suspicious


# ---- sums of products in the fixed order ---------------------------------------------------------------------------


def _sum_terms(terms: Array) -> Array:
    """(..., segments * 512) -> (...): the sum of a chunk."""
    lanes = terms.reshape(*terms.shape[:-1], -1, _SEGMENT // _LANES, _LANES)
    acc = lanes[..., 0, :].copy()
    for p in range(1, lanes.shape[-2]):
        acc += lanes[..., p, :]
    half = acc[..., :4] + acc[..., 4:]
    quarter = half[..., :2] + half[..., 2:]
    segments = quarter[..., 0] + quarter[..., 1]
    total = np.zeros(segments.shape[:-1])
    for s in range(segments.shape[-1]):
        total += segments[..., s]
    return total


def _triangle(x: Array, difference: bool, out: Array) -> None:
    """Adds a chunk's sums (upper triangle) to out; x is (clients, n), n a multiple of 512."""
    for i in range(len(x)):
        terms = x[i:] - x[i] if difference else x[i:] * x[i]
        if difference:
            terms *= terms
        out[i, i:] += _sum_terms(terms)


def _chunks(size: int) -> range:
    return range(0, size, _CHUNK)


def _padded(parts: list[Array]) -> Array:
    n = parts[0].size
    x = np.zeros((len(parts), -(-n // _SEGMENT) * _SEGMENT))
    for row, part in zip(x, parts, strict=True):
        row[:n] = widen(part)
    return x


def pair_sums(
    rows: list[list[Array]],
    distances: Array | None,
    products: Array | None,
    num_threads: int,
    /,
    triangle: Callable[[Array, bool, Array], None] = _triangle,
) -> None:
    count = len(rows)
    totals = [np.zeros((count, count)) for _ in range(2)]
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(len(rows[0])):
            flat = [row[t].reshape(-1) for row in rows]
            for i in _chunks(flat[0].size):
                parts = [x[i : i + _CHUNK] for x in flat]
                x = _padded(parts)
                if distances is not None:
                    partial = np.zeros((count, count))
                    triangle(x, True, partial)
                    totals[0] += partial
                if products is not None:
                    images = _sort(np.stack([images_of(p) for p in parts]))
                    median = mean_of_ranks(values_of(images, parts[0].dtype), (count - 1) // 2, count // 2 + 1)
                    part = x[:, : median.size]
                    single = flat[0].dtype.kind in "fV" and flat[0].dtype.itemsize <= 4
                    if single:
                        half = np.float32(0.5)
                        part[...] = part.astype(np.float32) * half - (median * 0.5).astype(np.float32)
                    else:
                        part -= median
                    partial = np.zeros((count, count))
                    triangle(x, False, partial)
                    totals[1] += partial * 4.0 if single else partial
        for out, total in zip((distances, products), totals, strict=True):
            if out is not None:
                upper = np.triu(out) + np.triu(total)
                out[...] = np.triu(upper) + np.triu(upper, 1).T


def square_norms(rows: list[list[Array]], center: list[Array] | None, sums: Array, num_threads: int, /) -> None:
    sums[...] = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(len(rows[0])):
            for i in _chunks(rows[0][t].size):
                middle = None if center is None else _padded([center[t].reshape(-1)[i : i + _CHUNK]])
                for k, row in enumerate(rows):
                    x = _padded([row[t].reshape(-1)[i : i + _CHUNK]])
                    if middle is not None:
                        x -= middle
                    sums[k] += _sum_terms(x * x)[0]


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


def trim_push(
    row: list[Array],
    from_images: bool,
    model: list[Array],
    low: list[Array],
    high: list[Array],
    sums: list[Array],
    trim: int,
    stage: int,
    num_threads: int,
    /,
) -> None:
    tile = _TILE_BYTES // 8
    for t, example in enumerate(model):
        flat, total = row[t].reshape(-1), sums[t].reshape(-1)
        for i in range(0, total.size, tile):
            part = slice(i, i + tile)
            v = flat[part].copy() if from_images else images_of(flat[part])
            for j in range(trim):
                kept = low[t][j, part]
                low[t][j, part], v = np.minimum(kept, v), np.maximum(kept, v)
            if stage == 0:
                continue
            for j in range(trim):
                kept = high[t][j, part]
                high[t][j, part], v = np.maximum(kept, v), np.minimum(kept, v)
            if stage == 2:
                with np.errstate(over="ignore", invalid="ignore"):
                    total[part] += values_of(v, example.dtype)
