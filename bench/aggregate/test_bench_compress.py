"""Compressed updates: clients a second into a mean against float32 ones; float32 bytes encoded and decoded a second.

Limits: a float32 client is 4 bytes a parameter, an int8 one 1, an int4 one 1/2; with K of them a mean also writes 4
bytes a parameter. Where updates come one by one, 8 bytes a parameter of sums are read and written for each: 20 bytes
against 17 if the sums come from memory. Part of them stays in the last-level cache, so 1.5 to 1.7 is measured. Per
client and 64 parameters int8 costs 12 operations of 64 bytes, hence three or four cycles, where the products of weights
and scales are whole numbers of one unit; the mean of 64 parameters costs 90 more. Otherwise a load that widens, a
conversion and a fused multiply-add of 8 parameters, about two cycles.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import our_contenders

import edgefast as ef
from edgefast.aggregate import MeanAccumulator, Quantizer, weighted_mean

CLIENTS, PARAMETERS = 10, 5_000_000
WEIGHTS = list(range(1, CLIENTS + 1))
FORMS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    "eden 4 bits": {"kind": "eden", "bits": 4},
}
CODECS: dict[str, dict[str, Any]] = {
    "int8": {"kind": "int8"},
    "int8 stochastic": {"kind": "int8", "rounding": "stochastic"},
    "int4": {"kind": "int4"},
    "drive": {"kind": "drive"},
    "eden 4 bits": {"kind": "eden", "bits": 4},
    "topk 1 %": {"kind": "topk"},
    "countsketch 10x": {"kind": "countsketch", "width": 100_000, "fraction": 0.001},
}
_made: dict[str, list[Any]] = {}


def clients(form: str) -> list[Any]:
    if "float32" not in _made:
        rng = np.random.default_rng(0)
        _made["float32"] = [{"w": rng.standard_normal(PARAMETERS, np.float32)} for _ in range(CLIENTS)]
    if form not in _made:
        q = Quantizer(**FORMS[form] or {})
        _made[form] = [q.encode(u, nonce=k) for k, u in enumerate(_made["float32"])]
    return _made[form]


def expected(updates: list[Any]) -> Any:
    return weighted_mean([u if isinstance(u, dict) else u.decode() for u in updates], WEIGHTS)["w"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["weighted_mean", "add_many", "add"])
def test_mean_of_compressed(benchmark: Any, contender: Any, form: str, way: str, threads: int) -> None:
    updates = clients(form)
    benchmark.group = f"{way} of {CLIENTS} compressed clients x {PARAMETERS} {threads}t"
    out = {"w": np.empty(PARAMETERS, np.float32)}
    # Checked once, and not propagated: float32 updates are then read once as well.
    acc = MeanAccumulator(out, nonfinite="propagate", num_threads=threads)

    def mean() -> None:
        weighted_mean(updates, WEIGHTS, out=out, num_threads=threads)

    def many() -> None:
        acc.reset()
        acc.add_many(updates, WEIGHTS)
        acc.result(out=out)

    def one_by_one() -> None:
        acc.reset()
        for u, w in zip(updates, WEIGHTS, strict=True):
            acc.add(u, w)
        acc.result(out=out)

    work = {"weighted_mean": mean, "add_many": many, "add": one_by_one}[way]
    work()
    assert (out["w"] == expected(updates)).all()
    moved = sum(u["w"].nbytes if isinstance(u, dict) else u.nbytes for u in updates) + out["w"].nbytes
    contender(benchmark, form, ours=form != "float32", bytes=moved, items=CLIENTS)
    benchmark(work)


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("backend", our_contenders())
def test_codec(benchmark: Any, contender: Any, codec: str, direction: str, backend: str) -> None:
    if backend != our_contenders()[0] and codec not in ("int8", "eden 4 bits"):
        pytest.skip("one comparison of the levels is enough")
    update = clients("float32")[0]
    q = Quantizer(**CODECS[codec], num_threads=1)
    name, _, simd = backend.partition("-")
    benchmark.group = f"{direction} {codec} float32 {PARAMETERS} 1t"
    with ef.using(name, simd=simd or None):
        encoded = q.encode(update)
        error = np.square(q.decode(encoded)["w"] - update["w"]).mean()
        assert error < {"drive": 0.58, "topk 1 %": 0.95, "int4": 0.03, "countsketch 10x": 2.0}.get(codec, 0.01)
        contender(benchmark, f"edgefast {backend}", ours=True, bytes=PARAMETERS * 4)
        if direction == "encode":
            benchmark(q.encode, update)
        else:
            benchmark(q.decode, encoded, update)


def test_sum_of_sketches(benchmark: Any, contender: Any) -> None:
    """Clients' sketches into one, against their float32 updates: the server's work does not depend on the model."""
    benchmark.group = f"add of {CLIENTS} sketches of {PARAMETERS} 1t"
    q = Quantizer(**CODECS["countsketch 10x"])
    updates = [q.encode(u) for u in clients("float32")]
    acc = MeanAccumulator(updates[0], num_threads=1)
    moved = sum(u.nbytes for u in updates)
    contender(benchmark, "edgefast sketches", ours=True, bytes=moved, items=CLIENTS)

    def work() -> Any:
        acc.reset()
        for u, w in zip(updates, WEIGHTS, strict=True):
            acc.add(u, w)
        return acc.result()

    table = np.average([u._table for u in updates if u._table is not None], axis=0, weights=WEIGHTS)
    np.testing.assert_allclose(work()._table, table, rtol=1e-5, atol=1e-4)
    benchmark(work)


def test_sum_of_float32(benchmark: Any, contender: Any) -> None:
    benchmark.group = f"add of {CLIENTS} sketches of {PARAMETERS} 1t"
    acc = MeanAccumulator(clients("float32")[0], num_threads=1)
    contender(benchmark, "edgefast float32 updates", bytes=CLIENTS * PARAMETERS * 4, items=CLIENTS)

    def work() -> Any:
        acc.reset()
        for u, w in zip(clients("float32"), WEIGHTS, strict=True):
            acc.add(u, w)
        return acc.result()

    assert np.isfinite(work()["w"]).all()
    benchmark(work)
