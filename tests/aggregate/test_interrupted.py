"""Ctrl-C wherever CPython looks for signals: an update was added, was not, or the accumulator says that it is torn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import (
    FedAdam,
    FedBuff,
    GramAccumulator,
    MeanAccumulator,
    TrimmedMeanAccumulator,
    _whole,
    accumulator,
    asynchronous,
    gram,
    optimizers,
    trimmed,
)

Each = Callable[..., Iterator[int]]
MODULES = (_whole, accumulator, asynchronous, gram, optimizers, trimmed)


def update(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"w": rng.normal(size=(3, 5)), "b": rng.normal(size=4).astype(np.float32), "n": np.arange(3) + seed}


def added(acc: Any, *seeds: int) -> Any:
    for seed in seeds:
        acc.add(update(seed))
    return acc


MEANS: dict[str, Callable[[], Any]] = {
    "mean": lambda: MeanAccumulator(update(0)),
    "reproducible": lambda: MeanAccumulator(update(0), accumulate="reproducible", ints="max"),
    "partial": lambda: MeanAccumulator(update(0), partial=True),
    "trimmed": lambda: TrimmedMeanAccumulator(update(0), f=1, ints="first"),
}


@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("how", ["add", "merge"])
@pytest.mark.parametrize("make", MEANS.values(), ids=list(MEANS))
def test_accumulators(make: Callable[[], Any], how: str, before: int, backend: str, ctrl_c_at_every_call: Each) -> None:
    more = added(make(), 10, 11, 12)
    old = added(make(), *range(before))
    new = old.copy()
    acc = old.copy()

    def change(to: Any) -> None:
        to.add(update(9)) if how == "add" else to.merge(more)

    change(new)
    torn = 0

    def work() -> None:
        change(acc)

    for n in ctrl_c_at_every_call(work, *MODULES):
        try:
            state = acc.to_bytes()
        except RuntimeError as error:
            if "interrupted" not in str(error):
                raise
            torn += 1
            with pytest.raises(RuntimeError, match="half added"):
                acc.add(update(1))
            acc.reset()
            assert added(acc, 0, 1, 2).to_bytes() == added(make(), 0, 1, 2).to_bytes(), n
        else:
            assert state in (old.to_bytes(), new.to_bytes()), n
        acc = old.copy()
    assert n > 5
    assert torn < n


def test_gram(ctrl_c_at_every_call: Each) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 7))
    old = GramAccumulator(4)
    old.add(rows)
    new = old.copy()
    new.add(rows)
    acc = old.copy()

    def work() -> None:
        acc.add(rows)

    for n in ctrl_c_at_every_call(work, *MODULES):
        assert acc.to_bytes() in (old.to_bytes(), new.to_bytes()), n
        acc = old.copy()
    assert n > 3


def test_fedbuff(ctrl_c_at_every_call: Each) -> None:
    def buffer() -> FedBuff:
        b = FedBuff(update(0), 2)
        b.add(update(1), 0)
        return b

    def states(b: FedBuff) -> list[Any]:
        """Whatever came of it, the next update and the one after it make the step that is due."""
        found: list[Any] = [b.version, b.pending, b.model["w"].tobytes()]
        if b.pending == 2:
            assert b.add(update(3), b.version)
        return found

    b = buffer()
    before = states(b)
    assert b.add(update(2), 0)
    after = states(b)
    b = buffer()

    def work() -> None:
        b.add(update(2), 0)

    for n in ctrl_c_at_every_call(work, *MODULES):
        try:
            assert states(b) in (before, after, [0, 2, before[2]]), n
        except RuntimeError as error:
            if "interrupted" not in str(error):
                raise
        b = buffer()
    assert n > 10


@pytest.mark.parametrize("steps", [0, 1])
def test_optimizer(steps: int, backend: str, ctrl_c_at_every_call: Each) -> None:
    x = update(0)

    def stepped(steps: int) -> FedAdam:
        o = FedAdam(lr=0.1)
        for i in range(steps):
            o.step(x, update(i + 1))
        return o

    def text(o: FedAdam) -> str:
        return repr(o.state_dict())

    old, new = text(stepped(steps)), text(stepped(steps + 1))
    o = stepped(steps)

    def work() -> None:
        o.step(x, update(steps + 1))

    for n in ctrl_c_at_every_call(work, *MODULES):
        try:
            found = text(o)
        except RuntimeError as error:
            if "interrupted" not in str(error):
                raise
            with pytest.raises(RuntimeError, match="interrupted"):
                copy.deepcopy(o).step(x, update(1))
            o.reset()
            o.step(x, update(1))
            assert text(o) == text(stepped(1)), n
        else:
            assert found in (old, new) or (o.round == 0 and steps == 0), n
        o = stepped(steps)
    assert n > 5
