"""FrequentDirections: the bound, as a hard assert; merging; cuts; denoising; errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.sketch import FrequentDirections, IncompatibleSketchError


def data(n: int, d: int, rank: int, seed: int = 0, noise: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = (rng.standard_normal((n, rank)) * 0.7 ** np.arange(rank)) @ rng.standard_normal((rank, d))
    return low + noise * rng.standard_normal((n, d))


def check_bound(fd: FrequentDirections, A: np.ndarray) -> None:
    """0 <= |Ax|^2 - |Bx|^2 <= error_bound_ <= |A - A_k|_F^2 / (l - k) for every unit x and k < l."""
    A = A.astype(np.float64)
    B = (fd.singular_values_[:, None] * fd.components_).astype(np.float64)
    slack = 50 * np.finfo(fd.dtype).eps * max(A.shape) * float((A**2).sum())
    gaps = np.linalg.eigvalsh(A.T @ A - B.T @ B)
    assert gaps.min() >= -slack
    assert gaps.max() <= fd.error_bound_ + slack
    squares = np.linalg.svd(A, compute_uv=False) ** 2
    for k in range(fd.n_components):
        assert fd.error_bound_ <= squares[k:].sum() / (fd.n_components - k) + slack
    assert len(B) <= fd.n_components
    robust = np.linalg.eigvalsh(A.T @ A - fd.gram(robust=True))
    assert np.abs(robust).max() <= fd.error_bound_ / 2 + slack


@given(
    n=st.integers(1, 200),
    d=st.integers(1, 30),
    keep=st.integers(1, 20),
    buffer=st.integers(2, 5),
    seed=st.integers(0, 99),
    rank=st.integers(1, 8),
    noise=st.sampled_from([0.0, 0.1, 3.0]),
    single=st.booleans(),
)
@settings(max_examples=60)
def test_the_bound_always_holds(
    n: int,
    d: int,
    keep: int,
    buffer: int,
    seed: int,
    rank: int,
    noise: float,
    single: bool,
) -> None:
    dtype = np.float32 if single else np.float64
    A = data(n, d, rank, seed, noise).astype(dtype)
    fd = FrequentDirections(keep, buffer=buffer, dtype=dtype).partial_fit(A)
    check_bound(fd, A)
    assert fd.n_seen_ == n


@given(seed=st.integers(0, 99), parts=st.integers(2, 5), keep=st.integers(1, 10))
@settings(max_examples=40)
def test_merged_sketches_keep_the_bound(seed: int, parts: int, keep: int) -> None:
    A = data(300, 16, 5, seed)
    pieces = [FrequentDirections(keep).partial_fit(part) for part in np.array_split(A, parts)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    check_bound(whole, A)
    assert whole.n_seen_ == 300


def test_orthogonal_rows_are_the_worst_case() -> None:
    A = np.eye(64)
    fd = FrequentDirections(8).partial_fit(A)
    check_bound(fd, A)
    assert fd.error_bound_ > 0


def test_cuts_never_matter() -> None:
    A = data(157, 12, 4)
    whole = FrequentDirections(5).partial_fit(A)
    for cuts in ([1], [13, 14, 90], list(range(1, 157))):
        pieces = FrequentDirections(5)
        for part in np.split(A, cuts):
            pieces.partial_fit(part)
            _ = pieces.error_bound_  # looking changes nothing
        assert pieces == whole
        assert pieces.components_.tobytes() == whole.components_.tobytes()
    one = FrequentDirections(5)
    for row in A:
        one.partial_fit(row)
    assert one == whole


def test_low_rank_is_exact_and_denoising_works() -> None:
    clean = data(2000, 50, 3, noise=0.0)
    fd = FrequentDirections(6).partial_fit(clean)
    assert fd.components_.shape == (3, 50)
    assert fd.error_bound_ < 1e-20 * (clean**2).sum()
    np.testing.assert_allclose(fd.denoise(clean), clean, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(fd.transform(clean), axis=1), np.linalg.norm(clean, axis=1), rtol=1e-10)
    np.testing.assert_allclose(fd.singular_values_, np.linalg.svd(clean, compute_uv=False)[:3], rtol=1e-10)
    noise = np.random.default_rng(1).standard_normal(clean.shape)
    noisy = FrequentDirections(20).partial_fit(clean + noise)
    error = np.linalg.norm(noisy.denoise(clean + noise, n_components=3) - clean) / np.linalg.norm(noise)
    assert error < 2 * np.sqrt(3 / 50)  # 3 of 50 dimensions of the noise are left
    assert noisy.transform(clean, n_components=2).shape == (2000, 2)
    assert noisy.transform(clean[0]).shape == (20,)


def test_value_semantics_and_dtypes() -> None:
    A = data(30, 6, 2)
    fd = FrequentDirections(4).partial_fit(A)
    clones = (copy.copy(fd), copy.deepcopy(fd), fd.copy(), pickle.loads(pickle.dumps(fd)))
    for twin in (*clones, FrequentDirections.from_bytes(fd.to_bytes())):
        assert twin == fd
        twin.partial_fit(A[:1])
        assert twin != fd
    assert fd != 3
    assert repr(fd) == "<FrequentDirections n_components=4, dtype=float64, n_features=6: 30 rows>"
    empty = FrequentDirections(4)
    assert FrequentDirections.from_bytes(empty.to_bytes()) == empty
    assert empty.merge(fd).to_bytes() == fd.to_bytes()
    assert fd.copy().merge(FrequentDirections(4)) == fd
    ints = np.arange(60).reshape(10, 6)
    assert FrequentDirections(3).partial_fit(ints.astype(np.int32)) == FrequentDirections(3).partial_fit(ints / 1.0)
    single = FrequentDirections(3, dtype=np.float32).partial_fit(ints.astype(np.float32))
    assert single.components_.dtype == single.gram().dtype == np.float32
    assert FrequentDirections(3).partial_fit(np.empty((0, 4))).n_seen_ == 0


def test_a_large_buffer_costs_nothing_before_it_is_used() -> None:
    fd = FrequentDirections(2**20, buffer=64).partial_fit(np.ones((3, 5)))
    assert len(fd.to_bytes()) < 1000
    assert fd.components_.shape == (1, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FrequentDirections(0), ValueError, "n_components: expected an integer from 1"),
        (lambda: FrequentDirections(2.5), TypeError, "n_components: expected an integer"),
        (lambda: FrequentDirections(2, buffer=1), ValueError, "buffer: expected an integer from 2"),
        (lambda: FrequentDirections(2, dtype=np.int32), ValueError, "dtype: expected float32 or float64, got int32"),
        (lambda: FrequentDirections(2).components_, ValueError, "expected rows first, got none"),
        (lambda: FrequentDirections(2).partial_fit(np.ones((2, 2, 2))), ValueError, "X: expected shape (n, "),
        (lambda: FrequentDirections(2).partial_fit(np.ones((2, 0))), ValueError, "X: expected shape (n, n_features)"),
        (
            lambda: FrequentDirections(2).partial_fit(np.array(1.0)),
            ValueError,
            "X: expected shape (n, n_features), got ()",
        ),
        (lambda: FrequentDirections(2).partial_fit([[1.0]]), TypeError, "X: expected an array, got list"),
        (lambda: FrequentDirections(2).partial_fit(np.array([[np.nan]])), ValueError, "got NaN or infinity"),
        (lambda: FrequentDirections(2, dtype="f4").partial_fit(np.ones((2, 2))), TypeError, "got float64"),
        (lambda: FrequentDirections(2).partial_fit(np.ones((2, 2))).partial_fit(np.ones((2, 3))), ValueError, "(n, 2)"),
        (lambda: FrequentDirections(2).partial_fit(np.ones((2, 2))).transform(np.ones((2, 3))), ValueError, "(n, 2)"),
        (
            lambda: FrequentDirections(2).partial_fit(np.ones((2, 2))).denoise(np.ones((2, 2)), n_components=3),
            ValueError,
            "to 2",
        ),
        (lambda: FrequentDirections(2).merge(3), TypeError, "other: expected a FrequentDirections, got int"),
        (lambda: FrequentDirections(2).merge(FrequentDirections(3)), IncompatibleSketchError, "n_components=3"),
        (lambda: FrequentDirections(2).merge(FrequentDirections(2, dtype="f4")), IncompatibleSketchError, "float32"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_other_features_do_not_merge() -> None:
    a, b = (FrequentDirections(2).partial_fit(np.ones((2, d))) for d in (3, 4))
    with pytest.raises(IncompatibleSketchError, match="n_features=3, got n_components=2, dtype=float64, n_features=4"):
        a.merge(b)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_unit_of_measurement(dtype: str) -> None:
    X = data(60, 8, 3).astype(dtype)
    one = FrequentDirections(4, dtype=dtype).partial_fit(X)
    for power in (-90, 90):  # squares leave the range of float32
        fd = FrequentDirections(4, dtype=dtype).partial_fit(X * X.dtype.type(2.0**power))
        np.testing.assert_allclose(fd.singular_values_ / X.dtype.type(2.0**power), one.singular_values_, rtol=1e-3)
        assert fd.error_bound_ == pytest.approx(one.error_bound_ * 4.0**power, rel=1e-3)


@pytest.mark.parametrize(("dtype", "factor"), [("f4", 2e38), ("f8", 1e200), ("f8", 1e308)])
def test_numbers_too_large_change_nothing(dtype: str, factor: float) -> None:
    X = np.linspace(0.1, 1, 60).reshape(20, 3) ** np.arange(1, 4)
    X = np.concatenate([X, np.eye(3)]).astype(dtype)
    fd = FrequentDirections(1, dtype=dtype).partial_fit(X)
    before = fd.to_bytes()
    large = X * X.dtype.type(factor)
    with pytest.raises(ValueError, match="X: expected numbers whose singular values float"):
        fd.partial_fit(large)
    assert fd.to_bytes() == before
    fd.partial_fit(X)
    assert fd.n_seen_ == 2 * len(X)
    assert np.isfinite(fd.gram()).all()


def test_too_much_shed_mass_does_not_merge() -> None:
    b = FrequentDirections(1).partial_fit(np.eye(3) * 1e154)
    a = b.copy()
    before = a.to_bytes()
    with pytest.raises(ValueError, match="got larger ones"):
        a.merge(b)
    assert a.to_bytes() == before
