"""Flower's records: reading them in place, and the functions that stand in for Flower's own."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from edgefast.aggregate import (
    StructureMismatch,
    TooFewUpdates,
    _policy,
    krum_scores,
    pairwise_sq_distances,
    trimmed_mean,
)
from edgefast.aggregate import weighted_mean as _weighted_mean
from edgefast.aggregate._policy import Accumulate, Ints, Nonfinite
from edgefast.integrations.flower import _wire
from edgefast.integrations.flower._flwr import ArrayRecord, MetricRecord, RecordDict, app

__all__ = [
    "Acceleration",
    "accelerate",
    "aggregate_arrayrecords",
    "alike",
    "arrays_of",
    "metrics_of",
    "select_multikrum",
    "weight_of",
    "without_arrays",
]


def arrays_of(record: RecordDict, client: object) -> ArrayRecord:
    """The one ArrayRecord of a reply.

    Raises:
        StructureMismatch: there is none, or more than one.
    """
    found = [r for r in record.values() if isinstance(r, ArrayRecord)]
    if len(found) != 1:
        raise StructureMismatch.of(client, None, "one ArrayRecord", len(found))
    return found[0]


def without_arrays(record: RecordDict) -> RecordDict:
    """A reply's other records: what metrics are made of, and little to keep."""
    return app.RecordDict({k: r for k, r in record.items() if not isinstance(r, ArrayRecord)})


def metrics_of(record: RecordDict, client: object) -> MetricRecord:
    """The one MetricRecord of a reply.

    Raises:
        StructureMismatch: there is none, or more than one.
    """
    found = [r for r in record.values() if isinstance(r, MetricRecord)]
    if len(found) != 1:
        raise StructureMismatch.of(client, None, "one MetricRecord", len(found))
    return found[0]


def alike(records: Sequence[RecordDict], *, lengths: bool) -> list[int]:
    """Which replies' metrics can be averaged: those with the record, the keys and the lists that most have; of equally
    many, those of the earliest. Replies without exactly one MetricRecord are never among them.

    Args:
        lengths: whether lists have to be equally long.
    """
    forms: dict[object, list[int]] = {}
    for i, record in enumerate(records):
        found = [(name, r) for name, r in record.items() if isinstance(r, MetricRecord)]
        if len(found) == 1:
            ((name, metrics),) = found
            lists = {k: len(v) if lengths else 0 for k, v in metrics.items() if isinstance(v, list)}
            forms.setdefault((name, frozenset((k, lists.get(k)) for k in metrics)), []).append(i)
    return max(forms.values(), key=len, default=[])


def weight_of(record: RecordDict, name: str, client: object, accumulate: Accumulate = "float64") -> float:
    """The weight a reply reports.

    Raises:
        StructureMismatch: there is no such metric, or it is a list or no weight (see weighted_mean).
    """
    metrics = metrics_of(record, client)
    if name not in metrics:
        raise StructureMismatch.of(client, name, "a metric of this name for the weight", "none")
    value = metrics[name]
    if isinstance(value, list):
        raise StructureMismatch.of(client, name, "a single number for the weight", f"a list of {len(value)}")
    if not 0 <= value < math.inf:
        raise StructureMismatch.of(client, name, "a finite weight >= 0", value)
    try:
        return _policy.one_weight(value, "weight", accumulate)
    except ValueError as error:
        expected, _, _ = str(error).removeprefix("weight: expected ").rpartition(", got ")
        got = value if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise StructureMismatch.of(client, name, expected, got) from None


def aggregate_arrayrecords(
    records: list[RecordDict],
    weighting_metric_name: str,
    *,
    accumulate: Accumulate = "float64",
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    num_threads: int | None = None,
) -> ArrayRecord:
    """Flower's function of this name: the weighted mean of the ArrayRecords of replies.

    Every Array's bytes are read once, where they lie, and the result's are written once. Sums are float64 (Flower adds
    in the arrays' dtype), dtypes are kept (Flower turns integers into float64), shapes have to agree (Flower
    broadcasts), and the replies are not changed. Compressed and bfloat16 replies (see compression_mod, bfloat16_mod)
    are taken as they are, and Arrays of other stypes through their own numpy().

    Args:
        records: contents of the replies, each with one ArrayRecord and a MetricRecord.
        weighting_metric_name: the metric that holds a reply's weight, such as "num-examples".
        accumulate, ints, nonfinite, num_threads: as in edgefast.aggregate.weighted_mean.

    Raises:
        ZeroWeightError: all weights are 0 (Flower: ZeroDivisionError).
        NonFiniteUpdate: a reply has NaN or infinity (Flower: the model has them, too).
        StructureMismatch: a reply lacks a record, the metric or a key, or holds a difference (see compression_mod),
            which only a strategy of this package can add to the model it began from.
        ShapeMismatch, DtypeMismatch, IntegerRange, ValueError, TypeError: as weighted_mean.
    """
    if not records:
        raise ValueError("records: expected at least one, got none")
    _policy.check_options(accumulate, ints, nonfinite)
    weights = [weight_of(record, weighting_metric_name, k, accumulate) for k, record in enumerate(records)]
    updates = [_wire.model_of(arrays_of(record, k), k) for k, record in enumerate(records)]
    mean = _weighted_mean(
        updates, weights, accumulate=accumulate, ints=ints, nonfinite=nonfinite, num_threads=num_threads
    )
    return _wire.to_record(mean)


def select_multikrum(
    contents: list[RecordDict], num_malicious_nodes: int, num_nodes_to_select: int
) -> list[RecordDict]:
    """Flower's function of this name, also for Bulyan(selection_rule=select_multikrum): the contents with the lowest
    Krum scores, best first.

    Distances are differences squared and summed in float64, so the choice is right where Flower's float32 expansion
    cancels. A reply with NaN or infinity is infinitely far from all others.

    Args:
        contents: contents of the replies, each with one ArrayRecord.
        num_malicious_nodes: how many may be bad; fewer than there are contents.
        num_nodes_to_select: how many to return.

    Raises:
        TooFewUpdates: not more contents than malicious nodes.
        StructureMismatch, ShapeMismatch, DtypeMismatch: the replies differ.
    """
    if not contents:
        raise TooFewUpdates("select_multikrum: expected at least one update, got none", expected=1, got=0)
    updates = [_wire.expanded(arrays_of(content, k), k) for k, content in enumerate(contents)]
    if len(updates) == 1 and num_malicious_nodes == 0:
        return contents[:num_nodes_to_select]
    with np.errstate(invalid="ignore"):
        distances = pairwise_sq_distances(updates, nonfinite="propagate")
    scores = krum_scores(distances, num_malicious_nodes, neighbours="flower")
    return [contents[i] for i in np.argsort(scores, kind="stable")[:num_nodes_to_select]]


def _trim_mean(array: Any, cut_fraction: float) -> Any:
    """Flower's function of this name, for FedTrimmedAvg."""
    if not 0.0 <= cut_fraction < 0.5:
        raise ValueError("Cut fraction must be in the range [0, 0.5).")
    return trimmed_mean(array, trim=cut_fraction, nonfinite="propagate")


_MODULES = "flwr.serverapp.strategy"
_PLACES = ("strategy_utils", "fedavg", "multikrum", "bulyan", "fedtrimmedavg")


class Acceleration:
    """What accelerate() did; undo() takes it back. A context manager that does so at its end."""

    def __init__(self, replaced: Sequence[tuple[ModuleType, str, Any, Any]]) -> None:
        self._replaced = list(replaced)

    @property
    def places(self) -> list[str]:
        """The names that were replaced, such as "flwr.serverapp.strategy.fedavg.aggregate_arrayrecords"."""
        return [f"{module.__name__}.{name}" for module, name, _, _ in self._replaced]

    def undo(self) -> None:
        """Put Flower's functions back, unless somebody else has replaced ours meanwhile. May be called again."""
        for module, name, theirs, ours in self._replaced:
            if getattr(module, name, None) is ours:
                setattr(module, name, theirs)
        self._replaced = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def accelerate() -> Acceleration:
    """Make Flower's own strategies use this package's aggregation, wherever they imported Flower's by name.

    Replaces aggregate_arrayrecords (FedAvg and what builds on it: FedAvgM, FedAdam, FedProx, the differential privacy
    wrappers), select_multikrum (Krum, MultiKrum, Bulyan) and trim_mean (FedTrimmedAvg) in Flower's modules. Strategies
    need no change; what these cannot do (streaming, FedMedian) needs the strategies of this package.

    Examples:
        with accelerate():
            FedAdam().start(grid, arrays)
    """
    utils = importlib.import_module(f"{_MODULES}.strategy_utils")
    krum = importlib.import_module(f"{_MODULES}.multikrum")
    trimmed = importlib.import_module(f"{_MODULES}.fedtrimmedavg")
    for place in _PLACES:
        importlib.import_module(f"{_MODULES}.{place}")
    pairs: list[tuple[Any, Callable[..., Any]]] = [
        (utils.aggregate_arrayrecords, aggregate_arrayrecords),
        (krum.select_multikrum, select_multikrum),
        (trimmed.trim_mean, _trim_mean),
    ]
    replaced = []
    for module in _strategy_modules():
        for name, value in list(vars(module).items()):
            for theirs, ours in pairs:
                if value is theirs and theirs is not ours:
                    setattr(module, name, ours)
                    replaced.append((module, name, theirs, ours))
    return Acceleration(replaced)


def _strategy_modules() -> Iterable[ModuleType]:
    return [m for n, m in sorted(sys.modules.items()) if n.startswith(_MODULES) and m is not None]
