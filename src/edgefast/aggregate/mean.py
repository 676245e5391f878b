"""weighted_mean: federated averaging in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._policy import Accumulate, Ints, Nonfinite
from edgefast.aggregate._template import Template, union
from edgefast.aggregate.encoded import Encoded
from edgefast.aggregate.errors import NonFiniteUpdate, ZeroWeightError
from edgefast.backends.numpy.elements import widen
from edgefast.backends.table import Array

__all__ = ["weighted_mean"]

_log = logging.getLogger("edgefast")


def weighted_mean(
    updates: Sequence[Any] | Array,
    weights: Sequence[float] | Array | None = None,
    *,
    out: Any = None,
    accumulate: Accumulate = "float64",
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    partial: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Weighted mean of model updates: sum(w_k x_k) / sum(w_k), each update read once and in place.

    Sums are kept in float64, in the order of the updates, and divided and rounded to the tensor's dtype once. The
    bits do not depend on backend, SIMD level or number of threads, with accumulate="reproducible" not on the order
    either.

    Args:
        updates: K updates, or a (K, ...) array whose rows are the updates. An update is an array, a (nested) dict,
            list or tuple of arrays, or a path (pathlib.Path) of a .safetensors or .npz file, which is mapped into
            memory; all have the structure, shapes and dtypes of the first. An array is a numpy array, a torch tensor
            on the CPU, Flower's Array, or a DLPack object, of dtype float16, bfloat16, float32, float64, (u)int8 to
            (u)int64 or bool. A bare list of arrays is K one-array updates. Updates are never changed; strided
            arrays are copied one at a time. Any of them may be an Encoded (see Quantizer), which is not expanded;
            if one is a "countsketch", all have to be, and the result has the largest entries of the mean.
        weights: K finite weights, each 0 or from 2**-900 to 2**900 (2**-60 to 2**60 with accumulate="float32"), not
            all zero; None for equal ones. An update of weight 0 is not read.
        out: containers of arrays or torch tensors like an update, for the result; an array may also be part of one
            update, at the same place. After an error its contents are undefined.
        accumulate: "float64"; "float32" sums tensors whose elements a float32 holds in float32, the rest in float64;
            "reproducible" gives the same bits for any order of the updates, and for any tree of MeanAccumulators
            (csrc/aggregate/binned.hpp has the scheme, its error bound and the proof).
        ints: what happens to integer and bool tensors. "round": the mean, rounded to nearest even (bool: more than
            half the weight), values within +-2**53. "max": the largest value, for counters. "first": the first
            update's value. "skip": the template's value, that of updates[0]. "error": DtypeMismatch.
        nonfinite: NaN and infinities: "raise", "drop" the whole update and its weight, or "propagate".
        partial: dict keys may be missing: the result has every key of any update, and each tensor is divided by the
            weights of the updates that have it.
        num_threads: threads to use; None for the default (see edgefast.using).

    Returns:
        New arrays in the first update's containers, with its dtypes, of the kind of its leaves (torch tensors where it
        has torch tensors, Arrays where it has Flower's, numpy arrays for files); `out` when given.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch: an update differs from the first. These and the next four
            are ValueErrors that name the client (index), the key, what was expected and what came.
        NonFiniteUpdate: NaN or infinity with nonfinite="raise", or in every update with "drop".
        IntegerRange: an integer beyond 2**53 with ints="round".
        ZeroWeightError: all weights are 0, or with `partial` those of all updates that have some key.
        ValueError: no updates, a wrong number of weights, a negative, non-finite or extreme weight, an unknown
            option.
        TypeError: updates or weights are no sequences, or a weight is no number.
        InputError: a file is damaged, or of another kind.

    References:
        McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import weighted_mean
        >>> weighted_mean([{"w": np.array([1.0, 2.0])}, {"w": np.array([3.0, 6.0])}], weights=[3, 1])
        {'w': array([1.5, 3. ])}
    """
    _policy.check_options(accumulate, ints, nonfinite)
    threads = backends.num_threads(num_threads)
    count = _policy.count_of(updates)
    if accumulate == "reproducible" and count > _policy.MOST_UPDATES:
        raise ValueError(
            f"updates: expected at most {_policy.MOST_UPDATES} with accumulate='reproducible', got {count}"
        )
    all_weights = _policy.weights_of(weights, count, accumulate)
    if any(isinstance(u, Encoded) for u in updates):
        return _encoded_mean(updates, all_weights, out, accumulate, ints, nonfinite, partial, threads)
    clients = [k for k in range(count) if all_weights[k] > 0]
    template = Template(union(list(updates)) if partial else updates[0], partial=partial)
    if not clients:
        raise ZeroWeightError(f"weights: expected at least one weight above 0, got {count} zeros")
    averaged = _policy.averaged(template.arrays, template.keys, ints)
    models = [template.flatten(updates[k], k) for k in clients]
    if ints == "round" and any(a.dtype.kind in "iu" and a.dtype.itemsize == 8 for a in template.arrays):
        for k, arrays in zip(clients, models, strict=True):
            _policy.check_integers(arrays, template.keys, k)
    targets, copies = template.outputs(out, models)

    kept = list(range(len(clients)))
    while True:
        suspicious = False
        for tensors, members in _groups(models, averaged, kept, partial):
            if not members:
                raise _nobody(template.keys[tensors[0]])
            rows = models if len(tensors) == len(template.arrays) else [[m[t] for t in tensors] for m in models]
            used = [all_weights[clients[i]] for i in members]
            suspicious |= _mean([rows[i] for i in members], used, accumulate, [targets[t] for t in tensors], threads)
        if not suspicious or nonfinite == "propagate":
            break
        # Rare: find out which update it is. Finite inputs can still overflow the sum; then the infinity stands.
        present = [[t for t in averaged if m[t] is not None] for m in models]
        kernels = backends.kernels()
        bad = [i for i in kept if not kernels.all_finite([models[i][t] for t in present[i]], threads)]
        if not bad:
            break
        if nonfinite == "raise" or len(bad) == len(kept):
            i = bad[0]
            raise nonfinite_error(
                [models[i][t] for t in present[i]], [template.keys[t] for t in present[i]], clients[i]
            )
        _log.warning("weighted_mean: dropped updates with NaN or infinity: %s", [clients[i] for i in bad])
        kept = [i for i in kept if i not in bad]

    for t in sorted(set(range(len(template.arrays))) - set(averaged)):
        values = [models[i][t] for i in kept if models[i][t] is not None]
        if ints == "skip":
            np.copyto(targets[t], template.arrays[t])
        elif not values:
            raise _nobody(template.keys[t])
        elif ints == "max":
            _policy.maximum(values, targets[t])
        else:
            np.copyto(targets[t], values[0])
    for source, target in copies:
        np.copyto(target, source)
    return template.build(targets) if out is None else out


def _encoded_mean(
    updates: Sequence[Any] | Array,
    weights: list[float],
    out: Any,
    accumulate: Accumulate,
    ints: Ints,
    nonfinite: Nonfinite,
    partial: bool,
    threads: int,
) -> Any:
    """Compressed updates: in one pass where all have one format, else by way of an accumulator."""
    from edgefast.aggregate.accumulator import MeanAccumulator

    first = updates[0]
    if any(isinstance(u, Encoded) and u.kind == "countsketch" for u in updates):
        return _sketch_mean(updates, weights, out, accumulate, ints, nonfinite, partial, threads)
    if isinstance(first, Encoded):
        example = first.decode(num_threads=threads) if ints == "skip" or partial else first._blank()
    else:
        example = first
    if partial:
        updates = [u.decode(num_threads=threads) if isinstance(u, Encoded) else u for u in updates]
        example = union(updates)
    members = [k for k in range(len(updates)) if weights[k] > 0]
    template = Template(example)
    if members and accumulate == "float64" and not partial and all(isinstance(updates[k], Encoded) for k in members):
        rows = [updates[k]._packed(template, k) for k in members]
        kernels = backends.kernels()
        if (
            rows[0].encoded.kind != "topk"
            and all(r.format() == rows[0].format() for r in rows)
            and (len(_policy.averaged(template.arrays, template.keys, ints)) == len(template.arrays))
        ):
            for k, row in zip(members, rows, strict=True):
                if ints == "round":
                    _policy.check_integers(row, template.keys, k)
            used = [weights[k] for k in members]
            total = _policy.total_of(used, accumulate)
            targets, copies = template.outputs(out, [[a for a in row if a is not None] for row in rows])
            for t, target in enumerate(targets):
                if rows[0][t] is not None:
                    kernels.weighted_mean([[row[t]] for row in rows], used, total, False, [target], threads)
                elif target.size:
                    kernels.quant_mean([row.input(t) for row in rows], used, total, rows[0].spec(t), target, threads)
            for source, target in copies:
                np.copyto(target, source)
            return template.build(targets) if out is None else out
    acc = MeanAccumulator(
        example, accumulate=accumulate, ints=ints, nonfinite=nonfinite, partial=partial, num_threads=threads
    )
    acc.add_many(list(updates), weights, clients=range(len(updates)))
    return acc.result(out)


def _sketch_mean(
    updates: Sequence[Any] | Array,
    weights: list[float],
    out: Any,
    accumulate: Accumulate,
    ints: Ints,
    nonfinite: Nonfinite,
    partial: bool,
    threads: int,
) -> Any:
    """Sketches: the largest entries of their mean, which is taken of the tables."""
    from edgefast.aggregate.accumulator import MeanAccumulator

    first = next(u for u in updates if isinstance(u, Encoded) and u.kind == "countsketch")
    acc = MeanAccumulator(
        first, accumulate=accumulate, ints=ints, nonfinite=nonfinite, partial=partial, num_threads=threads
    )
    acc.add_many(list(updates), weights, clients=range(len(updates)))
    mean = acc.result().decode(num_threads=threads)
    if out is None:
        return mean
    template = Template(mean)
    targets, copies = template.outputs(out, [])
    for source, target in [*zip(template.arrays, targets, strict=True), *copies]:
        np.copyto(target, source)
    return out


def _groups(
    models: list[list[Any]], averaged: list[int], kept: list[int], partial: bool
) -> list[tuple[list[int], list[int]]]:
    """(tensors, updates that have them): one group, or one for every set of updates when keys may be missing."""
    if not partial:
        return [(averaged, kept)]
    groups: dict[tuple[int, ...], list[int]] = {}
    for t in averaged:
        groups.setdefault(tuple(i for i in kept if models[i][t] is not None), []).append(t)
    return [(tensors, list(members)) for members, tensors in groups.items()]


def _mean(rows: list[list[Array]], weights: list[float], accumulate: str, out: list[Array], threads: int) -> bool:
    """One kernel call; True when a sum was not finite."""
    total = _policy.total_of(weights, accumulate)
    if accumulate == "reproducible":
        return backends.kernels().binned_mean(rows, weights, total, out, threads)
    return backends.kernels().weighted_mean(rows, weights, total, accumulate == "float32", out, threads)


def _nobody(key: str) -> ZeroWeightError:
    return ZeroWeightError.of("any", key or None, "at least one update of weight above 0 that has it", "none")


def nonfinite_error(arrays: list[Array], keys: list[str], client: object) -> NonFiniteUpdate:
    for key, a in zip(keys, arrays, strict=True):
        if a.dtype.kind in "fV":
            values = widen(a) if a.dtype.kind == "V" else a
            bad = ~np.isfinite(values)
            if bad.any():
                got = f"{values[bad][0]} ({int(bad.sum())} non-finite)"
                return NonFiniteUpdate.of(client, key or None, "finite values", got)
    raise AssertionError("no non-finite value found")  # pragma: no cover
