"""The main job against a plain-numpy oracle, on every backend, through drops, errors and interruption."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from edgefast.federated import Dataset, InputError, Progress, RunConfig, RunResult, dirichlet_partition, run
from edgefast.federated.partition import stratified_split
from edgefast.federated.training import Scaler, SoftmaxTrainer, accuracy
from edgefast.sketch import SketchOperator

KINDS = ("sparse_stack", "srht", "rademacher")


def small(n: int = 120, d: int = 12, classes: int = 3, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[y]
    return Dataset.of(X, y, name="blobs")


SMALL: dict[str, Any] = {"devices": 4, "rounds": 3, "components": 6, "epochs": 2, "batch": 8}


def oracle(config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Federated averaging as the paper writes it: no queue, no thread, no kernel of ours but the mean's definition."""
    train, _ = stratified_split(data.y, config.test_fraction, seed=config.seed)
    shards = [
        train[s] for s in dirichlet_partition(data.y[train], config.devices, alpha=config.alpha, seed=config.seed)
    ]
    scaler = Scaler.fit([data.X[s] for s in shards])
    matrix = SketchOperator(config.kind, data.X.shape[1], config.components, seed=config.seed).toarray()
    # In two steps, as the kernels do: exact sums of +-1, then one multiplication.
    largest = np.abs(matrix).max()
    signs = np.sign(matrix)
    scale = scaler.dtype(largest)
    step = config.learning_rate / max(1, int((scaler.deviation > 0).sum()))
    model = {
        "weights": np.zeros((config.components, len(data.classes)), scaler.dtype),
        "bias": np.zeros(len(data.classes), scaler.dtype),
    }
    for number in range(config.rounds):
        models, weights = [], []
        for index, shard in enumerate(shards):
            trainer = SoftmaxTrainer(model, step)
            rng = np.random.Generator(np.random.Philox(key=[config.seed, 3], counter=[0, 0, number, index]))
            for _ in range(config.epochs):
                order = rng.permutation(len(shard))
                for start in range(0, len(shard), config.batch):
                    rows = shard[order[start : start + config.batch]]
                    exact = scaler.transform(data.X[rows]).astype(np.float64) @ signs.T
                    trainer.train(exact.astype(scaler.dtype) * scale, data.y[rows])
            models.append(trainer.model)
            weights.append(float(trainer.rows) if config.weights == "rows" else 1.0)
        model = {
            key: (
                sum(w * m[key].astype(np.float64) for w, m in zip(weights, models, strict=True)) / sum(weights)
            ).astype(scaler.dtype)
            for key in model
        }
    return model


def same_bits(result: RunResult, model: dict[str, Any]) -> bool:
    return (
        result.model.weights.tobytes() == model["weights"].tobytes()
        and result.model.bias.tobytes() == model["bias"].tobytes()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["rows", "equal"])
def test_equals_the_oracle_bit_for_bit_on_every_backend(backend: str, kind: str, weights: Any) -> None:
    config = RunConfig(**SMALL, kind=kind, weights=weights, seed=5)
    data = small()
    assert same_bits(run(config, data), oracle(config, data))


@pytest.mark.parametrize(
    "options",
    [{"threads": 1}, {"threads": 4}, {"queue_size": 1}, {"queue_size": 2, "high_watermark": 2, "low_watermark": 1}],
    ids=str,
)
def test_threads_and_queues_do_not_change_the_model(options: dict[str, Any]) -> None:
    data = small()
    assert same_bits(run(RunConfig(**SMALL, **options), data), oracle(RunConfig(**SMALL), data))


def test_seeds_give_other_models() -> None:
    data = small()
    assert not same_bits(run(RunConfig(**SMALL, seed=1), data), oracle(RunConfig(**SMALL, seed=2), data))


@pytest.mark.parametrize("kind", KINDS)
def test_digits_reach_the_stated_accuracy(kind: str) -> None:
    pytest.importorskip("sklearn")
    found = run(RunConfig(kind=kind)).metrics["accuracy"]
    assert found["federated"] >= 0.90
    assert found["federated"] >= found["centralised"] - 0.04
    assert found["centralised_raw"] > 0.95


def test_digits_give_the_same_bits_on_every_backend(backend: str) -> None:
    pytest.importorskip("sklearn")
    from edgefast.federated import digits

    config = RunConfig(rounds=2, seed=0)
    assert same_bits(run(config), oracle(config, digits()))


def test_metrics_add_up_and_are_json() -> None:
    config, data = RunConfig(**SMALL), small()
    metrics = run(config, data).metrics
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert {"accuracy", "rounds", "queue", "uplink_bytes"} <= set(metrics)
    assert [r["round"] for r in metrics["rounds"]] == [1, 2, 3]
    train = metrics["data"]["train_rows"]
    assert sum(metrics["data"]["rows_per_device"]) == train == 96
    assert all(r["rows"] == train * config.epochs and r["dropped"] == 0 for r in metrics["rounds"])
    assert metrics["rounds"][-1]["accuracy"] == metrics["accuracy"]["federated"]
    sent = metrics["uplink_bytes"]
    assert sent["updates"] == 3 * 4 * (6 + 1) * 3 * 4
    assert sent["updates_without_sketch"] == 3 * 4 * (12 + 1) * 3 * 4
    assert (sent["data"], sent["data_without_sketch"], sent["operator"]) == (96 * 6 * 4, 96 * 12 * 4, 24)
    queue = metrics["queue"]
    batches = sum(-(-rows // 8) for rows in metrics["data"]["rows_per_device"]) * config.epochs * config.rounds
    assert queue["offered"] == batches
    assert queue["peak"] <= queue["high_watermark"] == 12
    assert max(queue["depth"]["max"]) <= queue["peak"]
    assert metrics["stages"]["sketch"]["items"] == metrics["stages"]["train"]["items"] == train * 2 * 3
    assert metrics["repeatable"]
    assert not metrics["interrupted"]


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "latest"])
def test_a_drop_policy_loses_nothing_silently(policy: Any) -> None:
    config = RunConfig(**SMALL, policy=policy, queue_size=1)
    metrics = run(config, small()).metrics
    trained, streamed = metrics["stages"]["train"]["items"], metrics["stages"]["sketch"]["items"]
    assert metrics["queue"]["dropped"] == sum(r["dropped"] for r in metrics["rounds"])
    assert (trained < streamed) == (metrics["queue"]["dropped"] > 0)
    assert sum(r["rows"] for r in metrics["rounds"]) == trained
    assert not metrics["repeatable"]


def test_a_round_without_a_single_batch_keeps_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgefast.federated import device

    monkeypatch.setattr(device.Device, "_source", lambda self, number: iter(()))
    result = run(RunConfig(**SMALL, policy="drop_newest"), small())
    assert not result.model.weights.any()
    assert result.metrics["stages"]["train"]["items"] == 0
    assert all(r["devices"] == 0 and r["loss"] is None for r in result.metrics["rounds"])


def test_progress_is_reported_after_every_round() -> None:
    seen: list[Progress] = []
    run(RunConfig(**SMALL), small(), on_progress=seen.append)
    assert {p.round for p in seen} >= {1, 2, 3}
    assert seen[-1].rows == 96 * 2 * 3
    assert seen[-1].accuracy is not None
    assert all(p.depth <= p.high_watermark for p in seen)


def test_interruption_keeps_the_rounds_that_were_finished() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    data = small()
    result = run(RunConfig(**{**SMALL, "rounds": 1000}), data, on_progress=interrupt)
    assert result.metrics["interrupted"]
    assert len(result.metrics["rounds"]) == 2
    assert result.metrics["accuracy"]["centralised"] is None
    assert same_bits(result, oracle(RunConfig(**{**SMALL, "rounds": 2}), data))
    assert not [t for t in threading.enumerate() if t.name.startswith("edgefast-")]


@pytest.mark.parametrize("where", ["source", "trainer", "progress"])
def test_an_error_in_any_thread_ends_the_run_with_that_error(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = threading.Semaphore(7)

    def fail(*args: Any, **kwargs: Any) -> None:
        if not calls.acquire(blocking=False):
            raise MemoryError(where)

    if where == "source":
        original = SketchOperator.transform

        def transform(self: SketchOperator, X: Any, **kwargs: Any) -> Any:
            fail()
            return original(self, X, **kwargs)

        monkeypatch.setattr(SketchOperator, "transform", transform)
    elif where == "trainer":
        train = SoftmaxTrainer.train
        monkeypatch.setattr(SoftmaxTrainer, "train", lambda self, *batch: (fail(), train(self, *batch)))
    with pytest.raises(MemoryError, match=where):
        run(
            RunConfig(**{**SMALL, "rounds": 50, "queue_size": 2}),
            small(),
            on_progress=fail if where == "progress" else None,
        )
    assert not [t for t in threading.enumerate() if t.name.startswith("edgefast-")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 97}, "devices: expected at most one per training row (96), got 97; ask for fewer"),
        ({"components": 13}, "components: expected at most the 12 features of blobs, got 13; ask for fewer"),
    ],
    ids=["devices", "components"],
)
def test_options_that_do_not_fit_the_data(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        run(RunConfig(**{**SMALL, **options}), small())
    assert str(error.value) == message


def test_an_unknown_backend_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="unknown backend 'cuda'"):
        run(RunConfig(**SMALL, backend="cuda"), small())


@pytest.mark.parametrize("devices", [1, 96])
def test_one_device_and_one_row_each(devices: int) -> None:
    config, data = RunConfig(**{**SMALL, "devices": devices, "rounds": 1}), small()
    assert same_bits(run(config, data), oracle(config, data))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, v) for n in ("devices", "rounds", "components", "epochs", "batch", "queue_size") for v in (0, -1, 2**31)),
        *((n, v) for n in ("devices", "seed", "threads") for v in (1.5, "3", True, np.float64(2))),
        *(("seed", v) for v in (-1, 2**64)),
        ("threads", 0),
        ("high_watermark", 17),
        ("low_watermark", 12),
        *((n, v) for n in ("alpha", "learning_rate") for v in (0, -1.0, float("nan"), float("inf"), "x")),
        *(("test_fraction", v) for v in (0, 1, -0.1, None)),
        ("kind", "gauss"),
        ("policy", "drop_some"),
        ("weights", None),
    ],
)
def test_every_option_is_checked_and_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected"):
        RunConfig(**{name: value})


def test_watermark_defaults() -> None:
    assert RunConfig(queue_size=16).watermarks == (12, 3)
    assert RunConfig(queue_size=1).watermarks == (1, 0)
    assert RunConfig(queue_size=8, high_watermark=8).watermarks == (8, 2)


def test_accuracy_is_the_share_of_hits() -> None:
    model = {"weights": np.eye(2), "bias": np.zeros(2)}
    assert accuracy(model, np.array([[2.0, 1], [0, 1], [3, 0], [1, 0]]), np.array([0, 1, 1, 0])) == 0.75
