"""Coordinate-wise robust rules: median, trimmed mean, mean around the median."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgefast import backends
from edgefast.aggregate._batch import ORDER_NONFINITE, Batch, OrderNonfinite, check_count, nan_policy
from edgefast.aggregate._policy import Ints
from edgefast.backends.table import NEAR_MEDIAN, RANKS, Array

__all__ = ["meamed", "median", "trimmed_mean"]


def _coordinatewise(
    batch: Batch, out: Any, rule: int, check: Callable[[], None], ranks: Callable[[int], tuple[int, int]]
) -> Any:
    """ranks(n) are the kernel's two numbers for n updates."""
    targets, copies = batch.template.outputs(out, batch.models)
    numbers = batch.numbers([targets])[0]

    def compute() -> tuple[None, bool]:
        low, high = ranks(len(batch.clients))
        nan = nan_policy(batch.nonfinite)
        return None, backends.kernels().order_mean(batch.rows, rule, low, high, nan, numbers, batch.threads)

    batch.screened(check, compute)
    return batch.deliver(targets, copies, list(range(len(batch.clients))), out)


def median(
    updates: Sequence[Any] | Array,
    *,
    out: Any = None,
    ints: Ints = "round",
    nonfinite: OrderNonfinite = "raise",
    num_threads: int | None = None,
) -> Any:
    """Coordinate-wise median of K model updates; of an even number the mean of the middle two.

    Updates are read once and in place. The result does not depend on their order: the same bits for every
    permutation, backend, SIMD level and number of threads. For float data it equals numpy.median up to numpy's own
    rounding of the mean of two.

    Args:
        updates: as in weighted_mean; also lists of numpy.memmap, which are read tile by tile.
        out: containers of arrays like an update, for the result.
        ints: integer and bool tensors: "round" (their median, ties of the mean of two to even; bools: true when more
            than half are), "max", "first", "skip" or "error" as in weighted_mean.
        nonfinite: "raise" and "drop" as in weighted_mean; "rank" counts NaN as a value above +inf, so that fewer than
            half of the updates can send anything without reaching the result; "propagate" gives NaN wherever an
            update has NaN, as numpy does. Infinities are ordinary values with the last two.
        num_threads: threads to use; None for the default (see edgefast.using).

    Returns:
        New arrays in the first update's containers, with its dtypes; `out` when given.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Yin et al., "Byzantine-robust distributed learning: towards optimal statistical rates", ICML 2018.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import median
        >>> median([np.array([1.0, 5.0]), np.array([2.0, -7.0]), np.array([1e30, 6.0])])
        array([2., 5.])
    """
    batch = Batch(updates, "median", ints=ints, nonfinite=nonfinite, num_threads=num_threads, policies=ORDER_NONFINITE)
    return _coordinatewise(batch, out, RANKS, lambda: None, lambda n: ((n - 1) // 2, n // 2 + 1))


def trimmed_mean(
    updates: Sequence[Any] | Array,
    *,
    trim: float | None = None,
    f: int | None = None,
    out: Any = None,
    ints: Ints = "round",
    nonfinite: OrderNonfinite = "raise",
    num_threads: int | None = None,
) -> Any:
    """Coordinate-wise mean of K model updates without the f least and the f greatest values.

    The values kept are added in ascending order in float64, divided and rounded once: the same bits for every
    permutation of the updates, backend, SIMD level and number of threads. The result lies between the least and the
    greatest value kept.

    Args:
        updates, out, ints, nonfinite, num_threads: as in median. Integer tensors are trimmed and averaged alike.
        trim: share to cut from each end, in [0, 0.5): f = int(trim * K), as scipy.stats.trim_mean and Flower
            (whose default is 0.2) cut. K counts the updates left after nonfinite="drop".
        f: number to cut from each end; give exactly one of the two.

    Raises:
        TooFewUpdates: not more than 2 f updates (a ValueError).
        TypeError: both or neither of trim and f.
        ValueError: trim or f out of range; and what median raises.

    References:
        Yin et al., ICML 2018.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import trimmed_mean
        >>> trimmed_mean([np.array([x]) for x in (1.0, 2.0, 3.0, 4.0, -1e30)], f=1)
        array([2.])
    """
    if (trim is None) == (f is None):
        raise TypeError("trimmed_mean: expected exactly one of trim= and f=")
    if trim is not None:
        if isinstance(trim, (str, bytes)) or hasattr(trim, "__len__") or not 0 <= trim < 0.5:
            raise ValueError(f"trim: expected a number in [0, 0.5), got {trim!r}")
        share = float(trim)
    else:
        share = 0.0
    fixed = None if f is None else check_count(f, "f")
    batch = Batch(
        updates, "trimmed_mean", ints=ints, nonfinite=nonfinite, num_threads=num_threads, policies=ORDER_NONFINITE
    )

    def check() -> None:
        if fixed is not None:
            batch.need(2 * fixed + 1, f"2f < K with f={fixed}")

    def ranks(n: int) -> tuple[int, int]:
        cut = int(share * n) if fixed is None else fixed
        return cut, n - cut

    return _coordinatewise(batch, out, RANKS, check, ranks)


def meamed(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    out: Any = None,
    ints: Ints = "round",
    nonfinite: OrderNonfinite = "raise",
    num_threads: int | None = None,
) -> Any:
    """Coordinate-wise mean of the K - f values nearest to the median (mean around the median).

    The median is that of `median`, not yet rounded to the dtype; of two values equally far from it the smaller is
    kept. Sums as in trimmed_mean; the bits do not depend on the order of the updates.

    Args:
        updates, out, ints, nonfinite, num_threads: as in median.
        f: number of values to leave out; 2f < K.

    Raises:
        TooFewUpdates: not more than 2 f updates; and what median raises.

    References:
        Xie et al., "Generalized Byzantine-tolerant SGD", 2018.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import meamed
        >>> meamed([np.array([x]) for x in (1.0, 2.0, 3.0, 4.0, 50.0)], f=1)
        array([2.5])
    """
    f = check_count(f, "f")
    batch = Batch(updates, "meamed", ints=ints, nonfinite=nonfinite, num_threads=num_threads, policies=ORDER_NONFINITE)
    return _coordinatewise(
        batch, out, NEAR_MEDIAN, lambda: batch.need(2 * f + 1, f"2f < K with f={f}"), lambda n: (0, n - f)
    )
