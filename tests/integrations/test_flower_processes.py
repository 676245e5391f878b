"""Flower for real: SuperLink, SuperNodes, ServerApp and ClientApps as processes of their own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(150)]
flwr = pytest.importorskip("flwr")
pytest.importorskip("sklearn")
if tuple(map(int, flwr.__version__.split(".")[:2])) < (1, 41):
    pytest.skip("needs the SuperLink's HTTP API", allow_module_level=True)

# ruff: noqa: E402
from edgefast.federated import RunConfig, run
from edgefast.integrations.flower.deployment import Deployment, DeploymentError, write_app

APP = """
import json, os, time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from sklearn.datasets import load_digits

from edgefast.aggregate import Quantizer
from edgefast.integrations.flower import FedAvg, compression_mod

client = ClientApp(mods=[compression_mod(Quantizer("eden", bits=4))])


@client.train()
def train(message, context):
    folder, number = Path(context.run_config["folder"]), message.content["config"]["round"]
    i, n = context.node_config["partition-id"], context.node_config["num-partitions"]
    if i == 2 and number == 2:
        (folder / "training").write_text(str(os.getpid()))
        time.sleep(600)
    X, y = load_digits(return_X_y=True)
    X = ((X - X.mean(0)) / (X.std(0) + 1e-6)).astype(np.float32)[i::n]
    y = np.eye(10, dtype=np.float32)[y[i::n]]
    model = {k: a.numpy() for k, a in message.content["arrays"].items()}
    for _ in range(20):
        p = np.exp(X @ model["w"] + model["b"])
        p = (p / p.sum(1, keepdims=True) - y) / len(y)
        model["w"] -= np.float32(0.5) * (X.T @ p)
        model["b"] -= np.float32(0.5) * p.sum(0)
    # What the last reply left behind in the context, in another process.
    owed = context.state["edgefast.error-feedback"] if "edgefast.error-feedback" in context.state else {}
    size = float(sum(np.abs(a.numpy()).sum() for a in owed.values()))
    metrics = MetricRecord({"num-examples": len(y), "owed": size, "node": [i]})
    arrays = ArrayRecord({k: Array(v) for k, v in model.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


server = ServerApp()


@server.main()
def main(grid, context):
    folder, rounds = Path(context.run_config["folder"]), []

    def collect(contents, key):
        found = [next(iter(c.metric_records.values())) for c in contents]
        rounds.append({"nodes": sorted(i for m in found for i in m["node"]), "owed": [m["owed"] for m in found]})
        return MetricRecord({"nodes": len(found)})

    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=3, train_metrics_aggr_fn=collect, poll_interval=0.1)
    arrays = ArrayRecord({"w": Array(np.zeros((64, 10), np.float32)), "b": Array(np.zeros(10, np.float32))})
    seconds = []
    # The first round has all the time it wants, on a busy machine too; the second has 25 s.
    for number, timeout in ((1, 100), (2, 25)):
        began = time.time()
        result = strategy.start(
            grid, arrays, num_rounds=1, timeout=timeout, train_config=ConfigRecord({"round": number})
        )
        arrays = result.arrays
        seconds.append(time.time() - began)
    np.savez(folder / "model.npz", **{k: a.numpy() for k, a in result.arrays.items()})
    (folder / "part").write_text(json.dumps({"rounds": rounds, "seconds": seconds}))
    os.replace(folder / "part", folder / "result.json")
"""


def wait_for(path: Path, what: Callable[[], str], process: subprocess.Popen[bytes], seconds: float = 110) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come\n{what()}"
        assert process.poll() is None or path.exists(), f"the run ended\n{what()}"
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    """Whether none of them runs; one that has ended and not been waited for does not."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            return False
    return True


def test_a_node_killed_in_the_middle_of_a_round(tmp_path: Path) -> None:
    """Three SuperNodes that compress with error feedback; one dies while its ClientApp trains."""
    app = write_app(tmp_path, "digits-app", "os:path", "os:path", {"folder": str(tmp_path)})
    (app / "digits_app" / "app.py").write_text(APP)
    nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
    with Deployment(nodes, tmp_path) as deployment:
        process = deployment.run(app)

        def logs() -> str:
            return "\n".join(deployment.log(name) for name in ("run", "link", "node-0", "node-2"))

        wait_for(tmp_path / "training", logs, process)
        victim = int((tmp_path / "training").read_text())
        assert not gone([victim])
        deployment.kill_node(2)
        assert deployment.nodes[2].returncode == -signal.SIGKILL
        wait_for(tmp_path / "result.json", logs, process)
        found = json.loads((tmp_path / "result.json").read_text())
        assert gone([victim])
        processes = deployment.remaining()
        if sys.platform == "linux":
            assert processes
    assert deployment.remaining() == []
    assert gone(processes)
    assert [r["nodes"] for r in found["rounds"]] == [[0, 1, 2], [0, 1]]
    assert 24 <= found["seconds"][1] <= 40
    # Error feedback went from one ClientApp process to the next through the node's state.
    assert found["rounds"][0]["owed"] == [0, 0, 0]
    assert all(owed > 0 for owed in found["rounds"][1]["owed"])
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    X = (X - X.mean(0)) / (X.std(0) + 1e-6)
    with np.load(tmp_path / "model.npz") as model:
        assert (np.argmax(X @ model["w"] + model["b"], 1) == y).mean() > 0.9


def test_run_on_flower_is_the_local_run() -> None:
    """edgefast run --engine flower, three devices behind two gateways."""
    seen: list[Any] = []
    config: dict[str, Any] = {"devices": 3, "rounds": 2, "threads": 2, "components": 16}
    found = run(RunConfig(engine="flower", **config), on_progress=seen.append)
    expected = run(RunConfig(**config))
    # Sums of models, exact here and in double precision there: one rounding to float32 each.
    np.testing.assert_array_max_ulp(found.model.weights, expected.model.weights, 1)
    np.testing.assert_array_max_ulp(found.model.bias, expected.model.bias, 1)
    assert found.metrics["accuracy"] == expected.metrics["accuracy"]
    for mine, local in zip(found.metrics["rounds"], expected.metrics["rounds"], strict=True):
        for key in ("round", "accuracy", "rows", "devices", "dropped", "late", "lost"):
            assert mine[key] == local[key]
        assert mine["loss"] == pytest.approx(local["loss"])
    for stage in ("sketch", "queue", "train"):
        assert found.metrics["stages"][stage]["items"] == expected.metrics["stages"][stage]["items"]
    flower = found.metrics["flower"]
    assert flower["nodes"] == 2
    assert len(flower["round_seconds"]) == len(flower["aggregation_seconds"]) == 2
    assert 0 < flower["aggregation_share"] < 0.5
    assert json.loads(json.dumps(found.metrics, allow_nan=False)) == found.metrics
    assert seen[-1].round == 2


def test_why_every_device_failed_is_told() -> None:
    result = run(RunConfig(engine="flower", devices=2, rounds=3, threads=2, learning_rate=1e40))
    assert result.metrics["deserted"]
    assert [(f["device"], f["round"], f["kind"]) for f in result.metrics["faults"]] == [(0, 1, "lost"), (1, 1, "lost")]
    for fault in result.metrics["faults"]:
        assert fault["reason"].startswith("its ClientApp failed: NonFiniteUpdate: ")


def test_interrupted_while_waiting_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(progress: Any) -> None:
        raise KeyboardInterrupt

    result = run(RunConfig(engine="flower", devices=2, rounds=2, threads=2), on_progress=interrupt)
    assert result.metrics["interrupted"]
    assert result.metrics["rounds"] == []
    with pytest.raises(DeploymentError, match="does not listen"):
        Deployment([], tmp_path, start_timeout=0.0).__enter__()
    assert Deployment([], tmp_path).remaining() == []
