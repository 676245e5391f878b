"""Rules of Euclidean geometry (geometric median, centred clipping) and what is done to updates before a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._batch import Batch, check_count, check_number
from edgefast.aggregate._info import RuleInfo, distances_of, info_of
from edgefast.aggregate._policy import Ints, Nonfinite
from edgefast.aggregate.errors import NonFiniteUpdate, ZeroWeightError
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.streams import philox_words
from edgefast.backends.table import Array

__all__ = [
    "bucketing",
    "centered_clip",
    "clip_by_global_norm",
    "geometric_median",
    "nnm",
    "weiszfeld_weights",
]

_BUCKETING_STREAM = 0x4255434B  # "BUCK": second key word of the permutation's random numbers


# ---- in the space of coefficients ----------------------------------------------------------------------------------
# A combination of the updates is its K coefficients; the Gram matrix gives its distances to all of them, and the data
# need not be read again.


def _distances_to(gram: NDArray[np.float64], coefficients: list[float]) -> list[float]:
    """Distances of sum c_k y_k to every y_i. fsum: the order of the updates leaves no trace.

    A square is off by at most g (|y_i| + sum c_k |y_k|)^2, g = (136 + chunks) 2^-53 from csrc/aggregate/gram.hpp, so a
    distance by sqrt(g) times that sum at worst, namely where the combination comes to lie on y_i and all of it cancels.
    A Weiszfeld step then lands within about K times that from its place: the resolution of a float32.
    """
    rows = gram.tolist()
    inner = [math.fsum(c * g for c, g in zip(coefficients, row, strict=True)) for row in rows]
    own = math.fsum(c * d for c, d in zip(coefficients, inner, strict=True))
    return [math.sqrt(max(0.0, row[i] - 2.0 * inner[i] + own)) for i, row in enumerate(rows)]


def _weiszfeld(
    gram: NDArray[np.float64],
    alpha: list[float],
    eps: float,
    max_iter: int,
    ftol: float,
    distances: list[float] | None,
) -> tuple[list[float], list[float], int]:
    """(coefficients, last distances, iterations); `distances` are those to a start that is not the weighted mean."""
    total = math.fsum(alpha)
    coefficients = [a / total for a in alpha]
    if distances is None:
        distances = _distances_to(gram, coefficients)
    objective = math.fsum(a * d for a, d in zip(alpha, distances, strict=True))
    done = 0
    while done < max_iter:
        raw = [a / max(eps, d) for a, d in zip(alpha, distances, strict=True)]
        total = math.fsum(raw)
        coefficients = [r / total for r in raw]
        distances = _distances_to(gram, coefficients)
        done += 1
        before, objective = objective, math.fsum(a * d for a, d in zip(alpha, distances, strict=True))
        if abs(before - objective) <= ftol * objective and ftol > 0:
            break
    return coefficients, distances, done


def weiszfeld_weights(
    gram: NDArray[np.float64],
    weights: Sequence[float] | Array | None = None,
    *,
    eps: float = 1e-5,
    max_iter: int = 4,
    ftol: float = 1e-6,
) -> NDArray[np.float64]:
    """Shares of K updates in their geometric median, from a Gram matrix around any common centre.

    Args:
        gram: (K, K), finite: GramAccumulator.gram(), or (x_i - c)(x_j - c) for some c.
        weights, eps, max_iter, ftol: as in geometric_median.

    Returns:
        float64 (K,), summing to 1.

    Raises:
        ValueError: gram is not a finite square matrix; eps, max_iter or ftol out of range.
        ZeroWeightError: all weights are 0.
    """
    matrix = np.asarray(gram, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise ValueError(f"gram: expected a square matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("gram: expected finite values")
    eps, ftol = check_number(eps, "eps", zero=False), check_number(ftol, "ftol", zero=True)
    alpha = _policy.weights_of(weights, len(matrix))
    if not any(alpha):
        raise ZeroWeightError(f"weights: expected at least one weight above 0, got {len(alpha)} zeros")
    found, _, _ = _weiszfeld(matrix, alpha, eps, check_count(max_iter, "max_iter"), ftol, None)
    return np.array(found)


def _gram_of(batch: Batch, rows: list[list[Array]]) -> tuple[NDArray[np.float64], bool]:
    gram = np.zeros((len(rows), len(rows)))
    backends.kernels().pair_sums(rows, None, gram, batch.threads)
    return gram, not bool(np.isfinite(gram).all())


def _finite_geometry(batch: Batch, values: NDArray[np.float64]) -> None:
    if np.isfinite(values).all():
        return
    for i, row in enumerate(batch.rows):
        if not backends.kernels().all_finite(row, batch.threads):
            raise batch.error_of(i)
    raise OverflowError(f"{batch.rule}: squared distances exceed float64; scale the updates down")


def _norms_of(batch: Batch, center: list[Array] | None) -> tuple[NDArray[np.float64], bool]:
    squares = np.zeros(len(batch.rows))
    backends.kernels().square_norms(batch.rows, center, squares, batch.threads)
    return squares, not bool(np.isfinite(squares).all())


# ---- rules -------------------------------------------------------------------------------------------------------


@overload
def geometric_median(
    updates: Sequence[Any] | Array,
    weights: Sequence[float] | Array | None = ...,
    *,
    eps: float = ...,
    max_iter: int = ...,
    ftol: float = ...,
    start: Literal["mean", "median", "zero"] = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Literal["raise", "drop"] = ...,
    return_info: Literal[False] = ...,
    num_threads: int | None = ...,
) -> Any: ...
@overload
def geometric_median(
    updates: Sequence[Any] | Array,
    weights: Sequence[float] | Array | None = ...,
    *,
    eps: float = ...,
    max_iter: int = ...,
    ftol: float = ...,
    start: Literal["mean", "median", "zero"] = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Literal["raise", "drop"] = ...,
    return_info: Literal[True],
    num_threads: int | None = ...,
) -> tuple[Any, RuleInfo]: ...
def geometric_median(
    updates: Sequence[Any] | Array,
    weights: Sequence[float] | Array | None = None,
    *,
    eps: float = 1e-5,
    max_iter: int = 4,
    ftol: float = 1e-6,
    start: Literal["mean", "median", "zero"] = "mean",
    out: Any = None,
    ints: Ints = "round",
    nonfinite: Literal["raise", "drop"] = "raise",
    return_info: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Geometric median by the smoothed Weiszfeld algorithm of RFA: argmin_z sum_k w_k |z - x_k|.

    Every iterate is a combination of the updates, so the iteration runs on their Gram matrix: two passes over the
    data whatever max_iter, one for the matrix (around the coordinate-wise median, which a minority of huge updates
    cannot move) and one for the final combination. The shares do not depend on the order of the updates; the final
    sum is weighted_mean's.

    Args:
        updates, out, ints, num_threads: as in weighted_mean; all tensors together are one vector.
        weights: as in weighted_mean; None for equal ones.
        eps: distances below it count as it.
        max_iter: Weiszfeld steps; 4 is RFA's.
        ftol: stop when the objective changes by less than this share; 0 never stops early.
        start: "mean", the weighted mean (RFA); "median", the coordinate-wise median, which costs nothing here and saves
            the steps that walk back from a mean spoilt by huge updates (their pull falls by f / (K - f) a step); or
            "zero": byzfl's GeometricMedian(nu, T) is eps=nu, max_iter=T, ftol=0, start="zero".
        nonfinite: "raise" or "drop".
        return_info: also return a RuleInfo; scores are the distances to the result.

    Returns:
        The median in the first update's containers and dtypes; or (median, RuleInfo).

    Raises:
        ZeroWeightError: all weights are 0.
        OverflowError: squared distances exceed float64.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Pillutla, Kakade, Harchaoui, "Robust aggregation for federated learning", IEEE TSP 2022.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import geometric_median
        >>> geometric_median([np.array([x]) for x in (1.0, 1.0, 1.0, 90.0)], max_iter=50).round(3)
        array([1.])
    """
    eps, ftol = check_number(eps, "eps", zero=False), check_number(ftol, "ftol", zero=True)
    steps = check_count(max_iter, "max_iter")
    _policy.check_choice(start, "start", ("mean", "median", "zero"))
    if steps == 0 and start != "mean":
        raise ValueError(f"max_iter: expected at least 1 with start={start!r}, got 0")
    batch = Batch(
        updates,
        "geometric_median",
        ints=ints,
        nonfinite=nonfinite,
        num_threads=num_threads,
        policies=("raise", "drop"),
    )
    all_weights = _policy.weights_of(weights, batch.count)

    def check() -> None:
        if not any(all_weights[k] for k in batch.clients):
            raise ZeroWeightError(f"weights: expected at least one weight above 0, got {len(batch.clients)} zeros")

    gram = batch.screened(check, lambda: _gram_of(batch, batch.rows))
    _finite_geometry(batch, gram)
    first = None
    if start == "zero":
        squares, _ = _norms_of(batch, None)
        _finite_geometry(batch, squares)
        first = np.sqrt(squares).tolist()
    elif start == "median":
        first = np.sqrt(np.diag(gram)).tolist()
    alpha = [all_weights[k] for k in batch.clients]
    shares, distances, _ = _weiszfeld(gram, alpha, eps, steps, ftol, first)
    members = [i for i, c in enumerate(shares) if c > 0]
    used = [shares[i] for i in members]
    value = batch.average(members, used, out)
    return (value, info_of(batch, members, used, distances)) if return_info else value


def centered_clip(
    updates: Sequence[Any] | Array,
    tau: float,
    *,
    center: Any = None,
    n_iter: int = 1,
    out: Any = None,
    ints: Ints = "round",
    nonfinite: Literal["raise", "drop"] = "raise",
    num_threads: int | None = None,
) -> Any:
    """Centred clipping: v <- v + mean_k (x_k - v) min(1, tau / |x_k - v|), n_iter times from `center`.

    One iteration reads the updates once for the norms and once for the result; more of them run on the Gram matrix of
    updates and center and read no more.

    Args:
        updates, out, ints, num_threads: as in weighted_mean; all tensors together are one vector.
        tau: radius, > 0: no update moves the result by more than tau / K in one iteration.
        center: an update to start from, usually the last result; None for zeros. byzfl's CenteredClipping(m, L, tau)
            keeps the last result itself and defaults to tau=100, L=1.
        n_iter: iterations, >= 1.
        nonfinite: "raise" or "drop".

    Raises:
        OverflowError: squared distances exceed float64.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean; for center with the client "center".

    References:
        Karimireddy, He, Jaggi, "Learning from history for Byzantine robust optimization", ICML 2021.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import centered_clip
        >>> centered_clip([np.array([x]) for x in (1.0, 3.0, 90.0)], tau=5.0)
        array([3.])
    """
    tau = check_number(tau, "tau", zero=False)
    steps = check_count(n_iter, "n_iter", 1)
    batch = Batch(
        updates, "centered_clip", ints=ints, nonfinite=nonfinite, num_threads=num_threads, policies=("raise", "drop")
    )
    if center is None:
        # Memory of zeros is mapped on demand: reading it costs no copy of the model.
        middle = batch.numbers([[np.zeros(a.shape, a.dtype) for a in batch.template.arrays]])[0]
    else:
        middle = batch.flatten(center, "center")
        if not backends.kernels().all_finite(middle, batch.threads):
            raise _center_error(batch, middle)

    def measure() -> tuple[NDArray[np.float64], bool]:
        if steps == 1:
            return _norms_of(batch, middle if center is not None else None)
        return _gram_of(batch, [*batch.rows, middle])

    measured = batch.screened(lambda: None, measure)
    _finite_geometry(batch, measured)
    count = len(batch.clients)
    coefficients = [0.0] * count + [1.0]
    for _ in range(steps):
        if steps == 1:
            distances = np.sqrt(measured).tolist()
        else:
            distances = _distances_to(measured, coefficients)[:count]
        factors = [min(1.0, tau / d) if d > 0 else 1.0 for d in distances]
        keep = max(0.0, 1.0 - math.fsum(factors) / count)
        coefficients = [c * keep + (factors[i] / count if i < count else 0.0) for i, c in enumerate(coefficients)]
    targets, copies = batch.template.outputs(out, [*batch.models, middle])
    rows = [*batch.rows, middle]
    total = 0.0
    for c in coefficients:
        total += c
    # Zeros are not worth reading.
    members = [i for i, c in enumerate(coefficients) if c > 0 and (i < count or center is not None)]
    used = [coefficients[i] for i in members]
    backends.kernels().weighted_mean(
        [rows[i] for i in members], used, total, False, batch.numbers([targets])[0], batch.threads
    )
    return batch.deliver(targets, copies, list(range(count)), out)


def _center_error(batch: Batch, middle: list[Array]) -> NonFiniteUpdate:
    return nonfinite_error(middle, [batch.template.keys[t] for t in batch.averaged], "center")


# ---- before a rule -----------------------------------------------------------------------------------------------


def nnm(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    out: Sequence[Any] | None = None,
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    num_threads: int | None = None,
) -> list[Any]:
    """Nearest-neighbour mixing: every update becomes the mean of the K - f updates nearest to it, itself included.

    Before a rule, it restores robustness when honest updates differ (non-IID data). Distances as in
    pairwise_sq_distances; among equally near updates the earlier one is taken. All K results come from one further
    pass over the updates.

    Args:
        updates, num_threads: as in weighted_mean.
        f: number of updates that may be bad; 2f < K.
        out: K containers for the results.
        ints: as in weighted_mean; integers count in the distances with "round" only.
        nonfinite: "raise", "drop" (then fewer updates come back), or "propagate": an update with NaN or infinity is
            infinitely far from all others.

    Returns:
        K updates in the template's structure and dtypes.

    Raises:
        TooFewUpdates: not more than 2 f updates.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Allouah et al., "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", AISTATS 2023.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import nnm
        >>> nnm([np.array([x]) for x in (1.0, 2.0, 50.0)], f=1)
        [array([1.5]), array([1.5]), array([26.])]
    """
    f = check_count(f, "f")
    batch = Batch(updates, "nnm", ints=ints, nonfinite=nonfinite, num_threads=num_threads)
    distances = batch.screened(lambda: batch.need(2 * f + 1, f"2f < K with f={f}"), lambda: distances_of(batch))
    distances = np.where(np.isnan(distances), np.inf, distances)
    np.fill_diagonal(distances, -1.0)  # itself first, before a twin
    kept = len(batch.clients) - f
    members = [sorted(np.argsort(row, kind="stable")[:kept].tolist()) for row in distances]
    return batch.mixtures(members, [[1.0] * kept] * len(members), [float(kept)] * len(members), out)


def bucketing(
    updates: Sequence[Any] | Array,
    s: int,
    *,
    seed: int,
    out: Sequence[Any] | None = None,
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    num_threads: int | None = None,
) -> list[Any]:
    """Means of random buckets of s updates: ceil(K / s) updates with less variance, for a rule to follow.

    The permutation is a Fisher-Yates shuffle of 0..K-1 by Philox4x64-10 with the key (seed, 0x4255434B): the same
    everywhere. The last bucket takes what is left. One bad update spoils one bucket, so the rule after it has to
    tolerate f of ceil(K / s).

    Args:
        updates, ints, num_threads: as in weighted_mean.
        s: updates per bucket, >= 1; 2 is usual.
        seed: 0 <= seed < 2**64; use a new one every round, unknown to the clients.
        out: containers for the results, one per bucket.
        nonfinite: "raise", "drop" or "propagate".

    Returns:
        ceil(K / s) updates in the template's structure and dtypes.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Karimireddy, He, Jaggi, "Byzantine-robust learning on heterogeneous datasets via bucketing", ICLR 2022.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import bucketing
        >>> len(bucketing([np.array([x]) for x in (1.0, 2.0, 3.0, 4.0, 5.0)], s=2, seed=1))
        3
    """
    size = check_count(s, "s", 1)
    number = check_count(seed, "seed")
    if number >= 1 << 64:
        raise ValueError(f"seed: expected an integer below 2**64, got {number}")
    batch = Batch(updates, "bucketing", ints=ints, nonfinite=nonfinite, num_threads=num_threads)
    if nonfinite != "propagate":
        kernels = backends.kernels()
        batch.screened(
            lambda: None, lambda: (None, not all(kernels.all_finite(row, batch.threads) for row in batch.rows))
        )
    order = _permutation(len(batch.clients), number)
    buckets = [sorted(order[i : i + size]) for i in range(0, len(order), size)]
    return batch.mixtures(buckets, [[1.0] * len(b) for b in buckets], [float(len(b)) for b in buckets], out)


def _permutation(count: int, seed: int) -> list[int]:
    """Fisher-Yates from the top: word i draws the partner of count - 1 - i."""
    words = philox_words(seed, _BUCKETING_STREAM, (1, 0, 0, 0), -(-count // 4)).ravel().tolist()
    order = list(range(count))
    for i, word in zip(range(count - 1, 0, -1), words, strict=False):
        j = word * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


@overload
def clip_by_global_norm(
    updates: Sequence[Any] | Array,
    max_norm: float,
    *,
    out: Sequence[Any] | None = ...,
    ints: Ints = ...,
    nonfinite: Literal["raise", "drop"] = ...,
    return_norms: Literal[False] = ...,
    num_threads: int | None = ...,
) -> list[Any]: ...
@overload
def clip_by_global_norm(
    updates: Sequence[Any] | Array,
    max_norm: float,
    *,
    out: Sequence[Any] | None = ...,
    ints: Ints = ...,
    nonfinite: Literal["raise", "drop"] = ...,
    return_norms: Literal[True],
    num_threads: int | None = ...,
) -> tuple[list[Any], NDArray[np.float64]]: ...
def clip_by_global_norm(
    updates: Sequence[Any] | Array,
    max_norm: float,
    *,
    out: Sequence[Any] | None = None,
    ints: Ints = "round",
    nonfinite: Literal["raise", "drop"] = "raise",
    return_norms: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Every update times min(1, max_norm / norm), the norm taken over all its tensors together.

    A zero update stays zero; an update within the norm comes back as it was (-0 as +0). Norms are float64 sums of
    squares in a fixed order; a clipped value is rounded once to its dtype, so the new norm may exceed max_norm by that
    rounding.

    Args:
        updates, num_threads: as in weighted_mean.
        max_norm: > 0.
        out: K containers for the results.
        ints: "round" counts integers in the norm and scales them; "max", "first" and "skip" leave them out of both.
        nonfinite: "raise" or "drop" (then fewer updates come back).
        return_norms: also return the norms before clipping, float64 (K,), NaN for dropped updates.

    Returns:
        The clipped updates; or (updates, norms).

    Raises:
        OverflowError: a squared norm exceeds float64.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import clip_by_global_norm
        >>> clip_by_global_norm([np.array([3.0, 4.0]), np.zeros(2)], 2.5)
        [array([1.5, 2. ]), array([0., 0.])]
    """
    limit = check_number(max_norm, "max_norm", zero=False)
    batch = Batch(
        updates,
        "clip_by_global_norm",
        ints=ints,
        nonfinite=nonfinite,
        num_threads=num_threads,
        policies=("raise", "drop"),
    )
    squares = batch.screened(lambda: None, lambda: _norms_of(batch, None))
    _finite_geometry(batch, squares)
    norms = np.sqrt(squares)
    factors = [min(1.0, limit / n) if n > 0 else 1.0 for n in norms.tolist()]
    count = len(batch.clients)
    clipped = batch.mixtures([[i] for i in range(count)], [[c] for c in factors], [1.0] * count, out)
    if not return_norms:
        return clipped
    full = np.full(batch.count, np.nan)
    full[batch.clients] = norms
    return clipped, full
