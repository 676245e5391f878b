"""Projection of rows: our operators against scikit-learn's fitted random projections.

Speed at equal k, and what it does to lengths: on normal rows, on spiky ones (a few large features among many small) and
on one-hot rows, where scikit-learn's density="auto" has no entry at all for some features. countsketch reads the input
once and adds every element once: its limit is the read bandwidth. The dense kinds are in test_bench_dense.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.sketch import SketchOperator

random_projection = pytest.importorskip("sklearn.random_projection")
threadpoolctl = pytest.importorskip("threadpoolctl")

WIDE = 65536
CASES = [
    (20000, 4096, 256, 2),
    (20000, 4096, 256, 1),
    (4096, WIDE, 1024, 2),
    (64, 4096, 256, 1),
    (1, 64, 32, 1),
]
OURS = [("sparse_stack", 8), ("sparse_stack", 4), ("countsketch", 1), ("srht", 8), ("rademacher", 8), ("sparse", 0)]
_inputs: dict[tuple[int, int], np.ndarray] = {}


def rows(n: int, d: int) -> np.ndarray:
    if (n, d) not in _inputs:
        _inputs.clear()
        _inputs[n, d] = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    return _inputs[n, d]


def distortion(X: np.ndarray, Y: np.ndarray) -> float:
    """Root mean square of | |Sx| / |x| - 1 | over at most 4000 rows."""
    X, Y = X[:4000].astype(np.float64), Y[:4000].astype(np.float64)
    ratio = np.linalg.norm(Y, axis=1) / np.linalg.norm(X, axis=1)
    return float(np.sqrt(np.mean((ratio - 1) ** 2)))


def special_rows(shape: str, n: int, d: int) -> np.ndarray:
    X = np.zeros((n, d), np.float32)
    if shape == "one-hot":
        X[np.arange(n), np.random.default_rng(1).integers(0, d, n)] = 1
    else:  # spiky: eight features hold most of the energy
        X += 0.01 * np.random.default_rng(2).standard_normal((n, d), dtype=np.float32)
        X[np.arange(n)[:, None], np.random.default_rng(1).integers(0, d, (n, 8))] = 1
    return X


def distortions(X: np.ndarray, Y: np.ndarray, project: Any) -> dict[str, float]:
    """RMS of | |Sx| / |x| - 1 | for the rows of the benchmark, spiky rows and one-hot rows."""
    found = {"distortion": distortion(X, Y)}
    for shape in ("spiky", "one-hot"):
        rows_ = special_rows(shape, 400, X.shape[1])
        found[f"distortion_{shape}"] = distortion(rows_, project(rows_))
    return found


def params(test: Any) -> Any:
    return pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c[:3])) + f"-{c[3]}t")(test)


@params
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize(("kind", "nnz"), OURS)
def test_ours(benchmark: Any, contender: Any, case: Any, kind: str, nnz: int, backend: str) -> None:
    n, d, k, threads = case
    name, _, simd = backend.partition("-")
    slow = name != "native" or simd == "scalar"
    if n == 20000 and slow and (kind in ("rademacher", "sparse") or threads == 1):
        pytest.skip("seconds a call and no question anybody asks")
    if d == WIDE and (slow or kind in ("rademacher", "sparse")):
        pytest.skip("seconds a call and no question anybody asks")
    X = rows(n, d)
    op = SketchOperator(kind, d, k, seed=1, nnz=max(nnz, 1), density="auto")
    benchmark.group = f"project float32 {n}x{d}->{k} {threads}t"
    with ef.using(name, simd=simd or None):
        Y = op.transform(X, num_threads=threads)
        few = X[: 50 if d < WIDE else 2].astype(np.float64)
        np.testing.assert_allclose(Y[: len(few)], few @ op.toarray().T, rtol=1e-3, atol=1e-2)
        label = f"{kind}{f'(nnz={nnz})' if kind == 'sparse_stack' else ''} {backend}"
        contender(benchmark, label, ours=True, bytes=X.nbytes + Y.nbytes, **distortions(X, Y, op.transform))
        benchmark(op.transform, X, num_threads=threads)


@params
@pytest.mark.parametrize("peer", ["GaussianRandomProjection", "SparseRandomProjection"])
def test_scikit_learn(benchmark: Any, contender: Any, case: Any, peer: str) -> None:
    n, d, k, threads = case
    if n > 1000 and peer.startswith("Sparse") and (threads == 1 or d == WIDE):
        pytest.skip("single-threaded anyway: see the two-thread group")
    X = rows(n, d)
    fitted = getattr(random_projection, peer)(k, random_state=0).fit(X)
    benchmark.group = f"project float32 {n}x{d}->{k} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        Y = fitted.transform(X)
        assert Y.dtype == np.float32
        contender(benchmark, f"scikit-learn {peer}", bytes=X.nbytes + Y.nbytes, **distortions(X, Y, fitted.transform))
        benchmark(fitted.transform, X)
