"""What an update may be made of: bfloat16, torch tensors, DLPack, Flower's Array, files; float32 sums; partial keys."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import edgefast as ef
from edgefast.aggregate import (
    DtypeMismatch,
    MeanAccumulator,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
    _npy,
    median,
    weighted_mean,
)
from edgefast.backends.table import BF16

SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97]
MODES: list[Any] = ["float64", "float32", "reproducible"]


def brain(values: Any) -> np.ndarray:
    """float32 values that are bfloat16s, as the kernels' dtype."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16).view(BF16)


def wide(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def nearest_brain(exact: float) -> float:
    """The bfloat16 nearest to a double, ties to even, by trying its neighbours."""
    if not np.isfinite(exact):
        return exact
    bits = int(np.float32(exact).view(np.uint32)) >> 16
    candidates = [(bits + step) & 0xFFFF for step in (-1, 0, 1, 2)]
    values = [float(np.uint32(b << 16).view(np.float32)) for b in candidates]
    # Beyond the largest finite value, infinity stands for 2**128 in the comparison.
    distance = [abs((v if np.isfinite(v) else np.copysign(2.0**128, v)) - exact) if v == v else np.inf for v in values]
    best = min(distance)
    ties = [i for i, d in enumerate(distance) if d == best]
    return values[next((i for i in ties if candidates[i] % 2 == 0), ties[0])]


# ---- bfloat16 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("accumulate", MODES)
def test_bfloat16_rounds_once(backend: str, size: int, accumulate: Any) -> None:
    rng = np.random.default_rng(size)
    bits = rng.integers(0, 1 << 16, (3, size), dtype=np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] = 0x3F81
    updates = [b.view(BF16) for b in bits]
    weights = [3.0, 1.0, 2.0]
    found = wide(np.asarray(weighted_mean(updates, weights, accumulate=accumulate)).view(BF16))
    if accumulate == "float32":
        sums = np.zeros(size, np.float32)
        with np.errstate(all="ignore"):
            for u, w in zip(updates, weights, strict=True):
                sums += wide(u).astype(np.float32) * np.float32(w)
            exact = (sums / np.float32(6)).astype(np.float64)
    else:
        exact = (wide(updates[0]) * 3 + wide(updates[1]) + wide(updates[2]) * 2) / 6
    expected = np.array([nearest_brain(float(e)) for e in exact])
    np.testing.assert_array_equal(found, expected)


def test_every_bfloat16_survives(backend: str) -> None:
    every = np.arange(65536, dtype=np.uint16)
    every = every[(every & 0x7F80) != 0x7F80]
    every = every[every != 0x8000]  # -0 + 0 is 0
    found = weighted_mean([every.view(BF16), every.view(BF16)], [1, 2])
    assert np.asarray(found).view(np.uint16).tobytes() == every.tobytes()


def test_bfloat16_extremes(backend: str) -> None:
    largest = brain([3.3895313892515355e38])
    # Rounded by way of float32, 1 + 2**-8 + 2**-30 would fall on the tie and to 1.
    one, next_one = brain([1.0]), brain([1.0078125])
    assert wide(np.asarray(weighted_mean([largest, largest])).view(BF16)).tolist() == wide(largest).tolist()
    found = weighted_mean([one, next_one], [0.5 - 2**-22, 0.5 + 2**-22])
    assert wide(np.asarray(found).view(BF16)).tolist() == [1.0078125]
    bad = np.array([0x7F81, 0x7F80, 0xFF80, 0x3F80], np.uint16).view(BF16)
    with pytest.raises(NonFiniteUpdate, match=r"expected finite values, got nan \(3 non-finite"):
        weighted_mean([bad])
    through = wide(np.asarray(weighted_mean([bad], nonfinite="propagate")).view(BF16))
    np.testing.assert_array_equal(through, [np.nan, np.inf, -np.inf, 1.0])


def test_ml_dtypes_is_recognised(backend: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    updates = [{"a": np.full((2, 3), k, ml_dtypes.bfloat16), "b": np.ones(2)} for k in (1, 4)]
    for accumulate in MODES:
        found = weighted_mean(updates, [2, 1], accumulate=accumulate)
        assert found["a"].dtype == ml_dtypes.bfloat16
        assert found["a"].astype(float).tolist() == [[2.0] * 3] * 2
    out = {"a": np.zeros((2, 3), ml_dtypes.bfloat16), "b": np.zeros(2)}
    weighted_mean(updates, [2, 1], out=out)
    assert out["a"].astype(float).tolist() == [[2.0] * 3] * 2
    with pytest.raises(DtypeMismatch, match="client 1, key 'a': expected bfloat16, got float32"):
        weighted_mean([updates[0], {"a": np.ones((2, 3), np.float32), "b": np.ones(2)}])
    acc = MeanAccumulator(updates[0])
    acc.add(updates[1])
    twin = MeanAccumulator.from_bytes(acc.to_bytes())
    assert twin == acc
    assert twin.result()["a"].dtype == ml_dtypes.bfloat16


# ---- torch ---------------------------------------------------------------------------------------------------------


def test_torch_in_torch_out(backend: str) -> None:
    torch = pytest.importorskip("torch")

    def state(k: float) -> dict[str, Any]:
        return {
            "w": torch.full((3, 2), k, requires_grad=True),
            "p": torch.nn.Parameter(torch.full((2,), k)),
            "half": torch.full((5,), k, dtype=torch.float16),
            "brain": torch.full((4, 2), k, dtype=torch.bfloat16).T,
            "steps": torch.tensor(int(k)),
            "flag": torch.tensor([k > 1]),
            "none": torch.zeros((0, 3), dtype=torch.float64),
        }

    updates = [state(1.0), state(2.0), state(4.0)]
    before = [{k: v.clone() for k, v in u.items()} for u in updates]
    for accumulate in MODES:
        found = weighted_mean(updates, [1, 1, 2], accumulate=accumulate)
        assert list(found) == list(updates[0])
        for key, tensor in found.items():
            assert type(tensor) is torch.Tensor
            assert not tensor.requires_grad
            assert (tensor.dtype, tensor.shape) == (updates[0][key].dtype, updates[0][key].shape)
        assert found["w"].tolist() == [[2.75, 2.75]] * 3
        assert found["brain"].float().tolist() == [[2.75] * 4] * 2
        assert found["steps"] == 3
        assert found["flag"].tolist() == [True]
    assert all(torch.equal(u[k], b[k]) for u, b in zip(updates, before, strict=True) for k in u)
    acc = MeanAccumulator(updates[0])
    acc.add_many(updates, [1, 1, 2])
    assert torch.equal(acc.result()["brain"], weighted_mean(updates, [1, 1, 2])["brain"])
    module = torch.nn.Linear(3, 2)
    module.load_state_dict(weighted_mean([module.state_dict(), module.state_dict()]))


def test_torch_out_and_refusals(backend: str) -> None:
    torch = pytest.importorskip("torch")
    out = torch.zeros(3, dtype=torch.bfloat16)
    one = torch.ones(3, dtype=torch.bfloat16)
    assert weighted_mean([one, 3 * one], out=out) is out
    assert out.float().tolist() == [2.0] * 3
    assert weighted_mean(torch.arange(6.0).reshape(2, 3)).tolist() == [1.5, 2.5, 3.5]
    with pytest.raises(DtypeMismatch, match="client 0, key 'a': expected a dense tensor"):
        weighted_mean([{"a": torch.eye(2).to_sparse()}])
    with pytest.raises(DtypeMismatch, match="client 0, key 'a': expected a tensor on the CPU, got one on meta"):
        weighted_mean([{"a": torch.zeros(2, device="meta")}])
    with pytest.raises(DtypeMismatch, match="client 1, key 'a': expected float32, got bfloat16"):
        weighted_mean([{"a": torch.ones(3)}, {"a": one}])
    with pytest.raises(ShapeMismatch, match=r"client 1, key 'a': expected shape \(3,\), got \(2,\)"):
        weighted_mean([{"a": torch.ones(3)}, {"a": torch.ones(2)}])


def test_torch_is_never_imported() -> None:
    code = (
        "import sys, numpy as np\n"
        "from edgefast.aggregate import weighted_mean\n"
        "weighted_mean([{'a': np.ones(2)}, {'a': np.ones(2)}])\n"
        "assert not {'torch', 'ml_dtypes', 'flwr', 'safetensors'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- DLPack, buffers, Flower's Array -------------------------------------------------------------------------------


class OnlyDLPack:
    """Nothing but the protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


class Broken:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("on another device")

    def __dlpack_device__(self) -> Any:
        return (1, 0)


def test_dlpack_and_buffers(backend: str) -> None:
    rows = [np.full((2, 3), float(k)) for k in (1, 3)]
    found = weighted_mean([{"a": OnlyDLPack(r)} for r in rows])
    assert type(found["a"]) is np.ndarray
    assert found["a"].tolist() == [[2.0] * 3] * 2
    assert weighted_mean([memoryview(r) for r in rows]).tolist() == [[2.0] * 3] * 2
    with pytest.raises(DtypeMismatch, match=r"expected a DLPack object numpy can read, got a Broken \(on another"):
        weighted_mean([{"a": Broken()}])


@dataclass
class Array:
    """Flower's Array as this library sees it."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes

    @classmethod
    def of(cls, a: np.ndarray) -> Array:
        return cls(str(a.dtype), a.shape, "numpy.ndarray", _npy.encode(a))


def test_messages_are_read_in_place_and_written_once(backend: str) -> None:
    rng = np.random.default_rng(0)
    models = [
        {
            "w": rng.normal(size=(7, 5)).astype(np.float32),
            "b": np.float16(k),
            "n": np.arange(3) * k,
            "e": np.zeros((0, 2)),
        }
        for k in range(4)
    ]
    updates = [{k: Array.of(np.asarray(v)) for k, v in m.items()} for m in models]
    kept = [{k: bytes(bytearray(v.data)) for k, v in u.items()} for u in updates]
    expected = weighted_mean(models, [1, 2, 3, 4])
    for accumulate in MODES:
        found = weighted_mean(updates, [1, 2, 3, 4], accumulate=accumulate)
        for key, message in found.items():
            assert type(message) is Array
            assert (message.shape, message.stype) == (np.shape(expected[key]), "numpy.ndarray")
            array = _npy.array_in(message.data)
            assert str(array.dtype) == message.dtype == str(np.asarray(expected[key]).dtype)
            np.testing.assert_allclose(array.astype(float), np.asarray(expected[key], float), rtol=1e-3)
    assert [{k: v.data for k, v in u.items()} for u in updates] == kept


def test_messages_of_any_header_and_order(backend: str) -> None:
    """Those that look like the template's are taken by comparison, all others by parsing: same result."""
    models = [{"w": np.arange(6, dtype=np.float32).reshape(2, 3) + k, "n": np.array(k)} for k in range(4)]
    expected = weighted_mean(models)
    updates: list[Any] = [{k: Array.of(v) for k, v in m.items()} for m in models]
    updates[1] = dict(reversed(updates[1].items()))
    fortran = io.BytesIO()
    np.save(fortran, np.asfortranarray(models[2]["w"]))
    updates[2]["w"] = Array("float32", (2, 3), "numpy.ndarray", fortran.getvalue())
    second = io.BytesIO()
    np.lib.format.write_array(second, models[3]["w"], version=(2, 0))
    updates[3] = MappingProxyType({**updates[3], "w": Array("float32", (2, 3), "numpy.ndarray", second.getvalue())})
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        found = weighted_mean([updates[i] for i in order])
        for key, value in expected.items():
            assert np.array_equal(_npy.array_in(found[key].data), value)
    mixed = weighted_mean([updates[0], models[1], updates[2], models[3]])
    assert np.array_equal(_npy.array_in(mixed["w"].data), expected["w"])


def test_views_of_messages() -> None:
    model = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((0, 2)), np.array(5)]
    headers = [_npy.header(a.dtype, a.shape) for a in model]
    for a in model:
        file = io.BytesIO()
        np.save(file, a)
        assert _npy.encode(a) == file.getvalue()
    found = _npy.views([Array.of(a) for a in model], headers, model)
    if found is None:
        pytest.skip("needs the native extension")
    for view, a in zip(found, model, strict=True):
        assert np.array_equal(view, a)
        assert view.dtype == a.dtype
        assert not view.flags.writeable
    good = Array.of(model[0])
    others: list[Any] = [
        Array("float32", (2, 3), "other", good.data),
        Array("float32", (2, 3), "numpy.ndarray", good.data[:-1]),
        Array("float32", (2, 3), "numpy.ndarray", good.data + b"x"),
        Array("float32", (2, 3), "numpy.ndarray", b""),
        Array("float32", (3, 2), "numpy.ndarray", _npy.encode(model[0].reshape(3, 2))),
        Array("float32", (2, 3), "numpy.ndarray", bytearray(good.data)),  # type: ignore[arg-type]
        Array("float32", (2, 3), 7, good.data),  # type: ignore[arg-type]
        model[0],
        None,
    ]
    for other in others:
        assert _npy.views([other], headers[:1], model[:1]) is None
    with pytest.raises(ValueError, match="as many messages"):
        _npy.views([good], headers, model)


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (Array("float32", (2,), "numpy.ndarray", b""), "expected .npy bytes, got something else"),
        (Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY\x09\x00" + b"\0" * 90), ".npy version 9"),
        (Array("float32", (2,), "numpy.ndarray", _npy.encode(np.zeros(2))[:-1]), "expected 16 bytes, got 15"),
        (Array("float32", (2,), "other", _npy.encode(np.zeros(2))), "expected an Array of stype 'numpy.ndarray'"),
    ],
)
def test_messages_that_are_none(message: Array, part: str) -> None:
    with pytest.raises(DtypeMismatch, match="client 1, key 'a': ") as caught:
        weighted_mean([{"a": np.zeros(2)}, {"a": message}])
    assert part in str(caught.value)


def test_npy_bytes_are_parsed_as_numpy_writes_them(tmp_path: Path) -> None:
    for a in (
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.array(3),
        np.zeros((0, 2)),
    ):
        np.save(tmp_path / "a.npy", a)
        data = (tmp_path / "a.npy").read_bytes()
        found = _npy.array_in(data)
        assert found.tolist() == a.tolist()
        assert not (found.size and found.flags.writeable)
        (tmp_path / "b.npy").write_bytes(_npy.encode(a))
        assert np.load(tmp_path / "b.npy").tolist() == a.tolist()
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        _npy.array_in((tmp_path / "o.npy").read_bytes())


def test_npy_bytes_of_any_kind_are_an_error_or_an_array() -> None:
    good = bytearray(_npy.encode(np.arange(4.0)))
    rng = np.random.default_rng(0)
    for _ in range(1500):
        bad = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            bad[rng.integers(len(bad) - 32)] = rng.integers(256)
        try:
            found = _npy.array_in(bytes(bad[: rng.integers(1, len(bad) + 1)]))
        except ValueError:
            continue
        assert found.nbytes <= len(good)


# ---- float32 sums --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "i1", "u1", "i2", "u2", "?", "f8", "i4", "i8"])
def test_float32_sums(backend: str, dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    dt = np.dtype(dtype)
    if dt.kind == "f":
        updates = [(rng.normal(size=size) * 10.0 ** rng.integers(-3, 3, size)).astype(dt) for _ in range(5)]
    elif dt.kind == "b":
        updates = [rng.random(size) < 0.5 for _ in range(5)]
    else:
        updates = [rng.integers(np.iinfo(dt).min // 2, np.iinfo(dt).max // 2, size, dtype=dt) >> 12 for _ in range(5)]
    weights = [3.0, 0.7, 11.0, 1e-3, 2.5]
    kind = np.float32 if dtype not in ("f8", "i4", "i8") else np.float64
    sums = np.zeros(size, kind)
    for u, w in zip(updates, weights, strict=True):
        sums += u.astype(kind) * kind(w)
    exact = sums / kind(sum(weights[1:], weights[0]))
    expected = exact > 0.5 if dt.kind == "b" else exact.astype(dt) if dt.kind == "f" else np.rint(exact).astype(dt)
    assert weighted_mean(updates, weights, accumulate="float32").tobytes() == expected.tobytes()
    acc = MeanAccumulator(updates[0], accumulate="float32")
    for u, w in zip(updates, weights, strict=True):
        acc.add(u, w)
    assert acc.result().tobytes() == expected.tobytes()
    assert acc.nbytes == size * np.dtype(kind).itemsize
    twin = MeanAccumulator.from_bytes(acc.to_bytes())
    assert twin == acc
    assert twin.result().tobytes() == expected.tobytes()


def test_float32_weights_are_bounded() -> None:
    with pytest.raises(ValueError, match=r"weights\[0\]: expected 0 or a weight from 2\*\*-60 to 2\*\*60"):
        weighted_mean([np.ones(2)], [2.0**61], accumulate="float32")


@pytest.mark.parametrize("accumulate", MODES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 33])
def test_adding_many_at_once_is_adding_one_by_one(backend: str, accumulate: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    updates = [{"w": rng.normal(size=97).astype(np.float32), "n": rng.integers(0, 9, 5)} for _ in range(count)]
    weights = rng.random(count).tolist()
    weights[0] = 0.0 if count > 1 else 1.0
    one, many = (MeanAccumulator(updates[0], accumulate=accumulate) for _ in range(2))
    for _ in range(2):  # the second time after a reset
        for u, w in zip(updates, weights, strict=True):
            one.add(u, w)
        many.add_many(updates[:5], weights[:5])
        many.add_many(updates[5:], weights[5:])
        assert many == one
        one.reset()
        many.reset()
        assert one == MeanAccumulator(updates[0], accumulate=accumulate)
    bad = [*updates, {"w": np.full(97, np.nan, np.float32), "n": np.zeros(5, int)}]
    with pytest.raises(NonFiniteUpdate, match="client device"):
        many.add_many(bad, clients=[*range(count), "device"])
    assert many.count == 0
    with pytest.raises(ValueError, match="clients: expected 1 names"):
        many.add_many(updates[:1], clients=[])


# ---- partial keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", MODES)
def test_partial_keys_have_denominators_of_their_own(backend: str, accumulate: Any) -> None:
    updates: list[Any] = [
        {"a": np.full(9, 1.0), "deep": {"x": np.full(3, 2.0, np.float32)}},
        {"b": np.full(2, 5.0), "deep": {"x": np.full(3, 4.0, np.float32), "y": np.array(7)}},
        {"a": np.full(9, 4.0), "deep": {}},
    ]
    found = weighted_mean(updates, [1, 3, 2], partial=True, accumulate=accumulate)
    assert list(found) == ["a", "deep", "b"]
    assert found["a"].tolist() == [3.0] * 9
    assert found["b"].tolist() == [5.0] * 2
    assert found["deep"]["x"].tolist() == [3.5] * 3
    assert found["deep"]["y"] == 7
    with pytest.raises(StructureMismatch, match="client 1: expected the template's 2 keys, got missing 'a'"):
        weighted_mean(updates, accumulate=accumulate)
    template = found
    acc = MeanAccumulator(template, partial=True, accumulate=accumulate)
    acc.add(updates[0], 1)
    with pytest.raises(ZeroWeightError, match=r"key 'deep.y': expected at least one update of weight above 0"):
        acc.result()
    other = MeanAccumulator(template, partial=True, accumulate=accumulate)
    other.add_many(updates[1:], [3, 2])
    acc.merge(MeanAccumulator.from_bytes(other.to_bytes()))
    result = acc.result()
    assert (acc.count, acc.weight) == (3, 6.0)
    for key in ("a", "b"):
        assert result[key].tobytes() == found[key].tobytes()
    assert result["deep"]["x"].tobytes() == found["deep"]["x"].tobytes()
    assert MeanAccumulator.from_bytes(acc.to_bytes()) == acc
    with pytest.raises(StructureMismatch, match="client 3: expected the template's 3 keys, got unexpected 'c'"):
        acc.add({"c": np.ones(2)})
    with pytest.raises(StructureMismatch, match="client other"):
        acc.merge(MeanAccumulator(template, accumulate=accumulate))


def test_partial_policies(backend: str) -> None:
    updates: list[Any] = [{"n": np.array(3)}, {"n": np.array(8), "m": np.array(1)}, {"m": np.array(5)}]
    assert weighted_mean(updates, partial=True, ints="max") == {"n": 8, "m": 5}
    assert weighted_mean(updates, partial=True, ints="first") == {"n": 3, "m": 1}
    with pytest.raises(ZeroWeightError, match="client any, key 'n'"):
        weighted_mean(updates, [0, 0, 1], partial=True)
    acc = MeanAccumulator({"n": np.array(0), "m": np.array(0)}, partial=True, ints="max")
    acc.add_many(updates)
    assert acc.result() == {"n": 8, "m": 5}
    bad: list[Any] = [{"a": np.array([np.nan]), "b": np.ones(1)}, {"b": np.full(1, 3.0)}, {"a": np.ones(1)}]
    assert weighted_mean(bad, partial=True, nonfinite="drop") == {"a": 1.0, "b": 3.0}
    with pytest.raises(NonFiniteUpdate, match="client 0, key 'a'"):
        weighted_mean(bad, partial=True)
    with pytest.raises(ZeroWeightError, match="key 'a'"):
        weighted_mean(bad[:2], partial=True, nonfinite="drop")
    out = {"a": np.zeros(1), "b": np.zeros(1)}
    assert weighted_mean(bad[1:], partial=True, out=out) is out
    assert (out["a"], out["b"]) == (1.0, 3.0)
    with pytest.raises(StructureMismatch, match="client out"):
        weighted_mean(bad[1:], partial=True, out={"a": np.zeros(1)})


def test_partial_bytes_that_contradict_themselves() -> None:
    acc = MeanAccumulator({"a": np.zeros(1), "b": np.zeros(1)}, partial=True)
    acc.add({"a": np.ones(1)}, 2)
    good = acc.to_bytes()
    for old, new in ((b'"counts":[1,0]', b'"counts":[2,0]'), (b'"counts":[1,0]', b'"counts":[0,0]')):
        from zlib import crc32

        assert old in good
        bad = good[:-4].replace(old, new)
        with pytest.raises(ValueError, match="weights per tensor"):
            MeanAccumulator.from_bytes(bad + crc32(bad).to_bytes(4, "little"))


def test_using_keeps_backends_equal_on_a_large_model() -> None:
    # Beyond the size from which results go past the caches, at odd lengths and addresses.
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 255, 5_300_003 + 1, dtype=np.uint8) for _ in range(3)]
    for dtype in ("f4", "f8", "f2"):
        size = 5_300_000 // np.dtype(dtype).itemsize // 8 * 8
        updates = [np.nan_to_num(r[1 : 1 + size].view(dtype), nan=1, posinf=2, neginf=3) for r in raw]
        updates = [np.clip(u, -1000, 1000).astype(dtype) for u in updates]
        with ef.using("numpy"):
            expected = weighted_mean(updates, [1, 2, 3])
        target = np.empty(updates[0].nbytes + 16, np.uint8)[16 - 12 :][: updates[0].nbytes].view(dtype)
        assert weighted_mean(updates, [1, 2, 3]).tobytes() == expected.tobytes()
        assert weighted_mean(updates, [1, 2, 3], out=target).tobytes() == expected.tobytes()


# ---- what looks like an array and is none ---------------------------------------------------------------------------


def test_masked_arrays_are_refused_wherever_they_are(backend: str) -> None:
    plain, masked = np.ones((2, 3)), np.ma.masked_array(np.ones((2, 3)), [[0, 1, 0]] * 2)
    acc = MeanAccumulator({"w": plain})
    for call in (
        lambda: weighted_mean([{"w": plain}, {"w": masked}]),  # the sums would take in what is masked
        lambda: weighted_mean([{"w": masked}]),
        lambda: weighted_mean([[plain], [masked]]),
        lambda: weighted_mean(masked),
        lambda: median([{"a": {"w": plain}}, {"a": {"w": masked}}]),
        lambda: acc.add({"w": masked}),
    ):
        with pytest.raises(DtypeMismatch, match="expected an array without a mask, got a masked one"):
            call()
    assert acc.count == 0


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_other_subclasses_are_plain_arrays(backend: str) -> None:
    class Metres(np.ndarray):
        def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("arithmetic of its own")

    x = np.arange(12.0).reshape(4, 3)
    for odd in (x.view(Metres), np.matrix(x)):  # type: ignore[call-overload]
        for updates in ([odd, odd], [{"w": odd}, {"w": x}], [{"a": [odd]}, {"a": [x]}]):
            for rule in (weighted_mean, median):
                result = rule(updates)
                while not isinstance(result, np.ndarray):
                    result = result[next(iter(result))] if isinstance(result, dict) else result[0]
                assert type(result) is np.ndarray
                assert np.array_equal(result, x)
        assert np.array_equal(np.ravel(weighted_mean(odd)), x.mean(axis=0))


def test_a_data_frame_is_no_sequence_of_updates() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(np.arange(6.0).reshape(2, 3))  # frame[0] is a column
    acc = MeanAccumulator(np.zeros(3))
    for call in (lambda: weighted_mean(frame), lambda: median(frame), lambda: acc.add_many(frame)):
        with pytest.raises(TypeError, match="updates: expected a sequence of updates or a numpy array, got DataFrame"):
            call()
    with pytest.raises(TypeError, match="updates: expected a sequence of updates, got generator"):
        acc.add_many(row for row in frame.to_numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got memoryview"):
        weighted_mean(memoryview(np.zeros((2, 3))))  # type: ignore[arg-type]
    assert weighted_mean([frame, frame]).tolist() == frame.to_numpy().tolist()
