"""Walsh-Hadamard transform: ours against the numpy butterfly, the matrix product and fht-cpu."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.sketch import fwht

CASES = [(1, 1 << 7, 1), (1, 1 << 10, 1), (1, 1 << 14, 1), (1, 1 << 20, 1), (1, 1 << 20, 2), (4096, 1 << 10, 2)]


def butterfly(x: np.ndarray) -> np.ndarray:
    h, n = 1, x.shape[-1]
    while h < n:
        pairs = x.reshape(-1, 2, h)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        h *= 2
    return x.reshape(-1, n)


def setup(benchmark: Any, case: Any) -> tuple[np.ndarray, np.ndarray]:
    n, length, threads = case
    x = np.random.default_rng(0).standard_normal((n, length), dtype=np.float32)
    benchmark.group = f"fwht float32 {n}x{length} {threads}t"
    return x, butterfly(x)


CASE = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}-{c[2]}t")


@CASE
@pytest.mark.parametrize("backend", our_contenders())
def test_ours(benchmark: Any, contender: Any, case: Any, backend: str) -> None:
    x, expected = setup(benchmark, case)
    name, _, simd = backend.partition("-")
    with ef.using(name, simd=simd or None):
        out = np.empty_like(x)
        np.testing.assert_array_equal(fwht(x, out=out, num_threads=case[2]), expected)
        contender(benchmark, f"fwht {backend}", ours=True, bytes=2 * x.nbytes)
        benchmark(fwht, x, out=out, num_threads=case[2])


@CASE
def test_numpy_butterfly(benchmark: Any, contender: Any, case: Any) -> None:
    x, _ = setup(benchmark, case)
    contender(benchmark, "numpy butterfly", bytes=2 * x.nbytes)
    benchmark(butterfly, x)


@CASE
def test_hadamard_matmul(benchmark: Any, contender: Any, case: Any) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    if case[1] > 1 << 12:
        pytest.skip("the matrix would not fit")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    x, expected = setup(benchmark, case)
    matrix = linalg.hadamard(case[1], dtype=np.float32)
    with threadpoolctl.threadpool_limits(case[2]):
        np.testing.assert_allclose(x @ matrix, expected, rtol=1e-3, atol=1e-3)
        contender(benchmark, "scipy hadamard matmul", bytes=2 * x.nbytes)
        benchmark(lambda: x @ matrix)


@CASE
def test_fht_cpu(benchmark: Any, contender: Any, case: Any) -> None:
    fht_cpu = pytest.importorskip("fht_cpu")
    x, expected = setup(benchmark, case)
    rows = x.copy()
    fht_cpu.fht_2d_f32_rows(rows, case[2])
    np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-2)
    work = np.zeros_like(x)  # in place, again and again: zeros stay finite
    contender(benchmark, "fht-cpu", bytes=2 * x.nbytes)
    benchmark(fht_cpu.fht_2d_f32_rows, work, case[2])
