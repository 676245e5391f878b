"""Which stage a free worker serves next, where a few cores are shared by many stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["max_weight"]

# Below this many stages a loop over Python numbers beats the fixed cost of a dozen numpy calls.
_VECTOR_FROM = 48


def max_weight(
    depths: Sequence[float] | np.ndarray[Any, Any],
    downstream_depths: Sequence[float] | np.ndarray[Any, Any],
    rates: Sequence[float] | np.ndarray[Any, Any],
    *,
    eligible: Sequence[bool] | np.ndarray[Any, Any] | None = None,
    waited: Sequence[float] | np.ndarray[Any, Any] | None = None,
    max_wait: float | None = None,
) -> int | None:
    """The stage that a free worker should serve: argmax (Q_i - Q_{i+1}) mu_i, the most downstream one of equals.

    The rule of Tassiulas and Ephremides ("Stability properties of constrained queueing systems and scheduling policies
    for maximum throughput in multihop radio networks", IEEE Trans. Automatic Control 37, 1992): it keeps every queue
    bounded at every load that some schedule can carry, without knowing the load. Its delay at low load is not the
    least possible, and a short queue before a slow stage may wait long; `max_wait` bounds that.

    It never idles: with only negative weights the largest is served.

    Args:
        depths: items waiting for each stage, (n,).
        downstream_depths: items waiting behind each stage, (n,): the depth of the next queue, 0 after the last.
        rates: items per second one worker does at each stage, (n,), positive; a stage not measured yet counts as the
            mean of the others with `nan`.
        eligible: stages that may be served, (n,) of bool; None for all. A stage whose output has no room, or that has
            all its workers, is not.
        waited: seconds since each stage was served last while items waited for it, (n,).
        max_wait: a stage that `waited` longer comes first, the longest one of several; None never.

    Returns:
        The index of a stage with items, or None when no eligible stage has any.

    Raises:
        ValueError: lengths differ, or `max_wait` without `waited`.

    Examples:
        >>> max_weight([10, 4, 0], [4, 0, 0], [100.0, 100.0, 100.0])
        0
        >>> max_weight([4, 2, 0], [2, 0, 0], [100.0, 100.0, 100.0])  # equal weights: downstream first
        1
        >>> max_weight([0, 0, 0], [0, 0, 0], [1.0, 1.0, 1.0]) is None
        True
    """
    n = len(depths)
    for name, values in (
        ("downstream_depths", downstream_depths),
        ("rates", rates),
        ("eligible", eligible),
        ("waited", waited),
    ):
        if values is not None and len(values) != n:
            raise ValueError(f"{name}: expected {n} values, one a stage, got {len(values)}")
    if max_wait is not None and waited is None:
        raise ValueError("max_wait: expected waited beside it, got None")
    if n < _VECTOR_FROM:
        return _loop(depths, downstream_depths, rates, eligible, waited, max_wait)
    return _vector(depths, downstream_depths, rates, eligible, waited, max_wait)


def _loop(depths: Any, downstream: Any, rates: Any, eligible: Any, waited: Any, max_wait: float | None) -> int | None:
    known = [r for r in rates if r == r]
    mean = sum(known) / len(known) if known else 1.0
    best = overdue = None
    best_weight = longest = 0.0
    for i in range(len(depths)):
        if depths[i] <= 0 or (eligible is not None and not eligible[i]):
            continue
        if max_wait is not None and waited[i] > max_wait and (overdue is None or waited[i] >= longest):
            overdue, longest = i, waited[i]
        rate = rates[i]
        weight = (depths[i] - downstream[i]) * (rate if rate == rate else mean)
        if best is None or weight >= best_weight:
            best, best_weight = i, weight
    return best if overdue is None else overdue


def _vector(depths: Any, downstream: Any, rates: Any, eligible: Any, waited: Any, max_wait: float | None) -> int | None:
    depth = np.asarray(depths, np.float64)
    rate = np.asarray(rates, np.float64)
    unknown = np.isnan(rate)
    if unknown.any():
        rate = np.where(unknown, 1.0 if unknown.all() else rate[~unknown].mean(), rate)
    waiting = depth > 0
    if eligible is not None:
        waiting &= np.asarray(eligible, bool)
    if not waiting.any():
        return None
    if max_wait is not None:
        wait = np.asarray(waited, np.float64)
        overdue = waiting & (wait > max_wait)
        if overdue.any():
            return _last_argmax(np.where(overdue, wait, -np.inf))
    weight = (depth - np.asarray(downstream, np.float64)) * rate
    return _last_argmax(np.where(waiting, weight, -np.inf))


def _last_argmax(values: np.ndarray[Any, Any]) -> int:
    return len(values) - 1 - int(np.argmax(values[::-1]))
