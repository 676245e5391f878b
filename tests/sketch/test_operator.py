"""SketchOperator: golden entries, equal bits on every backend, oracle, distortion, bad input."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.random_projection import GaussianRandomProjection

import edgefast as ef
from edgefast.backends import entries
from edgefast.sketch import IncompatibleSketchError, SketchOperator

KINDS = ["sparse_stack", "srht", "rademacher"]
SIZES = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97]
DTYPES = [np.float32, np.float64]

# SHA-256 of the little-endian int8 signs and int64 buckets of SketchOperator(kind, 1000, 100, seed=7): never changes.
GOLDEN = {
    "sparse_stack": "258e6963d8bcaf111bf878246d1378f7758131163b05cd3e1bf8b03ffcbbbf4f",
    "srht": "a0a5a7ab1b435212efc831a9e44e7bc0eba5995c1710d688b969bbcde1d56239",
    "rademacher": "0a650482cbda423c579798f220d76f8cc88775f7a79088c6f044546849ddb1aa",
}


def data(n: int, d: int, dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def make(kind: str, d: int, k: int, **kw: Any) -> SketchOperator:
    return SketchOperator(kind, d, k, **kw)  # type: ignore[arg-type]


def reference(op: SketchOperator, X: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The contract, term by term: unscaled sums of +-x_j in ascending j, in X's dtype, then one multiply."""
    S = np.rint(op.toarray() / op.scale).astype(np.int8)
    out = np.zeros((len(X), op.n_components), X.dtype)
    if op.kind == "srht":
        padded = 1 << (op.n_features - 1).bit_length()
        work = np.zeros((len(X), padded), X.dtype)
        work[:, : op.n_features] = X * entries.srht_signs(op.seed, 0, op.n_features).astype(X.dtype)
        h = 1
        while h < padded:
            for base in range(0, padded, 2 * h):
                a, b = work[:, base : base + h].copy(), work[:, base + h : base + 2 * h].copy()
                work[:, base : base + h], work[:, base + h : base + 2 * h] = a + b, a - b
            h *= 2
        out = work[:, entries.srht_rows(op.seed, op.n_components, padded)]
    else:
        for j in range(op.n_features):
            hit = S[:, j] != 0
            out[:, hit] += X[:, j, None] * S[hit, j].astype(X.dtype)
    return out * X.dtype.type(op.scale)


# ---- entries ---------------------------------------------------------------------------------------------------


def golden_bytes(kind: str) -> bytes:
    if kind == "sparse_stack":
        buckets, signs = entries.sparse_stack_table(7, 100, 8, 0, 1000)
        return buckets.astype("<i8").tobytes() + signs.tobytes()
    if kind == "srht":
        return entries.srht_rows(7, 100, 1024).astype("<i8").tobytes() + entries.srht_signs(7, 0, 1000).tobytes()
    return entries.rademacher_signs(7, 100, 0, 1000).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_golden_entries(kind: str) -> None:
    assert hashlib.sha256(golden_bytes(kind)).hexdigest() == GOLDEN[kind]


def test_golden_first_column() -> None:
    buckets, signs = entries.sparse_stack_table(7, 1000, 8, 0, 1)
    assert buckets.tolist() == [[0, 170, 364, 424, 614, 730, 816, 959]]
    assert signs.tolist() == [[-1, 1, 1, 1, 1, -1, 1, -1]]


# Random123's published known answers for philox4x64-10: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (0xFFFFFFFFFFFFFFFF,) * 4,
        (0xFFFFFFFFFFFFFFFF,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]) -> None:
    # numpy emits the block after its counter.
    before = (sum(c << (64 * i) for i, c in enumerate(counter)) - 1) % 2**256
    words = np.array([before >> (64 * i) & 0xFFFFFFFFFFFFFFFF for i in range(4)], np.uint64)
    assert tuple(np.random.Philox(key=np.array(key, np.uint64), counter=words).random_raw(4)) == answer
    if "native" in ef.available_backends():
        from edgefast import _native

        assert _native.Kernels("scalar").philox_block(*counter, *key) == answer


@pytest.mark.parametrize("kind", KINDS)
def test_entries_are_random_access_and_match_the_kernels(backend: str, kind: str) -> None:
    op = make(kind, 300, 70, seed=2**64 - 1, nnz=11)
    rows = op.transform(np.eye(300))
    np.testing.assert_array_equal(rows.T, op.toarray())
    if kind == "sparse_stack":
        for a, b in zip(
            entries.sparse_stack_table(9, 70, 11, 100, 300), entries.sparse_stack_table(9, 70, 11, 0, 300), strict=True
        ):
            np.testing.assert_array_equal(a, b[100:])
    elif kind == "rademacher":
        np.testing.assert_array_equal(
            entries.rademacher_signs(9, 600, 5, 9), entries.rademacher_signs(9, 600, 0, 9)[5:]
        )
    else:
        np.testing.assert_array_equal(entries.srht_signs(9, 256, 300), entries.srht_signs(9, 0, 300)[256:])
        np.testing.assert_array_equal(entries.srht_rows(9, 20, 512), entries.srht_rows(9, 300, 512)[:20])


def test_srht_rows_are_distinct_and_cover() -> None:
    assert sorted(entries.srht_rows(3, 64, 64)) == list(range(64))
    counts = np.zeros(16, int)
    for seed in range(400):
        rows = entries.srht_rows(seed, 4, 16)
        assert len(set(rows.tolist())) == 4
        counts[rows] += 1
    # 1600 draws over 16 rows: 100 each, chi-square with 15 degrees of freedom (0.999 quantile 37.7).
    assert ((counts - 100) ** 2 / 100).sum() < 37.7


def test_buckets_are_uniform() -> None:
    buckets, signs = entries.sparse_stack_table(1, 64, 8, 0, 20000)
    counts = np.bincount(buckets.ravel(), minlength=64)
    assert ((counts - 2500) ** 2 / 2500).sum() < 110  # 63 degrees of freedom, 0.9997 quantile
    assert abs(int(signs.sum(dtype=int))) < 4 * np.sqrt(signs.size)


# ---- transform -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_equal_the_reference(backend: str, kind: str, dtype: Any) -> None:
    for n, d in [(s, 40) for s in SIZES] + [(5, s) for s in SIZES if s]:
        for k in (1, 13, min(d, 33)):
            if kind == "srht" and k > d:
                continue
            op = make(kind, d, k, seed=d * 1000 + k, nnz=5)
            X = data(n, d, dtype, seed=n)
            Y = op.transform(X)
            assert Y.dtype == dtype
            assert Y.tobytes() == reference(op, X).tobytes(), (n, d, k)


@pytest.mark.parametrize("kind", KINDS)
def test_wide_input_in_tiles(backend: str, kind: str) -> None:
    # Wider than a table, more outputs than a panel.
    op = make(kind, 70_001 if kind == "sparse_stack" else 5000, 300, seed=3)
    X = data(3, op.n_features, np.float32)
    with ef.using("numpy"):
        expected = op.transform(X)
    np.testing.assert_array_equal(op.transform(X), expected)
    np.testing.assert_array_equal(op.transform(np.vstack([X] * 6))[-3:], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_never_change_bits(backend: str, kind: str) -> None:
    op = make(kind, 50, 20, seed=1)
    X = data(37, 50, np.float32)
    expected = op.transform(X)
    wide = np.zeros((74, 150), np.float32)
    wide[::2, ::3] = X
    readonly = X.copy()
    readonly.flags.writeable = False
    raw = np.empty(X.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(X.shape)
    unaligned[...] = X
    for variant in (np.asfortranarray(X), wide[::2, ::3], X[::-1][::-1], readonly, unaligned, X.T.copy().T):
        np.testing.assert_array_equal(op.transform(variant), expected)
    np.testing.assert_array_equal(op.transform(X[::-1])[::-1], expected)
    np.testing.assert_array_equal(op.transform(X[5]), expected[5])
    np.testing.assert_array_equal(op.transform(X.tolist()).dtype, np.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_out(backend: str, kind: str) -> None:
    op = make(kind, 50, 20)
    X = data(9, 50, np.float64)
    expected = op.transform(X)
    for out in (np.empty((9, 20)), np.empty((20, 9)).T, np.empty((18, 40))[::2, ::2]):
        assert op.transform(X, out=out) is out
        np.testing.assert_array_equal(out, expected)
    vector = np.empty(20)
    assert op.transform(X[0], out=vector) is vector
    np.testing.assert_array_equal(vector, expected[0])


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(0, 60), cut=st.integers(0, 60), threads=st.integers(1, 5), seed=st.integers(0, 2**64 - 1))
def test_batches_and_threads_never_change_bits(
    backend: str, kind: str, n: int, cut: int, threads: int, seed: int
) -> None:
    op = make(kind, 45, 17, seed=seed)
    X = data(n, 45, np.float32, seed=n)
    whole = op.transform(X, num_threads=1)
    parts = [op.transform(X[:cut], num_threads=threads), op.transform(X[cut:], num_threads=threads)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_on_much_work(backend: str, kind: str) -> None:
    op = make(kind, 1024, 128)
    X = data(3000 if backend.startswith("native") else 40, 1024, np.float32)
    one = op.transform(X, num_threads=1)
    for threads in (2, 3, 7):
        assert op.transform(X, num_threads=threads).tobytes() == one.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@given(a=st.integers(-8, 8), seed=st.integers(0, 100))
def test_linear_on_integers(backend: str, kind: str, a: int, seed: int) -> None:
    # Small integers are summed exactly, so linearity holds to the last bit before scaling.
    op = make(kind, 33, 16, seed=seed, nnz=4)
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-99, 99, (2, 4, 33)).astype(np.float64)
    left = np.rint(op.transform(a * x + y) / op.scale)
    np.testing.assert_array_equal(left, np.rint((a * op.transform(x) + op.transform(y)) / op.scale))


@pytest.mark.parametrize("kind", KINDS)
def test_float64_oracle(backend: str, kind: str) -> None:
    op = make(kind, 1000, 60, seed=5)
    X = data(20, 1000, np.float32)
    exact = X.astype(np.float64) @ op.toarray().T
    terms = np.abs(X.astype(np.float64)) @ np.abs(op.toarray().T)
    assert np.all(np.abs(op.transform(X) - exact) <= 1000 * np.finfo(np.float32).eps * terms)


@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_values_spread_like_arithmetic(backend: str, kind: str) -> None:
    op = make(kind, 40, 24, nnz=3)
    X = data(20, 40, np.float32)
    X[3, 7], X[5, 0], X[6, 39] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        Y, expected = op.transform(X), reference(op, X)
    np.testing.assert_array_equal(Y, expected)
    assert np.isfinite(np.delete(Y, [3, 5, 6], axis=0)).all()
    hit = op.toarray()[:, 7] != 0
    assert np.isnan(Y[3, hit]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_kept_in_the_mean(kind: str) -> None:
    # E||Sx||^2 = ||x||^2 with relative variance at most 2/k: over 300 seeds the mean is within 4 sigma.
    x = data(1, 200, np.float64, seed=2)
    k = 32
    ratios = [float((make(kind, 200, k, seed=s).transform(x) ** 2).sum() / (x**2).sum()) for s in range(300)]
    assert abs(np.mean(ratios) - 1) < 4 * np.sqrt(2 / k / 300)
    assert np.var(ratios) < 1.5 * 2 / k


@pytest.mark.parametrize("kind", KINDS)
def test_distortion_is_no_worse_than_gaussian(kind: str) -> None:
    X = data(300, 512, np.float32, seed=4)

    def distortion(project: Any) -> float:
        return float(np.sqrt(np.mean((np.linalg.norm(project(X), axis=1) / np.linalg.norm(X, axis=1) - 1) ** 2)))

    gaussian = np.mean([distortion(GaussianRandomProjection(64, random_state=s).fit_transform) for s in range(8)])
    ours = np.mean([distortion(make(kind, 512, 64, seed=s).transform) for s in range(8)])
    assert ours <= 1.05 * gaussian


def test_every_feature_is_used_and_one_hot_norms_are_exact(backend: str) -> None:
    op = make("sparse_stack", 500, 32, nnz=4)
    norms = np.linalg.norm(op.transform(np.eye(500)), axis=1)
    np.testing.assert_allclose(norms, 1, rtol=1e-12)


# ---- description -----------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(KINDS),
    d=st.integers(1, 2**48),
    k=st.integers(1, 2**31 - 1),
    seed=st.integers(0, 2**64 - 1),
    nnz=st.integers(1, 255),
)
def test_description_round_trip(kind: str, d: int, k: int, seed: int, nnz: int) -> None:
    if kind == "srht" and k > 1 << (d - 1).bit_length():
        return
    op = make(kind, d, k, seed=seed, nnz=nnz)
    blob = op.to_bytes()
    assert len(blob) == 24
    for other in (
        SketchOperator.from_bytes(blob),
        pickle.loads(pickle.dumps(op)),
        copy.copy(op),
        copy.deepcopy(op),
        eval(repr(op)),
    ):
        assert other == op
        assert hash(other) == hash(op)
        assert other.fingerprint == op.fingerprint
    assert len(pickle.dumps(op)) < 200


def test_golden_description() -> None:
    op = make("sparse_stack", 1000, 64, seed=0x0123456789ABCDEF, nnz=4)
    assert op.to_bytes().hex() == "01020400" + "40000000" + "e803000000000000" + "efcdab8967452301"
    assert op.fingerprint != make("sparse_stack", 1000, 64, seed=1, nnz=4).fingerprint
    assert make("sparse_stack", 10, 3, nnz=8).nnz == 3


@given(st.binary(max_size=64) | st.binary(min_size=24, max_size=24))
def test_hostile_descriptions(blob: bytes) -> None:
    try:
        op = SketchOperator.from_bytes(blob)
    except IncompatibleSketchError:
        return
    assert op.to_bytes() == blob


def test_mutated_descriptions() -> None:
    good = make("srht", 100, 20, seed=3).to_bytes()
    for position in range(4):
        for value in range(256):
            blob = good[:position] + bytes([value]) + good[position + 1 :]
            try:
                assert SketchOperator.from_bytes(blob).to_bytes() == blob
            except IncompatibleSketchError:
                assert blob != good


def test_immutable() -> None:
    op = make("srht", 8, 4)
    with pytest.raises(AttributeError, match="immutable"):
        op.seed = 3  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del op._seed
    assert op != "srht"


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (("fourier", 8, 4), {}, ValueError, "kind: expected one of rademacher, sparse_stack, srht, got 'fourier'"),
        ((3, 8, 4), {}, TypeError, "kind: expected a string, got int"),
        (("srht", 0, 4), {}, ValueError, "n_features: expected 1 <= n_features <= 281474976710656, got 0"),
        (("srht", 8.0, 4), {}, TypeError, "n_features: expected an integer, got float"),
        (("srht", True, 4), {}, TypeError, "n_features: expected an integer, got bool"),
        (("srht", 8, 0), {}, ValueError, "n_components: expected 1 <= n_components <= 2147483647, got 0"),
        (("srht", 9, 17), {}, ValueError, "n_components: expected at most 16 for srht of 9 features"),
        (("sparse_stack", 8, 4), {"nnz": 0}, ValueError, "nnz: expected 1 <= nnz <= 255, got 0"),
        (("sparse_stack", 8, 4), {"seed": -1}, ValueError, "seed: expected 0 <= seed"),
        (("sparse_stack", 8, 4), {"seed": 2**64}, ValueError, "seed: expected 0 <= seed"),
        (("sparse_stack", 8, 4), {"seed": "x"}, TypeError, "seed: expected an integer, got str"),
    ],
)
def test_bad_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        SketchOperator(*args, **kwargs)
    assert message in str(caught.value)


READ_ONLY = np.zeros((3, 4))
READ_ONLY.flags.writeable = False
OVERLAP = np.zeros((3, 12))


@pytest.mark.parametrize(
    ("X", "out", "error", "message"),
    [
        (np.zeros((3, 7)), None, ValueError, "X: expected shape (n, 8) or (8,), got (3, 7)"),
        (np.zeros(7), None, ValueError, "X: expected shape (n, 8) or (8,), got (7,)"),
        (np.zeros((2, 3, 8)), None, ValueError, "X: expected shape (n, 8) or (8,), got (2, 3, 8)"),
        (np.float64(3), None, ValueError, "X: expected shape (n, 8) or (8,), got ()"),
        (
            np.zeros((3, 8), int),
            None,
            TypeError,
            "X: expected a float32 or float64 array in native byte order, got int64",
        ),
        (
            np.zeros((3, 8), ">f4"),
            None,
            TypeError,
            "X: expected a float32 or float64 array in native byte order, got >f4",
        ),
        (np.zeros((3, 8), complex), None, TypeError, "got complex128"),
        ([["a"] * 8], None, TypeError, "got <U1"),
        (np.zeros((3, 8)), [0.0], TypeError, "out: expected a numpy array, got list"),
        (np.zeros((3, 8)), np.zeros((3, 5)), ValueError, "out: expected shape (3, 4), got (3, 5)"),
        (np.zeros((3, 8)), np.zeros((3, 4), np.float32), TypeError, "out: expected dtype float64, got float32"),
        (np.zeros((3, 8)), READ_ONLY, ValueError, "out: expected a writeable array, got a read-only one"),
        (OVERLAP[:, :8], OVERLAP[:, 6:10], ValueError, "out: expected memory of its own, got an array that overlaps"),
        (np.zeros(8), np.zeros((1, 4)), ValueError, "out: expected shape (4,), got (1, 4)"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_input(backend: str, kind: str, X: Any, out: Any, error: type[Exception], message: str) -> None:
    op = make(kind, 8, 4)
    with pytest.raises(error) as caught:
        op.transform(X, out=out)
    assert message in str(caught.value)


def test_bad_num_threads() -> None:
    with pytest.raises(ValueError, match="num_threads: expected a positive integer, got 0"):
        make("srht", 8, 4).transform(np.zeros((3, 8)), num_threads=0)


@pytest.mark.parametrize("blob", [b"", b"x" * 23, make("srht", 8, 4).to_bytes() + b"\0"])
def test_wrong_length_description(blob: bytes) -> None:
    with pytest.raises(IncompatibleSketchError, match=f"expected a description of 24 bytes, got {len(blob)}"):
        SketchOperator.from_bytes(blob)
    with pytest.raises(TypeError, match="data: expected a bytes-like object, got str"):
        SketchOperator.from_bytes("x" * 24)  # type: ignore[arg-type]
