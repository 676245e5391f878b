"""How many components a projection needs."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefast.backends.streams import KIND_NUMBERS

__all__ = ["johnson_lindenstrauss_min_dim", "suggest_n_components"]


def johnson_lindenstrauss_min_dim(n_samples: ArrayLike, *, eps: ArrayLike = 0.1) -> Any:
    """Components that keep all pairwise squared distances of `n_samples` points within a factor 1 +- eps.

    The bound 4 ln(n) / (eps^2 / 2 - eps^3 / 3), rounded down, as scikit-learn computes it. It does not depend on the
    number of features and is conservative.

    Args:
        n_samples: number of points, at least 1; an int or an array of them.
        eps: largest distortion, 0 < eps < 1; a float or an array of them.

    Returns:
        int64, a scalar for scalar arguments, else an array of the broadcast shape.

    Raises:
        TypeError: an argument holds no numbers.
        ValueError: `eps` outside (0, 1) or so small that the result does not fit, or `n_samples` not positive and
            finite in float64.

    References:
        S. Dasgupta and A. Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003.

    Examples:
        >>> int(johnson_lindenstrauss_min_dim(1_000_000, eps=0.5))
        663
    """
    tolerance, points = _numbers(eps, "eps"), _numbers(n_samples, "n_samples")
    if not np.all((tolerance > 0) & (tolerance < 1)):
        raise ValueError(f"eps: expected values in (0, 1), got {eps!r}")
    if not np.all(points > 0):
        raise ValueError(f"n_samples: expected positive values, got {n_samples!r}")
    if not np.all(points < np.inf):
        raise ValueError(f"n_samples: expected finite values, got {n_samples!r}")
    with np.errstate(divide="ignore", invalid="ignore"):  # reported below
        least = np.asarray(4 * np.log(points) / (tolerance**2 / 2 - tolerance**3 / 3))
    if not np.all(least < 2.0**63):
        raise ValueError(f"eps: expected values that take fewer than 2**63 components, got {eps!r}")
    return least.astype(np.int64)[()]


def suggest_n_components(
    eps: float,
    *,
    delta: float | None = None,
    n_samples: int | None = None,
    rank: int | None = None,
    kind: str = "sparse_stack",
) -> int:
    """Components that keep squared lengths within a factor 1 +- eps, except with probability delta.

    For one vector; for all pairwise differences of `n_samples` points; or for every vector of a subspace of dimension
    `rank` at once (what least squares and low-rank approximation on sketches need). With n_samples and no delta the
    result is johnson_lindenstrauss_min_dim's, the same for every kind but "countsketch".

    "gaussian", "rademacher" and "sparse" (density 1/3) have the bound proved: one vector
    2 ln(2 / delta) / (eps^2 / 2 - eps^3 / 3), a union bound over the pairs, and for a subspace
    ((sqrt(rank) + sqrt(2 ln(2 / delta))) / (sqrt(1 + eps) - 1))^2, the last for "gaussian" only. "sparse_stack" and
    "srht" get the same numbers: their variance is not larger and they behave so in practice, while the proved constants
    are (Kane and Nelson 2014; Cohen 2016; Tropp 2011). "countsketch" has heavier tails and gets what Chebyshev's
    inequality proves: 2 / (eps^2 delta), a union bound over the pairs, (rank^2 + rank) / (eps^2 delta).

    Args:
        eps: largest relative error of a squared length, 0 < eps < 1.
        delta: probability of failure, 0 < delta < 1; None means 0.01, or with n_samples scikit-learn's formula.
        n_samples: number of points, at least 2.
        rank: dimension of the subspace, at least 1. Not together with n_samples.
        kind: a kind of SketchOperator.

    Raises:
        TypeError: n_samples or rank is no integer, eps or delta no number.
        ValueError: a number out of range or beyond what float64 computes with, both goals at once, or a kind without a
            choice ("rotation") or unknown.

    References:
        S. Dasgupta and A. Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003; D. Achlioptas,
        "Database-friendly random projections", JCSS 66(4), 2003; K. Davidson and S. Szarek, "Local operator theory,
        random matrices and Banach spaces", 2001, theorem 2.13 (subspaces); K. Clarkson and D. Woodruff, "Low-rank
        approximation and regression in input sparsity time", JACM 63(6), 2017, and J. Nelson and H. Nguyen, "OSNAP",
        FOCS 2013 (countsketch).

    Examples:
        >>> suggest_n_components(0.5, rank=10)
        816
        >>> suggest_n_components(0.2, delta=0.001)
        878
    """
    if isinstance(kind, str) and kind == "rotation":
        raise ValueError("kind: 'rotation' has as many components as features")
    if not isinstance(kind, str) or kind not in KIND_NUMBERS:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, KIND_NUMBERS))}, got {kind!r}")
    for name, value in (("eps", eps), ("delta", delta)):
        if value is None and name == "delta":
            continue
        if isinstance(value, bool) or not isinstance(value, (numbers.Real, np.integer, np.floating)):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        if not 0 < value < 1:
            raise ValueError(f"{name}: expected a value in (0, 1), got {value!r}")
    if n_samples is not None and rank is not None:
        raise ValueError("rank: expected either n_samples or rank, got both")
    try:
        return _components(float(eps), delta, n_samples, rank, kind)
    except (OverflowError, ZeroDivisionError):
        raise ValueError(
            f"eps: expected goals that float64 can compute with, got eps={eps!r}, delta={delta!r}"
        ) from None


def _components(eps: float, delta: float | None, n_samples: int | None, rank: int | None, kind: str) -> int:
    failure = 0.01 if delta is None else float(delta)
    pairs = 1
    if n_samples is not None:
        points = _count(n_samples, "n_samples", 2)
        if delta is None and kind != "countsketch":
            return max(1, int(johnson_lindenstrauss_min_dim(points, eps=eps)))
        pairs = points * (points - 1) // 2
    if rank is not None:
        r = _count(rank, "rank", 1)
        if kind == "countsketch":
            return math.ceil((r * r + r) / (eps * eps * failure))
        stretch = math.sqrt(1 + eps) - 1
        return math.ceil(((math.sqrt(r) + math.sqrt(2 * math.log(2 / failure))) / stretch) ** 2)
    if kind == "countsketch":
        return math.ceil(2 * pairs / (eps * eps * failure))
    return math.ceil(2 * (math.log(2 / failure) + math.log(pairs)) / (eps**2 / 2 - eps**3 / 3))


def _numbers(value: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        if np.asarray(value).dtype.kind in "iufO":
            return np.asarray(value, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"{name}: expected finite values, got integers beyond float64") from None
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name}: expected a number or an array of numbers, got {value!r}")


def _count(value: Any, name: str, low: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = operator.index(value)
    if number < low:
        raise ValueError(f"{name}: expected at least {low}, got {number}")
    return number
