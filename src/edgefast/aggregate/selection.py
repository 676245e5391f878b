"""Rules that choose whole updates by their distances: Krum, Multi-Krum, Bulyan; and the distances themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._batch import Batch, check_count
from edgefast.aggregate._info import RuleInfo, distances_of, info_of, spread
from edgefast.aggregate._policy import Ints, Nonfinite
from edgefast.aggregate.errors import TooFewUpdates, ZeroWeightError
from edgefast.backends.table import NEAR_MEDIAN, RANK, Array

__all__ = ["RuleInfo", "bulyan", "krum", "krum_scores", "multi_krum", "pairwise_sq_distances"]

Neighbours = Literal["paper", "flower", "byzfl"]
_NEIGHBOURS = ("paper", "flower", "byzfl")


def pairwise_sq_distances(
    updates: Sequence[Any] | Array,
    *,
    ints: Ints = "round",
    nonfinite: Literal["raise", "propagate"] = "raise",
    num_threads: int | None = None,
) -> NDArray[np.float64]:
    """Squared Euclidean distances between K model updates, all tensors together, in one pass over them.

    Differences are taken before they are squared, in float64: the relative error is about P * 2**-60 however close
    the updates are to each other and however far from zero (the expansion |x|^2 + |y|^2 - 2xy in float32 loses every
    digit once the spread falls to 1e-5 of the values). Symmetric, zero on the diagonal, and the same bits for every
    backend, SIMD level, number of threads and order of the updates.

    Args:
        updates, num_threads: as in weighted_mean.
        ints: "round" counts integer and bool tensors as numbers; "max", "first" and "skip" leave them out; "error".
        nonfinite: "raise", or "propagate": distances to an update with NaN or infinity are NaN or infinite.

    Returns:
        A float64 array (K, K). A distance beyond 1.8e308 is infinite.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import pairwise_sq_distances
        >>> pairwise_sq_distances([np.array([0.0, 0.0]), np.array([3.0, 4.0])])
        array([[ 0., 25.],
               [25.,  0.]])
    """
    batch = Batch(
        updates,
        "pairwise_sq_distances",
        ints=ints,
        nonfinite=nonfinite,
        num_threads=num_threads,
        policies=("raise", "propagate"),
    )
    return batch.screened(lambda: None, lambda: distances_of(batch))


# ---- scores ------------------------------------------------------------------------------------------------------


def _least_updates(f: int, neighbours: str) -> tuple[int, str]:
    if neighbours == "paper":
        return 2 * f + 3, f"2f + 2 < K with f={f}"
    if neighbours == "byzfl":
        return 2 * f + 1, f"2f < K with f={f}"
    return max(2, f + 1), f"f < K with f={f}, and two to have a neighbour"


def _closest(count: int, f: int, neighbours: str) -> int:
    return count - f - 1 if neighbours == "byzfl" else max(1, count - f - 2)


def _scores(distances: NDArray[np.float64], closest: int) -> NDArray[np.float64]:
    """Per row the sum of the `closest` least distances to others, in ascending order; NaN counts as infinite."""
    count = len(distances)
    others = np.where(np.isnan(distances), np.inf, distances)
    others = others[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    others.sort(axis=1)
    scores = np.zeros(count)
    for column in others[:, :closest].T:
        scores += column
    return scores


def krum_scores(sq_distances: ArrayLike, f: int, *, neighbours: Neighbours = "paper") -> NDArray[np.float64]:
    """Krum's score of every update from squared distances: those of pairwise_sq_distances or a GramAccumulator.

    Args:
        sq_distances: (K, K), symmetric; the diagonal is not looked at, NaN counts as infinite.
        f: number of updates that may be bad.
        neighbours: how many of the nearest others are added up: "paper" K - f - 2; "flower" the same but at least
            one; "byzfl" K - f - 1.

    Returns:
        float64 (K,); the lowest is Krum's choice.

    Raises:
        TooFewUpdates: K is too small for f: "paper" needs 2f + 2 < K, "byzfl" 2f < K, "flower" f < K.
        ValueError: not a square matrix, f < 0, an unknown option.
        TypeError: f is no integer.
    """
    f = check_count(f, "f")
    _policy.check_choice(neighbours, "neighbours", _NEIGHBOURS)
    distances = np.asarray(sq_distances, np.float64)
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise ValueError(f"sq_distances: expected a square matrix, got shape {distances.shape}")
    least, why = _least_updates(f, neighbours)
    if len(distances) < least:
        expected = f"at least {least} updates ({why})"
        raise TooFewUpdates(
            f"krum_scores: expected {expected}, got {len(distances)}", expected=expected, got=len(distances)
        )
    return _scores(distances, _closest(len(distances), f, neighbours))


def _best(scores: NDArray[np.float64]) -> list[int]:
    """Positions from the lowest score to the highest, the earlier update first among equals."""
    return np.argsort(scores, kind="stable").tolist()


# ---- rules -------------------------------------------------------------------------------------------------------


def _multi_krum(
    updates: Sequence[Any] | Array,
    f: int,
    m: int | None,
    weights: Sequence[float] | Array | None,
    rule: str,
    neighbours: str,
    out: Any,
    ints: Ints,
    nonfinite: Nonfinite,
    num_threads: int | None,
) -> tuple[Any, RuleInfo]:
    f = check_count(f, "f")
    _policy.check_choice(neighbours, "neighbours", _NEIGHBOURS)
    wanted = None if m is None else check_count(m, "m", 1)
    batch = Batch(updates, rule, ints=ints, nonfinite=nonfinite, num_threads=num_threads)
    all_weights = _policy.weights_of(weights, batch.count)
    least, why = _least_updates(f, neighbours)

    def check() -> None:
        batch.need(least, why)
        if wanted is not None:
            batch.need(wanted, f"m={wanted}")

    distances = batch.screened(check, lambda: distances_of(batch))
    count = len(batch.clients)
    scores = _scores(distances, _closest(count, f, neighbours))
    if wanted is None:
        wanted = 1 if neighbours == "flower" else count - f
    members = _best(scores)[:wanted]
    shares = [all_weights[batch.clients[i]] for i in members]
    positive = [(i, w) for i, w in zip(members, shares, strict=True) if w > 0]
    if not positive:
        chosen = [batch.clients[i] for i in members]
        raise ZeroWeightError(f"{rule}: expected weight above 0 among the chosen updates {chosen}, got zeros")
    info = info_of(batch, [i for i, _ in positive], [w for _, w in positive], scores)
    # In the order of the updates: the same bits as weighted_mean of the chosen ones.
    ordered = sorted(positive)
    value = batch.average([i for i, _ in ordered], [w for _, w in ordered], out)
    return value, info


@overload
def krum(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    neighbours: Neighbours = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[False] = ...,
    num_threads: int | None = ...,
) -> Any: ...
@overload
def krum(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    neighbours: Neighbours = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[True],
    num_threads: int | None = ...,
) -> tuple[Any, RuleInfo]: ...
def krum(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    neighbours: Neighbours = "paper",
    out: Any = None,
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    return_info: bool = False,
    num_threads: int | None = None,
) -> Any:
    """The one update whose nearest neighbours are closest: Krum.

    Distances as in pairwise_sq_distances, so the choice is right however small the spread. Scores are sums of sorted
    distances and do not depend on the order of the updates; among equal scores the earliest update wins.

    Args:
        updates, out, num_threads: as in weighted_mean.
        f: number of updates that may be bad.
        neighbours: size of the neighbourhood and what K has to be: "paper" K - f - 2, needs 2f + 2 < K; "flower" the
            same but at least 1, f < K; "byzfl" K - f - 1, needs 2f < K.
        ints: "round" counts integers as numbers in the distances; "max", "first" and "skip" do not. The result has
            the chosen update's integers ("skip": those of updates[0]).
        nonfinite: "raise"; "drop" before anything is compared; "propagate": an update with NaN or infinity is
            infinitely far from all others.
        return_info: also return a RuleInfo.

    Returns:
        A copy of the chosen update, or (copy, RuleInfo).

    Raises:
        TooFewUpdates: K is too small for f.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent", NeurIPS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import krum
        >>> krum([np.array([x]) for x in (1.0, 1.1, 1.2, 1.4, 99.0)], f=1)
        array([1.1])
    """
    value, info = _multi_krum(updates, f, 1, None, "krum", neighbours, out, ints, nonfinite, num_threads)
    return (value, info) if return_info else value


@overload
def multi_krum(
    updates: Sequence[Any] | Array,
    f: int,
    m: int | None = ...,
    *,
    weights: Sequence[float] | Array | None = ...,
    neighbours: Neighbours = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[False] = ...,
    num_threads: int | None = ...,
) -> Any: ...
@overload
def multi_krum(
    updates: Sequence[Any] | Array,
    f: int,
    m: int | None = ...,
    *,
    weights: Sequence[float] | Array | None = ...,
    neighbours: Neighbours = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[True],
    num_threads: int | None = ...,
) -> tuple[Any, RuleInfo]: ...
def multi_krum(
    updates: Sequence[Any] | Array,
    f: int,
    m: int | None = None,
    *,
    weights: Sequence[float] | Array | None = None,
    neighbours: Neighbours = "paper",
    out: Any = None,
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    return_info: bool = False,
    num_threads: int | None = None,
) -> Any:
    """The mean of the m updates with the lowest Krum scores.

    Args:
        updates, f, neighbours, out, nonfinite, num_threads: as in krum.
        m: number of updates to average, at most K; None for K - f, with neighbours="flower" 1.
        weights: weights of the mean, one per update given, as in weighted_mean; they do not enter the scores. None for
            equal ones (the paper, byzfl); Flower weights by examples.
        ints: as in krum; integers of the result come from the m chosen updates by the same policy.
        return_info: also return a RuleInfo.

    Returns:
        The mean in float64 rounded once, as weighted_mean of the chosen updates; or (mean, RuleInfo).

    Raises:
        TooFewUpdates: K is too small for f or m.
        ZeroWeightError: all chosen updates have weight 0.
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ValueError, TypeError: as
            weighted_mean.

    References:
        Blanchard et al., NeurIPS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import multi_krum
        >>> multi_krum([np.array([x]) for x in (1.0, 2.0, 3.0, 4.0, 99.0)], f=1, m=4)
        array([2.5])
    """
    value, info = _multi_krum(updates, f, m, weights, "multi_krum", neighbours, out, ints, nonfinite, num_threads)
    return (value, info) if return_info else value


@overload
def bulyan(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    selection: Literal["iterative", "one-shot"] = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[False] = ...,
    num_threads: int | None = ...,
) -> Any: ...
@overload
def bulyan(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    selection: Literal["iterative", "one-shot"] = ...,
    out: Any = ...,
    ints: Ints = ...,
    nonfinite: Nonfinite = ...,
    return_info: Literal[True],
    num_threads: int | None = ...,
) -> tuple[Any, RuleInfo]: ...
def bulyan(
    updates: Sequence[Any] | Array,
    f: int,
    *,
    selection: Literal["iterative", "one-shot"] = "iterative",
    out: Any = None,
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    return_info: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Krum selects K - 2f updates; of those, the mean of the K - 4f values nearest to the median, per coordinate.

    Args:
        updates, out, ints, nonfinite, num_threads: as in krum.
        f: number of updates that may be bad; 4f + 3 <= K.
        selection: "iterative", the paper: Krum among the remaining updates, K - 2f times, with max(1, remaining -
            f - 2) neighbours; "one-shot", Flower >= 1.22: the K - 2f lowest of one round of scores.
        return_info: also return a RuleInfo; its scores are the ones an update was chosen with.

    Returns:
        As meamed of the selected updates with the remaining 2f left out; or (value, RuleInfo).

    Raises:
        TooFewUpdates: fewer than 4f + 3 updates; and what krum raises.

    References:
        El Mhamdi, Guerraoui, Rouault, "The hidden vulnerability of distributed learning in Byzantium", ICML 2018.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import bulyan
        >>> bulyan([np.array([x]) for x in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 99.0)], f=1)
        array([1.])
    """
    f = check_count(f, "f")
    _policy.check_choice(selection, "selection", ("iterative", "one-shot"))
    batch = Batch(updates, "bulyan", ints=ints, nonfinite=nonfinite, num_threads=num_threads)
    distances = batch.screened(lambda: batch.need(4 * f + 3, f"4f + 3 <= K with f={f}"), lambda: distances_of(batch))
    count = len(batch.clients)
    wanted = count - 2 * f
    found = np.full(count, np.nan)
    if selection == "one-shot":
        scores = _scores(distances, max(1, count - f - 2))
        chosen = _best(scores)[:wanted]
        found[chosen] = scores[chosen]
    else:
        chosen, left = [], list(range(count))
        while len(chosen) < wanted:
            scores = _scores(distances[np.ix_(left, left)], max(1, len(left) - f - 2))
            best = _best(scores)[0]
            found[left[best]] = scores[best]
            chosen.append(left.pop(best))
    members = sorted(chosen)
    targets, copies = batch.template.outputs(out, batch.models)
    rows = [batch.rows[i] for i in members]
    backends.kernels().order_mean(
        rows, NEAR_MEDIAN, 0, wanted - 2 * f, RANK, batch.numbers([targets])[0], batch.threads
    )
    value = batch.deliver(targets, copies, members, out)
    if not return_info:
        return value
    weights = np.zeros(batch.count)
    weights[[batch.clients[i] for i in chosen]] = np.nan
    info = RuleInfo(
        tuple(batch.clients[i] for i in chosen), weights, spread(batch, found, np.nan), tuple(batch.dropped)
    )
    return value, info
