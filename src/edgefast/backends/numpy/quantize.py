"""Compressed tensors in numpy; csrc/aggregate/quantize.hpp has the formats and the arithmetic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgefast.backends import streams
from edgefast.backends.numpy.elements import round_into, widen
from edgefast.backends.numpy.sketch import fwht
from edgefast.backends.table import Array, QuantInput, QuantSpec

__all__ = ["CENTROIDS", "SIGNS", "quant_add", "quant_decode", "quant_encode", "quant_mean", "uniform"]

#: Lloyd-Max magnitudes of the standard normal distribution for 1 to 4 bits.
CENTROIDS = {
    bits: np.array(values, np.float32)
    for bits, values in {
        1: [0.797884561],
        2: [0.452780035, 1.51041761],
        3: [0.245094179, 0.756005281, 1.34390928, 2.1519457],
        4: [0.12839503, 0.388048299, 0.656759119, 0.942340456, 1.2562312, 1.61804639, 2.06901723, 2.73258957],
    }.items()
}
#: Second key words of Philox: signs of rotations, and stochastic rounding.
SIGNS, ROUNDING = 0x71, 0x72
_PIECE = 1 << 16  # coordinates at a time: a multiple of every block
_LARGEST = np.float32(2.0**108)


def eden_length(n: int) -> int:
    return max(8, 1 << (n - 1).bit_length())


def uniform(seed: int, nonce: int, tensor: int, first: int, count: int) -> NDArray[np.float32]:
    """Numbers in [0, 1) of coordinates first, first + 1, ...; first is a multiple of 8."""
    words = streams.philox_words(seed, ROUNDING, (1 + first // 8, tensor, nonce, 0), -(-count // 8))
    lanes = words.astype("<u8", copy=False).view("<u4").reshape(-1)[:count]
    return (lanes >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _signs(seed: int, nonce: int, tensor: int, first: int, count: int) -> NDArray[np.uint32]:
    """Sign bits of coordinates first, first + 1, ...: 0 or 1 << 31."""
    skip = first % 256
    words = streams.philox_words(seed, SIGNS, (1 + first // 256, tensor, nonce, 0), -(-(skip + count) // 256))
    bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8).reshape(-1), bitorder="little")
    return bits[skip : skip + count].astype(np.uint32) << np.uint32(31)


def _flip(x: NDArray[np.float32], signs: NDArray[np.uint32]) -> NDArray[np.float32]:
    return (x.view(np.uint32) ^ signs).view(np.float32)


def _scales(most: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    bits = (most / np.float32(limit)).view(np.uint32)
    bits = np.where(bits < 0x10000, bits + np.uint32(1), (bits + np.uint32(0xFF)) & ~np.uint32(0xFF)).astype(np.uint32)
    over = bits.view(np.float32).astype(np.float64) * limit > np.finfo(np.float32).max
    bits = np.where(over, bits - np.uint32(0x100), bits).astype(np.uint32)
    return np.where(most == 0, np.float32(0), bits.view(np.float32)).astype(np.float32)


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes below 2^bits, one after the other from the lowest bit of the first byte."""
    planes = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    planes = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(-1, bits)
    return (planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of corresponding rows, in the order of the specification."""
    products = (a.astype(np.float64) * b).reshape(len(a), -1, 8)
    s = np.zeros((len(a), 8))
    for i in range(products.shape[1]):
        s += products[:, i]
    return ((s[:, 0] + s[:, 4]) + (s[:, 2] + s[:, 6])) + ((s[:, 1] + s[:, 5]) + (s[:, 3] + s[:, 7]))


def _rotate(x: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    out = np.empty_like(x)
    fwht(x, scale, out, 1)
    return out


def _eden_encode(
    x: NDArray[np.float32], bits: int, signs: NDArray[np.uint32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Packed codes and scales of rows of d coordinates."""
    d = x.shape[1]
    most = np.abs(x).max(axis=1).view(np.uint32)
    exponent = np.maximum((most >> np.uint32(23)).astype(np.int64) - 127, -126)
    shrink = np.ldexp(np.float32(1), -exponent).astype(np.float32)
    y = _rotate(_flip(x * shrink[:, None], signs), 1.0)
    square = _dot(y, y)
    rms = np.sqrt(square / d)
    centroids = CENTROIDS[bits]
    magnitude = np.abs(y)
    codes = np.zeros(y.shape, np.uint8)
    wide = centroids.astype(np.float64)
    for middle in (wide[:-1] + wide[1:]) / 2:
        codes += magnitude > (middle * rms).astype(np.float32)[:, None]
    negative = y < 0
    centre = centroids[codes]
    centre = np.where(negative, -centre, centre)
    codes += negative.astype(np.uint8) << np.uint8(bits - 1)
    along = _dot(centre, y) * d
    scales = np.zeros(len(y), np.float32)
    some = square > 0
    scales[some] = square[some] / along[some] / shrink[some].astype(np.float64)
    return pack(codes.reshape(-1), bits), scales


def _eden_decode(
    packed: NDArray[np.uint8], scales: NDArray[np.float32], bits: int, d: int, signs: NDArray[np.uint32]
) -> NDArray[np.float32]:
    table = np.concatenate([CENTROIDS[bits], -CENTROIDS[bits]])
    y = _rotate(table[unpack(packed, bits, len(scales) * d)].reshape(-1, d), 1.0) * scales[:, None]
    y = _flip(y, signs)
    y[scales == 0] = 0
    return y


def quant_encode(
    x: Array,
    spec: QuantSpec,
    stochastic: bool,
    seed: int,
    nonce: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    num_threads: int,
    /,
) -> bool:
    rotated, bits, block, tensor = spec
    flat = x.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = widen(flat[begin : begin + _PIECE], np.float32)
        n = values.size
        with np.errstate(invalid="ignore"):
            if not (np.abs(values) < _LARGEST if rotated else np.isfinite(values)).all():
                return False
        first = begin // block
        blocks = -(-n // block)
        at = begin * bits // 8
        with np.errstate(under="ignore"):
            if rotated:
                whole = n // block * block
                for start, stop, d in ((0, whole, block), (whole, n, eden_length(n - whole))):
                    if start == stop:
                        continue
                    rows = np.zeros((-(-(stop - start) // d), d), np.float32)
                    rows.reshape(-1)[: stop - start] = values[start:stop]
                    signs = _signs(seed, nonce, tensor, begin + start, rows.size).reshape(rows.shape)
                    found, s = _eden_encode(rows, bits, signs)
                    codes[at + start * bits // 8 :][: found.size] = found
                    scales[first + start // block :][: s.size] = s
                continue
            rows = np.zeros((blocks, block), np.float32)
            rows.reshape(-1)[:n] = values
            limit = 127 if bits == 8 else 7
            s = _scales(np.abs(rows).max(axis=1), limit)
            scales[first : first + blocks] = s
            r = np.divide(rows, s[:, None], out=np.zeros_like(rows), where=s[:, None] > 0)
        r = np.clip(r, np.float32(-limit), np.float32(limit)).reshape(-1)[:n]
        if stochastic:
            floor = np.floor(r)
            r = floor + (uniform(seed, nonce, tensor, begin, n) < r - floor)
        q = np.rint(r).astype(np.int8)
        if bits == 8:
            codes[at : at + n] = q.view(np.uint8)
        else:
            nibbles = np.full(n + n % 2, 8, np.uint8)
            nibbles[:n] = q + 8
            codes[at : at + nibbles.size // 2] = pack(nibbles, 4)
    return True


def _decode_piece(source: QuantInput, spec: QuantSpec, begin: int, n: int) -> NDArray[np.float32]:
    rotated, bits, block, tensor = spec
    codes, scales, seed, nonce = source
    first, blocks, at = begin // block, -(-n // block), begin * bits // 8
    with np.errstate(under="ignore", over="ignore"):
        if rotated:
            values = np.empty(n, np.float32)
            whole = n // block * block
            for start, stop, d in ((0, whole, block), (whole, n, eden_length(n - whole))):
                if start == stop:
                    continue
                rows = -(-(stop - start) // d)
                s = scales[first + start // block :][:rows]
                signs = _signs(seed, nonce, tensor, begin + start, rows * d).reshape(rows, d)
                packed = codes[at + start * bits // 8 :][: rows * d * bits // 8]
                values[start:stop] = _eden_decode(packed, s, bits, d, signs).reshape(-1)[: stop - start]
            return values
        if bits == 8:
            q = codes[at : at + n].view(np.int8)
        else:
            q = unpack(codes[at : at + (n + 1) // 2], 4, n).astype(np.int8) - np.int8(8)
        return q.astype(np.float32) * np.repeat(scales[first : first + blocks], block)[:n]


def quant_decode(source: QuantInput, spec: QuantSpec, out: Array, num_threads: int, /) -> None:
    flat = out.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        part = flat[begin : begin + _PIECE]
        values = _decode_piece(source, spec, begin, part.size)
        if part.dtype == np.float16:
            values = np.clip(values, np.float32(-65504), np.float32(65504))
        round_into(part, values)


def quant_add(
    rows: list[QuantInput],
    weights: list[float],
    spec: QuantSpec,
    like: Array,
    fresh: bool,
    sums: NDArray[np.float64],
    num_threads: int,
    /,
) -> None:
    if fresh:
        sums.fill(0)
    flat = sums.reshape(-1)
    for begin in range(0, flat.size, _PIECE):
        total = flat[begin : begin + _PIECE]
        for source, weight in zip(rows, weights, strict=True):
            values: Array = _decode_piece(source, spec, begin, total.size)
            if like.dtype.itemsize == 2:
                rounded = np.empty(total.size, like.dtype)
                if like.dtype == np.float16:
                    values = np.clip(values, np.float32(-65504), np.float32(65504))
                round_into(rounded, values)
                values = rounded
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                total += widen(values) * weight


def quant_mean(
    rows: list[QuantInput], weights: list[float], total: float, spec: QuantSpec, out: Array, num_threads: int, /
) -> bool:
    sums = np.empty(out.size)
    quant_add(rows, weights, spec, out.reshape(-1), True, sums, num_threads)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        round_into(out.reshape(-1), sums / total)
    return not np.isfinite(sums).all()
