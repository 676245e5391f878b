"""edgefast.integrations.flower in one process: real strategies, real ClientApps, a Grid without sockets."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

pytestmark = pytest.mark.engine
pytest.importorskip("flwr.serverapp.strategy")

# ruff: noqa: E402
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as theirs

from edgefast import aggregate
from edgefast.aggregate import (
    DtypeMismatch,
    ErrorFeedback,
    MeanAccumulator,
    NonFiniteUpdate,
    Quantizer,
    ShapeMismatch,
    StructureMismatch,
    TooFewUpdates,
    UpdateError,
    ZeroWeightError,
    weighted_mean,
)
from edgefast.integrations import flower as ours
from edgefast.integrations.flower import _wire

# ---- helpers ---------------------------------------------------------------------------------------------------------


def content(arrays: dict[str, Any], weight: float = 1, **metrics: float) -> RecordDict:
    record = ArrayRecord()
    for k, v in arrays.items():  # its constructor would copy Arrays, and forget a subclass
        record[k] = v if isinstance(v, Array) else Array(np.asarray(v))
    return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": weight, **metrics})})


ours.LocalGrid(lambda message, context: message, 1)  # names this process: from flwr 1.4x on a Message needs it


def reply(node: int, made: RecordDict | Error) -> Message:
    asked = Message(RecordDict(), node, MessageType.TRAIN)
    asked.metadata.__dict__["_message_id"] = f"asked-{node}"
    return Message(made, reply_to=asked)


def replies(contents: Iterable[RecordDict]) -> list[Message]:
    return [reply(i + 1, c) for i, c in enumerate(contents)]


def models(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [
        {"w": rng.normal(size=(7, 5)).astype(np.float32), "b": rng.normal(size=5), "s": np.float32(rng.normal())}
        for _ in range(count)
    ]


def values(record: Any) -> dict[str, Any]:
    return {k: a.numpy() for k, a in record.items()}


def close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    x, y = values(a), values(b)
    assert list(x) == list(y)
    for k in x:
        assert x[k].shape == y[k].shape
        np.testing.assert_allclose(x[k], y[k], rtol=rtol, atol=atol, err_msg=k)


# ---- digits, as a ClientApp ------------------------------------------------------------------------------------------


def shards(count: int) -> list[tuple[Any, Any]]:
    datasets = pytest.importorskip("sklearn.datasets")
    X, y = datasets.load_digits(return_X_y=True)
    X = ((X - X.mean(0)) / (X.std(0) + 1e-6)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    return [(X[part], y[part]) for part in np.array_split(order, count)]


def accuracy(record: Any, X: Any, y: Any) -> float:
    return float((np.argmax(X @ record["w"].numpy() + record["b"].numpy(), 1) == y).mean())


def fitted(model: dict[str, Any], X: Any, y: Any, steps: int = 20, rate: float = 0.5) -> dict[str, Any]:
    W, b = model["w"].copy(), model["b"].copy()
    onehot = np.eye(10, dtype=np.float32)[y]
    for _ in range(steps):
        scores = X @ W + b
        p = np.exp(scores - scores.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True) - onehot) / len(y)
        W -= np.float32(rate) * (X.T @ p)
        b -= np.float32(rate) * p.sum(0)
    return {"w": W, "b": b}


def digits_app(
    mods: list[Any] | None = None, nodes: int = 4, spoil: Callable[[int, Any], Any] | None = None
) -> ClientApp:
    data = shards(nodes)
    app = ClientApp(mods=mods or [])

    @app.train()
    def train(message: Message, context: Any) -> Message:
        i = int(context.node_config["partition-id"])
        X, y = data[i]
        model = fitted(values(message.content["arrays"]), X, y)
        if spoil is not None:
            model = spoil(i, model)
        return Message(content(model, len(y), loss=float(i)), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Any) -> Message:
        X, y = data[int(context.node_config["partition-id"])]
        found = accuracy(message.content["arrays"], X, y)
        metrics = MetricRecord({"accuracy": found, "num-examples": len(y)})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def start_model() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros((64, 10), np.float32)), "b": Array(np.zeros(10, np.float32))})


def trained(strategy: Any, app: ClientApp, nodes: int = 4, rounds: int = 3, grid: Any = None, **options: Any) -> Any:
    return strategy.start(grid or ours.LocalGrid(app, nodes), start_model(), num_rounds=rounds, timeout=30, **options)


# ---- the function ----------------------------------------------------------------------------------------------------


def test_five_replies_as_flower_averages_them() -> None:
    records = [content(m, w) for m, w in zip(models(5), (3, 1, 10, 7, 2), strict=True)]
    before = [values(r["arrays"]) for r in records]
    expected = theirs.strategy_utils.aggregate_arrayrecords(records, "num-examples")
    found = ours.aggregate_arrayrecords(records, "num-examples")
    assert isinstance(found, ArrayRecord)
    close(found, expected)
    for old, record in zip(before, records, strict=True):
        for k, v in values(record["arrays"]).items():
            assert np.array_equal(old[k], v)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint16", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 0, 5), (97,)])
def test_dtypes_and_shapes_stay(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = [rng.integers(0, 2 if dtype == "bool" else 50, shape).astype(dtype) for _ in range(3)]
    weights = [1, 2, 4]
    found = ours.aggregate_arrayrecords([content({"x": a}, w) for a, w in zip(x, weights, strict=True)], "num-examples")
    assert (found["x"].dtype, tuple(found["x"].shape), found["x"].stype) == (dtype, shape, "numpy.ndarray")
    expected = weighted_mean([{"x": a} for a in x], weights)["x"]
    assert np.array_equal(found["x"].numpy(), expected)
    assert found["x"].numpy().dtype == np.dtype(dtype)


def test_headers_of_other_writers_are_read_too() -> None:
    m = models(3)
    plain = [content(x, 1) for x in m]
    # Fortran order, and a version 2 header: not the bytes numpy.save writes for the model's arrays.
    plain[1] = content({**m[1], "w": np.asfortranarray(m[1]["w"])})
    data = plain[2]["arrays"]["w"].data
    text = data[10:128]
    longer = b"\x93NUMPY\x02\x00" + (len(text) + 62).to_bytes(4, "little") + text[:-1] + b" " * 62 + b"\n" + data[128:]
    plain[2]["arrays"]["w"] = Array("float32", (7, 5), "numpy.ndarray", longer)
    close(
        ours.aggregate_arrayrecords(plain, "num-examples"),
        theirs.strategy_utils.aggregate_arrayrecords(plain, "num-examples"),
    )


def test_other_stypes_go_through_their_own_numpy() -> None:
    class Shouting(Array):
        def numpy(self) -> Any:
            return np.frombuffer(self.data, self.dtype).reshape(self.shape)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    foreign = Shouting("float32", (2, 3), "raw", x.tobytes())
    found = ours.aggregate_arrayrecords([content({"x": foreign}), content({"x": x + 2})], "num-examples")
    assert np.array_equal(found["x"].numpy(), x + 1)
    silent = Array("float32", (2, 3), "raw", x.tobytes())
    with pytest.raises(DtypeMismatch, match=r"client 0, key 'x': expected an Array that numpy\(\) can read"):
        ours.aggregate_arrayrecords([content({"x": silent})], "num-examples")


BAD: dict[str, tuple[Callable[[], RecordDict], type[Exception], str]] = {
    "shape": (
        lambda: content({"w": np.zeros(4, np.float32)}),
        ShapeMismatch,
        r"key 'w': expected shape \(3,\), got \(4,\)",
    ),
    "broadcast": (lambda: content({"w": np.zeros((1, 3), np.float32)}), ShapeMismatch, "key 'w'"),
    "dtype": (lambda: content({"w": np.zeros(3)}), DtypeMismatch, "expected float32, got float64"),
    "key": (lambda: content({"v": np.zeros(3, np.float32)}), StructureMismatch, "missing 'w'; unexpected 'v'"),
    "nan": (lambda: content({"w": np.array([0, np.nan, 0], np.float32)}), NonFiniteUpdate, "got nan"),
    "bytes": (lambda: content({"w": Array("float32", (3,), "numpy.ndarray", b"x")}), DtypeMismatch, "npy bytes"),
    "weight": (
        lambda: RecordDict({"a": content({"w": np.zeros(3, np.float32)})["arrays"], "m": MetricRecord({"n": 1})}),
        StructureMismatch,
        "'num-examples': expected a metric of this name",
    ),
    "list": (lambda: content({"w": np.zeros(3, np.float32)}, [1.0]), StructureMismatch, "a list of 1"),  # type: ignore[arg-type]
    "no metrics": (
        lambda: RecordDict({"a": content({"w": np.zeros(3, np.float32)})["arrays"]}),
        StructureMismatch,
        "one MetricRecord, got 0",
    ),
    "no arrays": (
        lambda: RecordDict({"m": MetricRecord({"num-examples": 1})}),
        StructureMismatch,
        "one ArrayRecord, got 0",
    ),
    "negative": (lambda: content({"w": np.zeros(3, np.float32)}, -1), StructureMismatch, "finite weight >= 0, got -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_replies_are_typed_errors_that_name_the_client(name: str) -> None:
    make, error, message = BAD[name]
    good = content({"w": np.ones(3, np.float32)})
    with pytest.raises(error, match=message) as caught:
        ours.aggregate_arrayrecords([good, make()], "num-examples")
    if isinstance(caught.value, UpdateError):
        assert caught.value.client == 1


def test_no_weight_at_all() -> None:
    with pytest.raises(ZeroWeightError):
        ours.aggregate_arrayrecords([content({"w": np.ones(3)}, 0)] * 2, "num-examples")
    with pytest.raises(ValueError, match="at least one"):
        ours.aggregate_arrayrecords([], "num-examples")


# ---- accelerate ------------------------------------------------------------------------------------------------------


def test_accelerate_replaces_every_name_and_undoes_it() -> None:
    module = theirs.fedavg
    original = module.aggregate_arrayrecords
    with ours.accelerate() as done:
        assert module.aggregate_arrayrecords is ours.aggregate_arrayrecords
        expected = {
            "fedavg.aggregate_arrayrecords",
            "multikrum.aggregate_arrayrecords",
            "strategy_utils.aggregate_arrayrecords",
            "multikrum.select_multikrum",
            "bulyan.select_multikrum",
            "fedtrimmedavg.trim_mean",
        }
        assert expected <= {p.removeprefix("flwr.serverapp.strategy.") for p in done.places}
        second = ours.accelerate()  # nothing left to do, nothing to undo
        assert second.places == []
        second.undo()
        assert module.aggregate_arrayrecords is ours.aggregate_arrayrecords
    assert module.aggregate_arrayrecords is original
    assert theirs.bulyan.select_multikrum is theirs.multikrum.select_multikrum
    assert theirs.multikrum.select_multikrum.__module__ == "flwr.serverapp.strategy.multikrum"
    done.undo()
    assert module.aggregate_arrayrecords is original


def flower_strategies() -> dict[str, Callable[[Any], Any]]:
    return {
        "FedAvg": lambda s: s.FedAvg(),
        "FedProx": lambda s: s.FedProx(proximal_mu=0.1),
        "FedAvgM": lambda s: s.FedAvgM(server_learning_rate=0.7, server_momentum=0.5),
        "FedAvgM off": lambda s: s.FedAvgM(),
        "FedAdam": lambda s: s.FedAdam(eta=0.05),
        "FedAdagrad": lambda s: s.FedAdagrad(eta=0.05),
        "FedYogi": lambda s: s.FedYogi(eta=0.05),
        "FedMedian": lambda s: s.FedMedian(),
        "FedTrimmedAvg": lambda s: s.FedTrimmedAvg(beta=0.3),
        "Krum": lambda s: s.Krum(num_malicious_nodes=1),
        "MultiKrum": lambda s: s.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
        "Bulyan": lambda s: s.Bulyan(num_malicious_nodes=1),
    }


@pytest.mark.parametrize("name", flower_strategies())
def test_three_rounds_of_digits_equal_flowers(name: str) -> None:
    make = flower_strategies()[name]
    app = digits_app(nodes=8)
    expected = trained(make(theirs), app, 8)
    found = trained(make(ours), app, 8)
    tolerance = 2e-3 if name.startswith("FedA") and name != "FedAvg" else 1e-4  # divided by a root of small squares
    close(found.arrays, expected.arrays, rtol=tolerance, atol=tolerance)
    assert list(found.train_metrics_clientapp) == [1, 2, 3]
    for number in (1, 2, 3):
        mine, his = found.train_metrics_clientapp[number], expected.train_metrics_clientapp[number]
        assert mine["loss"] == pytest.approx(his["loss"])
        evaluated = found.evaluate_metrics_clientapp[number]["accuracy"]
        assert evaluated == pytest.approx(expected.evaluate_metrics_clientapp[number]["accuracy"], abs=5e-3)
    with ours.accelerate():
        close(trained(make(theirs), app, 8).arrays, expected.arrays, rtol=tolerance, atol=tolerance)


def test_an_accelerated_run_really_uses_this_package(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    records = ours._records
    original = records._weighted_mean

    def counted(updates: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(updates))
        return original(updates, *args, **kwargs)

    monkeypatch.setattr(records, "_weighted_mean", counted)
    with ours.accelerate():
        trained(theirs.FedAdam(), digits_app())
    assert calls == [4, 4, 4]


def test_select_multikrum_is_bulyans_rule_and_right_where_flowers_is_not() -> None:
    strategy = ours.Bulyan(num_malicious_nodes=1, selection_rule=lambda c, f, m: ours.select_multikrum(c, f, m))
    app = digits_app(nodes=8)
    close(trained(strategy, app, 8).arrays, trained(ours.Bulyan(num_malicious_nodes=1), app, 8).arrays)
    theirs_with = theirs.Bulyan(num_malicious_nodes=1, selection_rule=ours.select_multikrum)
    close(trained(theirs_with, app, 8).arrays, trained(theirs.Bulyan(num_malicious_nodes=1), app, 8).arrays)
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.05, 20_000)
    wrong = 0
    for _ in range(3):
        x = (base + 1e-5 * rng.normal(size=(10, 20_000))).astype(np.float32)
        wide = x.astype(np.float64)
        scores = np.sort(((wide[:, None] - wide[None]) ** 2).sum(-1), axis=1)[:, 1:7].sum(1)
        records = [content({"w": row}) for row in x]
        assert records.index(ours.select_multikrum(records, 2, 1)[0]) == int(scores.argmin())
        wrong += records.index(theirs.multikrum.select_multikrum(records, 2, 1)[0]) != int(scores.argmin())
    assert wrong > 0
    with pytest.raises(TooFewUpdates):
        ours.select_multikrum([content({"w": np.zeros(3)})] * 2, 2, 1)
    bad = [content({"w": np.full(3, v)}) for v in (1.0, 1.1, np.nan, 1.2)]
    assert bad[2] not in ours.select_multikrum(bad, 1, 3)


# ---- streaming -------------------------------------------------------------------------------------------------------


class Slow(ours.LocalGrid):
    """Answers a message a little after it is asked for, one per pull, in an order of its own; some nodes never."""

    def __init__(self, *args: Any, order: int = 0, silent: Iterable[int] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rng = np.random.default_rng(order)
        self.silent = set(silent)
        self.pulled: list[weakref.ref[Any]] = []
        self.most = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = [n for n in message_ids if n in self._waiting]
        names = [n for n in names if self._waiting[n].metadata.dst_node_id not in self.silent]
        if not names:
            return []
        made = list(super().pull_messages([names[self.rng.integers(len(names))]]))
        self.pulled += [weakref.ref(m) for m in made]
        self.most = max(self.most, sum(ref() is not None for ref in self.pulled))
        return made


def test_replies_are_dropped_as_they_are_used() -> None:
    app = digits_app(nodes=24)
    grid = Slow(app, 24)
    trained(ours.FedAvg(fraction_evaluate=0.0), app, 24, rounds=1, grid=grid)
    assert len(grid.pulled) == 24
    assert grid.most <= 2 + 1 + 1  # in the queue, in the aggregator, in the puller's hands
    del app
    gc.collect()
    assert sum(ref() is not None for ref in grid.pulled) == 0


def test_reproducible_whatever_the_order() -> None:
    app = digits_app(nodes=9)
    found = [trained(ours.FedAvg(accumulate="reproducible"), app, 9, grid=Slow(app, 9, order=i)) for i in range(3)]
    for other in found[1:]:
        for k in ("w", "b"):
            assert other.arrays[k].data == found[0].arrays[k].data
        assert other.train_metrics_clientapp == found[0].train_metrics_clientapp


def test_a_round_ends_at_its_timeout_with_those_who_answered() -> None:
    app = digits_app(nodes=5)
    grid = Slow(app, 5, silent=[2, 4])
    threads = threading.active_count()
    began = time.monotonic()
    result = ours.FedAvg(fraction_evaluate=0.0).start(grid, start_model(), num_rounds=2, timeout=1.0)
    assert 1.9 <= time.monotonic() - began < 20
    data = shards(5)
    expected = start_model()
    for _ in range(2):
        expected = ours.aggregate_arrayrecords(
            [content(fitted(values(expected), *data[i]), len(data[i][1])) for i in (0, 2, 4)], "num-examples"
        )
    close(result.arrays, expected)
    assert threading.active_count() == threads


def test_nobody_answers() -> None:
    app = digits_app()
    grid = Slow(app, 4, silent=[1, 2, 3, 4])
    result = ours.FedAvg(fraction_evaluate=0.0).start(grid, start_model(), num_rounds=1, timeout=0.2)
    assert len(result.arrays) == 0
    assert result.train_metrics_clientapp == {}


def test_what_the_grid_raises_reaches_the_caller() -> None:
    class Broken(ours.LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ConnectionError("gone")

    threads = threading.active_count()
    with pytest.raises(ConnectionError, match="gone"):
        trained(ours.FedAvg(), digits_app(), grid=Broken(digits_app(), 4))
    assert threading.active_count() == threads


def test_an_error_in_the_aggregation_ends_the_puller() -> None:
    def spoil(i: int, model: Any) -> Any:
        return {"w": model["w"][:2], "b": model["b"]}

    app = digits_app(nodes=20, spoil=spoil)
    threads = threading.active_count()
    with pytest.raises(ShapeMismatch, match=r"client \d+, key 'w'"):
        trained(ours.FedAvg(), app, 20, grid=Slow(app, 20))
    assert threading.active_count() == threads


def test_streaming_grid_delegates_and_checks_its_arguments() -> None:
    inner = ours.LocalGrid(digits_app(), 3)
    grid = ours.StreamingGrid(inner)
    grid.set_run("a run")
    assert grid.run == "a run" == inner.run
    assert list(grid.get_node_ids()) == [1, 2, 3]
    if hasattr(inner, "get_nodes"):  # not before flwr 1.3x
        assert len(list(grid.get_nodes())) == 3
    assert grid.contexts is inner.contexts
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = grid.nothing_of_the_kind
    message = grid.create_message(RecordDict(), MessageType.QUERY, 2, "group")
    (name,) = grid.push_messages([message])
    (answer,) = grid.pull_messages([name])
    assert answer.has_error()  # the app has no query function
    empty = grid.send_and_receive([], timeout=1)
    assert not empty
    assert list(empty) == []
    for bad in ({"buffer": 0}, {"chunk": 0}, {"poll_interval": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            ours.StreamingGrid(inner, **bad)  # type: ignore[arg-type]


def test_error_replies_are_counted_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def spoil(i: int, model: Any) -> Any:
        if i == 1:
            raise RuntimeError("no power")
        return model

    result = trained(ours.FedAvg(), digits_app(nodes=3, spoil=spoil), 3, rounds=1)
    data = shards(3)
    made = [content(fitted(values(start_model()), *data[i]), len(data[i][1])) for i in (0, 2)]
    close(result.arrays, ours.aggregate_arrayrecords(made, "num-examples"))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("first", [True, False])
def test_bad_replies_in_a_strategy(name: str, first: bool) -> None:
    make, error, _ = BAD[name]
    model = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    good = [content({"w": np.full(3, v, np.float32)}, w) for v, w in ((1.0, 1), (4.0, 2))]
    batch = [make(), *good] if first else [*good, make()]
    for kind in (ours.FedAvg, ours.FedMedian):
        strict, lenient = kind(), kind(invalid="drop")
        for strategy in (strict, lenient):
            strategy.configure_train(1, model, ConfigRecord(), ours.LocalGrid(digits_app(), 3))
        with pytest.raises(error) as caught:
            strict.aggregate_train(1, replies(batch))
        if not first:
            assert caught.value.client == 3
        arrays, metrics = lenient.aggregate_train(1, replies(batch))
        assert metrics is not None
        assert np.array_equal(arrays["w"].numpy(), np.full(3, 3.0 if kind is ours.FedAvg else 2.5))


def test_options_are_checked() -> None:
    for bad in ({"invalid": "maybe"}, {"downlink": "int8"}, {"accumulate": "float16"}, {"ints": "up"}):
        with pytest.raises(ValueError, match="expected one of"):
            ours.FedAvg(**bad)
    with pytest.raises(TypeError):
        ours.FedAvg(nonsense=1)
    with pytest.raises(ValueError, match="configure_train"):
        ours.FedAdam().aggregate_train(1, replies([content({"w": np.zeros(3)})]))


# ---- compressed replies ----------------------------------------------------------------------------------------------

QUANTIZERS = {
    "int8": Quantizer("int8"),
    "int4": Quantizer("int4", rounding="stochastic"),
    "eden": Quantizer("eden", bits=4),
    "eden2": Quantizer("eden", bits=2),
    "drive": Quantizer("drive"),
    "topk": Quantizer("topk", fraction=0.25),
}


class Counting(ours.LocalGrid):
    """Counts the bytes of the replies' arrays."""

    bytes = 0

    def answer(self, message: Message) -> Message:
        made = super().answer(message)
        if made.has_content() and message.metadata.message_type == MessageType.TRAIN:
            self.bytes += sum(len(a.data) for r in made.content.array_records.values() for a in r.values())
        return made


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("difference", [True, False])
def test_compressed_training(name: str, difference: bool) -> None:
    X, y = shards(1)[0]
    plain_grid = Counting(digits_app(), 4)
    plain = trained(ours.FedAvg(fraction_evaluate=0.0), None, rounds=5, grid=plain_grid)  # type: ignore[arg-type]
    app = digits_app([ours.compression_mod(QUANTIZERS[name], difference=difference, error_feedback=difference)])
    grid = Counting(app, 4)
    found = trained(ours.FedAvg(fraction_evaluate=0.0), app, rounds=5, grid=grid)
    # 640 + 10 values are smaller than a block: padding and the description weigh more than in a real model.
    assert grid.bytes < {"int8": 0.5, "topk": 0.8}.get(name, 0.45) * plain_grid.bytes
    if difference or name in ("int8", "eden"):
        assert accuracy(found.arrays, X, y) > accuracy(plain.arrays, X, y) - 0.05
    assert all(a.stype == "numpy.ndarray" for a in found.arrays.values())


def test_the_mod_is_error_feedback_of_differences() -> None:
    quantizer = QUANTIZERS["topk"]
    sent: list[Any] = []
    app = digits_app([ours.compression_mod(quantizer)], nodes=2)

    class Recording(ours.LocalGrid):
        def answer(self, message: Message) -> Message:
            made = super().answer(message)
            if message.metadata.dst_node_id == 1 and message.metadata.message_type == MessageType.TRAIN:
                sent.append((values(message.content["arrays"]), made.content["arrays"]))
            return made

    grid = Recording(app, 2)
    trained(ours.FedAvg(), app, 2, grid=grid)
    X, y = shards(2)[0]
    feedback = ErrorFeedback(quantizer, nonce=1 << 32)
    for model, record in sent:
        (array,) = record.values()
        assert array.stype == "edgefast.difference"
        after = fitted(model, X, y)
        expected = feedback.encode({k: after[k] - model[k] for k in model})
        # The mod makes a new ErrorFeedback a reply, from the context's state.
        assert array.data == expected.to_bytes()
    state = grid.contexts[1].state
    for k, e in feedback.residual().items():
        assert np.array_equal(state["edgefast.error-feedback"][k].numpy(), e)


def test_who_does_not_know_the_form_fails() -> None:
    app = digits_app([ours.compression_mod(Quantizer("int8"))])
    for strategy in (theirs.FedAvg(), theirs.FedMedian()):
        with pytest.raises(TypeError, match="Unsupported serialization type"):
            trained(strategy, app, rounds=1)
    with ours.accelerate(), pytest.raises(StructureMismatch, match="a difference to the model it was sent"):
        trained(theirs.FedAvg(), app, rounds=1)
    with pytest.raises(TypeError):
        trained(theirs.FedAvg(), digits_app([ours.bfloat16_mod()]), rounds=1)


def test_accelerated_flower_takes_compressed_models() -> None:
    app = digits_app([ours.compression_mod(Quantizer("int8"), difference=False, error_feedback=False)])
    with ours.accelerate():
        found = trained(theirs.FedAvg(), app)
    close(found.arrays, trained(ours.FedAvg(), app).arrays)


@pytest.mark.parametrize("kind", ["FedAvg", "FedAdam", "FedMedian", "Krum", "FedAvgM"])
@pytest.mark.parametrize("difference", [True, False])
def test_strategies_take_compressed_replies(kind: str, difference: bool) -> None:
    app = digits_app([ours.compression_mod(Quantizer("int8"), difference=difference)], nodes=5)
    options = {"FedAvgM": {"server_momentum": 0.5}}.get(kind, {})
    found = trained(getattr(ours, kind)(**options), app, 5, rounds=2)
    plain = trained(getattr(ours, kind)(**options), digits_app(nodes=5), 5, rounds=2)
    if kind != "FedAdam":  # whose step is a matter of signs
        close(found.arrays, plain.arrays, rtol=0.05, atol=0.01)
    X, y = shards(1)[0]
    assert accuracy(found.arrays, X, y) > 0.8


def test_integers_beside_compressed_floats() -> None:
    model = {"w": np.zeros(100, np.float32), "steps": np.array(7)}
    app = ClientApp(mods=[ours.compression_mod(Quantizer("int8"))])

    @app.train()
    def train(message: Message, context: Any) -> Message:
        found = values(message.content["arrays"])
        return Message(content({"w": found["w"] + 1, "steps": found["steps"] + 2}), reply_to=message)

    result = ours.FedAvg(fraction_evaluate=0.0).start(
        ours.LocalGrid(app, 3), ArrayRecord({k: Array(np.asarray(v)) for k, v in model.items()}), num_rounds=2
    )
    assert result.arrays["steps"].numpy() == 11
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0, rtol=1e-2)


@pytest.mark.parametrize(
    ("stype", "message"),
    [
        ("edgefast.encoded", "compressed update"),
        ("edgefast.difference", "compressed update"),
        ("edgefast.sums", "sums of an accumulator"),
        ("edgefast.bfloat16", r"bfloat16 \.npy bytes"),
    ],
)
def test_damaged_forms_name_the_node(stype: str, message: str) -> None:
    strategy = ours.FedAvg()
    strategy.configure_train(
        1, ArrayRecord({"w": Array(np.zeros(3, np.float32))}), ConfigRecord(), ours.LocalGrid(digits_app(), 2)
    )
    for data in (b"", b"EFQU", b"\x93NUMPY\x01\x00", os.urandom(200)):
        bad = content({"w": Array("uint8", (len(data),), stype, data)})
        with pytest.raises(DtypeMismatch, match=message) as caught:
            strategy.aggregate_train(1, replies([bad]))
        assert caught.value.client == 1
    encoded = _wire.from_encoded(Quantizer("int8").encode({"w": np.zeros(4, np.float32)}), difference=True)
    with pytest.raises(ShapeMismatch, match="client 1"):
        strategy.aggregate_train(1, replies([content(dict(encoded))]))
    both = content({"w": Array("uint8", (0,), "edgefast.encoded", b""), "v": np.zeros(3)})
    with pytest.raises(StructureMismatch, match="2 Arrays"):
        strategy.aggregate_train(1, replies([both]))


@pytest.mark.parametrize("kind", ["FedAvg", "FedAdam"])
def test_some_nodes_compress_and_some_do_not(kind: str) -> None:
    base = {"w": np.arange(3, dtype=np.float32), "n": np.array(4)}
    model = ArrayRecord({k: Array(v) for k, v in base.items()})
    change = Quantizer("int8").encode({"w": np.ones(3, np.float32), "n": np.array(8)})
    compressed = content(dict(_wire.from_encoded(change, difference=True)), 3)
    plain = content({"w": base["w"] + 5, "n": np.array(4)}, 1)
    alike = [content({"w": base["w"] + 1, "n": np.array(8)}, 3), plain]
    made = []
    for batch in ([compressed, plain], [plain, compressed], alike):
        strategy = getattr(ours, kind)()
        strategy.configure_train(1, model, ConfigRecord(), ours.LocalGrid(digits_app(), 2))
        made.append(strategy.aggregate_train(1, replies(batch))[0])
    close(made[0], made[2], rtol=1e-4)
    close(made[1], made[0], rtol=0, atol=0)
    assert made[0]["n"].numpy() == 7


# ---- hostile nodes: invalid="drop" outlives every one of them --------------------------------------------------------


def npy(data: bytes, stype: str = "numpy.ndarray", dtype: str = "float32") -> dict[str, Any]:
    return {"w": Array(dtype, (3,), stype, data), "n": np.array(3)}


def hostile_sums(**changes: Any) -> dict[str, Any]:
    model = {"w": np.ones(3, np.float32), "n": np.array(3)}
    acc = MeanAccumulator(model, **changes)
    acc.add(model)
    acc._sums[0][...] = np.nan
    return dict(_wire.from_sums(acc))


def bomb(difference: bool) -> dict[str, Any]:
    """A few bytes that say they are 256 TiB."""
    encoded = Quantizer("topk", fraction=0.5).encode({"w": np.ones(3, np.float32), "n": np.array(3)})
    places = [t for t, (dtype, _) in enumerate(encoded._tensors) if dtype == np.float32]
    encoded._tensors[places[0]] = (np.dtype(np.float32), (1 << 46,))
    return dict(_wire.from_encoded(encoded, difference=difference))


FITS = {"w": np.ones(3, np.float32), "n": np.array(3)}
OBJECTS = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (3,), }".ljust(128)
HOSTILE: dict[str, Callable[[], tuple[dict[str, Any] | None, dict[str, Any] | None]]] = {
    "weight far too small": lambda: (FITS, {"num-examples": 1e-300, "loss": 0.5}),
    "weight far too large": lambda: (FITS, {"num-examples": 1e300, "loss": 0.5}),
    "weight no float holds": lambda: (FITS, {"num-examples": 10**400, "loss": 0.5}),
    "weight 0": lambda: (FITS, {"num-examples": 0, "loss": 0.5}),
    "other metrics": lambda: (FITS, {"num-examples": 10}),
    "a list for a metric": lambda: (FITS, {"num-examples": 10, "loss": [1.0, 2.0]}),
    "no metrics": lambda: (FITS, None),
    "no arrays": lambda: (None, {"num-examples": 10, "loss": 0.5}),
    "garbage": lambda: (npy(b"xxx"), {"num-examples": 10, "loss": 0.5}),
    "pickled objects": lambda: (npy(OBJECTS), {"num-examples": 10, "loss": 0.5}),
    "foreign": lambda: (npy(b"xxx", "foreign"), {"num-examples": 10, "loss": 0.5}),
    "NaN": lambda: ({"w": np.full(3, np.nan, np.float32), "n": np.array(3)}, {"num-examples": 10, "loss": 0.5}),
    "huge integer": lambda: ({"w": FITS["w"], "n": np.array(2**62)}, {"num-examples": 10, "loss": 0.5}),
    "NaN in sums": lambda: (hostile_sums(), {"num-examples": 10, "loss": 0.5}),
    "a bomb": lambda: (bomb(False), {"num-examples": 10, "loss": 0.5}),
    "a difference that is a bomb": lambda: (bomb(True), {"num-examples": 10, "loss": 0.5}),
    "other sums": lambda: (hostile_sums(accumulate="float32"), {"num-examples": 10, "loss": 0.5}),
}
DROPPING: dict[str, Callable[[], Any]] = {
    "FedAvg": lambda: ours.FedAvg(invalid="drop"),
    "reproducible": lambda: ours.FedAvg(invalid="drop", accumulate="reproducible"),
    "FedMedian": lambda: ours.FedMedian(invalid="drop"),
    "weighted": lambda: ours.RobustStrategy("geometric_median", weighted=True, invalid="drop"),
    "FedBuff": lambda: ours.FedBuff(2, weighted=True, invalid="drop"),
}


@pytest.mark.parametrize("strategy", DROPPING)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_one_hostile_node_does_not_end_the_run(strategy: str, hostile: str) -> None:
    arrays, metrics = HOSTILE[hostile]()
    app = ClientApp()

    def answer(message: Message, context: Any, evaluating: bool) -> Message:
        w = message.content["arrays"]["w"].numpy()
        if context.node_id == 1:
            made = RecordDict() if arrays is None else content(arrays)
            made.pop("metrics", None)
            if metrics is not None:
                made["metrics"] = MetricRecord(metrics)
        else:
            made = content({"w": w + 1, "n": np.array(3)}, 10, loss=0.5)
        if evaluating:
            made.pop("arrays", None)
        return Message(made, reply_to=message)

    @app.train()
    def train(message: Message, context: Any) -> Message:
        return answer(message, context, False)

    @app.evaluate()
    def evaluate(message: Message, context: Any) -> Message:
        return answer(message, context, True)

    model = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "n": Array(np.array(3))})
    result = DROPPING[strategy]().start(ours.LocalGrid(app, 3), model, num_rounds=2, timeout=20)
    assert np.isfinite(result.arrays["w"].numpy()).all()
    assert result.arrays["w"].numpy().min() >= 1
    for found in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        # Of two replies of a step of FedBuff either may be the odd one.
        assert strategy == "FedBuff" or all(m == {"loss": 0.5} for m in found.values())
    assert set(result.train_metrics_clientapp) == {1, 2}


@pytest.mark.parametrize("rule", [("geometric_median", {}), ("centered_clip", {"tau": 1.0}), ("median", {})])
@pytest.mark.parametrize("before", [None, ("nnm", {"f": 1}), ("clip_by_global_norm", {"max_norm": 9.0})])
def test_a_finite_liar_does_not_end_the_run(rule: Any, before: Any) -> None:
    made = [content({"w": np.full(3, v)}) for v in (1.0, 1.5, 1e200, 1.0)]
    model = ArrayRecord({"w": Array(np.ones(3))})
    strategy = ours.RobustStrategy(*rule, before=before, invalid="drop")
    strategy.configure_train(1, model, ConfigRecord(), ours.LocalGrid(digits_app(), 4))
    arrays, _ = strategy.aggregate_train(1, replies(made))
    assert 0.9 < arrays["w"].numpy().max() < 2


def test_weights_all_zero_leave_the_model() -> None:
    made = replies([content({"w": np.ones(3)}, 0, loss=1.0)] * 2)
    with pytest.raises(ZeroWeightError):
        ours.FedAvg().aggregate_train(1, made)
    for strategy in (ours.FedAvg(invalid="drop"), ours.MultiKrum(num_malicious_nodes=0, invalid="drop")):
        assert strategy.aggregate_train(1, made) == (None, None)
    assert ours.FedAvg(invalid="drop").aggregate_evaluate(1, made) is None
    arrays, metrics = ours.FedMedian(invalid="drop").aggregate_train(1, made)
    assert arrays["w"].numpy().tolist() == [1.0] * 3
    assert not metrics


def test_a_batch_is_its_replies_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    made = [content({"w": rng.normal(size=50).astype(np.float32)}, k + 1) for k in range(40)]
    made[20] = content({"w": np.full(50, np.inf, np.float32)})
    made[33] = content({"w": np.zeros(3, np.float32)})
    at_once = ours.FedAvg(invalid="drop").aggregate_train(1, replies(made))
    in_turn = ours.FedAvg(invalid="drop").aggregate_train(1, iter(replies(made)))
    close(at_once[0], in_turn[0], rtol=0, atol=0)
    expected = [m for i, m in enumerate(made) if i not in (20, 33)]
    close(at_once[0], ours.aggregate_arrayrecords(expected, "num-examples"), rtol=0, atol=0)


def test_a_reply_that_comes_twice_counts_once() -> None:
    class Twice(ours.LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return [m for m in super().pull_messages(message_ids) for _ in range(2)]

    result = trained(ours.FedAvg(fraction_evaluate=0.0), digits_app(), rounds=1, grid=Twice(digits_app(), 4))
    close(result.arrays, trained(ours.FedAvg(fraction_evaluate=0.0), digits_app(), rounds=1).arrays)


# ---- bfloat16 and sums -----------------------------------------------------------------------------------------------


def test_bfloat16_both_ways() -> None:
    app = digits_app([ours.bfloat16_mod()])
    seen: list[Any] = []

    class Recording(Counting):
        def answer(self, message: Message) -> Message:
            seen.append({k: (a.stype, a.dtype, len(a.data)) for k, a in message.content["arrays"].items()})
            return super().answer(message)

    grid = Recording(app, 4)
    found = trained(ours.FedAvg(downlink="bfloat16"), app, grid=grid)
    assert seen[0]["w"] == ("edgefast.bfloat16", "bfloat16", 128 + 2 * 640)
    plain = trained(ours.FedAvg(), digits_app())
    assert grid.bytes < 0.65 * 3 * 4 * sum(len(a.data) for a in plain.arrays.values())
    close(found.arrays, plain.arrays, rtol=0.03, atol=0.01)
    assert found.arrays["w"].dtype == "float32"


def test_bfloat16_rounds_to_nearest_even() -> None:
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.4e38, np.inf, 0.0], np.float32)
    record = ArrayRecord({"x": Array(x), "d": Array(np.array(1.5)), "i": Array(np.arange(3))})
    packed = _wire.to_bfloat16(record)
    assert packed["i"].stype == "numpy.ndarray"
    back = _wire.decoded(packed, "test")
    assert np.array_equal(back["x"].numpy(), np.array([1.0, 1.0, 1 + 2**-6, -np.inf, np.inf, 0.0], np.float32))
    assert back["d"].numpy() == 1.5
    assert back["d"].shape == ()


def test_sums_of_a_gateway_are_exact() -> None:
    m = models(6, seed=3)
    weights = [3, 1, 4, 1, 5, 9]
    whole = ours.FedAvg(accumulate="reproducible")
    start = ArrayRecord({k: Array(np.zeros_like(v)) for k, v in m[0].items()})
    grid = ours.LocalGrid(digits_app(), 2)
    whole.configure_train(1, start, ConfigRecord(), grid)
    expected, _ = whole.aggregate_train(1, replies(content(x, w) for x, w in zip(m, weights, strict=True)))
    gateways = []
    for part in ([0, 4], [2, 1, 5]):
        acc = MeanAccumulator(m[0], accumulate="reproducible")
        for i in part:
            acc.add(m[i], weights[i])
        gateways.append(content(dict(_wire.from_sums(acc)), acc.weight))
    tiers = ours.FedAvg(accumulate="reproducible")
    tiers.configure_train(1, start, ConfigRecord(), grid)
    found, _ = tiers.aggregate_train(1, replies([*gateways, content(m[3], weights[3])]))
    for k in expected:
        assert found[k].data == expected[k].data
    other = MeanAccumulator(m[0])
    other.add(m[0])
    with pytest.raises(StructureMismatch, match="client 1"):
        tiers.aggregate_train(1, replies([content(dict(_wire.from_sums(other)))]))


# ---- robust ----------------------------------------------------------------------------------------------------------

ROBUST: dict[str, tuple[Any, ...]] = {
    "median": ("median",),
    "trimmed": ("trimmed_mean", {"f": 2}),
    "meamed": ("meamed", {"f": 2}),
    "krum": ("krum", {"f": 2}),
    "multi_krum": ("multi_krum", {"f": 2, "m": 4}),
    "bulyan": ("bulyan", {"f": 1}),
    "geometric": ("geometric_median", {"max_iter": 20}),
    "clip": ("centered_clip", {"tau": 1.0}),
}


@pytest.mark.parametrize("name", ROBUST)
def test_robust_rules_withstand_two_liars_of_nine(name: str) -> None:
    liars = 1 if name == "bulyan" else 2

    def spoil(i: int, model: Any) -> Any:
        return {k: -20 * v for k, v in model.items()} if i < liars else model

    app = digits_app(nodes=9, spoil=spoil)
    X, y = shards(1)[0]
    assert accuracy(trained(ours.FedAvg(), app, 9, rounds=5).arrays, X, y) < 0.5
    found = trained(ours.RobustStrategy(*ROBUST[name]), app, 9, rounds=5)
    assert accuracy(found.arrays, X, y) > 0.85
    assert found.train_metrics_clientapp[5]["loss"] > 0


def test_robust_is_the_function_and_leaves_the_replies_alone() -> None:
    m = models(7, seed=5)
    batch = replies([content(x, w + 1) for w, x in enumerate(m)])
    before = [values(r.content["arrays"]) for r in batch]
    found, _ = ours.RobustStrategy("geometric_median", weighted=True, before=("nnm", {"f": 1})).aggregate_train(
        1, batch
    )
    expected = aggregate.geometric_median(aggregate.nnm(m, 1), [1, 2, 3, 4, 5, 6, 7])
    for k in expected:
        assert np.array_equal(found[k].numpy(), expected[k])
    for kind in (ours.FedMedian, ours.FedTrimmedAvg, ours.Krum, ours.Bulyan):
        kind().aggregate_train(1, batch)
    for old, r in zip(before, batch, strict=True):
        assert list(r.content["arrays"]) == list(old)
    called: list[Any] = []

    def rule(models: list[Any], weights: list[float]) -> Any:
        called.append((len(models), weights))
        return weighted_mean(models, weights)

    own, _ = ours.RobustStrategy(rule).aggregate_train(1, batch)
    assert called == [(7, [1, 2, 3, 4, 5, 6, 7])]
    close(own, theirs.strategy_utils.aggregate_arrayrecords([r.content for r in batch], "num-examples"))


def test_robust_arguments_and_too_few() -> None:
    with pytest.raises(ValueError, match="rule: expected one of"):
        ours.RobustStrategy("mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="before: expected one of"):
        ours.RobustStrategy("median", before=("shuffle", {}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weighted"):
        ours.RobustStrategy("median", weighted=True)
    few = [content(m) for m in models(3)]
    with pytest.raises(TooFewUpdates):
        ours.RobustStrategy("krum", {"f": 2}).aggregate_train(1, replies(few))
    assert ours.RobustStrategy("krum", {"f": 2}, invalid="drop").aggregate_train(1, replies(few)) == (None, None)
    assert ours.Bulyan(num_malicious_nodes=1).aggregate_train(1, replies(few)) == (None, None)
    assert ours.FedMedian().aggregate_train(1, []) == (None, None)
    one = ours.Krum().aggregate_train(1, replies(few[:1]))[0]
    close(one, few[0]["arrays"])


# ---- asynchronous ----------------------------------------------------------------------------------------------------


def test_asynchronous_training() -> None:
    app = digits_app(nodes=6)
    X, y = shards(1)[0]
    seen: list[int] = []

    def evaluate(version: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(version)
        return MetricRecord({"accuracy": accuracy(arrays, X, y)})

    result = ours.FedBuff(3).start(Slow(app, 6), start_model(), num_rounds=8, timeout=20, evaluate_fn=evaluate)
    assert seen == list(range(9))
    assert list(result.train_metrics_clientapp) == list(range(1, 9))
    assert result.evaluate_metrics_serverapp[8]["accuracy"] > 0.85


def test_asynchronous_steps_are_the_paper_formula() -> None:
    """Two nodes at once, steps of one reply: the second one's reply is a step old."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        base = values(message.content["arrays"])
        return Message(content({k: v + context.node_id for k, v in base.items()}), reply_to=message)

    class InTurn(ours.LocalGrid):
        """Node 1 answers, then node 2, and so on."""

        turn = 1

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            mine = [n for n in message_ids if n in self._waiting and self._waiting[n].metadata.dst_node_id == self.turn]
            if mine:
                self.turn = 3 - self.turn
            return super().pull_messages(mine)

    start = ArrayRecord({"x": Array(np.zeros(2, np.float32)), "n": Array(np.array(0))})
    result = ours.FedBuff(1, server_learning_rate=0.5).start(InTurn(app, 2), start, num_rounds=3, timeout=20)
    # Node 1: fresh, +1. Node 2: a step old, +2 / sqrt(2). Node 1 again: its model was sent after step 1, +1 / sqrt(2).
    expected = 0.5 * (1 + 2 / 2**0.5 + 1 / 2**0.5)
    np.testing.assert_allclose(result.arrays["x"].numpy(), expected, rtol=1e-6)
    assert result.arrays["n"].dtype == "int64"
    limited = ours.FedBuff(1, max_staleness=0).start(InTurn(app, 2), start, num_rounds=2, timeout=20)
    # Replies a step old are not used: node 1's fresh ones and those of the node that got the new model.
    assert set(np.unique(limited.arrays["x"].numpy())) <= {2.0, 3.0}


@pytest.mark.parametrize("difference", [True, False])
def test_asynchronous_and_compressed(difference: bool) -> None:
    app = digits_app([ours.compression_mod(Quantizer("eden", bits=4), difference=difference)], nodes=4)
    X, y = shards(1)[0]
    result = ours.FedBuff(2, concurrency=3, downlink="bfloat16").start(
        ours.LocalGrid(app, 4), start_model(), num_rounds=6, timeout=20
    )
    assert accuracy(result.arrays, X, y) > 0.85


def test_asynchronous_goes_on_without_the_dead_and_the_broken() -> None:
    def spoil(i: int, model: Any) -> Any:
        if i == 0:
            raise RuntimeError("broken")
        return {"w": np.full_like(model["w"], np.nan), "b": model["b"]} if i == 1 else model

    app = digits_app(nodes=5, spoil=spoil)
    grid = Slow(app, 5, silent=[5])
    result = ours.FedBuff(2, invalid="drop").start(grid, start_model(), num_rounds=4, timeout=15)
    assert list(result.train_metrics_clientapp) == [1, 2, 3, 4]
    with pytest.raises(NonFiniteUpdate, match="client 2"):
        ours.FedBuff(2).start(Slow(app, 5), start_model(), num_rounds=50, timeout=15)
    dead = Slow(app, 2, silent=[1, 2])
    began = time.monotonic()
    result = ours.FedBuff(1).start(dead, start_model(), num_rounds=1, timeout=0.3)
    assert time.monotonic() - began < 10
    assert result.train_metrics_clientapp == {}
    close(result.arrays, start_model())


def test_asynchronous_arguments() -> None:
    for bad in ({"buffer_size": 0}, {"buffer_size": 1, "concurrency": 0}, {"buffer_size": 1, "normalize": "sum"}):
        with pytest.raises(ValueError, match="expected"):
            ours.FedBuff(**bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ours.FedBuff(2.5)  # type: ignore[arg-type]


# ---- local grid ------------------------------------------------------------------------------------------------------


def test_local_grid_keeps_state_and_isolates_nodes() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Any) -> Message:
        del message.content["arrays"]["w"]
        context.state.setdefault("n", ConfigRecord({"n": 0}))["n"] += 1
        return Message(RecordDict({"c": ConfigRecord({"n": context.state["n"]["n"]})}), reply_to=message)

    grid = ours.LocalGrid(app, [{"name": "a"}, {"name": "b"}], run_config={"rate": 1})
    assert grid.contexts[2].node_config == {"name": "b"}
    record = RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))})})
    for _ in range(2):
        answers = list(grid.send_and_receive([Message(record, n, MessageType.TRAIN) for n in (1, 2)]))
    assert [a.content["c"]["n"] for a in answers] == [2, 2]
    assert "w" in record["arrays"]
