"""SimHash and DedupFilter: bits, distances, angles, search, the filter; golden codes; errors."""

from __future__ import annotations

import copy
import hashlib
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import DedupFilter, SimHash

KINDS = ("srht", "sparse_stack")
BITS = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 256, 300)


def data(n: int, d: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.unpackbits(a[:, None] ^ b[None], axis=2).sum(axis=2)


def random_codes(n: int, n_bits: int, seed: int = 0) -> np.ndarray:
    bits = np.random.default_rng(seed).integers(0, 2, (n, n_bits), dtype=np.uint8)
    return np.packbits(bits, axis=1, bitorder="little")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_bits", BITS)
def test_codes_are_signs_of_projections(backend: str, kind: Any, n_bits: int) -> None:
    for d in (1, 5, 64, 70):
        h = SimHash(n_bits, kind=kind, seed=3)
        X = data(19, d, np.float64)
        codes = h.transform(X)
        assert codes.shape == (19, h.n_bytes) == (19, -(-n_bits // 8))
        Y = np.concatenate([op.transform(X) for op in h.operators(d)], axis=1)
        assert Y.shape == (19, n_bits)
        np.testing.assert_array_equal(np.unpackbits(codes, axis=1, bitorder="little")[:, :n_bits], Y >= 0)
        assert not np.unpackbits(codes, axis=1, bitorder="little")[:, n_bits:].any()
        np.testing.assert_array_equal(h.transform(X[4]), codes[4])
        np.testing.assert_array_equal(h.transform(X[:0]), codes[:0])


# SHA-256 of the codes of an input made of integers; these may never change.
GOLDEN = {
    ("srht", 256, 100): "ba002c5f2fe2fc0d0189c4317bfab2c6281392d35e670f6fe24a1c6640a30113",
    ("srht", 300, 70): "abe601ab9e36d1f7c1daa9991abd154657855b6854ea01feed257c6e4381ce34",
    ("sparse_stack", 77, 100): "fb96eb75607394b56a01f87c13a4f80c9a831729f764c27f9b864fa34b566e20",
}


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_codes(backend: str, case: Any, dtype: Any) -> None:
    kind, n_bits, d = case
    X = ((np.arange(50 * d) * 7919 % 10007).reshape(50, d) - 5003).astype(dtype)
    codes = SimHash(n_bits, kind=kind, seed=7).transform(X)
    assert hashlib.sha256(codes.tobytes()).hexdigest() == GOLDEN[case]


def test_blocks_are_different_operators() -> None:
    ops = SimHash(300, seed=2**64 - 1).operators(64)
    assert [op.n_components for op in ops] == [64, 64, 64, 64, 44]
    assert [op.seed for op in ops][:2] == [2**64 - 1, 0x9E3779B97F4A7C14]
    assert len(SimHash(256).operators(200)) == 1


def test_ties_layouts_dtypes_threads(backend: str) -> None:
    h = SimHash(64)
    assert h.transform(np.zeros(10)).tolist() == [255] * 8
    assert h.transform(np.full(10, -0.0, np.float32)).tolist() == [255] * 8
    ints = np.random.default_rng(0).integers(-100, 100, (33, 20))
    expected = h.transform(ints.astype(np.float32))
    wide = np.zeros((66, 60))
    wide[::2, ::3] = ints
    readonly = ints.astype(np.float64)
    readonly.flags.writeable = False
    for X in (
        readonly,
        np.asfortranarray(readonly),
        wide[::2, ::3],
        *(ints.astype(t) for t in ("f2", "i1", "i2", "i4")),
    ):
        np.testing.assert_array_equal(h.transform(X), expected)
    X = data(3000, 300)
    codes = {SimHash(256, num_threads=t).transform(X).tobytes() for t in (1, 2, 3)}
    pieces = np.concatenate([SimHash(256).transform(X[:1111]), SimHash(256).transform(X[1111:])])
    assert codes == {pieces.tobytes()}


@pytest.mark.parametrize("n_bits", BITS)
def test_distances(backend: str, n_bits: int) -> None:
    h = SimHash(n_bits)
    a, b = random_codes(13, n_bits, 1), random_codes(1100, n_bits, 2)
    expected = distances(a, b)
    found = h.hamming(a, b)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(h.hamming(a), distances(a, a))
    np.testing.assert_array_equal(h.hamming(a[0], b), expected[0])
    np.testing.assert_array_equal(h.hamming(a, b[5]), expected[:, 5])
    assert h.hamming(a[0], b[5]) == expected[0, 5]
    apart = np.zeros((1100, h.n_bytes + 3), np.uint8)[:, 1 : h.n_bytes + 1]
    apart[...] = b
    np.testing.assert_array_equal(h.hamming(a, apart), expected)
    np.testing.assert_array_equal(h.hamming(a[::2], np.asfortranarray(b)), expected[::2])
    for threads in (1, 2, 5):
        with ef.using(num_threads=threads):
            index, distance = h.nearest(a, b)
            np.testing.assert_array_equal(index, expected.argmin(axis=1))
            np.testing.assert_array_equal(distance, expected.min(axis=1))
    index, distance = h.nearest(a[3], b)
    assert (index.shape, int(index), int(distance)) == ((), expected[3].argmin(), expected[3].min())
    for radius in {0, n_bits // 3, n_bits // 2, n_bits}:
        q, i, dist = h.search(a, b, radius=radius)
        expected_q, expected_i = np.nonzero(expected <= radius)
        np.testing.assert_array_equal(q, expected_q)
        np.testing.assert_array_equal(i, expected_i)
        np.testing.assert_array_equal(dist, expected[q, i])
    assert h.hamming(a[:0], b).shape == (0, 1100)
    assert h.search(a, b[:0], radius=1)[0].size == 0


def test_search_with_more_matches_than_fit_at_once(backend: str) -> None:
    h = SimHash(64)
    codes = np.zeros((10_000, 8), np.uint8)
    codes[::7] = 255
    q, i, _ = h.search(codes[1], codes, radius=3)
    np.testing.assert_array_equal(i, np.flatnonzero(np.arange(10_000) % 7))
    assert not q.any()


@given(n_bytes=st.integers(1, 90), n=st.integers(1, 40), m=st.integers(1, 700), seed=st.integers(0, 99))
def test_every_backend_gives_the_same_distances(n_bytes: int, n: int, m: int, seed: int) -> None:
    h = SimHash(8 * n_bytes)
    a, b = random_codes(n, 8 * n_bytes, seed), random_codes(m, 8 * n_bytes, seed + 1)
    expected = distances(a, b)
    names = [("numpy", None), *(("native", level) for level in backends.simd_levels())]
    names += [("numba", None)] if "numba" in ef.available_backends() else []
    for name, level in names:
        with ef.using(name, simd=level):
            np.testing.assert_array_equal(h.hamming(a, b), expected)
            np.testing.assert_array_equal(h.nearest(a, b)[0], expected.argmin(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_angles_are_unbiased_with_the_stated_deviation(kind: Any) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 512))
    x[1] = 0.8 * x[0] + 0.6 * x[1]
    truth = np.arccos(x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1]))
    found = []
    for seed in range(200):
        h = SimHash(256, kind=kind, seed=seed)
        codes = h.transform(x)
        angle, std = h.angle(codes[:1], codes[1:], return_std=True)
        found.append(float(angle[0, 0]))
        assert std[0, 0] == pytest.approx(np.sqrt(angle[0, 0] * (np.pi - angle[0, 0]) / 255))
    spread = np.sqrt(truth * (np.pi - truth) / 256)
    assert abs(np.mean(found) - truth) < 4 * spread / np.sqrt(200)
    assert 0.7 < np.std(found) / spread < 1.3


def test_angle_shapes() -> None:
    h = SimHash(64)
    a, b = h.transform(data(5, 30)), h.transform(data(5, 30, seed=1))
    full = h.angle(a, b)
    np.testing.assert_allclose(full, h.hamming(a, b) * np.pi / 64)
    paired, std = h.angle(a, b, return_std=True, paired=True)
    np.testing.assert_array_equal(paired, full.diagonal())
    assert std.shape == (5,)
    assert h.angle(a, paired=True).tolist() == [0.0] * 5
    assert h.angle(a[0], b[0]) == full[0, 0]
    assert h.angle(a[0], b[0], paired=True) == full[0, 0]
    assert float(SimHash(8).angle(np.array([0], np.uint8), np.array([255], np.uint8), return_std=True)[1]) == 0


def test_simhash_value_semantics() -> None:
    h = SimHash(100, kind="sparse_stack", seed=9, num_threads=2)
    assert pickle.loads(pickle.dumps(h)) == h == copy.copy(h)
    assert hash(h) == hash(SimHash(100, kind="sparse_stack", seed=9))
    assert h != SimHash(100, seed=9)
    assert repr(h) == "SimHash(100, kind='sparse_stack', seed=9)"
    assert (h.n_bits, h.n_bytes, h.kind, h.seed) == (100, 13, "sparse_stack", 9)


# ---- DedupFilter ---------------------------------------------------------------------------------------------------


def filter_reference(codes: np.ndarray, max_hamming: int, window: int) -> list[bool]:
    kept: list[np.ndarray] = []
    keep = []
    for code in codes:
        near = any(np.bitwise_count(code ^ other).sum() <= max_hamming for other in kept[-window:])
        keep.append(not near)
        if not near:
            kept.append(code)
    return keep


@pytest.mark.parametrize("window", [1, 3, 8, 17, 64, 97, 500])
@pytest.mark.parametrize("n_bits", [7, 64, 97, 256, 2600])
def test_filter(backend: str, n_bits: int, window: int) -> None:
    rng = np.random.default_rng(window)
    base = random_codes(60, n_bits, window)
    codes = base[rng.integers(0, 60, 400)]
    flips = rng.integers(0, n_bits, 400)
    codes[np.arange(400), flips // 8] ^= (1 << flips % 8).astype(np.uint8)
    for max_hamming in (0, 1, 3):
        expected = filter_reference(codes, max_hamming, window)
        f = DedupFilter(n_bits, max_hamming, window)
        assert f.add_codes(codes).tolist() == expected
        assert (f.n_seen, f.n_kept) == (400, sum(expected))
        np.testing.assert_array_equal(f.codes, codes[np.array(expected)][-window:])
        cut = DedupFilter(n_bits, max_hamming, window)
        got = [cut.add_codes(part) for part in np.split(codes, [1, 2, 90, 91, 333])]
        assert np.concatenate(got).tolist() == expected
        assert cut == f
        resumed = DedupFilter(n_bits, max_hamming, window)
        first = resumed.add_codes(codes[:211])
        resumed = DedupFilter.from_bytes(resumed.to_bytes())
        assert [*first, *resumed.add_codes(codes[211:])] == expected
        assert resumed == f


def test_filter_of_rows(backend: str) -> None:
    X = data(500, 64)
    noisy = X + 0.01 * data(500, 64, seed=1)
    f = DedupFilter(max_hamming=16)
    assert f.n_features is None
    assert f.add(X).all()
    assert not f.add(noisy).any()
    assert not f.add(3 * X).any()  # the angle counts, not the length
    assert f.add(data(500, 64, seed=2)).all()
    assert f.add(X[0]).shape == ()
    assert f.n_features == 64
    assert (f.n_seen, f.n_kept) == (2001, 1000)
    with pytest.raises(ValueError, match="X: expected 64 features as before, got 63"):
        f.add(X[:, :63])
    assert f.nbytes <= 1024 * 32
    bad = X.copy()
    bad[3, 3] = np.nan
    with pytest.raises(ValueError, match="X: expected finite numbers"):
        f.add(bad)
    assert f.n_seen == 2001


def test_filter_value_semantics() -> None:
    f = DedupFilter(40, 3, 9, kind="sparse_stack", seed=4)
    f.add(data(30, 5))
    for twin in (
        f.copy(),
        copy.copy(f),
        copy.deepcopy(f),
        pickle.loads(pickle.dumps(f)),
        DedupFilter.from_bytes(f.to_bytes()),
    ):
        assert twin == f
        twin.add(data(1, 5, seed=77))
        assert twin != f
    assert f != 1
    assert repr(f).startswith("<DedupFilter n_bits=40, max_hamming=3, window=9, kind='sparse_stack', seed=4: ")
    assert (f.simhash.n_bits, f.max_hamming, f.window, f.n_features) == (40, 3, 9, 5)
    empty = DedupFilter(window=2**24)
    assert empty.nbytes < 1000
    assert DedupFilter.from_bytes(empty.to_bytes()) == empty


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SimHash(0), ValueError, "n_bits: expected an integer from 1 to 65528, got 0"),
        (lambda: SimHash(65529), ValueError, "n_bits: expected an integer from 1 to 65528"),
        (lambda: SimHash(kind="gaussian"), ValueError, "whose bytes are the same everywhere, got 'gaussian'"),
        (lambda: SimHash(seed=-1), ValueError, "seed: expected an integer from 0"),
        (lambda: SimHash().transform([[1.0]]), TypeError, "X: expected an array, got list"),
        (lambda: SimHash().transform(np.ones((2, 2), bool)), TypeError, "X: expected float16, float32, float64"),
        (lambda: SimHash().transform(np.ones((2, 0))), ValueError, "X: expected shape (n, n_features)"),
        (lambda: SimHash().transform(np.ones((2, 2, 2))), ValueError, "X: expected shape (n, n_features)"),
        (lambda: SimHash().transform(np.array([np.inf, 1])), ValueError, "X: expected finite numbers"),
        (
            lambda: SimHash(kind="sparse_stack").transform(np.array([np.nan, 1])),
            ValueError,
            "X: expected finite numbers",
        ),
        (lambda: SimHash().transform(np.full(9, 3e38, "f4")), ValueError, "whose projection is finite"),
        (lambda: SimHash().hamming(np.ones((2, 32))), TypeError, "a: expected dtype uint8, got float64"),
        (lambda: SimHash().hamming([1]), TypeError, "a: expected an array of uint8, got list"),
        (
            lambda: SimHash().hamming(np.ones((2, 31), "u1")),
            ValueError,
            "a: expected shape (n, 32) or (32,), got (2, 31)",
        ),
        (
            lambda: SimHash().nearest(np.ones(32, "u1"), np.ones((0, 32), "u1")),
            ValueError,
            "codes: expected at least one code",
        ),
        (
            lambda: SimHash().search(np.ones(32, "u1"), np.ones((1, 32), "u1"), radius=-1),
            ValueError,
            "radius: expected an integer",
        ),
        (
            lambda: SimHash().angle(np.ones((2, 32), "u1"), np.ones((3, 32), "u1"), paired=True),
            ValueError,
            "b: expected shape (2, 32)",
        ),
        (lambda: DedupFilter(max_hamming=257), ValueError, "max_hamming: expected an integer from 0 to 256"),
        (lambda: DedupFilter(window=0), ValueError, "window: expected an integer from 1"),
        (
            lambda: DedupFilter(7, 1).add_codes(np.full((2, 1), 255, "u1")),
            ValueError,
            "codes: expected the 1 spare bits",
        ),
        (lambda: DedupFilter(8).add_codes(np.full((2, 2), 255, "u1")), ValueError, "codes: expected shape (n, 1)"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with np.errstate(over="ignore"), pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["srht", "sparse_stack"])
def test_one_output_that_overflows_is_an_error(kind: Any) -> None:
    X = np.array([[3e38, 3e38, 0, 0]], np.float32)
    overflowed = 0
    for seed in range(20):
        simhash = SimHash(2, kind=kind, seed=seed)
        projected = simhash.operators(4)[0].transform(X)
        if np.isfinite(projected).all():
            simhash.transform(X)
            continue
        overflowed += 1
        with pytest.raises(ValueError, match="X: expected finite numbers whose projection is finite"):
            simhash.transform(X)
    assert overflowed
