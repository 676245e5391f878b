"""Sketches with a state: row sketches against SciPy's CountSketch, long vectors, codes, near-duplicates, any axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.backends import streams
from edgefast.sketch import CountSketch, DedupFilter, FrequentDirections, RowSketch, SimHash, fwht

THREADS = pytest.mark.parametrize("threads", [1, 2], ids=lambda t: f"{t}t")
OURS = pytest.mark.parametrize("backend", our_contenders())
_inputs: dict[str, np.ndarray] = {}


def cached(name: str, make: Any) -> np.ndarray:
    if name not in _inputs:
        _inputs.clear()
        _inputs[name] = make()
    return _inputs[name]


def normal(*shape: int) -> np.ndarray:
    return cached(f"normal {shape}", lambda: np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def using(backend: str, threads: int) -> Any:
    name, _, simd = backend.partition("-")
    return ef.using(name, simd=simd or None, num_threads=threads)


def slow(backend: str) -> bool:
    """Not worth a long measurement: a fallback, or the oracle."""
    return not backend.startswith("native") or backend.endswith("scalar")


# ---- rows ----------------------------------------------------------------------------------------------------------

ROWS = (1_000_000, 64, 256)


def gram_error(gram: np.ndarray, X: np.ndarray) -> float:
    exact = X.T.astype(np.float64) @ X
    return float(np.linalg.norm(gram - exact, 2) / np.linalg.norm(exact, 2))


@THREADS
@OURS
@pytest.mark.parametrize(
    ("kind", "nnz", "accumulate"),
    [
        ("countsketch", 1, "float32"),
        ("sparse_stack", 4, "float32"),
        ("sparse_stack", 8, "float32"),
        ("sparse_stack", 8, "float64"),
        ("sparse_stack", 8, "int64"),
    ],
)
def test_rows(benchmark: Any, contender: Any, threads: int, kind: str, nnz: int, accumulate: Any, backend: str) -> None:
    n, c, k = ROWS
    if slow(backend) or (accumulate != "float32" and backend != our_contenders()[0]):
        pytest.skip("seconds a call and no question anybody asks")
    X = normal(n, c)
    benchmark.group = f"row sketch float32 {n}x{c}->{k} {threads}t"
    with using(backend, threads):
        s = RowSketch(c, k, kind=kind, nnz=nnz, accumulate=accumulate)
        error = gram_error(s.copy().update(X).gram(), X)
        assert error < 1.5
        contender(
            benchmark, f"RowSketch {kind}({nnz}) {accumulate} {backend}", ours=True, bytes=X.nbytes, gram_error=error
        )
        benchmark(s.update, X, row_start=0)


@THREADS
def test_rows_scipy(benchmark: Any, contender: Any, threads: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    if threads == 2:
        pytest.skip("single-threaded: see the other group")
    n, c, k = ROWS
    X = normal(n, c)
    benchmark.group = f"row sketch float32 {n}x{c}->{k} {threads}t"
    B = linalg.clarkson_woodruff_transform(X, k, rng=0)
    contender(benchmark, "SciPy clarkson_woodruff_transform", bytes=X.nbytes, gram_error=gram_error(B.T @ B, X))
    benchmark(linalg.clarkson_woodruff_transform, X, k, rng=0)


# ---- a long vector -------------------------------------------------------------------------------------------------

LONG, WIDTH, DEPTH = 10_000_000, 100_000, 5


def numpy_tables() -> tuple[np.ndarray, np.ndarray]:
    """Buckets and signs of every coordinate, kept, as csvec does: (depth, d) of int64 and float32."""
    entries = streams.stack_table(0, DEPTH * WIDTH, DEPTH, 0, LONG)
    buckets = (entries & np.uint32(0x7FFFFFFF)).astype(np.int64).T - WIDTH * np.arange(DEPTH)[:, None]
    return np.ascontiguousarray(buckets), np.ascontiguousarray(1 - 2 * (entries >> np.uint32(31)).astype(np.float32).T)


@THREADS
@OURS
@pytest.mark.parametrize("what", ["update", "estimate"])
def test_long_vector(benchmark: Any, contender: Any, threads: int, what: str, backend: str) -> None:
    if slow(backend):
        pytest.skip("seconds a call and no question anybody asks")
    x = normal(LONG)
    benchmark.group = f"count sketch {what} float32 {LONG}->{DEPTH}x{WIDTH} {threads}t"
    with using(backend, threads):
        cs = CountSketch(LONG, WIDTH, DEPTH).update(x)
        assert abs(cs.l2() / np.linalg.norm(x) - 1) < 0.05
        contender(benchmark, f"CountSketch {backend}", ours=True, bytes=x.nbytes, kept_bytes=cs.nbytes)
        if what == "update":
            benchmark(cs.update, x)
        else:
            benchmark(cs.estimate)


@THREADS
@pytest.mark.parametrize("what", ["update", "estimate"])
def test_long_vector_tables(benchmark: Any, contender: Any, threads: int, what: str) -> None:
    if threads == 2:
        pytest.skip("single-threaded: see the other group")
    x = normal(LONG)
    buckets, signs = numpy_tables()
    table = np.stack([np.bincount(b, s * x, WIDTH) for b, s in zip(buckets, signs, strict=True)])
    expected = CountSketch(LONG, WIDTH, DEPTH, dtype="float64").update(x)
    np.testing.assert_allclose(table, expected.table, rtol=1e-3, atol=1e-3)
    benchmark.group = f"count sketch {what} float32 {LONG}->{DEPTH}x{WIDTH} {threads}t"
    contender(benchmark, "numpy, stored tables", bytes=x.nbytes, kept_bytes=buckets.nbytes + signs.nbytes)

    def update() -> Any:
        return [np.bincount(b, s * x, WIDTH) for b, s in zip(buckets, signs, strict=True)]

    def estimate() -> Any:
        return np.median([t[b] * s for t, b, s in zip(table, buckets, signs, strict=True)], axis=0)

    benchmark.pedantic(update if what == "update" else estimate, rounds=3)


# ---- codes ---------------------------------------------------------------------------------------------------------

HASHED = (100_000, 256)


@THREADS
@OURS
@pytest.mark.parametrize("what", ["srht", "sparse_stack", "dedup"])
def test_hashing(benchmark: Any, contender: Any, threads: int, what: Any, backend: str) -> None:
    X = normal(*HASHED)
    n, d = HASHED
    if slow(backend):
        X = X[:5000]
        if backend == "numpy" and what == "dedup":
            pytest.skip("a Python loop")
    benchmark.group = f"SimHash 256 bits float32 {n}x{d} {threads}t"
    with using(backend, threads):
        if what == "dedup":
            assert DedupFilter().add(X[:2000]).sum() == 2000
            contender(benchmark, f"DedupFilter window=1024 {backend}", ours=True, items=len(X))
            benchmark(lambda: DedupFilter(window=1024).add(X))
            return
        h = SimHash(256, kind=what)
        angle = float(np.median(h.angle(h.transform(X[:50]))[np.triu_indices(50, 1)]))
        assert abs(angle - np.pi / 2) < 0.1
        contender(benchmark, f"SimHash {what} {backend}", ours=True, items=len(X), bytes=X.nbytes)
        benchmark(h.transform, X)


@THREADS
def test_hashing_numpy(benchmark: Any, contender: Any, threads: int) -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")
    n, d = HASHED
    X = normal(n, d)
    planes = np.random.default_rng(1).standard_normal((d, 256), dtype=np.float32)
    benchmark.group = f"SimHash 256 bits float32 {n}x{d} {threads}t"
    with threadpoolctl.threadpool_limits(threads):
        contender(benchmark, "numpy, packbits(X @ G >= 0)", items=n, bytes=X.nbytes)
        benchmark(lambda: np.packbits(X @ planes >= 0, axis=1, bitorder="little"))


CODES = 8_000_000


def codes() -> np.ndarray:
    return cached("codes", lambda: np.random.default_rng(0).integers(0, 256, (CODES, 32), dtype=np.uint8))


@THREADS
@OURS
@pytest.mark.parametrize("what", ["nearest", "within 20"])
def test_search(benchmark: Any, contender: Any, threads: int, what: str, backend: str) -> None:
    if slow(backend):
        pytest.skip("seconds a call and no question anybody asks")
    all_codes = codes()
    query = all_codes[CODES // 3]
    h = SimHash(256)
    benchmark.group = f"Hamming search 256 bits {CODES} codes {threads}t"
    with using(backend, threads):
        contender(benchmark, f"SimHash {what} {backend}", ours=True, bytes=all_codes.nbytes)
        if what == "nearest":
            assert h.nearest(query, all_codes)[0] == CODES // 3
            benchmark(h.nearest, query, all_codes)
        else:
            assert h.search(query, all_codes, radius=20)[1].tolist() == [CODES // 3]
            benchmark(h.search, query, all_codes, radius=20)


@THREADS
def test_search_numpy(benchmark: Any, contender: Any, threads: int) -> None:
    if threads == 2:
        pytest.skip("single-threaded: see the other group")
    words = codes().view(np.uint64)
    query = words[CODES // 3]

    def nearest() -> int:
        step = 1 << 15  # cached
        best = [np.bitwise_count(words[i : i + step] ^ query).sum(1, dtype=np.uint16) for i in range(0, CODES, step)]
        return int(np.concatenate(best).argmin())

    assert nearest() == CODES // 3
    benchmark.group = f"Hamming search 256 bits {CODES} codes {threads}t"
    contender(benchmark, "numpy bitwise_count", bytes=words.nbytes)
    benchmark.pedantic(nearest, rounds=3)


@THREADS
def test_search_faiss(benchmark: Any, contender: Any, threads: int) -> None:
    faiss = pytest.importorskip("faiss")
    all_codes = codes()
    index = faiss.IndexBinaryFlat(256)
    index.add(all_codes)
    query = all_codes[CODES // 3 : CODES // 3 + 1]
    faiss.omp_set_num_threads(threads)
    assert index.search(query, 1)[1][0, 0] == CODES // 3
    benchmark.group = f"Hamming search 256 bits {CODES} codes {threads}t"
    contender(benchmark, "faiss IndexBinaryFlat", bytes=all_codes.nbytes)
    benchmark(index.search, query, 1)


# ---- the rest ------------------------------------------------------------------------------------------------------


@THREADS
@pytest.mark.parametrize("shape", [(4096, 4096), (1 << 20, 16)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("how", ["along", "transposed"])
def test_first_axis(benchmark: Any, contender: Any, threads: int, shape: tuple[int, int], how: str) -> None:
    x = normal(*shape)
    out = np.empty_like(x)
    benchmark.group = f"fwht first axis float32 {shape[0]}x{shape[1]} {threads}t"

    def transposed() -> np.ndarray:
        rows = np.ascontiguousarray(x.T)
        fwht(rows, out=rows, num_threads=threads)
        np.copyto(out, rows.T)
        return out

    def along() -> np.ndarray:
        return fwht(x, axis=0, out=out, num_threads=threads)

    np.testing.assert_array_equal(along().copy(), transposed())
    contender(
        benchmark, "fwht(axis=0)" if how == "along" else "transposed copies", ours=how == "along", bytes=2 * x.nbytes
    )
    benchmark(along if how == "along" else transposed)


@pytest.mark.parametrize("how", ["FrequentDirections", "scikit-learn IncrementalPCA"])
def test_directions(benchmark: Any, contender: Any, how: str) -> None:
    X = normal(20_000, 256)
    benchmark.group = "directions float32 20000x256->32"
    if how == "FrequentDirections":
        assert FrequentDirections(32, dtype=np.float32).partial_fit(X).components_.shape == (32, 256)
        contender(benchmark, how, ours=True, bytes=X.nbytes)
        benchmark.pedantic(lambda: FrequentDirections(32, dtype=np.float32).partial_fit(X), rounds=3)
        return
    decomposition = pytest.importorskip("sklearn.decomposition")
    contender(benchmark, how, bytes=X.nbytes)
    benchmark.pedantic(lambda: decomposition.IncrementalPCA(32, batch_size=64).fit(X), rounds=3)
