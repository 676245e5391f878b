"""max_weight: the rule against its definition, and what it is for."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.pipeline import simulate
from edgefast.pipeline.schedule import max_weight


def oracle(depths: Any, after: Any, rates: Any, eligible: Any, waited: Any, max_wait: float | None) -> int | None:
    known = [r for r in rates if not math.isnan(r)]
    rates = [(sum(known) / len(known) if known else 1.0) if math.isnan(r) else r for r in rates]
    can = [i for i in range(len(depths)) if depths[i] > 0 and (eligible is None or eligible[i])]
    if max_wait is not None:
        late = [i for i in can if waited[i] > max_wait]
        if late:
            return max(late, key=lambda i: (waited[i], i))
    return max(can, key=lambda i: ((depths[i] - after[i]) * rates[i], i), default=None)


# Powers of two, so that the mean is the same in any order of summation.
stages = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.integers(0, 6),
        st.sampled_from([0.5, 1.0, 2.0, 4.0, math.nan]),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 2.0, 3.0]),
    ),
    max_size=7,
)


@given(stages, st.booleans(), st.none() | st.sampled_from([0.0, 1.5, 9.0]), st.sampled_from([1, 1, 1, 40]))
def test_the_definition(rows: Any, restricted: bool, max_wait: float | None, repeat: int) -> None:
    """Small inputs and large ones, which numpy serves."""
    rows = rows * repeat
    depths, after, rates, eligible, waited = ([row[k] for row in rows] for k in range(5))
    expected = oracle(depths, after, rates, eligible if restricted else None, waited, max_wait)
    options: dict[str, Any] = {"eligible": eligible if restricted else None, "waited": waited, "max_wait": max_wait}
    assert max_weight(depths, after, rates, **options) == expected
    arrays = {k: np.array(v) if isinstance(v, list) else v for k, v in options.items()}
    assert max_weight(np.array(depths), np.array(after), np.array(rates), **arrays) == expected


def test_nothing_to_do() -> None:
    assert max_weight([], [], []) is None
    assert max_weight([0] * 100, [0] * 100, [1.0] * 100) is None
    assert max_weight([1, 1], [1, 0], [1.0, 1.0], eligible=[False, False]) is None


@pytest.mark.parametrize("n", [3, 100])
def test_bad_input(n: int) -> None:
    with pytest.raises(ValueError, match=f"rates: expected {n} values, one a stage, got 1"):
        max_weight([1] * n, [0] * n, [1.0])
    with pytest.raises(ValueError, match="downstream_depths: expected"):
        max_weight([1] * n, [0], [1.0] * n)
    with pytest.raises(ValueError, match="max_wait: expected waited beside it"):
        max_weight([1] * n, [0] * n, [1.0] * n, max_wait=1.0)


def test_it_carries_what_no_fixed_split_can() -> None:
    """Two cores, 6 ms of work an item, 300 items/s: 90 % of what the cores can do. Split by stages one core has too
    much: its queue grows without end, while max-weight keeps all short."""
    line = [simulate.Stage(name, simulate.exponential(ms * 1e-3)) for name, ms in (("a", 1), ("b", 1), ("c", 4))]

    def run(**how: Any) -> simulate.Result:
        source = simulate.exponential(1 / 300)
        return simulate.Simulation(line, source, limit=100_000, cores=2, seed=3, **how).run(20.0)

    scheduled = run()
    assert scheduled.throughput == pytest.approx(300, rel=0.05)
    assert scheduled.peak_items < 200
    for k in range(1, 3):
        for first in itertools.combinations(range(3), k):
            fixed = run(split=[first, [i for i in range(3) if i not in first]])
            assert sum(fixed.depths) > 500, first


def test_max_wait_ends_starvation() -> None:
    """A slow last stage with few items against a fast first one that is never empty."""
    served = [
        max_weight([100, 1], [1, 0], [1000.0, 1.0], waited=[0.0, waited], max_wait=0.5)
        for waited in (0.1, 0.5, 0.51, 9)
    ]
    assert served == [0, 0, 1, 1]
