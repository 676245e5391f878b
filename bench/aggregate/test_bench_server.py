"""One server step of FedAdam: ours fused with the mean against Flower's strategy and the same rule in numpy.

From an aggregated model: what Flower's aggregate_train does after its mean. Bytes: model, mean, two states, each read
once, and model and states written once.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.aggregate import FedAdam, MeanAccumulator

P, TENSORS = 5_000_000, 10
THREADS = (1, 2)


def models() -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    x = {str(t): rng.standard_normal(P // TENSORS, np.float32) for t in range(TENSORS)}
    return x, {k: a + np.float32(0.01) * rng.standard_normal(a.size, np.float32) for k, a in x.items()}


def start(benchmark: Any, threads: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    benchmark.group = f"FedAdam step float32 {P} in {TENSORS} tensors {threads}t"
    return (*models(), 7 * P * 4)


def expected(x: dict[str, Any], mean: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for k in x:
        d = mean[k].astype(np.float64) - x[k]
        rate = 0.1 * (1 - 0.99**2) ** 0.5 / (1 - 0.9**2)
        out[k] = x[k] + rate * (0.1 * d) / (np.sqrt(0.01 * d * d) + 1e-3)
    return out


def close(got: Any, want: dict[str, Any]) -> None:
    for k, v in want.items():
        np.testing.assert_allclose(got[k], v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("backend", our_contenders())
@pytest.mark.parametrize("form", ["mean", "accumulator"])
def test_ours(benchmark: Any, contender: Any, backend: str, form: str, threads: int) -> None:
    x, mean, moved = start(benchmark, threads)
    name, _, simd = backend.partition("-")
    if backend != our_contenders()[0] and (form, threads) != ("mean", 1):
        pytest.skip("one comparison of the levels is enough")
    with ef.using(name, simd=simd or None, num_threads=threads):
        update: Any = mean
        if form == "accumulator":
            update = MeanAccumulator(x)
            update.add(mean)
        close(FedAdam(preset="flower").step(x, update), expected(x, mean))
        out = {k: np.empty_like(a) for k, a in x.items()}
        opt = FedAdam(preset="flower")
        contender(benchmark, f"edgefast {backend}, {form}", ours=True, bytes=moved)
        benchmark(opt.step, x, update, out=out)


@pytest.mark.parametrize("threads", THREADS)
def test_numpy(benchmark: Any, contender: Any, threads: int) -> None:
    x, mean, moved = start(benchmark, threads)

    def work(m: dict[str, Any], v: dict[str, Any]) -> dict[str, Any]:
        out, rate = {}, np.float32(0.1 * (1 - 0.99**2) ** 0.5 / (1 - 0.9**2))
        for k in x:
            d = mean[k] - x[k]
            m[k] = np.float32(0.9) * m[k] + np.float32(0.1) * d
            v[k] = np.float32(0.99) * v[k] + np.float32(0.01) * d * d
            out[k] = x[k] + rate * m[k] / (np.sqrt(v[k]) + np.float32(1e-3))
        return out

    def states() -> tuple[dict[str, Any], dict[str, Any]]:
        return {k: np.zeros_like(a) for k, a in x.items()}, {k: np.zeros_like(a) for k, a in x.items()}

    close(work(*states()), expected(x, mean))
    contender(benchmark, "numpy, the rule as written (float32)", bytes=moved)
    benchmark(work, *states())


@pytest.mark.parametrize("threads", THREADS)
def test_flower(benchmark: Any, contender: Any, threads: int) -> None:
    pytest.importorskip("flwr")
    from flwr.app import Array, ArrayRecord
    from flwr.serverapp.strategy import FedAdam as Peer
    from flwr.serverapp.strategy import FedAvg

    x, mean, moved = start(benchmark, threads)
    record = ArrayRecord({k: Array(a) for k, a in mean.items()})

    def strategy() -> Any:
        made = Peer(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
        made.current_arrays = dict(x)
        return made

    with mock.patch.object(FedAvg, "aggregate_train", return_value=(record, None)):
        result, _ = strategy().aggregate_train(1, [])
        close({k: a.numpy() for k, a in result.items()}, expected(x, mean))
        made = strategy()
        contender(benchmark, "Flower FedAdam, after its mean", bytes=moved)
        benchmark(made.aggregate_train, 1, [])
