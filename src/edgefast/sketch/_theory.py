"""How many components a projection needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["johnson_lindenstrauss_min_dim"]


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
        ValueError: `eps` outside (0, 1), or `n_samples` not positive.

    References:
        S. Dasgupta and A. Gupta, "An elementary proof of a theorem of Johnson and Lindenstrauss", 2003.

    Examples:
        >>> int(johnson_lindenstrauss_min_dim(1_000_000, eps=0.5))
        663
    """
    tolerance = np.asarray(eps, dtype=np.float64)
    points = np.asarray(n_samples)
    if not np.all((tolerance > 0) & (tolerance < 1)):
        raise ValueError(f"eps: expected values in (0, 1), got {eps!r}")
    if not np.all(points > 0):
        raise ValueError(f"n_samples: expected positive values, got {n_samples!r}")
    return (4 * np.log(points) / (tolerance**2 / 2 - tolerance**3 / 3)).astype(np.int64)
