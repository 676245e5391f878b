"""MeanAccumulator: the same bits as weighted_mean, merging, threads, and a wire form that survives damage."""

from __future__ import annotations

import copy
import json
import pickle
import random
import struct
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import (
    DtypeMismatch,
    IntegerRange,
    MeanAccumulator,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
    weighted_mean,
)


def model(seed: int, size: int = 97) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(size, 3)).astype(np.float32),
        "b": [rng.normal(size=size).astype(np.float16), rng.normal(size=())],
        "n": rng.integers(0, 100, 5),
        "flag": rng.random(7) < 0.5,
    }


def flat(update: Any) -> list[bytes]:
    return [update["w"].tobytes(), *(b.tobytes() for b in update["b"]), update["n"].tobytes(), update["flag"].tobytes()]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 17, 33, 65, 97, 5000])
@pytest.mark.parametrize("ints", ["round", "max", "first", "skip"])
def test_same_bits_as_weighted_mean(backend: str, size: int, ints: Any) -> None:
    updates, weights = [model(k, size) for k in range(5)], [1.5, 2.0, 0.1, 0.0, 7.0]
    acc = MeanAccumulator(updates[0], ints=ints)
    for update, weight in zip(updates, weights, strict=True):
        acc.add(update, weight)
    assert flat(acc.result()) == flat(weighted_mean(updates, weights, ints=ints))
    assert acc.count == 4
    assert acc.weight == 1.5 + 2.0 + 0.1 + 7.0
    assert flat(acc.result()) == flat(acc.result())  # reading changes nothing


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 1000)), min_size=1, max_size=12), st.data())
def test_merging_integer_weights_is_exact_in_any_order(backend: str, parts: Any, data: Any) -> None:
    # float32 values times integers below 2**29 are exact in binary64; sums of multiples of one ulp stay exact here.
    updates = [np.array([round(x)], np.float32) for x, _ in parts]
    weights = [w for _, w in parts]
    order = data.draw(st.permutations(range(len(parts))))
    cut = data.draw(st.integers(0, len(parts)))
    left, right = MeanAccumulator(updates[0]), MeanAccumulator(updates[0])
    for position, i in enumerate(order):
        (left if position < cut else right).add(updates[i], weights[i])
    left += right
    assert left.result().tobytes() == weighted_mean(updates, weights).tobytes()
    assert left.count == len(parts)


def test_merge_of_kept_integers(backend: str) -> None:
    a, b = (MeanAccumulator(np.array([0]), ints="max") for _ in range(2))
    b.add(np.array([5]))
    a.merge(b)
    a.add(np.array([3]))
    assert a.result().tolist() == [5]
    first = MeanAccumulator(np.array([0]), ints="first")
    other = MeanAccumulator(np.array([0]), ints="first")
    other.add(np.array([8]))
    first += other
    first.add(np.array([9]))
    assert first.result().tolist() == [8]


def test_merging_an_accumulator_with_itself_doubles_it(backend: str) -> None:
    acc = MeanAccumulator(np.zeros(3))
    acc.add(np.array([1.0, 2, 3]), 2)
    acc.merge(acc)
    assert (acc.count, acc.weight) == (2, 4.0)
    assert acc.result().tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (MeanAccumulator(np.zeros(4)), StructureMismatch, "client other: expected"),
        (MeanAccumulator(np.zeros(3, np.float32)), StructureMismatch, "client other: expected"),
        (MeanAccumulator([np.zeros(3)]), StructureMismatch, "client other: expected"),
        (MeanAccumulator(np.zeros(3), nonfinite="drop"), StructureMismatch, "client other: expected"),
        (np.zeros(3), TypeError, "other: expected a MeanAccumulator, got ndarray"),
    ],
)
def test_merging_what_differs(other: Any, error: type[Exception], message: str) -> None:
    acc = MeanAccumulator(np.zeros(3))
    acc.add(np.ones(3))
    with pytest.raises(error, match=message):
        acc.merge(other)
    assert acc.count == 1


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
    acc = MeanAccumulator({"w": np.zeros(3, np.float32), "n": np.zeros(2, int)})
    acc.add({"w": np.ones(3, np.float32), "n": np.ones(2, int)}, 2)
    before = acc.to_bytes()
    with pytest.raises(error, match="client door-7"):
        acc.add(update, client="door-7")
    with pytest.raises(error, match="client 1"):
        acc.add(update)
    too_large = (1e300, ValueError), (10**400, ValueError)
    for weight, expected in ((-1, ValueError), (np.inf, ValueError), ("1", TypeError), *too_large):
        with pytest.raises(expected, match=r"^weight: expected"):
            acc.add({"w": np.ones(3, np.float32), "n": np.ones(2, int)}, weight)  # type: ignore[arg-type]
    assert acc.to_bytes() == before


def test_dropped_updates_are_counted(backend: str) -> None:
    acc = MeanAccumulator(np.zeros(2), nonfinite="drop")
    acc.add(np.array([1.0, 2.0]))
    acc.add(np.array([np.inf, 0.0]), 5)
    assert (acc.count, acc.dropped, acc.weight) == (1, 1, 1.0)
    assert acc.result().tolist() == [1.0, 2.0]
    through = MeanAccumulator(np.zeros(2), nonfinite="propagate")
    through.add(np.array([np.inf, 1.0]))
    assert through.result().tolist() == [np.inf, 1.0]


@pytest.mark.parametrize("accumulate", ["float64", "float32", "reproducible"])
@pytest.mark.parametrize("bad", [[], [0], [3], [7], [0, 7], list(range(8))])
def test_nan_among_the_first_updates_of_a_batch(backend: str, accumulate: Any, bad: list[int]) -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": rng.normal(size=33).astype(np.float32), "n": rng.integers(0, 9, 3)} for _ in range(8)]
    for i in bad:
        updates[i]["w"][i] = (np.nan, np.inf, -np.inf)[i % 3]
    weights = [float(k + 1) for k in range(8)]
    for start in (0, 1):  # the sums are fresh, or somebody was there before
        for before in (False, True):  # or the memory of another round is used
            one, many, strict = (
                MeanAccumulator(updates[0], accumulate=accumulate, ints="max", nonfinite=policy)
                for policy in ("drop", "drop", "raise")
            )
            for acc in (one, many, strict):
                if before:
                    acc.add({"w": np.ones(33, np.float32), "n": np.ones(3, int)})
                    acc.reset()
                for _ in range(start):
                    acc.add({"w": np.full(33, 2.0, np.float32), "n": np.ones(3, int)}, 2)
            for update, weight in zip(updates, weights, strict=True):
                one.add(update, weight)
            many.add_many(updates, weights)
            assert many == one
            assert many.dropped == len(bad)
            if bad:
                empty = strict.to_bytes()
                with pytest.raises(NonFiniteUpdate, match=f"client {start + bad[0]}, key 'w'"):
                    strict.add_many(updates, weights)
                assert strict.to_bytes() == empty
            else:
                strict.add_many(updates, weights)
            good = [k for k in range(8) if k not in bad]
            again = MeanAccumulator(updates[0], accumulate=accumulate, ints="max", nonfinite="drop")
            again.add({"w": np.full(33, 2.0, np.float32), "n": np.ones(3, int)}, 2)
            if start and good:
                again.add_many([updates[k] for k in good], [weights[k] for k in good])
                assert (again.result()["w"] == many.result()["w"]).all()


def test_a_batch_of_finite_numbers_may_overflow(backend: str) -> None:
    acc = MeanAccumulator(np.zeros(2))
    acc.add_many([np.array([1.7e308, 1.0])] * 4)
    assert acc.count == 4
    assert acc.result().tolist() == [np.inf, 1.0]


def test_nothing_added_is_a_zero_weight_error(backend: str) -> None:
    acc = MeanAccumulator(np.zeros(2))
    acc.add(np.ones(2), 0)
    with pytest.raises(ZeroWeightError, match="at least one update of weight above 0"):
        acc.result()
    acc.add(np.ones(2))
    acc.reset()
    assert (acc.count, acc.weight) == (0, 0.0)
    with pytest.raises(ZeroWeightError):
        acc.result()


def test_result_into_out(backend: str) -> None:
    acc = MeanAccumulator({"a": np.zeros((2, 3), np.float32)})
    acc.add({"a": np.ones((2, 3), np.float32)})
    out = {"a": np.zeros((2, 6), np.float32)[:, ::2]}
    assert acc.result(out=out) is out
    assert out["a"].tolist() == [[1.0] * 3] * 2
    with pytest.raises(ShapeMismatch, match="client out, key 'a'"):
        acc.result(out={"a": np.zeros(3, np.float32)})


def test_results_belong_to_the_caller(backend: str) -> None:
    template = np.array([3, 4])
    acc = MeanAccumulator(template, ints="skip")
    template[:] = 0
    acc.add(np.array([1, 1]))
    acc.result()[:] = 9
    assert acc.result().tolist() == [3, 4]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_argument_changes_no_bit(backend: str, threads: int) -> None:
    updates = [np.random.default_rng(k).normal(size=200_003).astype(np.float32) for k in range(3)]
    acc = MeanAccumulator(updates[0], num_threads=threads)
    for update in updates:
        acc.add(update, 3)
    with ef.using("numpy"):
        assert acc.result().tobytes() == weighted_mean(updates, [3, 3, 3]).tobytes()


def test_adding_from_many_threads_at_once(backend: str) -> None:
    acc = MeanAccumulator(np.zeros(1000))
    failures: list[BaseException] = []

    def work(value: float) -> None:
        try:
            for _ in range(50):
                acc.add(np.full(1000, value), 2)
                acc.result()
                acc.copy()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert acc.count == 200
    assert acc.result().tolist() == [1.5] * 1000  # small integers: exact in any order


def test_two_accumulators_merging_into_each_other_do_not_lock_up() -> None:
    a, b = MeanAccumulator(np.zeros(10)), MeanAccumulator(np.zeros(10))
    a.add(np.ones(10))
    b.add(np.ones(10))
    pairs = ((a, b), (b, a))
    threads = [threading.Thread(target=lambda p=p: [p[0].merge(p[1]) for _ in range(12)], daemon=True) for p in pairs]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=30)
        assert not t.is_alive()
    assert a.result().tolist() == b.result().tolist() == [1.0] * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": "float16"}, "accumulate: expected one of float64"),
        ({"ints": "sum"}, "ints: expected one of"),
        ({"nonfinite": "ignore"}, "nonfinite: expected one of"),
        ({"num_threads": 0}, "num_threads: expected a positive integer"),
    ],
)
def test_options_that_do_not_exist(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAccumulator(np.zeros(2), **options)


def test_templates_that_cannot_be_averaged() -> None:
    with pytest.raises(DtypeMismatch, match="client template, key 'a': expected an array of float16"):
        MeanAccumulator({"a": np.zeros(2, complex)})
    with pytest.raises(DtypeMismatch, match=r"key 'n': expected floating-point tensors \(ints='error'\)"):
        MeanAccumulator({"n": np.zeros(2, int)}, ints="error")


# ---- value semantics and wire form ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ints", ["round", "max", "first", "skip"])
def test_round_trips(backend: str, ints: Any) -> None:
    acc = MeanAccumulator(model(9), ints=ints, nonfinite="drop")
    for k in range(3):
        acc.add(model(k), k + 1)
    for twin in (
        MeanAccumulator.from_bytes(acc.to_bytes()),
        pickle.loads(pickle.dumps(acc)),
        copy.copy(acc),
        copy.deepcopy(acc),
        acc.copy(),
    ):
        assert twin == acc
        assert twin.to_bytes() == acc.to_bytes()
        assert flat(twin.result()) == flat(acc.result())
        twin.add(model(7))
        assert twin != acc
        acc2 = acc.copy()
        acc2.add(model(7))
        assert twin == acc2
    assert acc != model(0)
    assert MeanAccumulator.from_bytes(memoryview(bytearray(acc.to_bytes()))) == acc
    with pytest.raises(TypeError, match="unhashable"):
        hash(acc)


def test_repr_and_nbytes() -> None:
    acc = MeanAccumulator({"a": np.zeros((10, 10), np.float32), "b": np.zeros(5)})
    assert repr(acc) == "<MeanAccumulator of 2 tensors, 105 parameters: 0 updates, weight 0>"
    assert acc.nbytes == 8 * 105


def test_empty_structures_travel() -> None:
    for template in ([], {}, {"a": []}, np.zeros(0), [np.zeros((0, 3)), ()]):
        acc = MeanAccumulator(template)
        acc.add(template)
        assert MeanAccumulator.from_bytes(acc.to_bytes()) == acc


def test_keys_that_json_does_not_hold() -> None:
    with pytest.raises(TypeError, match="dict keys: expected strings, got int"):
        MeanAccumulator({1: np.zeros(2)}).to_bytes()


def test_the_wire_form_is_what_the_documentation_says() -> None:
    acc = MeanAccumulator({"w": np.zeros(2, np.float32)})
    acc.add({"w": np.array([1, -2], np.float32)}, 3)
    data = acc.to_bytes()
    magic, version, length, weight, count, dropped = struct.unpack_from("<4sHxxIdQQ", data)
    assert (magic, version, weight, count, dropped) == (b"EFMA", 1, 3.0, 1, 0)
    assert json.loads(data[36 : 36 + length]) == {
        "structure": {"dict": [["w", 0]]},
        "tensors": [["f4", [2]]],
        "ints": "round",
        "nonfinite": "raise",
        "accumulate": "float64",
    }
    assert struct.unpack("<2d", data[36 + length : -4]) == (3.0, -6.0)
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    # Golden: bytes written by version 0.1.0 stay readable and do not change.
    assert data == GOLDEN


GOLDEN = bytes.fromhex(
    "45464d4101000000710000000000000000000840010000000000000000000000000000007b22737472756374757265223a7b2264"
    "696374223a5b5b2277222c305d5d7d2c2274656e736f7273223a5b5b226634222c5b325d5d5d2c22696e7473223a22726f756e64"
    "222c226e6f6e66696e697465223a227261697365222c22616363756d756c617465223a22666c6f61743634227d00000000000008"
    "4000000000000018c04b48b9a1"
)


def sealed(meta: Any, payload: bytes, *, weight: float = 1.0, count: int = 1, length: int | None = None) -> bytes:
    text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    header = struct.pack("<4sHxxIdQQ", b"EFMA", 1, len(text) if length is None else length, weight, count, 0)
    body = header + text + payload
    return body + struct.pack("<I", zlib.crc32(body))


META = {"structure": 0, "tensors": [["f4", [2]]], "ints": "round", "nonfinite": "raise", "accumulate": "float64"}
DEEP: Any = 0
for _ in range(200):
    DEEP = {"list": [DEEP]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected at least 40 bytes, got 0"),
        (b"x" * 60, "expected bytes that start with b'EFMA'"),
        (b"EFMA\x04" + b"\0" * 60, "expected version 1, 2 or 3, got version 4"),
        (sealed(META, b"\0" * 16)[:-1] + b"\xff", "the checksum does not match"),
        (sealed(META, b"\0" * 8), "fewer bytes than the tensors need"),
        (sealed(META, b"\0" * 24), "8 bytes too many"),
        (sealed(META, b"\0" * 16, length=10**6), "expected 1000000 bytes of description"),
        (sealed(b"[1, 2", b""), "the description does not hold together"),
        (sealed([], b""), "the description does not hold together"),
        (sealed({**META, "more": 1}, b"\0" * 16), "unexpected fields"),
        (sealed({**META, "tensors": [["f4", [2**62, 2**62]]]}, b"\0" * 16), "fewer bytes than the tensors need"),
        (sealed({**META, "tensors": [["f4", [-2]]]}, b""), "shape"),
        (sealed({**META, "tensors": [["c8", [2]]]}, b"\0" * 16), "does not hold together"),
        (sealed({**META, "structure": 1}, b"\0" * 16), "tensors out of order"),
        (sealed({**META, "structure": {"list": []}}, b"\0" * 16), "structure and tensors differ"),
        (sealed({**META, "structure": {"list": [0, 0]}}, b"\0" * 16), "tensors out of order"),
        (sealed({**META, "structure": {"set": [0]}}, b"\0" * 16), "container 'set'"),
        (sealed({**META, "structure": {"dict": [["a", 0], ["a", 1]]}}, b"\0" * 16), "does not hold together"),
        (sealed({**META, "structure": DEEP}, b"\0" * 16), "structure too deep"),
        (sealed({**META, "ints": "sum"}, b"\0" * 16), "ints: expected one of"),
        (sealed(META, b"\0" * 16, weight=float("nan")), "weight nan of 1 updates"),
        (sealed(META, b"\0" * 16, weight=-1.0), "weight -1.0 of 1 updates"),
        (sealed(META, b"\0" * 16, weight=1.0, count=0), "weight 1.0 of 0 updates"),
        (sealed(META, b"\0" * 16, weight=1e300, count=3), "weight 1e[+]300 of 3 updates"),
        (sealed(META, b"\0" * 16, weight=1e-300, count=3), "weight 1e-300 of 3 updates"),
    ],
)
def test_bytes_that_are_no_accumulator(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeanAccumulator.from_bytes(data)


def test_other_types_are_no_bytes() -> None:
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        MeanAccumulator.from_bytes("EFMA")  # type: ignore[arg-type]


def test_every_single_byte_change_is_noticed() -> None:
    acc = MeanAccumulator({"a": [np.zeros(3, np.float32)], "n": np.zeros(2, int)})
    acc.add({"a": [np.ones(3, np.float32)], "n": np.ones(2, int)})
    good = acc.to_bytes()
    for i in range(len(good)):
        bad = bytearray(good)
        bad[i] ^= 1 << (i % 8)
        with pytest.raises(ValueError, match="accumulator:"):
            MeanAccumulator.from_bytes(bytes(bad))
        with pytest.raises(ValueError, match="accumulator:"):
            MeanAccumulator.from_bytes(good[:i])


def test_random_descriptions_with_a_valid_checksum_never_crash() -> None:
    rng = random.Random(0)
    text = json.dumps(META).encode()
    for _ in range(2000):
        changed = bytearray(text)
        for _ in range(rng.randint(1, 6)):
            changed[rng.randrange(len(changed))] = rng.choice(b'0123456789[]{},:"-ef. null')
        try:
            acc = MeanAccumulator.from_bytes(sealed(bytes(changed), b"\0" * 16))
        except ValueError:
            continue
        assert MeanAccumulator.from_bytes(acc.to_bytes()) == acc
