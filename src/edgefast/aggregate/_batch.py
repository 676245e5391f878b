"""What every robust rule does first and last: read the updates, screen them, build the result."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._policy import Ints
from edgefast.aggregate._template import Template
from edgefast.aggregate.errors import NonFiniteUpdate, TooFewUpdates
from edgefast.aggregate.mean import nonfinite_error
from edgefast.backends.table import FINITE, PROPAGATE, RANK, Array

__all__ = ["Batch", "OrderNonfinite", "check_count", "nan_policy"]

OrderNonfinite = Literal["raise", "drop", "propagate", "rank"]
#: Kernels number the updates with 16 bits.
MOST_UPDATES = 65535
ORDER_NONFINITE = ("raise", "drop", "propagate", "rank")
_R = TypeVar("_R")
_log = logging.getLogger("edgefast")


def check_count(value: Any, name: str, least: int = 0) -> int:
    """An integer >= least."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got bool")
    if number < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {number}")
    return number


def check_number(value: Any, name: str, *, zero: bool) -> float:
    """A finite number > 0, or >= 0."""
    if isinstance(value, (str, bytes)) or value is None:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = np.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise ValueError(f"{name}: expected a finite number {'>=' if zero else '>'} 0, got {number}")
    return number


def nan_policy(nonfinite: str) -> int:
    return {"rank": RANK, "propagate": PROPAGATE}.get(nonfinite, FINITE)


class Batch:
    """K updates, flattened and checked like weighted_mean's, and the options all rules share.

    Attributes:
        clients: indices of the updates still in; `models` and `rows` are parallel to it.
        dropped: indices of the updates nonfinite="drop" left out.
        models: all tensors of every update. `rows`: those that count as numbers (see ints=).
    """

    def __init__(
        self,
        updates: Sequence[Any] | Array,
        rule: str,
        *,
        ints: Ints,
        nonfinite: str,
        num_threads: int | None,
        policies: tuple[str, ...] = _policy.NONFINITE,
    ) -> None:
        _policy.check_choice(ints, "ints", _policy.INTS)
        _policy.check_choice(nonfinite, "nonfinite", policies)
        self.threads = backends.num_threads(num_threads)
        self.rule, self.ints, self.nonfinite = rule, ints, nonfinite
        self.count = _policy.count_of(updates)
        if self.count > MOST_UPDATES:
            raise ValueError(f"updates: expected at most {MOST_UPDATES}, got {self.count}")
        self.template = Template(updates[0])
        arrays, keys = self.template.arrays, self.template.keys
        self.averaged = _policy.averaged(arrays, keys, ints)
        self.models = [self.template.flatten(updates[k], k) for k in range(self.count)]
        if ints == "round" and any(a.dtype.kind in "iu" and a.dtype.itemsize == 8 for a in arrays):
            for k, model in enumerate(self.models):
                _policy.check_integers(model, keys, k)
        self.clients = list(range(self.count))
        self.dropped: list[int] = []
        self.rows = self.numbers(self.models)

    def numbers(self, models: list[list[Array]]) -> list[list[Array]]:
        """The tensors of each that go through the arithmetic."""
        if len(self.averaged) == len(self.template.arrays):
            return models
        return [[m[t] for t in self.averaged] for m in models]

    def flatten(self, update: Any, client: object) -> list[Array]:
        """One more update's tensors that go through the arithmetic."""
        return self.numbers([self.template.flatten(update, client)])[0]

    def need(self, least: int, why: str) -> None:
        """Raises TooFewUpdates unless at least `least` updates are in."""
        if len(self.clients) < least:
            left = f" ({len(self.dropped)} dropped)" if self.dropped else ""
            expected, got = f"at least {least} updates ({why})", f"{len(self.clients)}{left}"
            raise TooFewUpdates(f"{self.rule}: expected {expected}, got {got}", expected=expected, got=got)

    def screened(self, check: Callable[[], None], compute: Callable[[], tuple[_R, bool]]) -> _R:
        """compute() on the updates that are in; (result, suspicious) tells whether to look for non-finite ones.

        With "raise" and "drop" whoever sent one is named or left out, and the rest computed again; check() says
        whether enough are left.
        """
        check()
        while True:
            result, suspicious = compute()
            if not suspicious or self.nonfinite not in ("raise", "drop"):
                return result
            kernels = backends.kernels()
            bad = [i for i, row in enumerate(self.rows) if not kernels.all_finite(row, self.threads)]
            if not bad:
                return result
            if self.nonfinite == "raise" or len(bad) == len(self.clients):
                raise self.error_of(bad[0])
            _log.warning("%s: dropped updates with NaN or infinity: %s", self.rule, [self.clients[i] for i in bad])
            self.dropped += [self.clients[i] for i in bad]
            kept = [i for i in range(len(self.clients)) if i not in set(bad)]
            self.clients = [self.clients[i] for i in kept]
            self.models = [self.models[i] for i in kept]
            self.rows = [self.rows[i] for i in kept]
            check()

    def error_of(self, i: int) -> NonFiniteUpdate:
        return nonfinite_error(self.rows[i], [self.template.keys[t] for t in self.averaged], self.clients[i])

    # ---- results -----------------------------------------------------------------------------------------------

    def average(self, members: list[int], weights: list[float], out: Any) -> Any:
        """The weighted mean of the updates at `members` (positions in `clients`), by weighted_mean's kernel."""
        targets, copies = self.template.outputs(out, self.models)
        total = 0.0
        for w in weights:
            total += w
        rows = [self.rows[i] for i in members]
        numbers = self.numbers([targets])[0]
        if len(rows) == 1:  # bit for bit, the sign of zeros included
            for source, target in zip(rows[0], numbers, strict=True):
                np.copyto(target, source)
        else:
            backends.kernels().weighted_mean(rows, weights, total, False, numbers, self.threads)
        return self.deliver(targets, copies, members, out)

    def deliver(self, targets: list[Array], copies: list[tuple[Array, Array]], members: list[int], out: Any) -> Any:
        """Integer tensors by their policy, from the updates at `members`; then the result in its containers."""
        self.fill_integers(targets, members)
        for source, target in copies:
            np.copyto(target, source)
        return self.template.build(targets) if out is None else out

    def fill_integers(self, targets: list[Array], members: list[int]) -> None:
        for t in sorted(set(range(len(targets))) - set(self.averaged)):
            if self.ints == "max":
                _policy.maximum([self.models[i][t] for i in members], targets[t])
            else:
                np.copyto(targets[t], self.template.arrays[t] if self.ints == "skip" else self.models[members[0]][t])

    def mixtures(
        self, members: list[list[int]], weights: list[list[float]], totals: list[float], out: Any
    ) -> list[Any]:
        """One mean per list of members, all from one pass over the updates; `out` is a sequence of containers."""
        if out is not None and (not isinstance(out, (list, tuple)) or len(out) != len(members)):
            got = f"{len(out)}" if isinstance(out, (list, tuple)) else f"a {type(out).__name__}"
            raise ValueError(f"out: expected a list of {len(members)} updates, got {got}")
        pairs = [self.template.outputs(None if out is None else out[m], self.models) for m in range(len(members))]
        targets = [self.numbers([arrays])[0] for arrays, _ in pairs]
        backends.kernels().mix(self.rows, members, weights, totals, targets, self.threads)
        return [
            self.deliver(arrays, copies, chosen, None if out is None else out[m])
            for m, ((arrays, copies), chosen) in enumerate(zip(pairs, members, strict=True))
        ]
