"""Updates as count sketches: against the sketch itself, as sums, on the wire; and FetchSGD on them."""

from __future__ import annotations

import json
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.aggregate import (
    Encoded,
    FetchSGD,
    MeanAccumulator,
    NonFiniteUpdate,
    Quantizer,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
    weighted_mean,
)
from edgefast.backends.numpy.elements import round_to_brain, widen
from edgefast.backends.table import BF16
from edgefast.sketch import CountSketch

GOLDEN = Path(__file__).parent / "golden"
SKETCH = {"kind": "countsketch", "width": 40, "depth": 3, "fraction": 0.05, "seed": 7}


def model(k: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    return {
        "w": rng.integers(-50, 50, (11, 13)).astype(np.float32),
        "deep": [rng.integers(-9, 9, 70).astype(np.float64), {"h": rng.integers(-9, 9, 65).astype(np.float16)}],
        "brain": round_to_brain(rng.integers(-9, 9, 33).astype(np.float32)).view(BF16),
        "none": np.zeros((0, 2), np.float32),
        "steps": np.array(k + 3),
        "mask": rng.random(5) < 0.5,
    }


def leaves(node: Any) -> list[np.ndarray]:
    if isinstance(node, dict):
        return [leaf for child in node.values() for leaf in leaves(child)]
    if isinstance(node, (list, tuple)):
        return [leaf for child in node for leaf in leaves(child)]
    return [node.view(BF16) if node.dtype.name == "bfloat16" else node]


def flat(update: Any) -> np.ndarray:
    """All float tensors as one float64 vector."""
    return np.concatenate([widen(a).reshape(-1) for a in leaves(update) if a.dtype.kind in "fV"])


def test_the_table_is_that_of_a_count_sketch(backend: str) -> None:
    """Same hashes, one vector of all float tensors; whatever the nonce."""
    x = flat(model())
    cs = CountSketch(x.size, 40, 3, seed=7).update(x.astype(np.float32))
    encoded = Quantizer(**SKETCH).encode(model(), nonce=5)  # type: ignore[arg-type]
    assert encoded._table is not None
    assert (encoded._table == cs.table).all()
    assert encoded.nbytes == 40 * 3 * 4 + 8 + 5
    decoded = encoded.decode()
    expected = np.zeros(x.size, np.float32)
    indices, values = cs.top_k(16)  # 5 % of 311, rounded up
    expected[indices] = values
    assert (flat(decoded) == expected).all()
    assert decoded["steps"] == 3
    assert (decoded["mask"] == model()["mask"]).all()
    for got, wanted in zip(leaves(decoded), leaves(model()), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)


def test_recovers_the_largest_entries_of_a_heavy_tailed_update(backend: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(70_000).astype(np.float32) * 0.01
    heavy = rng.choice(x.size, 20, replace=False)
    x[heavy] = np.sign(rng.standard_normal(20)) * rng.uniform(3, 20, 20)
    encoded = Quantizer("countsketch", width=1000, depth=7, fraction=20 / x.size).encode({"w": x})
    assert encoded.nbytes == x.nbytes // 10
    back = encoded.decode()["w"]
    assert set(np.flatnonzero(back)) == set(heavy)
    # l2 / sqrt(width) is the standard error of one row.
    assert np.abs(back - x)[heavy].max() < np.linalg.norm(x) / np.sqrt(1000)


@given(weights=st.lists(st.integers(1, 5), min_size=2, max_size=5), data=st.data())
def test_linear(weights: list[int], data: Any) -> None:
    """The mean of sketches is the sketch of the mean, through any tree of merges."""
    q = Quantizer(**SKETCH)  # type: ignore[arg-type]
    sent = [q.encode(model(k)) for k in range(len(weights))]
    parts = [MeanAccumulator(sent[0]) for _ in range(2)]
    for e, w in zip(sent, weights, strict=True):
        parts[data.draw(st.integers(0, 1))].add(Encoded.from_bytes(e.to_bytes()), w)
    parts[0].merge(MeanAccumulator.from_bytes(parts[1].to_bytes()))
    got = parts[0].result()
    mean = np.average([flat(model(k)) for k in range(len(weights))], axis=0, weights=weights)
    exact = CountSketch(mean.size, 40, 3, seed=7, dtype="float64").update(mean)
    assert got.kind == "countsketch"
    np.testing.assert_allclose(got._table, exact.table, rtol=1e-6, atol=1e-4)
    assert got._sketch == sent[0]._sketch
    # Means of integers: rounded, as everywhere.
    assert got.decode()["steps"] == round(np.average([k + 3 for k in range(len(weights))], weights=weights))
    flats, totals = leaves(weighted_mean(sent, weights)), leaves(got.decode())
    assert parts[0].nbytes == 40 * 3 * 8 + 6 * 8
    for a, b in zip(flats, totals, strict=True):
        np.testing.assert_allclose(widen(a), widen(b), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("accumulate", ["float64", "float32", "reproducible"])
def test_accumulators_of_sketches(backend: str, accumulate: Any) -> None:
    q = Quantizer(**SKETCH)  # type: ignore[arg-type]
    sent = [q.encode(model(k)) for k in range(3)]
    acc = MeanAccumulator(sent[0], accumulate=accumulate)
    with pytest.raises(ZeroWeightError):
        acc.result()
    acc.add_many(sent, [1, 2, 5])
    # The tables hold small integers: every order of summation is exact.
    tables = [e._table for e in sent]
    expected = ((tables[0] + 2 * tables[1] + 5 * tables[2]) / 8).astype(np.float32)  # type: ignore[operator]
    assert (acc.result()._table == expected).all()
    again = pickle.loads(pickle.dumps(acc))
    assert again == acc
    again.add(sent[1])
    acc.add(sent[1])
    assert again == acc
    assert again.copy().result() == acc.result()
    acc.reset()
    acc.add(sent[2])
    assert (acc.result()._table == tables[2]).all()
    out = model()
    assert weighted_mean(sent, [1, 2, 5], accumulate=accumulate, out=out) is out
    for a, b in zip(leaves(out), leaves(weighted_mean(sent, [1, 2, 5])), strict=True):
        assert a.tobytes() == b.tobytes()


def test_what_does_not_add_up() -> None:
    sent = Quantizer(**SKETCH).encode(model())  # type: ignore[arg-type]
    acc = MeanAccumulator(sent)
    cases: list[tuple[Any, str]] = [
        (model(), "expected an Encoded of kind 'countsketch', got a dict"),
        (Quantizer("int8").encode(model()), "got an Encoded of kind 'int8'"),
        (Quantizer(**{**SKETCH, "seed": 8}).encode(model()), "client 7: expected seed 7, got seed 8"),  # type: ignore[arg-type]
        (Quantizer(**{**SKETCH, "width": 41}).encode(model()), "expected width 40, got width 41"),  # type: ignore[arg-type]
        (Quantizer(**{**SKETCH, "depth": 5}).encode(model()), "expected depth 3, got depth 5"),  # type: ignore[arg-type]
        (Quantizer(**SKETCH).encode({**model(), "w": np.zeros(3)}), "expected .*dict.*, got .*dict"),  # type: ignore[arg-type]
    ]
    for update, text in cases:
        with pytest.raises(StructureMismatch, match=text):
            acc.add(update, client=7)
    with pytest.raises(StructureMismatch, match="got a sketch"):
        MeanAccumulator(model()).add(sent)
    with pytest.raises(StructureMismatch, match="client 1"):
        weighted_mean([sent, model()])
    with pytest.raises(StructureMismatch, match="client 0"):
        weighted_mean([model(), sent])
    with pytest.raises(ValueError, match="partial: expected False with sketches"):
        MeanAccumulator(sent, partial=True)
    with pytest.raises(TypeError, match="out: expected None"):
        acc.result(out=model())
    with pytest.raises(StructureMismatch):
        acc.merge(MeanAccumulator(model()))
    assert acc.count == 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({}, ValueError, "width: expected a number of counters"),
        ({"width": 0}, ValueError, "width"),
        ({"width": 1.5}, TypeError, "width"),
        ({"width": 10, "depth": 256}, ValueError, "depth"),
        ({"width": 2**31, "depth": 1}, ValueError, "width"),
        ({"width": 10, "rounding": "stochastic"}, ValueError, "rounding"),
        ({"kind": "topk", "width": 10}, ValueError, "width: expected None with kind='topk'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Quantizer(**{"kind": "countsketch", **arguments})


def test_values_that_do_not_fit(backend: str) -> None:
    q = Quantizer("countsketch", width=4, depth=2, fraction=1)
    for bad in (np.nan, np.inf):
        with pytest.raises(NonFiniteUpdate, match="key 'w': expected finite values"):
            q.encode({"w": np.array([1.0, bad])})
    for big in (np.array([1e300]), np.full(8, 3e38, np.float32)):
        with pytest.raises(NonFiniteUpdate, match="a float32 holds"):
            q.encode(big)
    # An estimate may exceed what a float16 holds; no entry did.
    back = q.encode({"h": np.full(32, 65504, np.float16)}).decode()["h"]
    assert np.isfinite(back).all()
    empty = q.encode([np.zeros(0), np.array(4)])
    assert [a.tolist() for a in Encoded.from_bytes(empty.to_bytes()).decode()] == [[], 4]


# ---- the wire form -------------------------------------------------------------------------------------------------


#: CRC-32 of the decoded arrays.
DECODED = 0x62A5C85C


def golden_update() -> dict[str, Any]:
    i = np.arange(700)
    x = ((i * 7919 % 1009) - 504) / 64
    return {
        "f32": (x * np.where(i % 97 == 0, 40, 1)).astype(np.float32).reshape(7, 100),
        "nested": [x[:70].astype(np.float16), (x[:130], np.array([True, False]))],
        "steps": np.array([1, -2, 2**40]),
    }


def test_golden_bytes(backend: str) -> None:
    encoded = Quantizer("countsketch", width=60, depth=3, seed=9, fraction=0.01).encode(golden_update(), nonce=11)
    path = GOLDEN / "encoded-v1-countsketch.bin"
    assert encoded.to_bytes() == path.read_bytes()
    again = Encoded.from_bytes(path.read_bytes())
    assert again == encoded
    assert (again.seed, again.nonce) == (9, 11)
    decoded = again.decode(golden_update())
    assert zlib.crc32(b"".join(a.tobytes() for a in leaves(decoded))) == DECODED
    assert (decoded["steps"] == golden_update()["steps"]).all()
    acc = MeanAccumulator(encoded)
    acc.add(encoded, 3)
    path = GOLDEN / "mean-v3-sketch.bin"
    assert acc.to_bytes() == path.read_bytes()
    assert MeanAccumulator.from_bytes(path.read_bytes()) == acc


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("name", "read"),
    [("encoded-v1-countsketch.bin", Encoded.from_bytes), ("mean-v3-sketch.bin", MeanAccumulator.from_bytes)],
)
def test_damaged_and_hostile_bytes(name: str, read: Any) -> None:
    data = (GOLDEN / name).read_bytes()
    rng = random.Random(1)
    for end in [0, 1, 35, 36, len(data) - 1, *(rng.randrange(len(data)) for _ in range(20))]:
        with pytest.raises(ValueError, match=r"encoded update|accumulator"):
            read(data[:end])
    refused = 0
    for _ in range(400):
        raw = bytearray(data[:-4])
        for _ in range(rng.choice((1, 1, 3))):
            raw[rng.randrange(4, 500 if rng.random() < 0.7 else len(raw))] = rng.choice((0, 255, rng.randrange(256)))
        try:
            found = read(sealed(bytes(raw)))
        except ValueError:
            refused += 1
            continue
        if isinstance(found, MeanAccumulator) and found.count:
            found = found.result() if np.isfinite(found._sums[0]).all() else None
        if isinstance(found, Encoded):
            try:
                decoded = found.decode(golden_update())
            except ValueError:
                continue
            assert np.isfinite(flat(decoded)).all()
    assert refused > 100


def described(numbers: Any, tensors: Any, payload: bytes) -> bytes:
    meta = {"structure": 0, "tensors": tensors, "sketch": numbers}
    text = json.dumps(meta).encode()
    return sealed(struct.pack("<4sHBBHHIQQ", b"EFQU", 1, 6, 0, 0, 0, len(text), 0, 0) + text + payload)


@pytest.mark.parametrize(
    ("numbers", "tensors", "payload"),
    [
        ([2, 1, 1], [["f4", [3]]], b"\0" * 7),
        ([2, 1, 1], [["f4", [3]]], b"\0" * 9),
        ([2, 1, 4], [["f4", [3]]], b"\0" * 8),
        ([2, 1, -1], [["f4", [3]]], b"\0" * 8),
        ([2, 1, 1], [["f4", [3]]], struct.pack("<ff", 0, np.nan)),
        ([2, 0, 1], [["f4", [3]]], b""),
        ([2, 256, 1], [["f4", [3]]], b"\0" * 2048),
        ([2**31, 1, 1], [["f4", [3]]], b"\0" * 8),
        ([True, 2, 1], [["f4", [3]]], b"\0" * 8),
        ([2, 1], [["f4", [3]]], b"\0" * 8),
        ([2, 1, 1], [["f4", [2**47, 2**47]]], b"\0" * 8),
    ],
)
def test_contradictions(numbers: Any, tensors: Any, payload: bytes) -> None:
    assert Encoded.from_bytes(described([2, 1, 1], [["f4", [3]]], b"\0" * 8)).size == 3
    with pytest.raises(ValueError, match="encoded update"):
        Encoded.from_bytes(described(numbers, tensors, payload))


# ---- FetchSGD ------------------------------------------------------------------------------------------------------


def quadratic(clients: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Optima of client losses |x - c|^2 / 2: large entries of their own, which cancel, and small common ones."""
    rng = np.random.default_rng(seed)
    common = np.zeros(d)
    common[rng.choice(d, 20, replace=False)] = rng.choice([-1.0, 1.0], 20)
    own = rng.standard_normal((clients, d)) * (rng.random((clients, d)) < 0.05) * 30
    return common, common + own - own.mean(axis=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_converges_where_plain_topk_does_not(momentum: float, reset: Any) -> None:
    d, clients, rounds = 5000, 8, 60
    common, optima = quadratic(clients, d, 1)
    # The same bytes on the way up: 1000 counters of 4 bytes against 334 pairs of index and float64 value.
    sketcher = Quantizer("countsketch", width=200, depth=5, fraction=0.002, seed=2)
    sparse = Quantizer("topk", fraction=1 / 15)
    assert sparse.encode(common).nbytes >= sketcher.encode(common).nbytes == 4000
    server = FetchSGD(lr=0.2 * (1 - momentum), momentum=momentum, reset=reset)
    x, plain = np.zeros(d), np.zeros(d)
    for _ in range(rounds):
        acc = MeanAccumulator(sketcher.encode(optima[0] - x))
        for c in optima:
            acc.add(sketcher.encode(c - x))
        x = server.step(x, acc)
        plain = plain + 0.2 * weighted_mean([sparse.encode(c - plain) for c in optima])
    start = np.linalg.norm(common)
    assert np.linalg.norm(plain - common) > 0.9 * start
    assert np.linalg.norm(x - common) < 0.1 * start


def test_a_wide_sketch_is_gradient_descent_with_momentum(backend: str) -> None:
    """Everything recovered: e is empty after each step, and x follows the heavy ball."""
    d = 40
    target = np.random.default_rng(0).standard_normal(d).astype(np.float32).astype(np.float64)
    q = Quantizer("countsketch", width=4000, depth=5, fraction=1)
    server = FetchSGD(lr=0.1, momentum=0.5, reset="subtract")
    x, y, u = np.zeros(d), np.zeros(d), np.zeros(d)
    for _ in range(5):
        x = server.step(x, q.encode(target - x))
        u = 0.5 * u + (target - y).astype(np.float32)
        y = y + 0.1 * u
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert server.round == 5


def test_step_keeps_containers_dtypes_and_integers(backend: str) -> None:
    x = model()
    before = [a.copy() for a in leaves(x)]
    mean = Quantizer("countsketch", width=500, fraction=1).encode({**model(1), "steps": np.array(9)})
    new = FetchSGD(lr=1.0).step(x, mean)
    assert all((a == b).all() for a, b in zip(leaves(x), before, strict=True))
    assert new["steps"] == 9
    assert [(a.dtype, a.shape) for a in leaves(new)] == [(a.dtype, a.shape) for a in leaves(x)]
    np.testing.assert_allclose(flat(new), flat(x) + flat(mean.decode()), rtol=0.01, atol=0.1)
    again = FetchSGD(lr=1.0)
    assert again.step(x, mean, out=x) is x
    assert all(a.tobytes() == b.tobytes() for a, b in zip(leaves(x), leaves(new), strict=True))
    # Keys in another order are the same model.
    turned = dict(reversed(model().items()))
    other = FetchSGD(lr=1.0).step(turned, mean)
    assert all(leaves(other[k])[0].tobytes() == leaves(new[k])[0].tobytes() for k in turned)


def test_state_and_errors() -> None:
    q = Quantizer("countsketch", width=20, fraction=0.02)
    x, deltas = np.zeros(300), np.random.default_rng(1).standard_normal((4, 300))
    server = FetchSGD(lr=0.5, k=7)
    for delta in deltas[:2]:
        x = server.step(x, q.encode(delta))
    assert 7 <= np.count_nonzero(x) <= 14
    twin = FetchSGD(lr=0.5, k=7)
    twin.load_state_dict(server.state_dict())
    third = pickle.loads(pickle.dumps(server))
    steps = [s.step(x, q.encode(deltas[2])) for s in (server, twin, third)]
    assert (steps[0] == steps[1]).all()
    assert (steps[0] == steps[2]).all()
    state = server.state_dict()
    with pytest.raises(ValueError, match=r"expected lr 0\.1"):
        FetchSGD(lr=0.1, k=7).load_state_dict(state)
    with pytest.raises(ValueError, match="expected u finite"):
        twin.load_state_dict({**state, "u": np.zeros(3)})
    with pytest.raises(ValueError, match="format"):
        twin.load_state_dict({**state, "format": {"seed": 1}})
    with pytest.raises(TypeError, match="mapping"):
        twin.load_state_dict(3)  # type: ignore[arg-type]
    with pytest.raises(StructureMismatch):
        server.step(x, Quantizer("countsketch", width=21).encode(deltas[0]))
    with pytest.raises(ShapeMismatch):
        server.step(x[:5], q.encode(deltas[0]))
    with pytest.raises(TypeError, match="update: expected sketches"):
        server.step(x, deltas[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k: expected at most 2"):
        FetchSGD(k=3).step(np.zeros(2), q.encode(np.zeros(2)))
    assert (server.step(x, q.encode(deltas[3])) == twin.step(x, q.encode(deltas[3]))).all()
    server.reset()
    assert server.round == 0
    with pytest.raises(ValueError, match="reset"):
        FetchSGD(reset="none")  # type: ignore[arg-type]
    assert repr(FetchSGD(lr=0.5)) == "FetchSGD(lr=0.5, momentum=0.9, k=None, reset='zero')"
