"""accumulate="reproducible": one result for every order, grouping, backend and thread count, and its error bound."""

from __future__ import annotations

import json
import random
import struct
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import MeanAccumulator, NonFiniteUpdate, _policy, weighted_mean

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97]
SPREAD = {"f2": 10, "f4": 60, "f8": 400}


def adversarial(dtype: str, count: int, size: int, seed: int = 0) -> list[np.ndarray]:
    """Magnitudes all over the range, cancelling pairs, ties between bins, zeros of both signs."""
    rng = np.random.default_rng(seed)
    dt = np.dtype(dtype)
    if dt.kind == "b":
        return [rng.random(size) < 0.5 for _ in range(count)]
    if dt.kind != "f":
        info = np.iinfo(dt)
        low, high = max(info.min, -(2**53)), min(int(info.max), 2**53)
        return [rng.integers(low, high, size=size, dtype=dt, endpoint=True) for _ in range(count)]
    s = SPREAD[dtype]
    rows = rng.normal(size=(count, size)) * 2.0 ** rng.integers(-s, s, size=(count, size))
    rows[rng.random((count, size)) < 0.1] = 0.0
    rows[rng.random((count, size)) < 0.05] = -0.0
    for k in range(1, count, 3):
        rows[k] = -rows[k - 1]
    ties = rng.random((count, size)) < 0.1
    rows[ties] = (2.0 ** rng.integers(-s, s, size=(count, size)))[ties]
    with np.errstate(over="ignore"):
        cast = rows.astype(dt)
    cast[~np.isfinite(cast)] = 1
    return list(cast)


def mean(updates: Any, weights: Any, **options: Any) -> np.ndarray:
    return weighted_mean(updates, weights, accumulate="reproducible", **options)


def filled(updates: Any, weights: Any, order: Any, **options: Any) -> MeanAccumulator:
    acc = MeanAccumulator(updates[0], accumulate="reproducible", **options)
    for k in order:
        acc.add(updates[k], weights[k])
    return acc


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u4", "?"])
def test_every_backend_has_the_bits_and_the_state_of_numpy(backend: str, dtype: str, size: int) -> None:
    updates, weights = adversarial(dtype, 6, size, seed=size), [3.0, 0.7, 11.0, 1e-3, 2.5, 1e3]
    with ef.using("numpy"):
        expected = mean(updates, weights)
        state = filled(updates, weights, range(6)).to_bytes()
    assert mean(updates, weights).tobytes() == expected.tobytes()
    acc = filled(updates, weights, [4, 1, 5, 0, 3, 2])
    assert acc.result().tobytes() == expected.tobytes()
    assert acc.to_bytes() == state


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_thousand_permutations(dtype: str) -> None:
    count, size = 12, 203
    updates = adversarial(dtype, count, size)
    weights = (np.random.default_rng(1).random(count) * 10.0 ** np.arange(-6, 6)).tolist()
    expected = mean(updates, weights).tobytes()
    state = filled(updates, weights, range(count)).to_bytes()
    rng = np.random.default_rng(2)
    differs = 0
    for trial in range(1000):
        order = rng.permutation(count)
        some = [updates[k] for k in order], [weights[k] for k in order]
        assert mean(*some, num_threads=1 + trial % 3).tobytes() == expected
        if trial % 10 == 0:
            assert filled(updates, weights, order).to_bytes() == state
        differs += weighted_mean(*some).tobytes() != weighted_mean(updates, weights).tobytes()
    if dtype == "f8":  # float32 results hide what float64 sums lose
        assert differs


def tree(parts: list[MeanAccumulator], rng: random.Random) -> MeanAccumulator:
    """Merged pairwise in a random shape, some over the wire."""
    parts = list(parts)
    while len(parts) > 1:
        a = parts.pop(rng.randrange(len(parts)))
        b = parts.pop(rng.randrange(len(parts)))
        a.merge(MeanAccumulator.from_bytes(b.to_bytes()) if rng.random() < 0.3 else b)
        parts.append(a)
    return parts[0]


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_random_merge_trees(backend: str, dtype: str) -> None:
    count = 11
    updates = [{"w": a, "n": np.array(k)} for k, a in enumerate(adversarial(dtype, count, 97, seed=5))]
    weights = [float(w) for w in np.random.default_rng(3).lognormal(0, 3, count)]
    expected = filled(updates, weights, range(count))
    assert mean(updates, weights)["w"].tobytes() == expected.result()["w"].tobytes()
    rng = random.Random(4)
    for _ in range(12):
        cuts = [rng.randrange(5) for _ in range(count)]
        order = rng.sample(range(count), count)
        gateways = [filled(updates, weights, [k for k in order if cuts[k] == g]) for g in range(5)]
        merged = tree(gateways, rng)
        assert merged == expected
        assert merged.to_bytes() == expected.to_bytes()


def bound(terms: list[Fraction], folds: int) -> Fraction:
    """csrc/aggregate/binned.hpp, for the sum."""
    largest = max((abs(t) for t in terms), default=Fraction(0))
    return (
        len(terms) * largest * Fraction(1, 2 ** (44 * (folds - 1)))
        + sum(map(abs, terms)) * Fraction(1, 2**53)
        + abs(sum(terms, Fraction(0))) * Fraction(1, 2**51)
        + Fraction(1, 2**1074)
    )


@pytest.mark.parametrize(("dtype", "folds"), [("f4", 2), ("f8", 3)])
def test_within_the_stated_error(backend: str, dtype: str, folds: int) -> None:
    updates = adversarial(dtype, 9, 64, seed=8)
    weights = [1.0, 3.0, 0.1, 7.5, 1e-5, 1e5, 2.0, 1.0, 1 / 3]
    wide = [u.astype(np.float64) for u in updates]
    acc = MeanAccumulator(wide[0] if dtype == "f8" else updates[0], accumulate="reproducible")
    for u, w in zip(updates, weights, strict=True):
        acc.add(u, w)
    found = acc.result()
    total = sum(map(Fraction, weights))
    for i in range(64):
        terms = [Fraction(w) * Fraction(float(u[i])) for u, w in zip(wide, weights, strict=True)]
        exact = sum(terms, Fraction(0)) / total
        ulp = Fraction(float(np.spacing(np.abs(found[i])))) if found[i] else Fraction(1, 2**149)
        assert abs(Fraction(float(found[i])) - exact) <= bound(terms, folds) / total + ulp / 2


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=12), st.data())
def test_float64_cancellation_keeps_what_plain_sums_lose(backend: str, values: list[float], data: Any) -> None:
    # x - x + y for y down to 2**-80 of x: 88 bits below the largest are kept.
    updates = [np.array([v]) for v in values] + [np.array([-v]) for v in values] + [np.array([1.0])]
    order = data.draw(st.permutations(range(len(updates))))
    found = mean([updates[k] for k in order], None)
    largest = max(map(abs, values))
    slack = len(updates) * largest * 2.0**-88 + 2.0**-51
    assert abs(float(found[0]) * len(updates) - 1.0) <= slack + 2.0**-50


def test_a_huge_coordinate_costs_its_neighbours_nothing(backend: str) -> None:
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=4096).astype(np.float32) for _ in range(5)]
    before = mean(updates, [1, 2, 3, 4, 5])
    for u in updates:
        u[1000] = 1e30
    after = mean(updates, [1, 2, 3, 4, 5])
    others = np.arange(4096) != 1000
    assert (before == after)[others].all()
    assert after[1000] == np.float32(1e30)
    acc = filled(updates, [1, 2, 3, 4, 5], [3, 0, 4, 2, 1])
    assert (acc.result() == after).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_bin_boundaries_and_extremes(backend: str, dtype: str) -> None:
    info = np.finfo(dtype)
    edges = []
    for j in range(48):
        exponent = 44 * j - 1031
        for shift in (-1, 0, 1):
            if info.minexp - info.nmant <= exponent + shift < info.maxexp:
                edges.append(float(np.ldexp(1.0, exponent + shift)))
    edges = [e for e in edges if e < 2.0**990]
    tiny = float(info.smallest_subnormal)
    values = [
        *edges,
        *(-e for e in edges),
        *(np.nextafter(np.array(e, dtype), 0) for e in edges),
        tiny,
        -tiny,
        0.0,
        -0.0,
    ]
    updates = [np.roll(np.array(values, dtype), k) for k in (0, 1, 5)]
    with ef.using("numpy"):
        expected = mean(updates, [1, 1, 1])
    assert mean(updates, [1, 1, 1]).tobytes() == expected.tobytes()
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert filled(updates, [1, 1, 1], order).result().tobytes() == expected.tobytes()
    for i in range(0, len(values), 7):
        terms = [Fraction(float(u[i])) for u in updates]
        ulp = Fraction(float(np.spacing(np.abs(expected[i])))) if expected[i] else Fraction(1, 2**149)
        assert abs(Fraction(float(expected[i])) - sum(terms, Fraction(0)) / 3) <= bound(terms, 2) / 3 + ulp / 2


@pytest.mark.parametrize("weight", [1.0, 3.0, 0.1, 2.0**870])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_beside_the_ties_between_two_results(backend: str, dtype: str, weight: float) -> None:
    # The mean without bins (csrc/aggregate/binned.hpp) must see where the plain sum does not settle the rounding: exact
    # ties, and sums so near to one that the order of a plain sum decides.
    rng = np.random.default_rng(11)
    size = 8 * 97
    info = np.finfo(dtype)
    low = rng.uniform(1, 2, size).astype(dtype)
    high = np.nextafter(low, np.array(3, dtype))
    huge = np.ldexp(low, rng.integers(0, 16 if dtype == "f4" else 6, size)).astype(dtype)
    tiny = np.ldexp(rng.choice([-1.0, 0.0, 1.0], size), -rng.integers(20, 26 if dtype == "f2" else 90, size))
    four, zero = np.array(4, dtype), np.zeros(size, dtype)
    near = [low * four, huge, high * four, tiny.astype(dtype), zero, -huge, zero, zero]
    pair = list(rng.normal(size=(2, size)).astype(dtype))
    three = list(rng.normal(size=(3, size)).astype(dtype))  # with weights of 0.1 a tie in most vectors
    differs = 0
    for updates in (near, pair, three, pair * 2, near[:1] + near[2:3] + near[4:5] * 6):
        weights = [weight] * len(updates)
        found = mean(updates, weights)
        assert found.tobytes() == filled(updates, weights, range(len(updates))).result().tobytes()
        for _ in range(3):
            order = rng.permutation(len(updates))
            assert mean([updates[k] for k in order], weights).tobytes() == found.tobytes()
            differs += weighted_mean([updates[k] for k in order], weights).tobytes() != found.tobytes()
    assert differs or dtype == "f2"  # 11 bits: float64 never loses any of these
    exact = (low.astype(np.float64) + high.astype(np.float64)) / 2
    if weight != 0.1:  # whose products are rounded
        assert (mean([low, high], [weight] * 2) == exact.astype(dtype)).all()
    assert np.abs(mean(near, [weight] * 8) - exact).max() <= 2 * info.eps


@pytest.mark.parametrize("case", ["zeros", "subnormals", "one value", "spread", "nan", "inf"])
def test_the_mean_is_what_the_bins_hold(backend: str, case: str) -> None:
    rng = np.random.default_rng(3)
    for dtype, size in (("f4", 300), ("f2", 131), ("i1", 90), ("u2", 75), ("?", 80)):
        rows = rng.normal(size=(20, size)) * 40
        if case == "zeros":
            rows *= rng.random(rows.shape) < 0.1
        elif case == "subnormals":
            rows *= {"f4": 2.0**-149, "f2": 2.0**-24}.get(dtype, 1.0)
        elif case == "one value":
            rows[1:] = 0
        elif case == "spread":
            rows *= 2.0 ** rng.integers(-60, 60 if dtype == "f4" else 3, size=rows.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            updates = list(np.abs(rows).astype(dtype) if dtype in ("u2", "?") else rows.astype(dtype))
        if dtype in ("f4", "f2") and case in ("nan", "inf"):
            updates[3][5], updates[17][70] = (np.nan, np.nan) if case == "nan" else (np.inf, -np.inf)
        for weights in ([1.0] * 20, list(range(1, 21)), rng.random(20).tolist()):
            found = mean(updates, weights, nonfinite="propagate")
            acc = filled(updates, weights, rng.permutation(20), nonfinite="propagate")
            assert found.tobytes() == acc.result().tobytes()


def test_large_outputs_and_updates_that_begin_anywhere(backend: str) -> None:
    if not backend.startswith("native"):
        pytest.skip("only the kernels write past the caches")
    size = (1 << 20) + 77
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal(size + 3, np.float32)[k : size + k] for k in range(3)]
    weights = [2.0, 1.0, 5.0]
    acc = filled(updates, weights, [2, 0, 1])
    for begin in (0, 1, 16):
        out = np.full(size + 40, 7, np.float32)
        mean(updates, weights, out=out[begin : begin + size], num_threads=2)
        assert out[begin : begin + size].tobytes() == acc.result().tobytes()
        assert (out[:begin] == 7).all()
        assert (out[begin + size :] == 7).all()


def test_non_finite_terms_are_order_free_too(backend: str) -> None:
    rows = np.zeros((4, 40))
    rows[:, :] = np.arange(40)
    rows[0, [1, 9, 33]], rows[1, [2, 9]], rows[2, [3, 34]] = np.inf, -np.inf, np.nan
    rows[3, 4], rows[0, 5] = 2.0**993, -(2.0**1000)
    updates = list(rows)
    with np.errstate(all="ignore"):
        plain = np.where(np.abs(rows) >= 2.0**993, np.copysign(np.inf, rows), rows).sum(axis=0) / 4
    expected = None
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        acc = filled(updates, [1.0] * 4, order, nonfinite="propagate")
        left, right = (filled(updates, [1.0] * 4, part, nonfinite="propagate") for part in (order[:2], order[2:]))
        left.merge(right)
        assert left == acc
        assert MeanAccumulator.from_bytes(acc.to_bytes()) == acc
        found = mean([updates[k] for k in order], None, nonfinite="propagate")
        assert acc.result().tobytes() == found.tobytes()
        np.testing.assert_array_equal(found, plain)
        assert expected in (None, found.tobytes())
        expected = found.tobytes()
    with pytest.raises(NonFiniteUpdate, match="client 0: expected finite values, got inf"):
        mean(updates, None)
    assert (
        mean([rows[0], rows[3]], None, nonfinite="drop").tobytes()
        == rows[3].tobytes()[: 4 * 8] + np.array([np.inf], np.float64).tobytes() + rows[3].tobytes()[5 * 8 :]
    )


def test_many_terms_of_one_sign(backend: str) -> None:
    # Sums far beyond one bin: the limbs have to carry. 3000 terms just below the top of their bin.
    top = np.nextafter(2.0 ** (44 * 25 - 1031), 0)
    acc = MeanAccumulator(np.zeros(3), accumulate="reproducible")
    updates = [np.array([top, -top, top / 3])] * 3000
    acc.add_many(updates)
    assert acc.result().tolist() == [top, -top, top / 3]
    acc.merge(acc)
    assert (acc.count, acc.weight) == (6000, 6000.0)
    assert acc.result().tolist() == [top, -top, top / 3]


def test_the_total_weight_does_not_depend_on_the_order() -> None:
    weights = [1.0, 2.0**-53, 2.0**-53, 2.0**-54, 1e-250, 2.0**-900, 2.0**899]
    updates = [np.array([float(k)]) for k in range(len(weights))]
    states = {
        filled(updates, weights, order).to_bytes() for order in (range(7), range(6, -1, -1), [3, 6, 1, 0, 2, 5, 4])
    }
    assert len(states) == 1
    acc = filled(updates[:3], weights[:3], [1, 2, 0])
    assert acc.weight == 1 + 2.0**-52


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ints: expected other than 'first' with accumulate='reproducible'"):
        mean([np.ones(2)], None, ints="first")
    monkeypatch.setattr(_policy, "MOST_UPDATES", 3)
    with pytest.raises(ValueError, match="updates: expected at most 3 with accumulate='reproducible', got 4"):
        mean([np.ones(2)] * 4, None)
    acc = MeanAccumulator(np.ones(2), accumulate="reproducible")
    acc.add_many([np.ones(2)] * 2)
    with pytest.raises(ValueError, match="accumulator: expected at most 3 updates"):
        acc.add_many([np.ones(2)] * 2)
    with pytest.raises(ValueError, match="accumulator: expected at most 3 updates"):
        acc.merge(acc)
    acc.add(np.ones(2))
    with pytest.raises(ValueError, match="accumulator: expected at most 3 updates"):
        acc.add(np.ones(2))
    assert acc.count == 3


# ---- wire form -----------------------------------------------------------------------------------------------------

# One update {"w": float32 [1, -2], "d": float64 [0.1]} of weight 3.
GOLDEN = bytes.fromhex(
    "45464d4102000000850100000000000000000840010000000000000000000000000000007b22737472756374757265223a7b2264"
    "696374223a5b5b2277222c305d2c5b2264222c315d5d7d2c2274656e736f7273223a5b5b226634222c5b325d5d2c5b226638222c"
    "5b315d5d5d2c22696e7473223a22726f756e64222c226e6f6e66696e697465223a227261697365222c22616363756d756c617465"
    "223a22726570726f64756369626c65222c22746f74616c223a223078333030303030303030303030303030303030303030303030"
    "30303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
    "30303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
    "30303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
    "30303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030303030"
    "30303030303030227d00000c00000000000000e8ffffffffff000000000000000000000000000000001818333301000000000000"
    "3433333303000000000000000000001885ed11df"
)


def golden_accumulator() -> MeanAccumulator:
    acc = MeanAccumulator({"w": np.zeros(2, np.float32), "d": np.zeros(1)}, accumulate="reproducible")
    acc.add({"w": np.array([1, -2], np.float32), "d": np.array([0.1])}, 3)
    return acc


def test_golden_bytes(backend: str) -> None:
    acc = golden_accumulator()
    assert acc.to_bytes() == GOLDEN
    assert MeanAccumulator.from_bytes(GOLDEN) == acc
    magic, version, length, weight, count, dropped = struct.unpack_from("<4sHxxIdQQ", GOLDEN)
    assert (magic, version, weight, count, dropped) == (b"EFMA", 2, 3.0, 1, 0)
    meta = json.loads(GOLDEN[36 : 36 + length])
    assert int(meta["total"], 16) == 3 << 952
    # u_j = 2**(44 j - 1074): 3 and -6 lie below 2**43 u_24, half of u_25.
    bins = struct.unpack_from("<4q", GOLDEN, 36 + length)
    assert (bins[0] * 2.0 ** (44 * 24 - 1074), bins[1] * 2.0 ** (44 * 24 - 1074)) == (3.0, -6.0)
    assert GOLDEN[36 + length + 32 : 36 + length + 34] == bytes([24, 24])


def sealed(meta: Any, payload: bytes, *, weight: float = 1.0, count: int = 1) -> bytes:
    text = json.dumps(meta).encode()
    body = struct.pack("<4sHxxIdQQ", b"EFMA", 2, len(text), weight, count, 0) + text + payload
    return body + struct.pack("<I", zlib.crc32(body))


META = {
    "structure": 0,
    "tensors": [["f4", [1]]],
    "ints": "round",
    "nonfinite": "raise",
    "accumulate": "reproducible",
    "total": hex(1 << 952),
}


def state(*bins: int, index: int = 24) -> bytes:
    return struct.pack("<2q", *bins) + bytes([index])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (sealed(META, state(0, 0, index=0)), "bin index"),
        (sealed(META, state(0, 0, index=47)), "bin index"),
        (sealed(META, state(0, 0, index=252)), "bin index"),
        (sealed(META, state(2**43 + 1, 0)), "bins"),
        (sealed(META, state(0, -(2**43) - 1)), "bins"),
        (sealed(META, state(1, 0, index=255)), "bins"),
        (sealed(META, state(0, 0)[:-1]), "fewer bytes"),
        (sealed(META, state(0, 0) + b"\0"), "1 bytes too many"),
        (sealed(META, state(0, 0), count=2**20), "1048576 updates"),
        (sealed({**META, "total": "0x0"}, state(0, 0)), "weight 1.0 of 1 updates"),
        (sealed({**META, "total": "0x" + "f" * 500}, state(0, 0)), "weight"),
        (sealed({**META, "total": "-0x1"}, state(0, 0)), "weight"),
        (sealed({**META, "total": 3}, state(0, 0)), "does not hold together"),
        (sealed({**META, "ints": "first"}, state(0, 0)), "does not hold together"),
        (sealed({**META, "accumulate": "exact"}, state(0, 0)), "accumulate: expected one of"),
    ],
)
def test_bytes_that_are_no_state(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAccumulator.from_bytes(data)


def test_random_states_with_a_valid_checksum_are_refused_or_harmless(backend: str) -> None:
    rng = random.Random(1)
    accepted = 0
    for _ in range(300):
        payload = bytearray(
            state(rng.choice([0, 5, -(2**43), 2**62]), rng.choice([0, 1, 2**43]), index=rng.randrange(256))
        )
        payload[rng.randrange(17)] ^= rng.choice([0, 0, 1 << rng.randrange(8)])
        try:
            acc = MeanAccumulator.from_bytes(sealed(META, bytes(payload)))
        except ValueError:
            continue
        accepted += 1
        acc.add(np.array([1.0], np.float32))
        acc.merge(acc)
        acc.result()
        assert MeanAccumulator.from_bytes(acc.to_bytes()) == acc
    assert accepted
