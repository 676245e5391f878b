"""Dense projections whose matrix is never stored, against the product with a stored one (BLAS, scikit-learn)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.sketch import SketchOperator

random_projection = pytest.importorskip("sklearn.random_projection")
threadpoolctl = pytest.importorskip("threadpoolctl")

BIG = (4096, 65536, 1024)  # a stored matrix of 268 MB, drawn in float64 first
CASES = [
    *((20000, 4096, 256, t, dtype) for dtype in ("float32", "float64") for t in (1, 2)),
    *((*BIG, t, "float32") for t in (1, 2)),
    (1, 4096, 256, 1, "float32"),
    (1, 64, 32, 1, "float32"),
]
_held: dict[Any, Any] = {}


def held(make: Any, *key: Any) -> Any:
    """What `make` made for the key last: arrays of gigabytes are kept one of a sort."""
    if _held.get(make, (None,))[0] != key:
        _held.pop(make, None)
        _held[make] = (key, make(*key))
    return _held[make][1]


def rows(n: int, d: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, d), dtype=np.dtype(dtype))


def matrix(d: int, k: int, dtype: str) -> np.ndarray:
    R = np.random.default_rng(1).standard_normal((k, d), dtype=np.dtype(dtype))
    R *= 1 / np.sqrt(k)
    return R


def fit(n: int, d: int, k: int, dtype: str) -> tuple[Any, float]:
    start = time.perf_counter()
    fitted = random_projection.GaussianRandomProjection(k, random_state=0).fit(held(rows, n, d, dtype))
    return fitted, time.perf_counter() - start


def distortion(X: np.ndarray, Y: np.ndarray) -> float:
    """Root mean square of | |Sx| / |x| - 1 | over at most 4000 rows."""
    X, Y = X[:4000].astype(np.float64), Y[:4000].astype(np.float64)
    ratio = np.linalg.norm(Y, axis=1) / np.linalg.norm(X, axis=1)
    return float(np.sqrt(np.mean((ratio - 1) ** 2)))


def params(test: Any) -> Any:
    ids = [f"{n}x{d}->{k}-{t}t-{dtype}" for n, d, k, t, dtype in CASES]
    return pytest.mark.parametrize("case", CASES, ids=ids)(test)


def measure(benchmark: Any, case: Any, call: Any) -> None:
    if case[:3] == BIG:
        benchmark.pedantic(call, rounds=3)  # seconds each
    else:
        benchmark(call)


@params
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_ours(benchmark: Any, contender: Any, case: Any, kind: str, backend: str) -> None:
    n, d, k, threads, dtype = case
    name, _, simd = backend.partition("-")
    if n > 1 and (name != "native" or simd == "scalar" or (case[:3] == BIG and backend != our_contenders()[0])):
        pytest.skip("seconds a call and no question anybody asks")
    X = held(rows, n, d, dtype)
    op = SketchOperator(kind, d, k, seed=1)
    benchmark.group = f"dense {dtype} {n}x{d}->{k} {threads}t"
    with ef.using(name, simd=simd or None):
        Y = op.transform(X, num_threads=threads)
        few = slice(None, None, -(-n // 20))
        part = op if case[:3] != BIG else SketchOperator(kind, d, 64, seed=1)  # its outputs are the first of op's
        expected = X[few].astype(np.float64) @ part.toarray().T * (op.scale / part.scale)
        np.testing.assert_allclose(Y[few, : part.n_components], expected, rtol=1e-3, atol=1e-3)
        contender(
            benchmark,
            f"{kind} {backend}",
            ours=True,
            bytes=X.nbytes + Y.nbytes,
            flop=2 * n * d * k,
            distortion=distortion(X, Y),
            operator_bytes=len(op.to_bytes()),
        )
        measure(benchmark, case, lambda: op.transform(X, num_threads=threads))


@params
def test_numpy_stored_matrix(benchmark: Any, contender: Any, case: Any) -> None:
    n, d, k, threads, dtype = case
    X, R = held(rows, n, d, dtype), held(matrix, d, k, dtype)
    benchmark.group = f"dense {dtype} {n}x{d}->{k} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        Y = X @ R.T
        extra = {"flop": 2 * n * d * k, "distortion": distortion(X, Y), "operator_bytes": R.nbytes}
        contender(benchmark, "numpy X @ R.T, R stored", bytes=X.nbytes + Y.nbytes + R.nbytes, **extra)
        measure(benchmark, case, lambda: X @ R.T)


@params
def test_scikit_learn(benchmark: Any, contender: Any, case: Any) -> None:
    n, d, k, threads, dtype = case
    X = held(rows, n, d, dtype)
    fitted, seconds = held(fit, n, d, k, dtype)
    benchmark.group = f"dense {dtype} {n}x{d}->{k} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        Y = fitted.transform(X)
        stored = fitted.components_.nbytes
        extra = {"distortion": distortion(X, Y), "operator_bytes": stored, "fit_seconds": seconds}
        contender(benchmark, "scikit-learn GaussianRandomProjection", bytes=X.nbytes + Y.nbytes + stored, **extra)
        measure(benchmark, case, lambda: fitted.transform(X))
