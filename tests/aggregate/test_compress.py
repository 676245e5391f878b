"""Quantizer, Encoded and ErrorFeedback against float64 oracles, golden files and the decoded form."""

from __future__ import annotations

import copy
import math
import pickle
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgefast.aggregate import (
    DtypeMismatch,
    Encoded,
    ErrorFeedback,
    MeanAccumulator,
    NonFiniteUpdate,
    Quantizer,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
    weighted_mean,
)
from edgefast.backends.numpy.elements import round_to_brain
from edgefast.backends.table import BF16

GOLDEN = Path(__file__).parent / "golden"
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 1000, 4096, 4097, 70_001]
FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"kind": "int8"},
    "int8-stochastic": {"kind": "int8", "rounding": "stochastic", "block": 64, "seed": 7},
    "int4": {"kind": "int4", "block": 256},
    "int4-stochastic": {"kind": "int4", "rounding": "stochastic", "seed": 2**64 - 1},
    "drive": {"kind": "drive", "seed": 3},
    "eden2": {"kind": "eden", "bits": 2, "block": 64},
    "eden3": {"kind": "eden", "bits": 3, "block": 1024},
    "eden4": {"kind": "eden", "bits": 4, "seed": 9},
    "topk": {"kind": "topk", "fraction": 0.1},
}
each_format = pytest.mark.parametrize("name", FORMATS)


def test_quantizers_are_equal_when_they_do_the_same_and_say_how_to_make_them() -> None:
    sketches = [{"kind": "countsketch", "width": 9, "depth": d, "fraction": f} for d in (3, 5) for f in (0.01, 0.5)]
    made = [Quantizer(**options) for options in [*FORMATS.values(), *sketches, {"kind": "topk"}, {"kind": "eden"}]]
    for i, q in enumerate(made):
        assert [j for j, other in enumerate(made) if other == q] == [i]
        for same_again in (eval(repr(q)), copy.copy(q), pickle.loads(pickle.dumps(q))):
            assert same_again == q
            assert hash(same_again) == hash(q)
            assert same_again.encode(normals(200)).to_bytes() == q.encode(normals(200)).to_bytes()
    assert Quantizer("drive", block=64) != "drive"
    assert "next nonce 7" in repr(ErrorFeedback(made[0], nonce=7))


def normals(n: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, n]).standard_normal(n).astype(dtype)


def brains(x: np.ndarray) -> np.ndarray:
    return round_to_brain(x.astype(np.float32)).view(BF16)


def updates(count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    return [
        {
            "layers": [
                {f"{n}/{np.dtype(d).name}": (3 * rng.standard_normal(n)).astype(d) for d in (np.float32, np.float16)}
                for n in SIZES
            ],
            "wide": rng.standard_normal((5, 31)),
            "brain": brains(rng.standard_normal(90)),
            "steps": np.array(k + 1),
            "mask": rng.random(9) < 0.5,
        }
        for k in range(count)
    ]


def leaves(node: Any) -> list[np.ndarray]:
    if isinstance(node, dict):
        return [leaf for child in node.values() for leaf in leaves(child)]
    if isinstance(node, (list, tuple)):
        return [leaf for child in node for leaf in leaves(child)]
    return [node]


def same(a: Any, b: Any) -> bool:
    """Equal bits, shapes and dtypes; bfloat16 may be that of ml_dtypes or the kernels' own."""
    pairs = [
        [x.view(BF16) if x.dtype.name == "bfloat16" else x for x in pair]
        for pair in zip(leaves(a), leaves(b), strict=True)
    ]
    return all(x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in pairs)


# ---- golden files --------------------------------------------------------------------------------------------------


def golden_update() -> dict[str, Any]:
    """Numbers that need no generator, and every dtype that is compressed or carried along."""
    i = np.arange(700)
    x = ((i * 7919 % 1009) - 504) / 64
    return {
        "f32": (x * np.where(i % 97 == 0, 40, 1)).astype(np.float32).reshape(7, 100),
        "nested": [x[:70].astype(np.float16), (x[:130] / 3, brains(x[:65]))],
        "one": np.array(-2.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "zero": np.zeros(64, np.float32),
        "steps": np.array([1, -2, 2**40]),
        "mask": np.array([True, False, True]),
    }


#: CRC-32 of the decoded arrays.
#: CRC-32 of the decoded arrays.
DECODED = {
    "int8": 0x30FBE91D,
    "int8-stochastic": 0x87EB38E0,
    "int4": 0x23940E94,
    "int4-stochastic": 0xFE65ECC6,
    "drive": 0xED18AF60,
    "eden2": 0x118611E3,
    "eden3": 0x20433A5A,
    "eden4": 0xFF405A0E,
    "topk": 0x6E07BA40,
}


@each_format
def test_golden_bytes(backend: str, name: str) -> None:
    encoded = Quantizer(**FORMATS[name]).encode(golden_update(), nonce=11)
    path = GOLDEN / f"encoded-v1-{name}.bin"
    assert encoded.to_bytes() == path.read_bytes()
    again = Encoded.from_bytes(path.read_bytes())
    assert again == encoded
    assert (again.kind, again.seed, again.nonce) == (encoded.kind, encoded.seed, 11)
    decoded = again.decode()
    assert zlib.crc32(b"".join(a.tobytes() for a in leaves(decoded))) == DECODED[name]
    for got, expected in zip(leaves(decoded), leaves(golden_update()), strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
    assert (decoded["steps"] == golden_update()["steps"]).all()
    assert not decoded["zero"].any()


# ---- integers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "limit"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_integer_blocks_against_their_definition(
    backend: str, kind: Any, limit: int, rounding: Any, dtype: type
) -> None:
    for n in SIZES:
        x = normals(n, dtype) * np.exp2(np.random.default_rng(n).integers(-6, 6, n)).astype(dtype)
        back = Quantizer(kind, block=64, rounding=rounding).encode(x).decode()
        assert back.dtype == x.dtype
        for b in range(0, n, 64):
            part, got = x[b : b + 64].astype(np.float64), back[b : b + 64].astype(np.float64)
            scale = np.abs(part).max() / limit * (1 + 2**-15)
            slack = 1e-3 * np.abs(part) if dtype == np.float16 else 1e-6 * np.abs(part)
            assert (np.abs(got - part) <= scale * (0.5 if rounding == "nearest" else 1) + slack).all()


@settings(max_examples=40)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    kind=st.sampled_from(["int8", "int4"]),
)
def test_integers_of_any_magnitude(backend: str, x: np.ndarray, kind: Any) -> None:
    back = Quantizer(kind, block=64).encode(x).decode().astype(np.float64)
    assert np.isfinite(back).all()
    limit = 127 if kind == "int8" else 7
    for b in range(0, len(x), 64):
        part = x[b : b + 64].astype(np.float64)
        step = np.abs(part).max() / limit * (1 + 2**-14) + 2.0**-149
        assert (np.abs(back[b : b + 64] - part) <= step * 0.5001 + np.abs(part) * 2.0**-15).all()


def test_extremes_are_exact_where_they_can_be(backend: str) -> None:
    most = np.finfo(np.float32).max
    exact = {"int8": [[0.0, -0.0], [2.0**-149], [127.0, -127.0, 1.0, -64.0]], "int4": [[2.0**-149], [-7.0, 3.0, 0.0]]}
    for kind, values in exact.items():
        for value in values:
            update = np.array(value, np.float32)
            back = Quantizer(kind).encode(update).decode()  # type: ignore[arg-type]
            assert (back == update).all()
            assert not np.signbit(back[update == 0]).any()
    back = Quantizer("int8").encode(np.array([most, -most, 0.0], np.float32)).decode()
    assert np.isfinite(back).all()
    assert back[0] == -back[1] > most * (1 - 2.0**-14)


def test_scales_have_sixteen_digits(backend: str) -> None:
    encoded = Quantizer("int8", block=64).encode(normals(6400))
    scales = encoded._parts[0][1].view(np.uint32)
    assert len(scales) == 100
    assert not (scales & 0xFF).any()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_stochastic_rounding_is_unbiased_and_reproducible(backend: str, kind: Any) -> None:
    x = normals(200)
    q = Quantizer(kind, rounding="stochastic", seed=4)
    draws = np.stack([q.encode(x, nonce=k).decode() for k in range(400)]).astype(np.float64)
    assert same(q.encode(x, nonce=3).decode(), draws[3].astype(np.float32))
    assert not same(q.encode(x, nonce=4).decode(), draws[3].astype(np.float32))
    step = np.abs(x).max() / (127 if kind == "int8" else 7) * (1 + 2**-14)
    # The variance of one draw is at most step^2 / 4; all 200 coordinates within six deviations of the mean.
    assert np.abs(draws.mean(axis=0) - x).max() <= 6 * step / 2 / math.sqrt(400)
    assert draws.std(axis=0).max() > step / 4


# ---- DRIVE and EDEN ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.5708), (2, 0.1331), (3, 0.0358), (4, 0.0096)])
@pytest.mark.parametrize("shape", ["normal", "lognormal", "uniform"])
def test_rotated_error_is_the_theory_s(bits: int, expected: float, shape: str) -> None:
    """D / (1 - D) of the Lloyd-Max quantiser, and 1 / K of that for the mean of K independent encodings."""
    blocks, d = 48, 4096
    rng = np.random.default_rng(1)
    draw = {"normal": rng.standard_normal, "lognormal": lambda s: rng.lognormal(size=s), "uniform": rng.random}[shape]
    x = draw((blocks, d)).astype(np.float32)
    q = Quantizer("eden", bits=bits)
    first, second = (q.encode(x, nonce=k).decode().astype(np.float64) for k in (1, 2))
    norm = (x.astype(np.float64) ** 2).sum(axis=1)
    error = ((first - x) ** 2).sum(axis=1) / norm
    # Central limit theorem over the blocks, plus what a rotated block of finite length differs from a normal vector.
    tolerance = 5 * error.std(ddof=1) / math.sqrt(blocks) + 4 / d * (1 + expected)
    assert abs(error.mean() - expected) <= tolerance
    both = (((first + second) / 2 - x) ** 2).sum(axis=1) / norm
    assert abs(both.mean() - expected / 2) <= tolerance + 5 * both.std(ddof=1) / math.sqrt(blocks)
    # The projection on x is x itself.
    along = (first * x).sum(axis=1) / norm
    assert np.abs(along - 1).max() < 1e-5


@pytest.mark.parametrize("kind", ["drive", "eden"])
def test_rotated_scale_equivariance_and_range(backend: str, kind: Any) -> None:
    q = Quantizer(kind, bits=3)
    x = normals(3000)
    base = q.encode(x).decode()
    for power in (-100, 100):
        scaled = q.encode(x * np.float32(2.0**power)).decode()
        assert (scaled == base * np.float32(2.0**power)).all()
    tiny = q.encode(np.full(100, 2.0**-149, np.float32)).decode()
    assert np.isfinite(tiny).all()
    with pytest.raises(NonFiniteUpdate, match=r"key 'w'.*below 2\*\*108"):
        q.encode({"w": np.array([2.0**108], np.float32)})
    largest = q.encode(np.full(4096, 2.0**107, np.float32)).decode()
    assert np.isfinite(largest).all()
    halves = q.encode(np.full(70, 65504, np.float16)).decode()
    assert np.isfinite(halves).all()


def test_drive_is_eden_of_one_bit(backend: str) -> None:
    x = normals(5000)
    assert same(Quantizer("drive", seed=2).encode(x).decode(), Quantizer("eden", bits=1, seed=2).encode(x).decode())


# ---- top-k ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(data=st.data())
def test_topk_against_sorting(backend: str, data: Any) -> None:
    small = st.integers(-3, 3).map(float)  # many ties
    arrays = [data.draw(hnp.arrays(np.float32, st.integers(0, 30), elements=small)) for _ in range(3)]
    fraction = data.draw(st.floats(0.01, 1))
    back = Quantizer("topk", fraction=fraction).encode(arrays).decode()
    flat = np.concatenate(arrays)
    expected = np.zeros_like(flat)
    order = sorted(range(len(flat)), key=lambda i: (-abs(flat[i]), i))
    kept = order[: max(1, math.ceil(fraction * len(flat)))]
    expected[kept] = flat[kept]
    assert (np.concatenate(back) == expected).all()


def test_topk_keeps_values_of_every_dtype(backend: str) -> None:
    update = {"a": normals(50, np.float64), "b": normals(50, np.float16), "c": brains(normals(50))}
    assert same(Quantizer("topk", fraction=1).encode(update).decode(), update)
    encoded = Quantizer("topk", fraction=0.02).encode(update)
    assert sum(len(p[0]) for p in encoded._parts) == 3
    assert encoded.nbytes < 3 * 12 + 1


# ---- sums of encoded updates ---------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("weights", [[3, 1, 7], [0.1, 2 / 3, 5.5], [2.0**900, 2.0**880, 0]], ids=["int", "any", "huge"])
def test_encoded_updates_add_up_as_decoded_ones(backend: str, name: str, weights: list[float]) -> None:
    models = updates(3)
    q = Quantizer(**FORMATS[name])
    encoded = [Encoded.from_bytes(q.encode(m, nonce=k).to_bytes()) for k, m in enumerate(models)]
    decoded = [e.decode() for e in encoded]
    expected = weighted_mean(decoded, weights)
    assert same(weighted_mean(encoded, weights), expected)
    assert same(weighted_mean([encoded[0], decoded[1], encoded[2]], weights), expected)
    out = updates(1)[0]
    assert weighted_mean(encoded, weights, out=out) is out
    assert same(out, expected)
    one, many, plain = (MeanAccumulator(models[0]) for _ in range(3))
    for e, d, w in zip(encoded, decoded, weights, strict=True):
        one.add(e, w)
        plain.add(d, w)
    many.add_many([encoded[0], decoded[1], encoded[2]], weights)
    assert one == plain == many
    one.reset()
    one.add(encoded[1], 2)
    assert same(one.result(), weighted_mean([decoded[1]]))  # -0.0 becomes 0.0


@pytest.mark.parametrize(
    "options", [{"accumulate": "float32"}, {"accumulate": "reproducible"}, {"partial": True}], ids=str
)
@pytest.mark.parametrize("name", ["int8", "eden4", "topk"])
def test_other_sums_take_the_decoded_form(name: str, options: dict[str, Any]) -> None:
    models = updates(3)
    q = Quantizer(**FORMATS[name])
    encoded = [q.encode(m) for m in models]
    decoded = [e.decode() for e in encoded]
    assert same(weighted_mean(encoded, [1, 2, 3], **options), weighted_mean(decoded, [1, 2, 3], **options))
    acc, plain = MeanAccumulator(models[0], **options), MeanAccumulator(models[0], **options)
    acc.add_many(encoded)
    plain.add_many(decoded)
    assert acc == plain


@pytest.mark.parametrize("ints", ["max", "first", "skip"])
def test_integer_policies(ints: Any) -> None:
    models = updates(3)
    encoded = [Quantizer("int8").encode(m) for m in models]
    decoded = [e.decode() for e in encoded]
    assert same(weighted_mean(encoded, ints=ints), weighted_mean(decoded, ints=ints))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_sums_of_integers_round_like_sums_of_floats(backend: str, kind: Any) -> None:
    """Where whole numbers can be added they must be, whatever the sums hold, the bits of adding one after the other."""
    rng = np.random.default_rng(11)
    spread = {
        "alike": lambda k: 1.0,
        "halves": lambda k: 0.5**k,  # beyond 30 bits from one to the next
        "some zero": lambda k: float(k % 3),
        "tiny": lambda k: 2.0**-140,
        "large": lambda k: 2.0**120,
    }
    for name, factor in spread.items():
        for count in (1, 3, 4, 16, 33):
            models = [(rng.standard_normal(331) * factor(k)).astype(np.float32) for k in range(count)]
            encoded = [Quantizer(kind, block=128).encode(m) for m in models]
            decoded = [e.decode() for e in encoded]
            for weights in (np.ones(count), rng.integers(1, 2000, count), rng.random(count), 2.0 ** np.arange(count)):
                assert same(weighted_mean(encoded, weights), weighted_mean(decoded, weights)), (name, count)
            acc, plain = MeanAccumulator(models[0]), MeanAccumulator(models[0])
            for first in (np.full(331, -0.0), np.full(331, 2.0**60), rng.standard_normal(331) * 1e-30):
                for a, rows in ((acc, encoded), (plain, decoded)):
                    a.reset()
                    a.add(first.astype(np.float32))
                    a.add_many(rows, [1.0] * count)
                    a.add_many(rows, [3.0] * count)
                assert acc == plain, (name, count)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_means_on_ties_round_to_even(backend: str, kind: Any) -> None:
    # Scales of 1, and weights whose sums are of 24 bits and a half, where binary32 has to choose.
    rng = np.random.default_rng(12)
    most = 127 if kind == "int8" else 7
    models = [rng.integers(-most, most, 600, endpoint=True).astype(np.float32) for _ in range(6)]
    for m in models:
        m[::64] = most
    encoded = [Quantizer(kind, block=64).encode(m) for m in models]
    assert all(same(e.decode(), m) for e, m in zip(encoded, models, strict=True))
    for weights in ([1] * 6, [2**25 + 1, 2**25 - 1, 1, 1, 1, 1], [3, 1, 1, 1, 1, 1], [2**20 + 1] * 6):
        exact = np.array(
            [sum(w * int(x) for w, x in zip(weights, column, strict=True)) for column in np.stack(models).T]
        )
        expected = (exact.astype(np.float64) / sum(weights)).astype(np.float32) + np.float32(0)
        assert weighted_mean(encoded, weights).tobytes() == expected.tobytes()


def test_formats_may_differ_and_keys_come_in_any_order(backend: str) -> None:
    models = [{"a": normals(300), "b": normals(300, seed=1)}, {"b": normals(300, seed=2), "a": normals(300, seed=3)}]
    encoded = [
        Quantizer("int8").encode(models[0]),
        Quantizer("int8").encode(models[1]),
        Quantizer("int4").encode(models[0]),
        Quantizer("eden", bits=2).encode(models[1]),
    ]
    decoded = [e.decode() for e in encoded]
    assert same(weighted_mean(encoded, [1, 2, 3, 4]), weighted_mean(decoded, [1, 2, 3, 4]))
    acc, plain = MeanAccumulator(models[0]), MeanAccumulator(models[0])
    acc.add_many(encoded)
    plain.add_many(decoded)
    assert acc == plain


def test_many_clients_and_threads(backend: str) -> None:
    models = [normals(9000, seed=k) for k in range(35)]
    for kind in ("int8", "int4"):
        encoded = [Quantizer(kind, block=64).encode(m) for m in models]
        decoded = [e.decode() for e in encoded]
        weights = [k % 5 + 0.5 for k in range(35)]
        assert same(weighted_mean(encoded, weights, num_threads=3), weighted_mean(decoded, weights, num_threads=1))
    x = normals(300_000)
    for name in ("int8-stochastic", "eden3"):
        forms = [Quantizer(**FORMATS[name], num_threads=t).encode(x) for t in (1, 3)]
        assert forms[0] == forms[1]
        assert same(forms[0].decode(num_threads=1), forms[0].decode(num_threads=3))


def test_what_does_not_fit_is_named() -> None:
    model = {"a": np.zeros(4, np.float32), "b": [np.zeros((2, 2), np.float32)]}
    q = Quantizer("int8")
    acc = MeanAccumulator(model)
    with pytest.raises(ShapeMismatch, match=r"client 7, key 'b\[0\]': expected shape \(2, 2\), got \(3,\)"):
        acc.add(q.encode({"a": model["a"], "b": [np.zeros(3, np.float32)]}), client=7)
    with pytest.raises(DtypeMismatch, match=r"key 'a': expected float32, got float64"):
        acc.add(q.encode({"a": np.zeros(4), "b": model["b"]}))
    with pytest.raises(StructureMismatch, match=r"missing 'b'"):
        acc.add(q.encode({"a": model["a"]}))
    with pytest.raises(StructureMismatch):
        weighted_mean([q.encode(model), q.encode([model["a"]])])
    with pytest.raises(ZeroWeightError):
        weighted_mean([q.encode(model)] * 2, [0, 0])
    assert acc.count == 0
    with pytest.raises(ShapeMismatch, match="client like"):
        q.encode(np.zeros(3)).decode(np.zeros(4))


# ---- bad input -----------------------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_values_that_are_not_finite(backend: str, name: str, bad: float, dtype: type) -> None:
    for at in (0, 64, 98):
        x = normals(99, dtype)
        x[at] = bad
        with pytest.raises(NonFiniteUpdate, match="client update, key 'w': expected finite values"):
            Quantizer(**FORMATS[name]).encode({"w": x})


def test_float64_beyond_float32() -> None:
    with pytest.raises(NonFiniteUpdate, match="largest float32"):
        Quantizer("int8").encode(np.array([1e300]))


def test_error_feedback_goes_on_elsewhere() -> None:
    u = {"w": normals(500), "n": {"h": normals(80, np.float16), "d": normals(30, np.float64)}, "steps": np.array(3)}
    quantizer = Quantizer("int4")
    feedback = ErrorFeedback(quantizer, nonce=3)
    assert feedback.residual() == {}
    for _ in range(3):
        feedback.encode(u)
    kept = {k: e.copy() for k, e in feedback.residual().items()}
    assert {k: e.dtype for k, e in kept.items()} == {"w": np.float32, "n.h": np.float32, "n.d": np.float64}
    other = ErrorFeedback(quantizer, nonce=6)
    other.load_residual(kept, u)
    for _ in range(3):
        assert other.encode(u) == feedback.encode(u)
    for bad, error in (
        ({"w": kept["w"]}, StructureMismatch),
        ({**kept, "steps": kept["w"]}, StructureMismatch),
        ({**kept, "w": kept["w"][:-1]}, ShapeMismatch),
        ({**kept, "w": kept["w"].astype(np.float64)}, DtypeMismatch),
    ):
        before = other.residual()
        with pytest.raises(error, match="residual"):
            other.load_residual(bad, u)
        assert all(np.array_equal(e, other.residual()[k]) for k, e in before.items())
    array = ErrorFeedback(quantizer)
    array.encode(normals(10))
    assert list(array.residual()) == [""]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"kind": "int2"}, ValueError, "kind: expected one of int8, int4"),
        ({"kind": "eden", "bits": 5}, ValueError, "bits: expected 1 to 4, got 5"),
        ({"kind": "eden", "bits": True}, ValueError, "bits"),
        ({"kind": "int8", "block": 100}, ValueError, "block: expected one of 64"),
        ({"kind": "int8", "block": 8192}, ValueError, "block"),
        ({"kind": "topk", "fraction": 0}, ValueError, "fraction: expected more than 0"),
        ({"kind": "topk", "fraction": float("nan")}, ValueError, "fraction"),
        ({"kind": "eden", "rounding": "stochastic"}, ValueError, "rounding: expected 'nearest'"),
        ({"kind": "int8", "seed": -1}, ValueError, r"seed: expected 0 to 2\*\*64"),
        ({"kind": "int8", "seed": 1.0}, TypeError, "seed: expected an integer"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Quantizer(**arguments)


def test_bad_calls() -> None:
    q = Quantizer("int8")
    with pytest.raises(ValueError, match="nonce"):
        q.encode(np.zeros(3), nonce=2**64)
    with pytest.raises(TypeError, match="dict keys"):
        q.encode({1: np.zeros(3)})
    with pytest.raises(DtypeMismatch):
        q.encode(np.zeros(3, np.complex64))
    with pytest.raises(TypeError, match="encoded: expected an Encoded"):
        q.decode(b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="quantizer"):
        ErrorFeedback("int8")  # type: ignore[arg-type]


def test_inputs_stay_as_they_were_in_any_memory_layout(backend: str) -> None:
    whole = normals(400)
    view = whole.reshape(20, 20)[::2, ::-1]
    view.flags.writeable = False
    before = whole.copy()
    for name in FORMATS:
        q = Quantizer(**FORMATS[name])
        assert q.encode(view) == q.encode(view.copy())
    assert same(whole, before)


def test_torch_leaves_come_back_as_torch() -> None:
    torch = pytest.importorskip("torch")
    model = {"w": torch.linspace(-1, 1, 100), "b": torch.ones(3, dtype=torch.bfloat16)}
    back = Quantizer("int8").encode(model).decode(like=model)
    assert isinstance(back["w"], torch.Tensor)
    assert back["b"].dtype == torch.bfloat16
    assert (back["w"] - model["w"]).abs().max() <= 0.5 / 127 + 1e-6
    assert (back["b"] == 1).all()


# ---- error feedback ------------------------------------------------------------------------------------------------


@each_format
def test_error_feedback_sends_everything_in_the_end(name: str) -> None:
    u = {"w": normals(500), "h": normals(80, np.float16), "steps": np.array(3)}
    feedback = ErrorFeedback(Quantizer(**FORMATS[name]), nonce=5)
    sent = []
    rounds = 60
    nonces = []
    for _ in range(rounds):
        encoded = feedback.encode(u)
        nonces.append(encoded.nonce)
        sent.append(encoded.decode())
    assert nonces == list(range(5, 5 + rounds))
    assert sent[0]["steps"] == 3
    total = sum(s["w"].astype(np.float64) for s in sent)
    residual = feedback._residual[0]
    assert residual is not None
    np.testing.assert_allclose(total + residual, rounds * u["w"].astype(np.float64), atol=2e-3)
    # What is left does not grow with the rounds: the mean of what was sent tends to u.
    assert np.abs(total / rounds - u["w"]).max() < 0.5
    with pytest.raises(StructureMismatch):
        feedback.encode({"w": u["w"]})
    kept = [None if r is None else r.copy() for r in feedback._residual]
    with pytest.raises(NonFiniteUpdate):
        feedback.encode({**u, "w": np.full(500, np.nan, np.float32)})
    assert all(a is b is None or (a == b).all() for a, b in zip(kept, feedback._residual, strict=True))
    feedback.reset()
    first = feedback.encode({"w": u["w"]})
    assert same(first.decode(), Quantizer(**FORMATS[name]).encode({"w": u["w"]}, nonce=first.nonce).decode())


# ---- the wire form -------------------------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<I", zlib.crc32(body))


@each_format
def test_damaged_bytes_are_an_error(name: str) -> None:
    data = (GOLDEN / f"encoded-v1-{name}.bin").read_bytes()
    rng = random.Random(1)
    for end in [0, 1, 35, 36, len(data) - 1, *(rng.randrange(len(data)) for _ in range(30))]:
        with pytest.raises(ValueError, match="encoded update"):
            Encoded.from_bytes(data[:end])
    for _ in range(60):
        i, bit = rng.randrange(len(data)), rng.randrange(8)
        with pytest.raises(ValueError, match="encoded update"):
            Encoded.from_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
    with pytest.raises(TypeError, match="data: expected a bytes-like"):
        Encoded.from_bytes("text")  # type: ignore[arg-type]


@each_format
def test_hostile_bytes_with_a_right_checksum(backend: str, name: str) -> None:
    data = (GOLDEN / f"encoded-v1-{name}.bin").read_bytes()[:-4]
    like = golden_update()
    rng = random.Random(2)
    refused = 0
    for _ in range(250):
        raw = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            # The header and the description at least half of the time.
            i = rng.randrange(4, 400 if rng.random() < 0.5 else len(raw))
            raw[i] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        if rng.random() < 0.2:
            del raw[rng.randrange(len(raw)) :]
        try:
            encoded = Encoded.from_bytes(sealed(bytes(raw)))
        except ValueError:
            refused += 1
            continue
        try:
            decoded = encoded.decode(like)
        except ValueError:
            continue
        assert all(np.isfinite(a).all() for a in leaves(decoded) if a.dtype.kind == "f")
        acc = MeanAccumulator(like, ints="skip")
        acc.add(encoded)
        assert (acc.result()["f32"] == decoded["f32"]).all()
    assert refused > 50


def described(kind: int, bits: int, block: int, tensors: str, payload: bytes = b"", structure: str = "0") -> bytes:
    text = f'{{"structure":{structure},"tensors":{tensors}}}'.encode()
    return sealed(struct.pack("<4sHBBHHIQQ", b"EFQU", 1, kind, bits, block, 0, len(text), 0, 0) + text + payload)


@pytest.mark.parametrize(
    "data",
    [
        described(1, 8, 1024, '[["f4",[1000000000000]]]'),
        described(1, 8, 1024, '[["f4",[-1]]]'),
        described(1, 8, 1024, '[["f4",[true]]]'),
        described(1, 8, 1024, '[["f4",[281474976710655,281474976710655]]]'),
        described(1, 8, 1024, '[["O",[1]]]'),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", 1.0) + b"\x80"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", 1.0) + b"\1\1"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", -1.0) + b"\1"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", math.inf) + b"\1"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", math.nan) + b"\1"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", 0.1) + b"\1"),
        described(1, 8, 1024, '[["f4",[1]]]', struct.pack("<f", 2.0**127) + b"\1"),
        described(2, 4, 1024, '[["f4",[1]]]', struct.pack("<f", 1.0) + b"\x89\x88"),
        described(2, 4, 1024, '[["f4",[1]]]', struct.pack("<f", 1.0) + b"\x19"),
        described(4, 4, 4096, '[["f4",[1]]]', struct.pack("<f", 2.0**125) + b"\0\0\0\0"),
        described(5, 0, 0, '[["f4",[5]]]', struct.pack("<QIf", 1, 5, 1.0)),
        described(5, 0, 0, '[["f4",[5]]]', struct.pack("<QIIff", 2, 3, 3, 1.0, 1.0)),
        described(5, 0, 0, '[["f4",[5]]]', struct.pack("<QIf", 1, 1, math.nan)),
        described(5, 0, 0, '[["f4",[5]]]', struct.pack("<Q", 2**63)),
        described(5, 0, 0, '[["f4",[5]]]', b"\0"),
        described(5, 0, 1024, '[["f4",[0]]]', struct.pack("<Q", 0)),
        described(3, 2, 4096, '[["f4",[0]]]'),
        described(1, 8, 100, '[["f4",[0]]]'),
        described(9, 8, 1024, '[["f4",[0]]]'),
        described(1, 8, 1024, "[]"),
        described(1, 8, 1024, '[["f4",[0]]]', structure="[" * 5000 + "]" * 5000),
        described(1, 8, 1024, '[["f4",[0]]]', structure='{"list":[0,0]}'),
    ],
    ids=range(27),
)
def test_contradictions(data: bytes) -> None:
    with pytest.raises(ValueError, match="encoded update"):
        Encoded.from_bytes(data)


def test_sizes_out_of_thin_air_cost_nothing() -> None:
    """The top entries of a tensor say nothing about its size: it is compared before anything is allocated."""
    encoded = Encoded.from_bytes(described(5, 0, 0, '[["f4",[200000000000000]]]', struct.pack("<Q", 0)))
    assert encoded.size == 200_000_000_000_000
    with pytest.raises(ShapeMismatch):
        encoded.decode(np.zeros(3, np.float32))
    with pytest.raises(ShapeMismatch):
        MeanAccumulator(np.zeros(3, np.float32)).add(encoded)


@pytest.mark.parametrize("options", [{}, {"accumulate": "float32"}, {"accumulate": "reproducible"}, {"partial": True}])
def test_an_accumulator_compares_sizes_before_it_expands_them(options: dict[str, Any]) -> None:
    encoded = Quantizer("topk", fraction=0.5).encode({"w": np.ones(4, np.float32)})
    encoded._tensors[0] = (np.dtype(np.float32), (1 << 46,))
    bomb = Encoded.from_bytes(encoded.to_bytes())
    acc = MeanAccumulator({"w": np.ones(4, np.float32), "v": np.ones(2)}, **options)
    with pytest.raises((ShapeMismatch, StructureMismatch), match="client 0"):
        acc.add(bomb)
    if options.get("partial"):
        acc.add(Quantizer("topk", fraction=1).encode({"w": np.ones(4, np.float32)}))
        acc.add({"v": np.ones(2)})
        assert acc.result()["w"].tolist() == [1.0] * 4


def test_any_alignment_and_pickle(backend: str) -> None:

    x = normals(999)
    for name in FORMATS:
        encoded = Quantizer(**FORMATS[name]).encode({"w": x})
        data = encoded.to_bytes()
        for shift in range(1, 4):
            moved = Encoded.from_bytes(memoryview(b"-" * shift + data)[shift:])
            assert same(moved.decode(), encoded.decode())
            assert same(weighted_mean([moved, moved]), encoded.decode())
        assert pickle.loads(pickle.dumps(encoded)) == encoded
    assert "int4" in repr(Quantizer("int4").encode(x))
    assert Quantizer("int4").encode(x).nbytes == 500 + 4
