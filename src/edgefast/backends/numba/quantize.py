"""Compressed tensors in numba: integers by loops; rotations are whole-array arithmetic either way."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.backends.numba.jit import jit
from edgefast.backends.numpy import quantize
from edgefast.backends.numpy.elements import round_into
from edgefast.backends.numpy.quantize import quant_decode, quant_encode
from edgefast.backends.table import Array, QuantInput, QuantSpec

__all__ = ["quant_add", "quant_decode", "quant_encode", "quant_mean"]


@jit
def _add_integers(codes: Any, scales: Any, bits: int, block: int, weight: float, sums: Any) -> None:
    for i in range(sums.size):
        if bits == 8:
            q = np.int64(np.int8(codes[i]))
        else:
            q = np.int64((codes[i // 2] >> (4 * (i % 2))) & 15) - 8
        sums[i] += np.float64(q) * np.float64(scales[i // block]) * weight


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
    rotated, bits, block, _ = spec
    if rotated or like.dtype.itemsize == 2:
        quantize.quant_add(rows, weights, spec, like, fresh, sums, num_threads)
        return
    if fresh:
        sums.fill(0)
    for (codes, scales, _, _), weight in zip(rows, weights, strict=True):
        # Read-only or unaligned arrays are other types to numba.
        readable = [np.require(a, requirements=["A", "W"]) for a in (codes, scales)]
        _add_integers(*readable, bits, block, weight, sums.reshape(-1))


def quant_mean(
    rows: list[QuantInput], weights: list[float], total: float, spec: QuantSpec, out: Array, num_threads: int, /
) -> bool:
    sums = np.empty(out.size)
    quant_add(rows, weights, spec, out.reshape(-1), True, sums, num_threads)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        round_into(out.reshape(-1), sums / total)
    return not np.isfinite(sums).all()
