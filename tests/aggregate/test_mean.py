"""weighted_mean against an oracle that does one Python float operation after the other."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast.aggregate import (
    DtypeMismatch,
    IntegerRange,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    UpdateError,
    ZeroWeightError,
    weighted_mean,
)

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 4099]
FLOATS = ["f2", "f4", "f8"]
INTEGERS = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


def oracle(updates: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """binary64, in order, product and sum rounded on their own, one division, one rounding."""
    flat = [u.ravel().tolist() for u in updates]
    total = 0.0
    for w in weights:
        total += w
    means = []
    for column in zip(*flat, strict=True):
        acc = 0.0
        for x, w in zip(column, weights, strict=True):
            acc += float(x) * w
        means.append(acc / total)
    exact = np.array(means, np.float64)
    kind = updates[0].dtype.kind
    if kind == "b":
        result = exact > 0.5
    elif kind == "f":
        with np.errstate(over="ignore"):
            result = exact.astype(updates[0].dtype)
    else:
        result = np.rint(exact).astype(updates[0].dtype)
    return result.reshape(updates[0].shape)


def random_updates(dtype: str, shape: Any, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    dt = np.dtype(dtype)
    if dt.kind == "f":
        return [(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, size=shape)).astype(dt) for _ in range(count)]
    if dt.kind == "b":
        return [rng.random(shape) < 0.5 for _ in range(count)]
    info = np.iinfo(dt)
    low, high = max(info.min, -(2**53)), min(int(info.max), 2**53)
    return [rng.integers(low, high, size=shape, dtype=dt, endpoint=True) for _ in range(count)]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "?"])
def test_every_dtype_and_size(backend: str, dtype: str, size: int) -> None:
    updates = random_updates(dtype, size, 5, seed=size)
    weights = [3.0, 0.7, 11.0, 1e-3, 2.5]
    assert_same(weighted_mean(updates, weights), oracle(updates, weights))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_of_clients(backend: str, dtype: str, count: int) -> None:
    updates = random_updates(dtype, 97, count, seed=count)
    weights = np.random.default_rng(1).random(count).tolist()
    assert_same(weighted_mean(updates, weights), oracle(updates, weights))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "u8"])
@pytest.mark.parametrize("layout", ["sliced", "reversed", "fortran", "unaligned", "readonly", "broadcast", "0d"])
def test_layouts(backend: str, dtype: str, layout: str) -> None:
    base = random_updates(dtype, (18, 22), 3)
    if layout == "sliced":
        updates = [b[::2, 1::3] for b in base]
    elif layout == "reversed":
        updates = [b[::-1, ::-1] for b in base]
    elif layout == "fortran":
        updates = [np.asfortranarray(b) for b in base]
    elif layout == "unaligned":
        updates = []
        for b in base:
            raw = np.zeros(b.nbytes + 1, np.uint8)
            raw[1:] = b.view(np.uint8).ravel()
            updates.append(raw[1:].view(dtype).reshape(b.shape))
    elif layout == "readonly":
        updates = base
        for b in base:
            b.flags.writeable = False
    elif layout == "broadcast":
        updates = [np.broadcast_to(b[0], b.shape) for b in base]
    else:
        updates = [np.array(b[0, 0]) for b in base]
    before = [u.tobytes() for u in updates]
    assert_same(np.asarray(weighted_mean(updates, [1, 2, 3])), oracle(updates, [1.0, 2.0, 3.0]))
    assert [u.tobytes() for u in updates] == before


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_do_not_change_a_bit(backend: str, threads: int) -> None:
    shapes = [(300_001,), (3,), (0,), (70_000, 3), ()]
    updates = [
        [u[k] for u in (random_updates(t, s, 3) for t, s in zip(("f4", "f2", "f8", "i4", "f8"), shapes, strict=True))]
        for k in range(3)
    ]
    with ef.using("numpy"):
        expected = weighted_mean(updates, [1, 5, 2])
    for found, wanted in zip(weighted_mean(updates, [1, 5, 2], num_threads=threads), expected, strict=True):
        assert_same(np.asarray(found), np.asarray(wanted))


def test_structures_are_kept(backend: str) -> None:
    def model(k: float) -> dict[str, Any]:
        return {
            "dense": {"w": np.full((2, 2), k, np.float32), "b": (np.full(2, k, np.float16), np.array(k))},
            "layers": [np.full(3, k), [np.full(1, int(k), np.int32)]],
            "none": {},
        }

    mean = weighted_mean([model(1), model(3)], [1, 3])
    assert mean["dense"]["w"].tolist() == [[2.5, 2.5], [2.5, 2.5]]
    assert mean["dense"]["w"].dtype == np.float32
    assert isinstance(mean["dense"]["b"], tuple)
    assert mean["dense"]["b"][0].dtype == np.float16
    assert mean["dense"]["b"][1].shape == ()
    assert mean["layers"][1][0].tolist() == [2]  # 2.5 to even
    assert mean["none"] == {}
    assert list(mean) == ["dense", "layers", "none"]


def test_a_matrix_is_one_update_a_row(backend: str) -> None:
    X = np.random.default_rng(0).normal(size=(4, 33)).astype(np.float32)
    assert_same(weighted_mean(X, [1, 2, 3, 4]), oracle(list(X), [1.0, 2.0, 3.0, 4.0]))
    assert_same(weighted_mean(X[:, ::2]), oracle(list(X[:, ::2]), [1.0] * 4))
    assert_same(weighted_mean(X.reshape(4, 3, 11)), oracle(list(X.reshape(4, 3, 11)), [1.0] * 4))


@pytest.mark.parametrize("dtype", FLOATS)
def test_extremes(backend: str, dtype: str) -> None:
    info = np.finfo(dtype)
    values = [0.0, -0.0, info.max, -info.max, info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 1, info.eps]
    updates = [np.array(np.roll(values * 3, k), dtype) for k in range(4)]
    assert_same(weighted_mean(updates, [1, 1, 1, 1]), oracle(updates, [1.0] * 4))
    zeros = weighted_mean([np.array([-0.0], dtype)] * 2)
    assert_same(zeros, oracle([np.array([-0.0], dtype)] * 2, [1.0] * 2))


def test_every_float16_survives(backend: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    assert_same(weighted_mean([every, every], [1, 2]), every + np.float16(0))


def test_float16_rounds_once_from_binary64(backend: str) -> None:
    # 1 + 2**-11 + 2**-30 is above the midpoint of 1 and 1 + 2**-10; by way of float32 it would fall on it, and to 1.
    tie = np.float64(1 + 2**-11 + 2**-30)
    updates = [np.array([1], np.float16), np.array([1 + 2**-10], np.float16)]
    found = weighted_mean(updates, [0.5 - 2**-20, 0.5 + 2**-20])
    assert_same(found, oracle(updates, [0.5 - 2**-20, 0.5 + 2**-20]))
    assert float(found[0]) == 1 + 2**-10
    assert np.float16(tie) == np.float16(1 + 2**-10) != np.float16(np.float32(tie))


# ---- properties ----------------------------------------------------------------------------------------------------

clients = st.integers(1, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=k, max_size=k),
        st.lists(st.floats(0.01, 1e4), min_size=k, max_size=k),
    )
)


@given(clients)
def test_within_the_stated_error_of_the_exact_mean(backend: str, sample: Any) -> None:
    rows, weights = sample
    updates = [np.array(r, np.float64) for r in rows]
    found = weighted_mean(updates, weights)
    exact_total = sum(map(Fraction, weights))
    for i in range(5):
        exact = sum((Fraction(w) * Fraction(float(u[i])) for u, w in zip(updates, weights, strict=True)), Fraction(0))
        size = sum(Fraction(w) * abs(Fraction(float(u[i]))) for u, w in zip(updates, weights, strict=True))
        bound = (2 * len(rows) + 2) * Fraction(1, 2**53) * size / exact_total
        assert abs(Fraction(float(found[i])) - exact / exact_total) <= bound


@given(clients)
def test_lies_between_the_smallest_and_the_largest(backend: str, sample: Any) -> None:
    rows, weights = sample
    updates = [np.array(r, np.float32) for r in rows]
    found = weighted_mean(updates, weights)
    low, high = np.min(updates, axis=0), np.max(updates, axis=0)
    assert (np.nextafter(low, -np.float32(np.inf)) <= found).all()
    assert (found <= np.nextafter(high, np.float32(np.inf))).all()


@given(clients, st.integers(-60, 60))
def test_powers_of_two_in_the_weights_change_nothing(backend: str, sample: Any, exponent: int) -> None:
    rows, weights = sample
    updates = [np.array(r, np.float32) for r in rows]
    assert_same(weighted_mean(updates, [w * 2.0**exponent for w in weights]), weighted_mean(updates, weights))


# ---- weights -------------------------------------------------------------------------------------------------------


def test_updates_of_weight_zero_are_not_read(backend: str) -> None:
    good, bad = np.ones(9, np.float32), np.full(9, np.nan, np.float32)
    assert weighted_mean([good, bad, 3 * good], [1, 0, 1]).tolist() == [2.0] * 9
    assert weighted_mean([bad, good], [0, 1]).tolist() == [1.0] * 9
    wrong: list[Any] = [good, np.ones(3)]
    assert weighted_mean(wrong, [1, 0]).tolist() == [1.0] * 9


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([0, 0], ZeroWeightError, "weights: expected at least one weight above 0, got 2 zeros"),
        ([1], ValueError, "weights: expected 2 weights, one per update, got 1"),
        ([1, -1], ValueError, r"weights\[1\]: expected a finite weight >= 0, got -1.0"),
        ([math.nan, 1], ValueError, r"weights\[0\]: expected a finite weight >= 0, got nan"),
        ([1, math.inf], ValueError, r"weights\[1\]: expected a finite weight >= 0, got inf"),
        ([1, 1e300], ValueError, r"weights\[1\]: expected 0 or a weight from 2\*\*-900 to 2\*\*900"),
        ([5e-324, 1], ValueError, r"weights\[0\]: expected 0 or a weight from"),
        ([1, "2"], TypeError, r"weights\[1\]: expected a number, got str"),
        ([1, None], TypeError, r"weights\[1\]: expected a number, got NoneType"),
        ([1, 1j], TypeError, r"weights\[1\]: expected a number, got complex"),
        (3, TypeError, "weights: expected a sequence of numbers, got int"),
        (np.array(3.0), TypeError, "weights: expected a sequence of numbers"),
    ],
)
def test_weights_that_cannot_be_used(backend: str, weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_mean([np.ones(2), np.ones(2)], weights)


@pytest.mark.parametrize("weights", [np.array([1, 3]), np.array([1, 3], np.float32), (1, 3), [Fraction(1), 3]])
def test_weights_of_any_kind(backend: str, weights: Any) -> None:
    assert weighted_mean([np.zeros(3), np.full(3, 4.0)], weights).tolist() == [3.0] * 3


# ---- what does not fit ---------------------------------------------------------------------------------------------

F32 = np.zeros(3, np.float32)
MISFITS: list[tuple[Any, Any, type[UpdateError], object, Any]] = [
    # template, second update, error, key, part of the message
    (F32, np.zeros(4, np.float32), ShapeMismatch, None, r"client 1: expected shape \(3,\), got \(4,\)"),
    (F32, np.zeros((3, 1), np.float32), ShapeMismatch, None, r"expected shape \(3,\), got \(3, 1\)"),
    (F32, np.zeros(3), DtypeMismatch, None, "client 1: expected float32, got float64"),
    (F32, np.zeros(3, ">f4"), DtypeMismatch, None, "expected float32, got >f4"),
    (F32, [F32], StructureMismatch, None, "client 1: expected an array, got a list"),
    (F32, "abc", DtypeMismatch, None, "expected float32, got <U3"),
    (F32, None, DtypeMismatch, None, "expected float32, got object"),
    ([F32, F32], [F32], StructureMismatch, None, "client 1: expected 2 arrays, got 1"),
    ([F32, F32], [F32, np.zeros(2, np.float32)], ShapeMismatch, "[1]", r"client 1, key '\[1\]': expected shape \(3,\)"),
    ([F32], {"a": F32}, StructureMismatch, None, "expected a list of 1, got a dict"),
    ({"a": F32}, [F32], StructureMismatch, None, "client 1: expected a dict, got a list"),
    (
        {"a": F32},
        {"b": F32},
        StructureMismatch,
        None,
        "expected the template's 1 keys, got missing 'a'; unexpected 'b'",
    ),
    ({"a": F32}, {"a": F32, "b": F32}, StructureMismatch, None, "got unexpected 'b'"),
    ({"a": F32, "b": F32}, {"a": F32}, StructureMismatch, None, "got missing 'b'"),
    (
        {"a": {"b": F32}},
        {"a": {"b": np.zeros(3)}},
        DtypeMismatch,
        "a.b",
        "client 1, key 'a.b': expected float32, got float64",
    ),
    ({"a": {"b": F32}}, {"a": F32}, StructureMismatch, "a", "client 1, key 'a': expected a dict, got a ndarray"),
    ({"a": (F32,)}, {"a": (F32, F32)}, StructureMismatch, "a", "key 'a': expected 1 arrays, got 2"),
]


@pytest.mark.parametrize(("first", "second", "error", "key", "message"), MISFITS, ids=[m[4][:50] for m in MISFITS])
def test_updates_that_do_not_fit(
    backend: str, first: Any, second: Any, error: type[UpdateError], key: object, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        weighted_mean([first, second])
    assert isinstance(caught.value, ValueError)
    assert caught.value.client == 1
    assert caught.value.key == key
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(2, complex),
        np.zeros(2, "U3"),
        np.zeros(2, object),
        np.zeros(2, ">f8"),
        np.zeros(2, "M8[s]"),
        "text",
        None,
        np.zeros(2, np.longdouble),
    ],
)
def test_dtypes_that_cannot_be_averaged(backend: str, bad: Any) -> None:
    with pytest.raises(DtypeMismatch, match="client 0, key 'x': expected an array of float16, float32"):
        weighted_mean([{"x": bad}])


@pytest.mark.parametrize(
    ("updates", "error", "message"),
    [
        ([], ValueError, "updates: expected at least one update, got none"),
        (np.zeros((0, 3)), ValueError, "updates: expected at least one update, got none"),
        ({"a": F32}, TypeError, "updates: expected a sequence of updates, got dict"),
        ("ab", TypeError, "updates: expected a sequence of updates, got str"),
        (np.array(1.0), TypeError, "updates: expected a sequence of updates, got a 0-d array"),
        ((x for x in [F32]), TypeError, "updates: expected a sequence of updates, got generator"),
        (None, TypeError, "updates: expected a sequence of updates, got NoneType"),
    ],
)
def test_updates_that_are_none(backend: str, updates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_mean(updates)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"accumulate": "float16"},
            ValueError,
            "accumulate: expected one of float64, float32, reproducible, got 'float16'",
        ),
        ({"ints": "mean"}, ValueError, "ints: expected one of round, max, first, skip, error, got 'mean'"),
        ({"nonfinite": True}, ValueError, "nonfinite: expected one of raise, drop, propagate, got True"),
        ({"num_threads": 0}, ValueError, "num_threads: expected a positive integer, got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads: expected a positive integer, got float"),
    ],
)
def test_options_that_do_not_exist(backend: str, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_mean([F32], **options)


# ---- integers ------------------------------------------------------------------------------------------------------


def test_integer_policies(backend: str) -> None:
    def model(w: float, steps: int) -> dict[str, Any]:
        return {"w": np.array([w]), "n": np.array(steps), "flag": np.array([steps > 3])}

    updates = [model(1.0, 10), model(2.0, 3), model(3.0, 4)]

    def n(ints: Any) -> tuple[int, bool]:
        mean = weighted_mean(updates, [1, 1, 2], ints=ints)
        assert mean["w"].tolist() == [2.25]
        return int(mean["n"]), bool(mean["flag"][0])

    assert n("round") == (5, True)  # 21 / 4, and 3 of 4
    assert n("max") == (10, True)
    assert n("first") == (10, True)
    assert n("skip") == (10, True)
    with pytest.raises(
        DtypeMismatch, match=r"client 0, key 'n': expected floating-point tensors \(ints='error'\), got"
    ):
        weighted_mean(updates, ints="error")
    # "first" is the first that counts, "skip" the template, also when it has no weight.
    assert int(weighted_mean(updates, [0, 1, 1], ints="first")["n"]) == 3
    assert int(weighted_mean(updates, [0, 1, 1], ints="skip")["n"]) == 10
    assert int(weighted_mean(updates, [0, 1, 1], ints="max")["n"]) == 4
    assert updates[0]["n"] == 10


@pytest.mark.parametrize(
    ("dtype", "value"), [("i8", 2**53 + 1), ("i8", -(2**53) - 1), ("u8", 2**64 - 1), ("i8", -(2**63))]
)
def test_integers_that_binary64_does_not_hold(backend: str, dtype: str, value: int) -> None:
    good, bad = {"n": np.array([1], dtype)}, {"n": np.array([value], dtype)}
    with pytest.raises(IntegerRange, match=f"client 1, key 'n': expected integers within .* got {value}"):
        weighted_mean([good, bad])
    for ints, expected in (("max", max(1, value)), ("first", 1), ("skip", 1)):
        assert int(weighted_mean([good, bad], ints=ints)["n"][0]) == expected  # type: ignore[arg-type]


# ---- NaN and infinity ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 96])
def test_nonfinite(backend: str, dtype: str, value: float, where: int) -> None:
    updates = [{"a": np.ones(5, dtype), "b": np.full(97, k, dtype)} for k in (1, 2, 3)]
    updates[1]["b"][where] = value
    with pytest.raises(
        NonFiniteUpdate, match=rf"client 1, key 'b': expected finite values, got {value} \(1 non-finite"
    ):
        weighted_mean(updates)
    dropped = weighted_mean(updates, [1, 5, 1], nonfinite="drop")
    assert_same(dropped["b"], oracle([updates[0]["b"], updates[2]["b"]], [1.0, 1.0]))
    through = weighted_mean(updates, nonfinite="propagate")
    assert_same(np.isfinite(through["b"]), np.arange(97) != where)
    with pytest.raises(NonFiniteUpdate, match="client 0"):
        weighted_mean([updates[1], updates[1]], nonfinite="drop")


def test_infinities_that_cancel_are_found_too(backend: str) -> None:
    updates = [np.array([np.inf]), np.array([-np.inf])]
    with pytest.raises(NonFiniteUpdate, match="client 0"):
        weighted_mean(updates)
    assert np.isnan(weighted_mean(updates, nonfinite="propagate")).all()


def test_overflow_of_finite_updates_is_no_error(backend: str) -> None:
    big = np.array([np.finfo(np.float64).max])
    assert np.isinf(weighted_mean([big, big], [2, 2])).all()


# ---- out -----------------------------------------------------------------------------------------------------------


def test_out_is_filled_and_returned(backend: str) -> None:
    updates = [{"a": np.full((3, 5), k, np.float32), "b": [np.full(2, k)]} for k in (1.0, 2.0)]
    out = {"a": np.empty((3, 5), np.float32), "b": [np.empty(2)]}
    assert weighted_mean(updates, [1, 3], out=out) is out
    assert out["a"].tolist() == [[1.75] * 5] * 3
    strided = np.zeros((6, 10), np.float32)
    assert weighted_mean([u["a"] for u in updates], out=strided[::2, ::2]) is not None
    assert strided[::2, ::2].tolist() == [[1.5] * 5] * 3
    assert not strided[1::2].any()


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_out_may_overlap_an_update(backend: str, shift: int) -> None:
    memory = np.arange(110, dtype=np.float64)
    first, second = memory[:97].copy(), np.full(97, 7.0)
    expected = oracle([first, second], [1.0, 2.0])
    found = weighted_mean([memory[:97], second], [1, 2], out=memory[shift : shift + 97])
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros(4, np.float32), ShapeMismatch, r"client out: expected shape \(3,\), got \(4,\)"),
        (np.zeros(3), DtypeMismatch, "client out: expected float32, got float64"),
        ([F32], StructureMismatch, "client out: expected an array, got a list"),
        (3.0, TypeError, "out: expected a numpy array or a torch tensor, got float"),
        (np.broadcast_to(F32[:1], 3), ValueError, "out: expected a writeable array, got a read-only one"),
    ],
)
def test_out_that_does_not_fit(backend: str, out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weighted_mean([F32, F32], out=out)


def test_subclasses_and_array_likes(backend: str) -> None:
    class Tagged(np.ndarray):
        pass

    tagged = np.ones(3).view(Tagged)
    assert weighted_mean([tagged, 3 * tagged]).tolist() == [2.0] * 3
    numbers: list[Any] = [1.0, 2.0]
    assert float(weighted_mean(numbers)) == 1.5
