"""On Flower's records: this package's functions against Flower's own, from the same replies.

"records": a list of RecordDicts in, an ArrayRecord out, bytes to bytes, as inside a strategy. "arrays": the same mean
from numpy arrays that are ready, into arrays (test_bench_mean.py has more contenders there); Flower's function has no
such form, so it is given the records it needs. "round": aggregate_train on replies that are all there, with metrics.
Limit: every reply read once, the model written once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import Quantizer, weighted_mean

app = pytest.importorskip("flwr.app")
theirs = pytest.importorskip("flwr.serverapp.strategy")
from edgefast.integrations import flower as ours  # noqa: E402
from edgefast.integrations.flower import _wire  # noqa: E402

# clients, parameters, tensors, threads
CASES = [(10, 5_000_000, 1, 1), (10, 5_000_000, 1, 2), (10, 5_000_000, 20, 2), (100, 400_000, 400, 2)]
_made: dict[tuple[int, int, int], tuple[list[dict[str, Any]], list[int], list[Any]]] = {}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}x{c[1]}/{c[2]}-{c[3]}t")


def replies(clients: int, parameters: int, tensors: int) -> tuple[list[dict[str, Any]], list[int], list[Any]]:
    """Models, weights, contents of replies."""
    key = (clients, parameters, tensors)
    if key not in _made:
        _made.clear()
        rng = np.random.default_rng(0)
        size = parameters // tensors
        models = [{str(t): rng.standard_normal(size, np.float32) for t in range(tensors)} for _ in range(clients)]
        weights = rng.integers(10, 1000, clients).tolist()
        _made[key] = models, weights, [content(m, w) for m, w in zip(models, weights, strict=True)]
    return _made[key]


def content(model: dict[str, Any], weight: int) -> Any:
    record = app.ArrayRecord({k: app.Array(v) for k, v in model.items()})
    return app.RecordDict({"arrays": record, "metrics": app.MetricRecord({"num-examples": weight, "loss": 0.5})})


def start(benchmark: Any, what: str, case: tuple[int, int, int, int]) -> tuple[Any, Any, Any, int]:
    clients, parameters, tensors, threads = case
    benchmark.group = f"Flower {what} float32 {clients} clients x {parameters} in {tensors} tensor(s) {threads}t"
    return (*replies(clients, parameters, tensors), (clients + 1) * parameters * 4)


def expected(models: list[dict[str, Any]], weights: list[int]) -> dict[str, Any]:
    return {
        k: sum(w * m[k].astype(np.float64) for w, m in zip(weights, models, strict=True)) / sum(weights)
        for k in models[0]
    }


def check(record: Any, models: list[dict[str, Any]], weights: list[int], atol: float = 1e-5) -> None:
    for k, v in expected(models, weights).items():
        np.testing.assert_allclose(record[k].numpy(), v, rtol=1e-3, atol=atol)


@each_case
@pytest.mark.parametrize("who", ["edgefast", "Flower"])
def test_records(benchmark: Any, contender: Any, case: Any, who: str) -> None:
    models, weights, contents, moved = start(benchmark, "records", case)
    work: Callable[[], Any]
    if who == "Flower":
        work = lambda: theirs.strategy_utils.aggregate_arrayrecords(contents, "num-examples")  # noqa: E731
    else:
        work = lambda: ours.aggregate_arrayrecords(contents, "num-examples", num_threads=case[3])  # noqa: E731
    check(work(), models, weights)
    contender(benchmark, f"{who} aggregate_arrayrecords", ours=who == "edgefast", bytes=moved)
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)


@each_case
@pytest.mark.parametrize("who", ["edgefast", "Flower"])
def test_arrays(benchmark: Any, contender: Any, case: Any, who: str) -> None:
    models, weights, contents, moved = start(benchmark, "arrays", case)
    out = {k: np.empty_like(v) for k, v in models[0].items()}
    work: Callable[[], Any]
    if who == "Flower":
        work = lambda: theirs.strategy_utils.aggregate_arrayrecords(contents, "num-examples")  # noqa: E731
    else:
        work = lambda: weighted_mean(models, weights, out=out, num_threads=case[3])  # noqa: E731
    work()
    contender(
        benchmark,
        "edgefast weighted_mean, out=" if who == "edgefast" else "Flower aggregate_arrayrecords",
        ours=who == "edgefast",
        bytes=moved,
    )
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)


STRATEGIES: dict[str, Callable[[Any], Any]] = {
    "FedAvg": lambda s: s.FedAvg(),
    "FedAdam": lambda s: s.FedAdam(),
    "FedMedian": lambda s: s.FedMedian(),
    "FedTrimmedAvg": lambda s: s.FedTrimmedAvg(),
    "MultiKrum": lambda s: s.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
}


@pytest.mark.parametrize("who", ["edgefast", "Flower"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_round(benchmark: Any, contender: Any, name: str, who: str) -> None:
    case = (10, 2_000_000, 20, 2)
    models, weights, contents, moved = start(benchmark, f"round of {name}", case)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = ours.LocalGrid(lambda message, context: message, 10)
    strategy = STRATEGIES[name](ours if who == "edgefast" else theirs)
    if who == "edgefast":
        strategy.num_threads = 2
    model = app.ArrayRecord({k: app.Array(np.zeros_like(v)) for k, v in models[0].items()})
    strategy.configure_train(1, model, app.ConfigRecord(), grid)

    def setup() -> tuple[Any, Any]:
        # Flower's robust strategies take the arrays out of the replies: each round gets records of its own.
        made = []
        for i, c in enumerate(contents):
            asked = app.Message(app.RecordDict(), i + 1, app.MessageType.TRAIN)
            copied = app.RecordDict({k: r.copy() for k, r in c.items()})
            made.append(app.Message(copied, reply_to=asked))
        return (1, made), {}

    (number, made), _ = setup()
    arrays, metrics = strategy.aggregate_train(number, made)
    assert list(arrays) == list(models[0])
    assert metrics["loss"] == pytest.approx(0.5)
    if name == "FedAvg":
        check(arrays, models, weights)
    contender(benchmark, f"{who} {name}.aggregate_train", ours=who == "edgefast", bytes=moved)
    benchmark.pedantic(strategy.aggregate_train, setup=setup, rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "eden"])
def test_compressed_replies(benchmark: Any, contender: Any, kind: str) -> None:
    """The server's side of a round of FedAvg when replies are compressed."""
    case = (10, 2_000_000, 20, 2)
    models, weights, contents, _ = start(benchmark, "round of FedAvg, replies compressed,", case)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grid = ours.LocalGrid(lambda message, context: message, 10)
    strategy = ours.FedAvg(num_threads=2)
    model = app.ArrayRecord({k: app.Array(np.zeros_like(v)) for k, v in models[0].items()})
    strategy.configure_train(1, model, app.ConfigRecord(), grid)
    made, sent = [], 0
    for i, (m, c) in enumerate(zip(models, contents, strict=True)):
        record = c["arrays"]
        if kind == "bfloat16":
            record = _wire.to_bfloat16(record)
        elif kind != "float32":
            quantizer = Quantizer("eden", bits=4) if kind == "eden" else Quantizer("int8")
            record = _wire.from_encoded(quantizer.encode(m, nonce=i), difference=True)
        sent += sum(len(a.data) for a in record.values())
        asked = app.Message(app.RecordDict(), i + 1, app.MessageType.TRAIN)
        made.append(app.Message(app.RecordDict({"arrays": record, "metrics": c["metrics"]}), reply_to=asked))
    check(strategy.aggregate_train(1, made)[0], models, weights, atol=0.5)
    contender(benchmark, f"edgefast, {kind} replies", ours=kind != "float32", bytes=sent)
    benchmark.pedantic(strategy.aggregate_train, (1, made), rounds=5, warmup_rounds=1)
