"""TrimmedMeanAccumulator: exact trimming in any order and any merge tree, and a wire form that survives damage."""

from __future__ import annotations

import copy
import json
import pickle
import random
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.aggregate import (
    DtypeMismatch,
    GramAccumulator,
    IntegerRange,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    TooFewUpdates,
    TrimmedMeanAccumulator,
    trimmed_mean,
)

GOLDEN = Path(__file__).parent / "golden"
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


def random_updates(dtype: str, size: int, count: int, seed: int = 0) -> list[np.ndarray]:
    """Values whose float64 sums are exact, so that every order gives the same bits."""
    rng = np.random.default_rng(seed)
    dt = np.dtype(dtype)
    if dt.kind == "b":
        return [rng.random(size) < 0.5 for _ in range(count)]
    low, high = (0, 100) if dt.kind == "u" else (-100, 100)
    values = [rng.integers(low, high, size) for _ in range(count)]
    return [(v / 4).astype(dt) if dt.kind == "f" else v.astype(dt) for v in values]


def accumulate(updates: list[Any], f: int, **options: Any) -> TrimmedMeanAccumulator:
    acc = TrimmedMeanAccumulator(updates[0], f=f, **options)
    for update in updates:
        acc.add(update)
    return acc


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_as_trimmed_mean(backend: str, dtype: str) -> None:
    for size in (0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 97):
        for count, f in ((1, 0), (3, 1), (4, 1), (9, 4), (12, 2)):
            updates = random_updates(dtype, size, count, seed=size)
            found = accumulate(updates, f).result()
            assert found.dtype == updates[0].dtype
            assert found.tobytes() == trimmed_mean(updates, f=f).tobytes(), (size, count, f)


def test_values_that_swallow_others_leave_no_trace(backend: str) -> None:
    rng = np.random.default_rng(0)
    updates = [rng.normal(size=50) for _ in range(9)]
    for k in (2, 5, 6):
        updates[k] = np.where(rng.random(50) < 0.5, 1e300, -1e300)
    found = accumulate(updates, 3).result()
    np.testing.assert_allclose(found, trimmed_mean(updates, f=3), rtol=1e-15, atol=1e-15)
    infinite = [u.copy() for u in updates]
    infinite[2][:] = np.inf
    infinite[5][:] = -np.inf
    infinite[6][:] = -np.array(np.nan)
    found = accumulate(infinite, 3, nonfinite="rank").result()
    np.testing.assert_allclose(found, trimmed_mean(infinite, f=3, nonfinite="rank"), rtol=1e-15, atol=1e-15)
    assert np.isfinite(found).all()


@given(st.integers(0, 4), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 2**32))
def test_any_merge_tree_trims_the_same_values(backend: str, f: int, parts: list[int], seed: int) -> None:
    updates = random_updates("f4", 19, sum(parts), seed)
    template = np.zeros(19, np.float32)
    nodes = []
    start = 0
    for part in parts:
        acc = TrimmedMeanAccumulator(template, f=f)
        for update in updates[start : start + part]:
            acc.add(update)
        nodes.append(acc)
        start += part
    rng = random.Random(seed)
    while len(nodes) > 1:
        a = nodes.pop(rng.randrange(len(nodes)))
        b = nodes.pop(rng.randrange(len(nodes)))
        before = b.to_bytes()
        a += b
        assert b.to_bytes() == before
        nodes.append(a)
    assert nodes[0].count == len(updates)
    if len(updates) <= 2 * f:
        with pytest.raises(TooFewUpdates, match=rf"expected at least {2 * f + 1} updates .*got {len(updates)}"):
            nodes[0].result()
    else:
        assert nodes[0].result().tobytes() == trimmed_mean(updates, f=f).tobytes()


def test_merging_with_itself_counts_twice(backend: str) -> None:
    acc = accumulate([np.array([float(k)]) for k in (1, 2, 6)], 1)
    acc.merge(acc)
    assert acc.count == 6
    assert acc.result().tolist() == [2.75]  # 1 [1 2 2 6] 6


def model(k: int) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    return {
        "w": rng.normal(size=(7, 3)).astype(np.float32),
        "b": [rng.normal(size=5).astype(np.float16), rng.normal(size=())],
        "n": rng.integers(0, 100, 3),
        "flag": rng.random(4) < 0.5,
    }


@pytest.mark.parametrize(("ints", "expected"), [("round", [5]), ("max", [90]), ("first", [1]), ("skip", [0])])
def test_integers(backend: str, ints: Any, expected: list[int]) -> None:
    acc = TrimmedMeanAccumulator({"n": np.array([0])}, f=1, ints=ints)
    other = acc.copy()
    for k in (1, 4):
        acc.add({"n": np.array([k])})
    for k in (90, 6):
        other.add({"n": np.array([k])})
    acc.merge(other)
    assert acc.result()["n"].tolist() == expected


@pytest.mark.parametrize("ints", ["round", "max", "first", "skip"])
def test_round_trips(backend: str, ints: Any) -> None:
    acc = TrimmedMeanAccumulator(model(9), f=2, ints=ints, nonfinite="drop")
    for k in range(6):
        acc.add(model(k))
    for twin in (
        TrimmedMeanAccumulator.from_bytes(acc.to_bytes()),
        pickle.loads(pickle.dumps(acc)),
        copy.copy(acc),
        copy.deepcopy(acc),
    ):
        assert twin == acc
        assert twin.to_bytes() == acc.to_bytes()
        for found, wanted in zip(twin.result().values(), acc.result().values(), strict=True):
            if isinstance(found, np.ndarray):
                assert found.tobytes() == wanted.tobytes()
        twin.add(model(7))
        assert twin != acc
        assert twin.count == 7
    assert acc != 3
    with pytest.raises(TypeError, match="unhashable"):
        hash(acc)
    acc.reset()
    assert acc == TrimmedMeanAccumulator(model(9), f=2, ints=ints, nonfinite="drop")


@pytest.mark.parametrize(
    ("update", "error"),
    [
        ({"w": np.zeros(4, np.float32), "n": np.zeros(2, int)}, ShapeMismatch),
        ({"w": np.zeros(3), "n": np.zeros(2, int)}, DtypeMismatch),
        ({"w": np.zeros(3, np.float32)}, StructureMismatch),
        ({"w": np.array([1, np.nan, 3], np.float32), "n": np.zeros(2, int)}, NonFiniteUpdate),
        ({"w": np.zeros(3, np.float32), "n": np.array([0, 2**60])}, IntegerRange),
    ],
    ids=lambda x: getattr(x, "__name__", "update"),
)
def test_an_error_leaves_the_accumulator_as_it_was(backend: str, update: Any, error: type[Exception]) -> None:
    acc = TrimmedMeanAccumulator({"w": np.zeros(3, np.float32), "n": np.zeros(2, int)}, f=1)
    acc.add({"w": np.ones(3, np.float32), "n": np.ones(2, int)})
    before = acc.to_bytes()
    with pytest.raises(error, match="client door-7"):
        acc.add(update, client="door-7")
    with pytest.raises(error, match="client 1"):
        acc.add(update)
    assert acc.to_bytes() == before


def test_dropped_updates_are_counted(backend: str) -> None:
    acc = TrimmedMeanAccumulator(np.zeros(2), f=0, nonfinite="drop")
    acc.add(np.array([np.inf, 1]))
    acc.add(np.array([2.0, 4.0]))
    assert (acc.count, acc.dropped, acc.result().tolist()) == (1, 1, [2.0, 4.0])


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (TrimmedMeanAccumulator(np.zeros(4), f=1), StructureMismatch, "client other: expected"),
        (TrimmedMeanAccumulator(np.zeros(3), f=2), StructureMismatch, "client other: expected"),
        (TrimmedMeanAccumulator(np.zeros(3), f=1, nonfinite="rank"), StructureMismatch, "client other: expected"),
        (np.zeros(3), TypeError, "other: expected a TrimmedMeanAccumulator, got ndarray"),
    ],
)
def test_merging_what_differs(other: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrimmedMeanAccumulator(np.zeros(3), f=1).merge(other)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"f": -1}, ValueError, "f: expected an integer >= 0, got -1"),
        ({"f": 32768}, ValueError, "f: expected at most 32767, got 32768"),
        ({"f": 1.5}, TypeError, "f: expected an integer, got float"),
        ({"f": 1, "ints": "sum"}, ValueError, "ints: expected one of"),
        ({"f": 1, "nonfinite": "propagate"}, ValueError, "nonfinite: expected one of raise, drop, rank"),
        ({"f": 1, "num_threads": 0}, ValueError, "num_threads: expected a positive integer"),
    ],
)
def test_options_that_do_not_exist(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TrimmedMeanAccumulator(np.zeros(2), **options)


def test_threads_add_at_once(backend: str) -> None:
    acc = TrimmedMeanAccumulator(np.zeros(300), f=3)
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for k in range(first, first + 20):
                acc.add(np.full(300, float(k)))
                acc.copy()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(20 * t,)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert acc.count == 80
    assert acc.result().tolist() == [39.5] * 300


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_argument_changes_no_bit(backend: str, threads: int) -> None:
    updates = [np.random.default_rng(k).normal(size=150_003).astype(np.float32) for k in range(5)]
    found = accumulate(updates, 1, num_threads=threads).result()
    assert found.tobytes() == accumulate(updates, 1).result().tobytes()
    np.testing.assert_array_max_ulp(found, trimmed_mean(updates, f=1), 1)


def test_repr_nbytes_and_out(backend: str) -> None:
    acc = accumulate([np.full((10, 2), k, np.float32) for k in range(4)], 1)
    assert repr(acc) == "<TrimmedMeanAccumulator of 1 tensors, 20 parameters: f=1, 4 updates>"
    assert acc.nbytes == 20 * (4 + 4 + 8)
    out = np.zeros((10, 4), np.float32)[:, ::2]
    assert acc.result(out=out) is out
    assert out.tolist() == [[1.5, 1.5]] * 10


# ---- wire form -------------------------------------------------------------------------------------------------------


def golden_accumulator() -> TrimmedMeanAccumulator:
    acc = TrimmedMeanAccumulator(
        {"w": np.zeros(3, np.float32), "h": [np.zeros(2, np.float16)], "n": np.array([0])}, f=1
    )
    for k in range(4):
        w = np.array([k, -k, 0.5 * k], np.float32)
        acc.add({"w": w, "h": [np.array([k, 4 - k], np.float16)], "n": np.array([k])})
    return acc


def golden_gram() -> GramAccumulator:
    acc = GramAccumulator(3)
    acc.add([np.array([k, k * k, -k], np.float32) for k in range(3)])
    return acc


@pytest.mark.parametrize(
    ("name", "make"),
    [("trimmed_mean_v1.bin", golden_accumulator), ("gram_v1.bin", golden_gram)],
    ids=["trimmed", "gram"],
)
def test_golden_bytes(backend: str, name: str, make: Any) -> None:
    data = (GOLDEN / name).read_bytes()
    acc = make()
    assert acc.to_bytes() == data
    assert type(acc).from_bytes(data) == acc


def test_the_wire_form_is_what_the_documentation_says() -> None:
    acc = TrimmedMeanAccumulator({"w": np.zeros(2, np.float32)}, f=1)
    for k in (1.0, -2.0, 5.0, 3.0):
        acc.add({"w": np.array([k, 1], np.float32)})
    data = acc.to_bytes()
    magic, version, length, f, count, dropped = struct.unpack_from("<4sHxxIQQQ", data)
    assert (magic, version, f, count, dropped) == (b"EFTM", 1, 1, 4, 0)
    assert json.loads(data[36 : 36 + length]) == {
        "structure": {"dict": [["w", 0]]},
        "tensors": [["f4", [2]]],
        "ints": "round",
        "nonfinite": "raise",
    }
    low, high = struct.unpack_from("<2i", data, 36 + length), struct.unpack_from("<2i", data, 44 + length)
    assert struct.unpack("<f", struct.pack("<i", low[0] ^ 0x7FFFFFFF)) == (-2.0,)
    assert struct.unpack("<f", struct.pack("<i", high[0])) == (5.0,)
    assert struct.unpack("<2d", data[52 + length : -4]) == (4.0, 2.0)


def sealed(meta: bytes, payload: bytes, f: int = 1, count: int = 0, magic: bytes = b"EFTM", version: int = 1) -> bytes:
    body = struct.pack("<4sHxxIQQQ", magic, version, len(meta), f, count, 0) + meta + payload
    return body + struct.pack("<I", zlib.crc32(body))


META = {"structure": {"dict": [["w", 0]]}, "tensors": [["f4", [2]]], "ints": "round", "nonfinite": "raise"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected at least 40 bytes, got 0"),
        (sealed(b"{}", b"", magic=b"EFMA"), "expected bytes that start with b'EFTM'"),
        (sealed(b"{}", b"", version=9), "expected version 1, got version 9"),
        (sealed(b"{}", b""), "unexpected fields"),
        (sealed(b"[", b""), "does not hold together"),
        (sealed(json.dumps(META).encode(), b"\0" * 31), "fewer bytes than the tensors need"),
        (sealed(json.dumps(META).encode(), b"\0" * 33), "1 bytes too many"),
        (sealed(json.dumps(META).encode(), b"\0" * 32, f=2**60), "f: expected at most 32767"),
        (sealed(json.dumps(META).encode(), b"\0" * 32, f=30000), "fewer bytes than the tensors need"),
        (sealed(json.dumps({**META, "tensors": [["f4", [2**62]]]}).encode(), b"\0" * 32), "fewer bytes"),
        (sealed(json.dumps({**META, "tensors": [["f4", [-2]]]}).encode(), b"\0" * 32), "shape"),
        (sealed(json.dumps({**META, "tensors": [["c8", [2]]]}).encode(), b"\0" * 32), "does not hold together"),
        (sealed(json.dumps({**META, "ints": "x"}).encode(), b"\0" * 32), "ints: expected one of"),
        (sealed(json.dumps({**META, "nonfinite": "x"}).encode(), b"\0" * 32), "nonfinite: expected one of"),
        (sealed(json.dumps({**META, "structure": 1}).encode(), b"\0" * 32), "does not hold together"),
        (sealed(json.dumps({**META, "structure": [0]}).encode(), b"\0" * 32), "does not hold together"),
    ],
)
def test_bytes_that_are_no_accumulator(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrimmedMeanAccumulator.from_bytes(data)


def test_every_single_byte_change_is_noticed() -> None:
    good = golden_accumulator().to_bytes()
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        for data in (bytes(bad), good[:i]):
            with pytest.raises(ValueError, match="accumulator:"):
                TrimmedMeanAccumulator.from_bytes(data)
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        TrimmedMeanAccumulator.from_bytes("EFTM")  # type: ignore[arg-type]


def test_random_descriptions_with_a_valid_checksum_never_crash() -> None:
    rng = random.Random(0)
    text = json.dumps(META).encode()
    for _ in range(2000):
        changed = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.choice(b'0123456789[]{},:"-ef. null')
        f = rng.choice([0, 1, 1, 1, 2, 2**40])
        try:
            acc = TrimmedMeanAccumulator.from_bytes(
                sealed(bytes(changed), b"\0" * 32, f=f, count=rng.choice([0, 1, 9]))
            )
        except ValueError:
            continue
        assert TrimmedMeanAccumulator.from_bytes(acc.to_bytes()) == acc


def test_empty_structures_travel() -> None:
    for template in ([], {}, {"a": []}, np.zeros(0), [np.zeros((0, 3)), ()]):
        acc = TrimmedMeanAccumulator(template, f=0)
        acc.add(template)
        assert TrimmedMeanAccumulator.from_bytes(acc.to_bytes()) == acc
