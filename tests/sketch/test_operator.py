"""SketchOperator: entries, values, bits, layouts, descriptor, errors."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.backends import streams
from edgefast.sketch import SketchOperator, _kinds, johnson_lindenstrauss_min_dim

KINDS = ("sparse_stack", "countsketch", "srht", "rademacher", "sparse", "rotation")  # gaussian: test_dense.py
PLUS_MINUS_ONE = ("sparse_stack", "countsketch", "srht", "rademacher")
NUMBERS = {"countsketch": 1, "sparse_stack": 2, "rademacher": 3, "srht": 5, "rotation": 6, "sparse": 7}
SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)
DTYPES = (np.float32, np.float64)

# Random123's known answers for philox4x64-10: counter, key, output.
ONES = 0xFFFFFFFFFFFFFFFF
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    ((ONES,) * 4, (ONES,) * 2, (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0)),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def data(n: int, d: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def make(kind: str, d: int, k: int, **kwargs: Any) -> SketchOperator:
    """An operator of any kind; a rotation keeps its d."""
    return SketchOperator(kind, d, d if kind == "rotation" else k, **kwargs)


def operators(d: int, k: int, seed: int = 3) -> list[SketchOperator]:
    ops = [SketchOperator("sparse_stack", d, k, seed=seed, nnz=nnz) for nnz in (1, 4, 8, 11)]
    ops.append(SketchOperator("countsketch", d, k, seed=seed))
    ops.append(SketchOperator("rademacher", d, k, seed=seed))
    ops.extend(SketchOperator("sparse", d, k, seed=seed, density=density) for density in (1, 1 / 3, "auto"))
    if k <= 1 << (d - 1).bit_length():
        ops.append(SketchOperator("srht", d, k, seed=seed))
    return ops


def reference(op: SketchOperator, X: np.ndarray) -> np.ndarray:
    """The promised bits, one addition at a time: +-x summed from +0 in ascending order of features, then scaled."""
    k = op.n_components
    if op.kind == "rotation":
        return rotated(X, _kinds.rotation_signs_of(op))
    if op.kind == "srht":
        n = 1 << (op.n_features - 1).bit_length()
        signs, index = _kinds.KINDS["srht"].integers(op)
        bits = (signs[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        work = np.zeros((len(X), n), X.dtype)
        work[:, : op.n_features] = np.where(bits.ravel()[: op.n_features] == 1, -X, X)
        h = 1
        while h < n:
            i = np.arange(n)[np.arange(n) & h == 0]
            a, b = work[:, i], work[:, i + h]
            work[:, i], work[:, i + h] = a + b, a - b
            h *= 2
        acc = work[:, index]
    else:
        matrix = np.sign(op.toarray()).astype(X.dtype)
        acc = np.zeros((len(X), k), X.dtype)
        for j in range(op.n_features):
            hit = matrix[:, j] != 0
            acc[:, hit] += X[:, j, None] * matrix[hit, j]
    return np.ascontiguousarray(acc * X.dtype.type(op.scale))


def rotated(X: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The steps of a rotation, spelt out."""
    d, real = X.shape[1], X.dtype.type
    n = 1 << (d.bit_length() - 1)
    bits = ((signs[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).reshape(len(signs), -1)[:, :d]
    Y = X.copy()
    for step, negative in enumerate(bits):
        Y[:, negative == 1] *= -1
        if n < d and step % 2 == 0:
            for i in range(d // 2):
                a, b = Y[:, i].copy(), Y[:, d - d // 2 + i].copy()
                Y[:, i], Y[:, d - d // 2 + i] = (a + b) * real(math.sqrt(0.5)), (a - b) * real(math.sqrt(0.5))
        offset = d - n if step % 2 else 0
        h = 1
        while h < n:
            i = offset + np.arange(n)[np.arange(n) & h == 0]
            a, b = Y[:, i], Y[:, i + h]
            Y[:, i], Y[:, i + h] = a + b, a - b
            h *= 2
        Y[:, offset : offset + n] *= real(1 / math.sqrt(n))
    return Y


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(backend: str, counter: Any, key: Any, words: Any) -> None:
    out = np.empty((1, 4), np.uint64)
    backends.kernels().philox_words(*key, *counter, out)
    assert tuple(map(int, out[0])) == words


def test_philox_counter_carries(backend: str) -> None:
    out = np.empty((3, 4), np.uint64)
    backends.kernels().philox_words(1, 2, ONES - 1, ONES, 5, 6, out)
    one = np.empty((1, 4), np.uint64)
    for i, counter in enumerate([(ONES - 1, ONES, 5, 6), (ONES, ONES, 5, 6), (0, 0, 6, 6)]):
        backends.kernels().philox_words(1, 2, *counter, one)
        np.testing.assert_array_equal(out[i], one[0])


def test_sparse_stack_golden_entries(backend: str) -> None:
    out = np.empty((1, 8), np.uint32)
    backends.kernels().stack_table(7, 1000, 0, out)
    assert (out[0] & 0x7FFFFFFF).tolist() == [0, 170, 364, 424, 614, 730, 816, 959]
    assert (out[0] >> 31).tolist() == [1, 0, 0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(("k", "nnz"), [(1, 1), (7, 3), (64, 8), (1000, 8), (97, 11), (300, 255)])
def test_table_is_random_access_and_equal_everywhere(backend: str, k: int, nnz: int) -> None:
    whole = streams.stack_table(9, k, nnz, 0, 50)
    for first, count in ((0, 50), (13, 7), (49, 1)):
        out = np.empty((count, nnz), np.uint32)
        backends.kernels().stack_table(9, k, first, out)
        np.testing.assert_array_equal(out, whole[first : first + count])
    far = np.empty((2, nnz), np.uint32)
    backends.kernels().stack_table(9, k, 2**40, far)
    np.testing.assert_array_equal(far, streams.stack_table(9, k, nnz, 2**40, 2))


@pytest.mark.parametrize("k", [1, 7, 64, 1000, 2**31 - 1])
def test_countsketch_table_is_random_access_and_equal_everywhere(backend: str, k: int) -> None:
    whole = streams.countsketch_table(9, k, 0, 50)
    assert int((whole & np.uint32(0x7FFFFFFF)).max()) < k
    for first, count in ((0, 50), (13, 7), (49, 1), (8, 8), (7, 0)):
        out = np.empty((count, 1), np.uint32)
        backends.kernels().countsketch_table(9, k, first, out)
        np.testing.assert_array_equal(out, whole[first : first + count])
    far = np.empty((11, 1), np.uint32)
    backends.kernels().countsketch_table(9, k, 2**61 - 3, far)
    np.testing.assert_array_equal(far, streams.countsketch_table(9, k, 2**61 - 3, 11))


@pytest.mark.parametrize(("d", "k", "code"), [(50, 1, 3), (50, 64, 1), (50, 97, 3), (50, 300, 255), (10**6, 200, 0)])
def test_sparse_table_is_random_access_and_equal_everywhere(backend: str, d: int, k: int, code: int) -> None:
    thresholds = streams.sparse_thresholds(streams.sparse_probability(code, d), k)
    starts, entries = streams.sparse_entries(9, k, thresholds, 0, 50)
    for first, count in ((0, 50), (13, 7), (49, 1), (5, 0)):
        got = np.empty(count + 1, np.int64)
        backends.kernels().sparse_starts(9, k, thresholds, first, got)
        np.testing.assert_array_equal(got, starts[first : first + count + 1] - starts[first])
        packed = np.empty(int(got[-1]), np.uint32)
        backends.kernels().sparse_table(9, k, thresholds, first, got, packed)
        np.testing.assert_array_equal(packed, entries[starts[first] : starts[first + count]])
    for j in range(50):
        buckets = entries[starts[j] : starts[j + 1]] & np.uint32(0x7FFFFFFF)
        assert np.all(np.diff(buckets.astype(np.int64)) > 0)
        assert np.all(buckets < k)


# SHA-256 of toarray()'s signs as int8; these may never change.
GOLDEN = {
    ("sparse_stack", 1000, 64, 7, 8): "d408c84b5078524abdbb01f2f7b85fa49025b2329f2675145152809ef5ab6500",
    ("sparse_stack", 300, 50, 2**64 - 1, 11): "1760760a8296c77d039642c1b66a5382bcc1dbe49465d4fdf506779babed0711",
    ("srht", 1000, 64, 7, 8): "e4d1d8894086bfa8a25799b59a78d594b7cea9b48cb981a04a856fb297d83828",
    ("rademacher", 1000, 300, 7, 8): "8ac139cd38ae292667dfe9d23a776f91e0c264ad66e7a3b748a8ec2f73617c2f",
    ("countsketch", 1000, 64, 7, 8): "6a7c637b2da37fcba9500eda62f567cddf0571528f79d5a6d066394e8c1ea7f7",
    ("sparse", 1000, 64, 7, 3): "482f5aa610ed6746e70173b22812948ee6a74f304b53f494378f8e4476a70850",
    ("sparse", 1000, 64, 2**64 - 1, "auto"): "aa95dacb6f11599fe3ec4f643a905ef8d9c80843464f3be6272a629f48078396",
}
# SHA-256 of all sign words of a rotation, little-endian, and of its matrix, float64.
GOLDEN_ROTATION = {
    (256, 7): (
        "18b7e95abcf068bdc15df8a8d4a4f8ec3bf249e1a8a1301363b6f7b5493f023f",
        "fc4f6cf897e6abe353123a9f315a91801c0673d29f19426a6b5fc4bc9bc97436",
    ),
    (100, 2**64 - 1): (
        "a91b53b370411971293cb52ed90dcf0d72dcb34953188ba9da6f4a20a91ec4ca",
        "960e2f51f013cb66b4f65b9011b694ab41e01a89599e0fbe8898e52e4b9f1a92",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_operators(case: Any) -> None:
    kind, d, k, seed, nnz = case
    extra = {"density": nnz if nnz == "auto" else 1 / nnz} if kind == "sparse" else {"nnz": nnz}
    signs = np.sign(SketchOperator(kind, d, k, seed=seed, **extra).toarray()).astype(np.int8)
    assert hashlib.sha256(signs.tobytes()).hexdigest() == GOLDEN[case]


@pytest.mark.parametrize("case", GOLDEN_ROTATION)
def test_golden_rotations(case: Any) -> None:
    d, seed = case
    words = streams.rotation_signs(seed, d).astype("<u8")
    matrix = SketchOperator("rotation", d, d, seed=seed).toarray().astype("<f8")
    assert tuple(hashlib.sha256(a.tobytes()).hexdigest() for a in (words, matrix)) == GOLDEN_ROTATION[case]


# SHA-256 of the float32 and float64 output for the input below, the same on every backend.
GOLDEN_OUTPUT = {
    ("sparse_stack", "float32"): "cda557a1888a2fd771a4d026f17a4af19b2028496c540aa42deae9b43bde7aad",
    ("sparse_stack", "float64"): "3cb4fe37b756dd807529aad6272aabf42a34ac53bdf19220b24b0152e8891626",
    ("srht", "float32"): "370e45ffb4f33a39cb5804c42b5d43318dd1f225d046c4faff6febaf8f9ab13b",
    ("srht", "float64"): "40b9e758fe624b76219918d6f5894faadcd7b7dd26b1ef58b9650e616974548e",
    ("countsketch", "float32"): "68f74bf603b946ba5759ad4f679966a1037566ff1cb9fed40cd3d4332b74ed88",
    ("countsketch", "float64"): "8d8360fabaf6c8c70c6b4ca9c2b67f2bb0bfb0dc7ddcee69efd78444aff59e7a",
    ("sparse", "float32"): "359e7858e077cfe0f320b91d8f07e5dba1f7b85804423dd52c3c798690f2cfb3",
    ("sparse", "float64"): "cac3b31a4f2df8e46f7a5d47d3d2e18acb2a4cbe2e896c6ea0b6eb7108d27765",
    ("rotation", "float32"): "c4a32ba21c1dabac8b21f8251b17069fb2fb3725a80af7b8b11ee35946c3cd4a",
    ("rotation", "float64"): "3090bdd0ecc5ed07941cf78a12663c411542fdbf3ac4c4356723512b5b59b82f",
}


@pytest.mark.parametrize(("kind", "dtype"), GOLDEN_OUTPUT)
def test_golden_output_bytes(backend: str, kind: str, dtype: str) -> None:
    # Integer arithmetic makes the input the same everywhere.
    X = ((np.arange(70 * 1000) * 7919 % 10007).reshape(70, 1000) / 997 - 5).astype(dtype)
    Y = make(kind, 1000, 64, seed=7).transform(X)
    assert hashlib.sha256(Y.tobytes()).hexdigest() == GOLDEN_OUTPUT[kind, dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_values_and_bits(backend: str, d: int, dtype: Any) -> None:
    X = data(19, d, dtype)
    for k in (1, 8, 33, 65):
        for op in operators(d, k):
            Y = op.transform(X)
            assert Y.shape == (19, k)
            assert Y.dtype == dtype
            assert Y.flags.c_contiguous
            if op.kind == "rademacher" and backend == "numpy":
                bound = 2 * d * np.finfo(dtype).eps * op.scale * np.abs(X).sum(axis=1, dtype=np.float64)
                assert np.all(np.abs(Y - X.astype(np.float64) @ op.toarray().T) <= bound[:, None])
            else:
                np.testing.assert_array_equal(Y.view(np.uint8), reference(op, X).view(np.uint8), err_msg=repr(op))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "d", "k"), [(64, 700, 24), (130, 257, 256), (65, 1030, 5), (33, 64, 2000), (3, 5000, 40)]
)
def test_larger_batches(backend: str, n: int, d: int, k: int, dtype: Any) -> None:
    X = data(n, d, dtype)
    for op in operators(d, k):
        Y = op.transform(X)
        if op.kind != "rademacher" or backend != "numpy":
            np.testing.assert_array_equal(Y.view(np.uint8), reference(op, X).view(np.uint8), err_msg=repr(op))
        expected = X.astype(np.float64) @ op.toarray().T
        bound = 2 * d * np.finfo(dtype).eps * op.scale * np.abs(X).sum(axis=1, dtype=np.float64)
        assert np.all(np.abs(Y - expected) <= bound[:, None])


def test_features_in_chunks_give_the_same_bytes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator too large to hold is applied a few features at a time; where the cuts are shows nowhere."""
    for op in operators(300, 48, seed=4):
        for n, entries in ((1, 1), (2, 37), (20, 333), (300, 1111)):
            X = data(n, 300)
            expected = op.transform(X)
            for limit in (entries, 2 * entries):
                monkeypatch.setattr(_kinds, "_CHUNK_ENTRIES", limit)
                monkeypatch.setattr(_kinds.cache, "_newest", (None, ()))
                np.testing.assert_array_equal(op.transform(X), expected)
                monkeypatch.undo()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(backend: str, kind: str, dtype: Any) -> None:
    d, k, n = 97, 24, 37
    op = make(kind, d, k, seed=1)
    X = data(n, d, dtype)
    expected = op.transform(X)
    wide = np.zeros((2 * n, 3 * d), dtype)
    wide[::2, 1::3] = X
    raw = np.zeros(X.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(n, d)
    unaligned[...] = X
    readonly = X.copy()
    readonly.flags.writeable = False
    layouts = {
        "F": np.asfortranarray(X),
        "strided": wide[::2, 1::3],
        "reversed": X[::-1, ::-1].copy()[::-1, ::-1],
        "unaligned": unaligned,
        "readonly": readonly,
        "rows apart": np.hstack([X, X])[:, :d],
    }
    exact = kind != "rademacher" or backend != "numpy"
    for name, layout in layouts.items():
        before = layout.tobytes()
        got = op.transform(layout)
        if exact:
            assert got.tobytes() == expected.tobytes(), name
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert layout.tobytes() == before
    repeated = np.broadcast_to(X[3], (n, d))
    np.testing.assert_allclose(op.transform(repeated), np.tile(expected[3], (n, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_where_rows_begin_in_a_cache_line_does_not_change_bits(backend: str, dtype: Any) -> None:
    # Rows a whole number of cache lines apart, enough of them for a plan; every place of the first byte.
    n, d, k = 259, 400, 24
    X = np.random.default_rng(3).standard_normal((n, d)).astype(dtype)
    raw = np.empty(X.nbytes + 128, np.uint8)
    skip = -raw.ctypes.data % 64
    for kind, nnz in (("sparse_stack", 8), ("sparse_stack", 4), ("countsketch", 1)):
        op = SketchOperator(kind, d, k, seed=2, nnz=nnz)
        expected = op.transform(X)
        np.testing.assert_allclose(expected, X @ op.toarray().T, rtol=1e-4, atol=1e-4)
        for first in (0, 1, 2, 4, 8, 16, 32, 48, 60, 63):
            moved = raw[skip + first :][: X.nbytes].view(dtype).reshape(n, d)
            moved[...] = X
            assert moved.ctypes.data % 64 == first
            assert op.transform(moved).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(backend: str, kind: str) -> None:
    op = make(kind, 40, 12, seed=1)
    X = data(3, 40)
    assert op.transform(X[:0]).shape == (0, op.n_components)
    one = op.transform(X[0])
    assert one.shape == (op.n_components,)
    np.testing.assert_allclose(one, op.transform(X)[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(op.transform(X[:1])[0], one)


@pytest.mark.parametrize("kind", KINDS)
def test_out(backend: str, kind: str) -> None:
    op = make(kind, 40, 12, seed=1)
    X = data(5, 40)
    expected = op.transform(X)
    k = op.n_components
    for out in (
        np.empty((5, k), np.float32),
        np.empty((5, k), np.float32, order="F"),
        np.empty((10, 3 * k), np.float32)[::2, ::3],
        np.empty(5 * k * 4 + 1, np.uint8)[1:].view(np.float32).reshape(5, k),
    ):
        assert op.transform(X, out=out) is out
        np.testing.assert_array_equal(out, expected)
    vector = np.empty(k, np.float32)
    assert op.transform(X[0], out=vector) is vector
    np.testing.assert_array_equal(vector, op.transform(X[0]))
    # Interleaved with X but sharing no element: allowed.
    both = np.zeros((5, 40 + k), np.float32)
    both[:, :40] = X
    op.transform(both[:, :40], out=both[:, 40:])
    np.testing.assert_array_equal(both[:, 40:], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_batching_never_change_bits(backend: str, kind: str) -> None:
    op = make(kind, 600, 64, seed=2)
    X = data(700, 600)
    whole = op.transform(X, num_threads=1)
    for threads in (2, 3, 8):
        assert op.transform(X, num_threads=threads).tobytes() == whole.tobytes()
    if kind == "rademacher" and backend == "numpy":
        return
    for cut in (1, 2, 63, 64, 65, 333):
        pieces = np.concatenate([op.transform(X[:cut]), op.transform(X[cut:])])
        assert pieces.tobytes() == whole.tobytes(), cut


@pytest.mark.parametrize("kind", KINDS)
def test_rademacher_and_others_agree_between_native_and_numba(kind: str) -> None:
    missing = {"native", "numba"} - set(ef.available_backends())
    if missing:
        pytest.skip(f"missing {missing}")
    op = make(kind, 300, 270, seed=8)
    X = data(21, 300)
    with ef.using("native"):
        native = op.transform(X)
    with ef.using("numba"):
        assert op.transform(X).tobytes() == native.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 5, 70])
def test_nan_and_infinity(backend: str, kind: str, dtype: Any, n: int) -> None:
    op = make(kind, 50, 16, seed=6)
    X = data(n, 50, dtype)
    X[0, 3] = np.nan
    X[-1, 7] = np.inf
    X[n // 2, 9] = -np.inf
    X[n // 2, 10] = np.finfo(dtype).max
    with np.errstate(all="ignore"):
        hit = (np.where(np.isfinite(X), 0, 1) @ (op.toarray() != 0).T) > 0
    Y = op.transform(X)
    if n > 1:
        np.testing.assert_array_equal(np.isnan(Y[0]), hit[0])
        if kind != "rotation":  # there two steps can meet in inf - inf
            assert np.all(np.isinf(Y[-1]) == hit[-1])
    # Every NaN is the same one.
    bits = Y.view(np.uint32 if dtype == np.float32 else np.uint64)[np.isnan(Y)]
    quiet = np.array(np.nan, dtype).view(bits.dtype)
    assert np.all(bits == quiet)
    if kind != "rademacher" or backend != "numpy":
        with np.errstate(all="ignore"):
            ref = reference(op, X)
        ref[np.isnan(ref)] = np.nan
        if kind != "rademacher":
            np.testing.assert_array_equal(Y, ref)


def test_signed_zero_and_denormals(backend: str) -> None:
    for kind in ("sparse_stack", "countsketch", "srht", "sparse", "rotation"):
        op = make(kind, 33, 8, seed=6)
        for value in (-0.0, 1e-42, -1e-45):
            X = np.full((20, 33), value, np.float32)
            np.testing.assert_array_equal(op.transform(X).view(np.uint32), reference(op, X).view(np.uint32))


@given(
    kind=st.sampled_from(["sparse_stack", "countsketch", "srht", "sparse", "rotation"]),
    d=st.integers(1, 200),
    k=st.integers(1, 80),
    n=st.integers(1, 90),
    nnz=st.integers(1, 20),
    seed=st.integers(0, 2**64 - 1),
    single=st.booleans(),
)
def test_every_backend_gives_the_same_bytes(
    kind: str, d: int, k: int, n: int, nnz: int, seed: int, single: bool
) -> None:
    if kind == "srht":
        k = min(k, 1 << (d - 1).bit_length())
    op = make(kind, d, k, seed=seed, nnz=nnz, density=1 / nnz if nnz < 20 else "auto")
    X = data(n, d, np.float32 if single else np.float64, seed % 1000)
    with ef.using("numpy"):
        expected = op.transform(X)
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            assert op.transform(X).tobytes() == expected.tobytes()
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            assert op.transform(X).tobytes() == expected.tobytes()


@given(
    kind=st.sampled_from(KINDS), d=st.integers(1, 100), k=st.integers(1, 40), a=st.integers(-9, 9), b=st.integers(-9, 9)
)
def test_linear(kind: str, d: int, k: int, a: int, b: int) -> None:
    k = min(k, d)
    op = make(kind, d, k, seed=5)
    X, Z = (np.rint(9 * data(4, d, np.float64, s)) for s in (1, 2))
    # Integer data: every sum is exact, so only the scaling rounds.
    np.testing.assert_allclose(
        op.transform(a * X + b * Z), a * op.transform(X) + b * op.transform(Z), rtol=1e-12, atol=1e-9
    )


@pytest.mark.parametrize("kind", PLUS_MINUS_ONE)
def test_toarray_structure(kind: str) -> None:
    op = make(kind, 50, 20, seed=3)
    matrix = op.toarray()
    assert matrix.shape == (20, 50)
    assert matrix.dtype == np.float64
    assert set(np.unique(np.abs(matrix))) <= {0.0, op.scale}
    assert np.all(np.count_nonzero(matrix, axis=0) == op.nnz)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=0), 1)


def test_srht_rows_are_distinct_and_can_be_all() -> None:
    op = SketchOperator("srht", 60, 64, seed=3)
    matrix = op.toarray()
    assert np.linalg.matrix_rank(matrix) == 60
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(60), atol=1e-12)
    for seed in range(50):
        index = streams.srht_index(seed, 30, 64)
        assert len(set(index.tolist())) == 30
        assert index.min() >= 0
        assert index.max() < 64
    counts = np.bincount(np.concatenate([streams.srht_index(s, 8, 32) for s in range(2000)]), minlength=32)
    # 31 degrees of freedom, without replacement: the statistic stays below 61 with probability 0.999.
    assert ((counts - 500) ** 2 / 500).sum() < 61


@pytest.mark.parametrize("nnz", [0, 1, 8])  # 0: countsketch
def test_buckets_and_signs_are_uniform(nnz: int) -> None:
    table = streams.stack_table(11, 64, nnz, 0, 64000) if nnz else streams.countsketch_table(11, 64, 0, 64000)
    counts = np.bincount((table & 0x7FFFFFFF).ravel(), minlength=64)
    expected = table.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 103  # chi-square, 63 degrees of freedom, p = 0.001
    assert abs((table >> 31).mean() - 0.5) < 4 * 0.5 / math.sqrt(table.size)
    # Bucket and sign are independent.
    negative = np.bincount((table & 0x7FFFFFFF).ravel(), weights=(table >> 31).ravel(), minlength=64)
    assert (4 * (negative - counts / 2) ** 2 / counts).sum() < 104  # 64 degrees of freedom


@pytest.mark.parametrize("density", [1, 1 / 3, 1 / 20, "auto"])
def test_sparse_entries_are_independent(density: Any) -> None:
    """Number of entries, their spread over the outputs and over the features, and their signs."""
    d, k = 6400, 64
    op = SketchOperator("sparse", d, k, seed=5, density=density)
    p = op.density
    assert p == pytest.approx(1 / 80 if density == "auto" else density)
    hit = op.toarray() != 0
    assert abs(hit.mean() - p) <= 4 * math.sqrt(p * (1 - p) / hit.size)
    if p < 1:
        rows = (hit.sum(axis=1) - d * p) ** 2 / (d * p * (1 - p))
        assert rows.sum() < 105  # 64 degrees of freedom, p = 0.001
        # Entries of a feature: binomial, so mean and variance over the features are k p and k p (1 - p).
        columns = hit.sum(axis=0)
        variance = k * p * (1 - p)
        assert abs(columns.mean() - k * p) < 4 * math.sqrt(variance / d)
        assert abs(columns.var() / variance - 1) < 5 * math.sqrt((2 + 1 / variance) / d)
        # Neighbours are independent: both hit with probability p^2.
        assert abs((hit[1:] & hit[:-1]).mean() - p * p) < 5 * p / math.sqrt(hit.size)
    signs = np.sign(op.toarray()[hit])
    assert abs(signs.mean()) < 4 / math.sqrt(signs.size)


def test_sparse_skips_features_as_documented() -> None:
    """The reason it is for comparison only: a feature is unused with probability (1 - 1 / sqrt(d)) ** k."""
    d, k = 10_000, 64
    unused = np.mean(~np.any(SketchOperator("sparse", d, k, density="auto").toarray(), axis=0))
    expected = (1 - 0.01) ** k
    assert abs(unused - expected) < 4 * math.sqrt(expected / d)
    assert SketchOperator("sparse", 100, 10, density=1).nnz == 10


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rotation"])
def test_distortion_is_what_theory_says(kind: str) -> None:
    """Var of |Sx|^2 / |x|^2: (2/k)(1 - sum x^4), for srht times (n - k) / (n - 1), for sparse (2 + (s-3) sum x^4)/k."""
    d, k, seeds, s = 128, 32, 1500, 7
    x = data(1, d, np.float64)[0]
    x /= np.linalg.norm(x)
    norms = np.array([np.sum(make(kind, d, k, seed=i, density=1 / s).transform(x) ** 2) for i in range(seeds)])
    x4 = np.sum(x**4)
    variance = (2 + (s - 3) * x4) / k if kind == "sparse" else 2 / k * (1 - x4)
    if kind == "srht":
        variance *= (d - k) / (d - 1)
    assert abs(norms.mean() - 1) < 4.5 * math.sqrt(variance / seeds)
    # The sample variance of a nearly chi-square-like statistic: its relative error is about sqrt((kurtosis - 1) / n).
    assert abs(norms.var() / variance - 1) < 5 * math.sqrt(3 / seeds)


@pytest.mark.parametrize("kind", ["sparse_stack", "srht", "rademacher", "gaussian", "sparse"])
def test_subspace_distortion(kind: str) -> None:
    """Singular values of S on a subspace of dimension r lie near 1 +- sqrt(r / k), spiky subspaces included."""
    d, k, r = 1000, 400, 16
    bases = [np.linalg.qr(data(d, r, np.float64))[0], np.eye(d)[:, :r]]
    for basis in bases[: 1 if kind == "sparse" else 2]:
        for seed in range(3):
            values = np.linalg.svd(SketchOperator(kind, d, k, seed=seed).toarray() @ basis, compute_uv=False)
            assert values.max() < 1 + 1.5 * math.sqrt(r / k)
            assert values.min() > 1 - 1.5 * math.sqrt(r / k)


def test_every_feature_is_used() -> None:
    op = SketchOperator("sparse_stack", 10_000, 64, seed=0)
    assert np.all(np.count_nonzero(op.toarray(), axis=0) == 8)


# --- descriptor -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips(kind: str) -> None:
    k = 1000 if kind == "rotation" else 64
    op = SketchOperator(kind, 1000, k, seed=2**64 - 1, nnz=5, density=1 / 7)
    raw = op.to_bytes()
    assert len(raw) == 24
    assert raw[0] == 1
    assert raw[1] == NUMBERS[kind]
    assert raw[2] == {"sparse_stack": 5, "sparse": 7}.get(kind, 0)
    assert raw[3] == 0
    assert int.from_bytes(raw[4:8], "little") == k
    assert int.from_bytes(raw[8:16], "little") == 1000
    assert int.from_bytes(raw[16:], "little") == 2**64 - 1
    for same in (
        SketchOperator.from_bytes(raw),
        SketchOperator.from_bytes(bytearray(raw)),
        SketchOperator.from_bytes(memoryview(raw)),
        copy.copy(op),
        copy.deepcopy(op),
        *(pickle.loads(pickle.dumps(op, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
        eval(repr(op), {"SketchOperator": SketchOperator}),
    ):
        assert same == op
        assert hash(same) == hash(op)
        assert same.fingerprint == op.fingerprint
    assert len(pickle.dumps(op)) < 150
    assert op != make(kind, 1000, 64, seed=1, nnz=5)
    assert op != raw
    digest = hashlib.sha256(raw).digest()
    assert op.fingerprint == int.from_bytes(digest[:8], "little")


def test_properties() -> None:
    op = SketchOperator("sparse_stack", np.int64(100), np.uint8(4), seed=np.uint64(9), nnz=8)
    assert (op.kind, op.n_features, op.n_components, op.seed, op.nnz) == ("sparse_stack", 100, 4, 9, 4)
    assert op.scale == 0.5
    assert repr(op) == "SketchOperator('sparse_stack', n_features=100, n_components=4, seed=9, nnz=4)"
    assert SketchOperator("srht", 100, 16).scale == 0.25
    assert SketchOperator("srht", 100, 16, nnz=3) == SketchOperator("srht", 100, 16)
    for name in ("seed", "_seed", "new"):
        with pytest.raises(AttributeError, match=r"immutable|has no setter|can't set"):
            setattr(op, name, 1)
    with pytest.raises(AttributeError):
        del op._seed


def test_hostile_descriptors() -> None:
    """Random and mutated bytes give an operator that round-trips, or ValueError; nothing else."""
    rng = random.Random(0)
    good = SketchOperator("sparse_stack", 1000, 64, seed=7).to_bytes()
    for _ in range(3000):
        raw = bytearray(good if rng.random() < 0.7 else rng.randbytes(24))
        for _ in range(rng.randrange(4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        if rng.random() < 0.1:
            del raw[rng.randrange(24) :]
        op = None
        with contextlib.suppress(ValueError):
            op = SketchOperator.from_bytes(raw)
        if op is not None:
            assert op.to_bytes() == bytes(raw)


def changed(index: int, value: int) -> bytes:
    raw = bytearray(SketchOperator("sparse_stack", 1000, 64, seed=7).to_bytes())
    raw[index] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        ("text", TypeError, "data: expected bytes, got str"),
        (None, TypeError, "data: expected bytes, got NoneType"),
        (b"", ValueError, "data: expected 24 bytes, got 0"),
        (bytes(25), ValueError, "data: expected 24 bytes, got 25"),
        (changed(0, 2), ValueError, "data: expected descriptor version 1, got 2"),
        (
            changed(1, 8),
            ValueError,
            "data: expected kind 2 (sparse_stack), 1 (countsketch), 5 (srht), 3 (rademacher), ",
        ),
        (changed(1, 0), ValueError, "4 (gaussian), 7 (sparse), 6 (rotation), got 0"),
        (changed(1, 6), ValueError, "n_components: expected n_features (1000) for 'rotation', got 64"),
        (changed(2, 0), ValueError, "nnz: expected an integer from 1 to 255, got 0"),
        (changed(2, 65), ValueError, "data: expected 64 as the third byte of this operator, got 65"),
        (changed(3, 1), ValueError, "data: expected flags 0, got 1"),
        (changed(7, 255), ValueError, "n_components: expected an integer from 1 to 2147483647"),
        (changed(15, 255), ValueError, "n_features: expected an integer from 1 to"),
        (changed(1, 3), ValueError, "data: expected 0 as the third byte of this operator, got 8"),
    ],
)
def test_bad_descriptors(raw: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SketchOperator.from_bytes(raw)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (("gauss", 10, 2), {}, ValueError, "kind: expected one of 'sparse_stack', 'countsketch', "),
        (("SRHT", 10, 2), {}, ValueError, "'sparse', 'rotation', got 'SRHT'"),
        (("rotation", 10, 9), {}, ValueError, "n_components: expected n_features (10) for 'rotation', got 9"),
        (("sparse", 10, 2), {"density": 0.3}, ValueError, "density: expected 'auto' or 1/s with an integer s from 1"),
        (("sparse", 10, 2), {"density": 0.0}, ValueError, "density: expected 'auto' or 1/s"),
        (("sparse", 10, 2), {"density": -1}, ValueError, "density: expected 'auto' or 1/s"),
        (("sparse", 10, 2), {"density": 1 / 256}, ValueError, "density: expected 'auto' or 1/s"),
        (("sparse", 10, 2), {"density": float("nan")}, ValueError, "density: expected 'auto' or 1/s"),
        (("sparse", 10, 2), {"density": "third"}, TypeError, "density: expected 'auto' or a float, got str"),
        (("sparse", 10, 2), {"density": True}, TypeError, "density: expected 'auto' or a float, got bool"),
        (("sparse", 10, 2), {"density": None}, TypeError, "density: expected 'auto' or a float, got NoneType"),
        ((3, 10, 2), {}, TypeError, "kind: expected a string, got int"),
        (("srht", 0, 1), {}, ValueError, "n_features: expected an integer from 1 to"),
        (("srht", 10.0, 1), {}, TypeError, "n_features: expected an integer, got float"),
        (("srht", 10, 0), {}, ValueError, "n_components: expected an integer from 1 to 2147483647, got 0"),
        (("srht", 10, True), {}, TypeError, "n_components: expected an integer, got bool"),
        (("srht", 10, 17), {}, ValueError, "n_components: expected at most 16 for 'srht' (n_features=10"),
        (("sparse_stack", 10, 2**31), {}, ValueError, "n_components: expected an integer from 1 to 2147483647"),
        (("sparse_stack", 2**63, 2), {}, ValueError, "n_features: expected an integer from 1 to"),
        (("sparse_stack", 10, 2), {"seed": -1}, ValueError, "seed: expected an integer from 0 to"),
        (("sparse_stack", 10, 2), {"seed": 2**64}, ValueError, "seed: expected an integer from 0 to"),
        (("sparse_stack", 10, 2), {"seed": "1"}, TypeError, "seed: expected an integer, got str"),
        (("sparse_stack", 10, 2), {"nnz": 0}, ValueError, "nnz: expected an integer from 1 to 255, got 0"),
        (("sparse_stack", 10, 2), {"nnz": 256}, ValueError, "nnz: expected an integer from 1 to 255, got 256"),
    ],
)
def test_bad_operators(args: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SketchOperator(*args, **kwargs)
    assert message in str(caught.value)


BAD_X = np.zeros((4, 10), np.float32)


@pytest.mark.parametrize(
    ("X", "kwargs", "error", "message"),
    [
        (np.ma.zeros((4, 10)), {}, TypeError, "X: masked arrays are not supported"),
        (np.zeros((4, 9)), {}, ValueError, "X: expected shape (n, 10) or (10,), got (4, 9)"),
        (np.zeros(9), {}, ValueError, "X: expected shape (n, 10) or (10,), got (9,)"),
        (np.zeros((1, 4, 10)), {}, ValueError, "X: expected shape (n, 10) or (10,), got (1, 4, 10)"),
        (np.array(1.0), {}, ValueError, "X: expected shape (n, 10) or (10,), got ()"),
        (BAD_X, {"out": []}, TypeError, "out: expected an array of float32, got list"),
        (BAD_X, {"out": np.zeros((4, 4), np.float32)}, ValueError, "out: expected shape (4, 3), got (4, 4)"),
        (BAD_X, {"out": np.zeros((4, 3))}, ValueError, "out: expected dtype float32, got float64"),
        (BAD_X, {"out": BAD_X[:, :3]}, ValueError, "out: expected memory of its own, got an array that overlaps X"),
        (BAD_X, {"out": np.broadcast_to(np.float32(0), (4, 3))}, ValueError, "out: expected a writeable array"),
        (BAD_X, {"num_threads": 0}, ValueError, "num_threads: expected a positive integer, got 0"),
        (BAD_X, {"num_threads": 1.5}, TypeError, "num_threads: expected a positive integer, got float"),
    ],
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rotation"])
def test_bad_input(backend: str, kind: str, X: Any, kwargs: Any, error: type[Exception], message: str) -> None:
    before = BAD_X.copy()
    with pytest.raises(error) as caught:
        SketchOperator(kind, 10, 3).transform(X, **kwargs)
    assert message in str(caught.value)
    np.testing.assert_array_equal(BAD_X, before)


def test_cache_is_bounded() -> None:
    cache = _kinds._Cache(1000)
    made = []

    def make(i: int) -> Any:
        def inner() -> Any:
            made.append(i)
            return (np.zeros(50),)

        return inner

    for i in (0, 1, 0, 2, 0, 1):  # 400 bytes each: two fit
        cache.get(i, make(i))
        assert cache._bytes <= 1000
    assert made == [0, 1, 2, 1]
    big = cache.get("big", lambda: (np.zeros(1000),))
    assert big[0].size == 1000
    assert cache._bytes <= 1000


def test_min_dim_matches_scikit_learn() -> None:
    assert johnson_lindenstrauss_min_dim(1000, eps=0.1) == 5920
    np.testing.assert_array_equal(johnson_lindenstrauss_min_dim([100, 1000], eps=0.5), [221, 331])
    random_projection = pytest.importorskip("sklearn.random_projection")
    for n in (1, 2, 10, 1e6):
        for eps in (0.01, 0.1, 0.5, 0.999):
            expected = random_projection.johnson_lindenstrauss_min_dim(n, eps=eps)
            assert johnson_lindenstrauss_min_dim(n, eps=eps) == expected
    for n, eps in ((0, 0.1), (10, 0.0), (10, 1.0), (10, math.nan), (-5, 0.5)):
        with pytest.raises(ValueError, match=r"expected (positive )?values"):
            johnson_lindenstrauss_min_dim(n, eps=eps)
