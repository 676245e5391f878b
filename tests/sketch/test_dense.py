"""The dense kinds, rademacher and gaussian: values, bits, layouts, threads, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgefast as ef
from edgefast import backends
from edgefast.sketch import SketchOperator

KINDS = ("rademacher", "gaussian")
DTYPES = (np.float32, np.float64)
SIZES = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)


def data(n: int, d: int, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def check(op: SketchOperator, X: np.ndarray, Y: np.ndarray, context: str = "") -> None:
    """Against the product in long double, within the documented bound."""
    entries = op.toarray().astype(np.longdouble).T
    wide = X.astype(np.longdouble)
    # d products and sums, the scale, and the entries' own scale rounded in toarray().
    bound = (op.n_features + 4) * np.finfo(X.dtype).eps * (np.abs(wide) @ np.abs(entries))
    error = np.abs(Y - wide @ entries)
    assert np.all(error <= bound), (context, repr(op), float((error / np.maximum(bound, 1e-300)).max()))


def fused(backend: str) -> bool:
    """Whether a Gaussian term is one rounding."""
    return backend.startswith("native") and backend != "native-scalar"


def reference(op: SketchOperator, X: np.ndarray) -> np.ndarray:
    """The sums a backend that rounds products and sums makes, one feature after another."""
    unit = X.dtype.type(1) if op.kind == "rademacher" else X.dtype.type(2**-16)
    entries = (np.rint(op.toarray() / op.scale / float(unit)) * float(unit)).astype(X.dtype)
    sums = np.zeros((len(X), op.n_components), X.dtype)
    for j in range(op.n_features):
        sums += X[:, j, None] * entries[:, j]
    return sums * X.dtype.type(op.scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", SIZES)
def test_values_at_every_width(backend: str, kind: str, dtype: Any, d: int) -> None:
    for k in (1, 5, 16, 33, 64, 97, 257):
        op = SketchOperator(kind, d, k, seed=d)
        for n in (1, 2, 13):
            X = data(n, d, dtype)
            Y = op.transform(X)
            check(op, X, Y)
            if backend != "numpy" and (kind == "rademacher" or not fused(backend)):
                assert Y.tobytes() == reference(op, X).tobytes(), (n, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
# Around the panels: 384 or 192 features, 256 outputs, 60 copied rows; and more rows than share a panel.
@pytest.mark.parametrize(
    ("n", "d", "k"), [(61, 385, 30), (5, 769, 513), (121, 192, 256), (64, 193, 260), (2, 5000, 20), (2200, 20, 3)]
)
def test_values_across_panels(backend: str, kind: str, dtype: Any, n: int, d: int, k: int) -> None:
    op = SketchOperator(kind, d, k, seed=5)
    X = data(n, d, dtype)
    Y = op.transform(X, num_threads=2)
    check(op, X, Y)
    if backend != "numpy":
        assert op.transform(np.asfortranarray(X)).tobytes() == Y.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_unit_rows_give_the_matrix(backend: str, kind: str) -> None:
    op = SketchOperator(kind, 70, 300, seed=2**63 + 5)
    np.testing.assert_array_equal(op.transform(np.eye(70)), op.toarray().T)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_threads_nor_batches_nor_layouts_change_bits(backend: str, kind: str, dtype: Any) -> None:
    n, d, k = 1100, 411, 530
    op = SketchOperator(kind, d, k, seed=4)
    X = data(n, d, dtype)
    whole = op.transform(X, num_threads=1)
    for threads in (2, 3, 7):
        assert op.transform(X, num_threads=threads).tobytes() == whole.tobytes(), threads
    if backend == "numpy":
        return  # the order of a BLAS sum depends on the shape
    for cut in (1, 4, 5, 6, 59, 60, 61, 1024, 1099):
        pieces = np.concatenate([op.transform(X[:cut]), op.transform(X[cut:], num_threads=2)])
        assert pieces.tobytes() == whole.tobytes(), cut
    few = X[:9]
    expected = whole[:9].tobytes()
    wide = np.zeros((18, 2 * d), dtype)
    wide[::2, ::2] = few
    raw = np.zeros(few.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(dtype).reshape(few.shape)
    unaligned[...] = few
    readonly = few.copy()
    readonly.flags.writeable = False
    backwards = few[::-1, ::-1].copy()[::-1, ::-1]
    for layout in (np.asfortranarray(few), wide[::2, ::2], unaligned, readonly, backwards, X[:9]):
        assert op.transform(layout).tobytes() == expected
        assert op.transform(layout, num_threads=2).tobytes() == expected
    same = op.transform(np.broadcast_to(X[3], (9, d)))
    assert same.tobytes() == np.tile(whole[3], (9, 1)).tobytes()


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(0, 70),
    d=st.integers(1, 400),
    k=st.integers(1, 300),
    seed=st.integers(0, 2**64 - 1),
    single=st.booleans(),
)
def test_two_sets_of_bits(kind: str, n: int, d: int, k: int, seed: int, single: bool) -> None:
    """Levels with fused multiply-add agree, and so do the scalar level and numba; rademacher has one set for all."""
    op = SketchOperator(kind, d, k, seed=seed)
    X = data(n, d, np.float32 if single else np.float64, seed % 1000)
    seen: dict[bool, set[bytes]] = {True: set(), False: set()}
    for level in backends.simd_levels():
        with ef.using("native", simd=level):
            seen[fused(f"native-{level}")].add(op.transform(X).tobytes())
    if "numba" in ef.available_backends():
        with ef.using("numba"):
            seen[False].add(op.transform(X).tobytes())
    if kind == "rademacher":
        seen = {True: seen[True] | seen[False], False: set()}
    assert all(len(results) <= 1 for results in seen.values())
    with ef.using("numpy"):
        check(op, X, op.transform(X))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 5, 14])
def test_special_values(backend: str, kind: str, dtype: Any, n: int) -> None:
    d, k = 40, 37
    op = SketchOperator(kind, d, k, seed=3)
    for value in (np.nan, -np.nan, np.inf, -np.inf):
        X = data(n, d, dtype)
        X[n // 2, 11] = value
        Y = op.transform(X)
        others = np.arange(n) != n // 2
        check(op, X[others], Y[others])
        with np.errstate(invalid="ignore"):
            expected = (value * op.toarray()[:, 11]).astype(dtype)  # a Gaussian entry can be 0, and 0 * inf is NaN
        expected[np.isnan(expected)] = np.nan
        np.testing.assert_array_equal(Y[n // 2].view(f"u{X.itemsize}"), expected.view(f"u{X.itemsize}"))
    X = data(n, d, dtype)
    X[0, [2, 3]] = np.inf, -np.inf
    assert np.isnan(op.transform(X)[0]).any()
    zeros = op.transform(np.full((n, d), -0.0, dtype))
    assert zeros.tobytes() == bytes(zeros.nbytes)  # sums start at +0
    tiny = np.full((n, d), np.finfo(dtype).smallest_subnormal, dtype)
    assert np.abs(op.transform(tiny)).max() <= 5 * d * np.finfo(dtype).smallest_subnormal


def peak_during(call: Callable[[], object], traced: bool) -> int:
    """Bytes a call needs at most beyond what is there before it."""
    if traced:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def kib(field: str) -> int:
        return int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if field in line).split()[1]
        )

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except OSError:
        pytest.skip("this system does not measure peaks")
    before = kib("VmRSS")
    call()
    return (kib("VmHWM") - before) * 1024


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), [(20, 9000, 1100), (1500, 300, 2000)])
def test_memory_is_bounded(backend: str, kind: str, n: int, d: int, k: int) -> None:
    """Under 4 MiB beyond input and output, at a matrix of 40 MB."""
    X = np.ones((n, d), np.float32, order="F")
    out = np.ones((n, k), np.float32)
    op = SketchOperator(kind, d, k)
    op.transform(X, out=out)  # compiled, tables made
    assert peak_during(lambda: op.transform(X, num_threads=1, out=out), not backend.startswith("native")) < 4 << 20


def test_gaussian_projection_keeps_lengths(backend: str) -> None:
    d, k = 64, 50
    x = data(1, d, np.float64)[0]
    x /= np.linalg.norm(x)
    norms = np.array([np.sum(SketchOperator("gaussian", d, k, seed=s).transform(x) ** 2) for s in range(400)])
    assert abs(norms.mean() - 1) < 4.5 * np.sqrt(2 / k / 400)
    assert abs(norms.var() / (2 / k) - 1) < 0.4
