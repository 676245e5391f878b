"""Sparse rows, narrow types and the adjoint: against scikit-learn, SciPy and converting first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.sketch import SketchOperator

sparse = pytest.importorskip("scipy.sparse")
threadpoolctl = pytest.importorskip("threadpoolctl")

#: rows, features, share of numbers, components
SPARSE = [(20000, 100_000, 0.001, 256), (2000, 100_000, 0.01, 256), (20000, 1_000_000, 0.001, 256)]
KINDS = [("countsketch", 8), ("sparse_stack", 4), ("sparse_stack", 8), ("rademacher", 8), ("gaussian", 8)]
_inputs: dict[Any, Any] = {}


def cached(key: Any, make: Any) -> Any:
    if key not in _inputs:
        _inputs.clear()
        _inputs[key] = make()
    return _inputs[key]


def csr(n: int, d: int, density: float) -> Any:
    """Equally many numbers a row, in random places."""

    def make() -> Any:
        rng = np.random.default_rng(0)
        per_row = int(d * density)
        columns = np.sort(rng.integers(0, d - per_row, (n, per_row)), axis=1) + np.arange(per_row)  # distinct
        values = rng.standard_normal(n * per_row, dtype=np.float32)
        indptr = np.arange(n + 1, dtype=np.int32) * per_row
        return sparse.csr_array((values, columns.ravel().astype(np.int32), indptr), shape=(n, d))

    return cached(("csr", n, d, density), make)


def size_of(X: Any) -> int:
    return X.data.nbytes + X.indices.nbytes + X.indptr.nbytes


def ids(case: Any) -> str:
    return "x".join(map(str, case))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", SPARSE, ids=ids)
@pytest.mark.parametrize(("kind", "nnz"), KINDS)
def test_csr_ours(benchmark: Any, contender: Any, case: Any, kind: str, nnz: int, threads: int) -> None:
    n, d, density, k = case
    if kind in ("rademacher", "gaussian") and (threads == 2 or n * d > 10**10):
        pytest.skip("scales as the others do")
    X = csr(n, d, density)
    op = SketchOperator(kind, d, k, seed=1, nnz=nnz)
    benchmark.group = f"csr float32 {n}x{d} {density:.1%}->{k} {threads}t"
    Y = op.transform(X, num_threads=threads)
    norms = np.linalg.norm(Y, axis=1) / np.sqrt(X.multiply(X).sum(axis=1))
    assert abs(norms.mean() - 1) < 0.02
    label = f"{kind}{f'(nnz={nnz})' if kind == 'sparse_stack' else ''}"
    contender(benchmark, label, ours=True, bytes=size_of(X) + Y.nbytes, distortion=float(norms.std()))
    benchmark(op.transform, X, num_threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", SPARSE, ids=ids)
@pytest.mark.parametrize("peer", ["SparseRandomProjection", "GaussianRandomProjection", "clarkson_woodruff"])
def test_csr_peers(benchmark: Any, contender: Any, case: Any, peer: str, threads: int) -> None:
    n, d, density, k = case
    if d == 1_000_000 and not peer.startswith("Sparse"):
        pytest.skip("a matrix of 2 GB, a transpose of 160 MB")
    if threads == 2 and not peer.startswith("Sparse"):
        pytest.skip("single-threaded whatever one asks for: see the one-thread group")
    X = csr(n, d, density)
    benchmark.group = f"csr float32 {n}x{d} {density:.1%}->{k} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        if peer == "clarkson_woodruff":
            # It sketches rows: the transpose, whose result is sparse.
            linalg = pytest.importorskip("scipy.linalg")
            T = X.T

            def run() -> Any:
                return linalg.clarkson_woodruff_transform(T, k, rng=0).toarray().T

            contender(benchmark, "SciPy clarkson_woodruff_transform", bytes=size_of(X) + 4 * n * k)
        else:
            random_projection = pytest.importorskip("sklearn.random_projection")
            fitted = (
                getattr(random_projection, peer)(k, random_state=0, dense_output=True)
                if peer.startswith("Sparse")
                else getattr(random_projection, peer)(k, random_state=0)
            )
            matrix = sparse.csr_matrix(X)
            fitted.fit(matrix)

            def run() -> Any:
                return fitted.transform(matrix)

            contender(benchmark, f"scikit-learn {peer}", bytes=size_of(X) + 4 * n * k)
        assert run().shape == (n, k)
        benchmark(run)


@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_csc(benchmark: Any, contender: Any, layout: str) -> None:
    """Stored by columns: turned block by block."""
    n, d, density, k = SPARSE[0]
    X = csr(n, d, density)
    X = X if layout == "csr" else cached("csc", X.tocsc)
    op = SketchOperator("sparse_stack", d, k, seed=1)
    benchmark.group = f"layout float32 {n}x{d} {density:.1%}->{k} 1t"
    contender(benchmark, layout, ours=layout == "csc", bytes=size_of(X) + 4 * n * k)
    benchmark(op.transform, X, num_threads=1)


def typed(name: str) -> np.ndarray:
    def make() -> np.ndarray:
        rng = np.random.default_rng(0)
        if name == "f2":
            return rng.standard_normal((8000, 4096), dtype=np.float32).astype(np.float16)
        return rng.integers(0, 100, (8000, 4096)).astype(name)

    return cached(("typed", name), make)


@pytest.mark.parametrize("kind", ["sparse_stack", "srht", "rademacher"])
@pytest.mark.parametrize("name", ["u1", "i1", "f2", "i2"])
@pytest.mark.parametrize("how", ["as it is", "converted first"])
def test_narrow_types(benchmark: Any, contender: Any, name: str, kind: str, how: str) -> None:
    X = typed(name)
    op = SketchOperator(kind, 4096, 256, seed=1)
    benchmark.group = f"{kind} of {np.dtype(name)} 8000x4096->256 1t"
    Y = op.transform(X[:10])
    assert Y.dtype == np.float32
    assert np.array_equal(Y, op.transform(X[:10].astype(np.float32)))
    contender(benchmark, how, ours=how == "as it is", bytes=X.nbytes + 8000 * 256 * 4)
    if how == "as it is":
        benchmark(op.transform, X, num_threads=1)
    else:
        benchmark(lambda: op.transform(X.astype(np.float32), num_threads=1))


ADJOINT = [("sparse_stack", 8), ("countsketch", 8), ("srht", 8), ("rademacher", 8), ("gaussian", 8)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize(("kind", "nnz"), ADJOINT)
def test_adjoint(benchmark: Any, contender: Any, kind: str, nnz: int, backend: str, threads: int) -> None:
    n, d, k = 2000, 4096, 256
    name, _, simd = backend.partition("-")
    if (name != "native" or simd == "scalar") and (kind in ("rademacher", "gaussian") or threads == 2):
        pytest.skip("seconds a call and no question anybody asks")
    Y = cached("adjoint", lambda: np.random.default_rng(0).standard_normal((n, k), dtype=np.float32))
    op = SketchOperator(kind, d, k, seed=1, nnz=nnz)
    benchmark.group = f"adjoint float32 {n}x{k}->{d} {threads}t"
    with ef.using(name, simd=simd or None):
        X = op.adjoint(Y, num_threads=threads)
        np.testing.assert_allclose(X[:50], Y[:50].astype(np.float64) @ op.toarray(), rtol=1e-3, atol=1e-3)
        label = f"{kind}{f'(nnz={nnz})' if kind == 'sparse_stack' else ''} {backend}"
        contender(benchmark, label, ours=True, bytes=X.nbytes + Y.nbytes)
        benchmark(op.adjoint, Y, num_threads=threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_adjoint_by_blas(benchmark: Any, contender: Any, threads: int) -> None:
    n, d, k = 2000, 4096, 256
    Y = cached("adjoint", lambda: np.random.default_rng(0).standard_normal((n, k), dtype=np.float32))
    matrix = SketchOperator("rademacher", d, k, seed=1).toarray().astype(np.float32)
    benchmark.group = f"adjoint float32 {n}x{k}->{d} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        contender(benchmark, "BLAS with a stored matrix", bytes=Y.nbytes + matrix.nbytes + 4 * n * d)
        benchmark(np.matmul, Y, matrix)
