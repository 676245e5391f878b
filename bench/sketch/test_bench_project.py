"""Projection of rows: our operators against scikit-learn's fitted random projections."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.sketch import SketchOperator

random_projection = pytest.importorskip("sklearn.random_projection")
threadpoolctl = pytest.importorskip("threadpoolctl")

CASES = [(20000, 4096, 256, 2), (20000, 4096, 256, 1), (64, 4096, 256, 1), (1, 64, 32, 1)]
OURS = [("sparse_stack", 8), ("sparse_stack", 4), ("srht", 8), ("rademacher", 8)]
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


def params(test: Any) -> Any:
    return pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c[:3])) + f"-{c[3]}t")(test)


@params
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize(("kind", "nnz"), OURS)
def test_ours(benchmark: Any, contender: Any, case: Any, kind: str, nnz: int, backend: str) -> None:
    n, d, k, threads = case
    name, _, simd = backend.partition("-")
    if n == 20000 and (name != "native" or simd == "scalar") and (kind == "rademacher" or threads == 1):
        pytest.skip("seconds a call and no question anybody asks")
    X = rows(n, d)
    op = SketchOperator(kind, d, k, seed=1, nnz=nnz)
    benchmark.group = f"project float32 {n}x{d}->{k} {threads}t"
    with ef.using(name, simd=simd or None):
        Y = op.transform(X, num_threads=threads)
        few = X[:50].astype(np.float64)
        np.testing.assert_allclose(Y[:50], few @ op.toarray().T, rtol=1e-3, atol=1e-3)
        label = f"{kind}{f'(nnz={nnz})' if kind == 'sparse_stack' else ''} {backend}"
        contender(benchmark, label, ours=True, bytes=X.nbytes + Y.nbytes, distortion=distortion(X, Y))
        benchmark(op.transform, X, num_threads=threads)


@params
@pytest.mark.parametrize("peer", ["GaussianRandomProjection", "SparseRandomProjection"])
def test_scikit_learn(benchmark: Any, contender: Any, case: Any, peer: str) -> None:
    n, d, k, threads = case
    if n == 20000 and peer.startswith("Sparse") and threads == 1:
        pytest.skip("single-threaded anyway: see the two-thread group")
    X = rows(n, d)
    fitted = getattr(random_projection, peer)(k, random_state=0).fit(X)
    benchmark.group = f"project float32 {n}x{d}->{k} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        Y = fitted.transform(X)
        assert Y.dtype == np.float32
        contender(benchmark, f"scikit-learn {peer}", bytes=X.nbytes + Y.nbytes, distortion=distortion(X, Y))
        benchmark(fitted.transform, X)
