"""The main job on Flower: its SuperLink, SuperNodes and apps carry the rounds, edgefast's strategy averages them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgefast import backends
from edgefast.errors import InputError
from edgefast.federated.device import DeviceReport, Update
from edgefast.federated.engine import DevicesLost, Fault
from edgefast.federated.plan import Parameters, Plan

__all__ = ["FlowerEngine"]

_LEAST = (1, 41)  # the SuperLink's HTTP API and its --host and --port
_START_TIMEOUT = 120.0


class FlowerEngine:
    """Devices behind SuperNodes. Rounds run ahead of `train`, which waits for what the ServerApp leaves behind.

    A SuperNode is a gateway for its devices (device i belongs to node i modulo their number); their sums are exact
    and merge in any order, so the result does not depend on the number of nodes.

    Raises:
        ImportError: Flower is missing, or too old.
        InputError: not on this platform.
    """

    def __init__(self, plan: Plan) -> None:
        self._check()
        from edgefast.integrations.flower.deployment import Deployment, write_app

        self._plan = plan
        self.depths: Sequence[tuple[float, int]] = []
        self.trace: Sequence[tuple[float, int]] = []
        self.faults: list[Fault] = []
        self.rounds: list[dict[str, float]] = []
        self._reports = [DeviceReport() for _ in range(plan.config.devices)]
        self._nodes = min(plan.config.devices, max(2, backends.num_threads()))
        self._lost: set[int] = set()
        self.folder: Path = Path(tempfile.mkdtemp(prefix="edgefast-flower-"))
        self._deployment: Deployment | None = None
        try:
            job = self.folder / "job"
            job.mkdir()
            self._write_job(job)
            app = write_app(
                self.folder,
                "edgefast-run",
                "edgefast.federated.flower_app:server",
                "edgefast.federated.flower_app:client",
                {"job": str(job)},
            )
            groups = [range(n, plan.config.devices, self._nodes) for n in range(self._nodes)]
            self._deployment = Deployment([{"devices": "-".join(map(str, g))} for g in groups], self.folder)
            self._deployment.__enter__()
            self._run: subprocess.Popen[bytes] = self._deployment.run(app)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _check() -> None:
        if os.name != "posix":
            raise InputError("engine: 'flower' needs Linux or macOS here; 'local' runs everywhere")
        try:
            flwr = importlib.import_module("flwr")
        except ImportError:
            raise ImportError("--engine flower needs Flower; pip install 'edgefast[flower]'") from None
        version = getattr(flwr, "__version__", "0")
        numbers = tuple(int(n) for n in version.split(".")[:2] if n.isdigit())
        if numbers < _LEAST:
            wanted = ".".join(map(str, _LEAST))
            raise ImportError(f"--engine flower needs Flower {wanted} or later, this is {version}; pip install -U flwr")

    def _write_job(self, job: Path) -> None:
        plan = self._plan
        # What the nodes run with is settled here: they are processes of this machine.
        config = {**plan.config.as_dict(), "backend": backends.backend(), "engine": "local"}
        settled = {
            "config": config,
            "step": plan.step,
            "classes": len(plan.data.classes),
            "traced": plan.traced,
            "nodes": self._nodes,
            "parent": os.getpid(),
            "start_timeout": _START_TIMEOUT,
            "round_timeout": plan.config.device_timeout,
        }
        (job / "job.json").write_text(json.dumps(settled), encoding="utf-8")
        (job / "operator.bin").write_bytes(plan.operator.to_bytes())
        np.savez(job / "scaler.npz", mean=plan.scaler.mean, deviation=plan.scaler.deviation)
        np.savez(job / "start.npz", **plan.start())  # type: ignore[arg-type]
        for i in range(plan.config.devices):
            shard = plan.shard(i)
            np.savez(job / f"shard-{i}.npz", X=shard.X, y=shard.y)

    # ---- Engine ------------------------------------------------------------------------------------------------------

    def train(self, number: int, model: Parameters, poll: Callable[[], None]) -> Iterator[Update]:
        """The devices that took part in a round. Each carries the mean the ServerApp made of them: averaging these
        again changes nothing."""
        path = self.folder / "job" / f"round-{number + 1}.json"
        while not path.exists():
            self._check_alive(number, path)
            poll()
            time.sleep(0.05)
        found = json.loads(path.read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            mean = {name: stored[name] for name in stored.files}
        self.rounds.append({"seconds": found["seconds"], "aggregation": found["aggregation"]})
        from edgefast.federated.flower_app import read_report

        present: set[int] = set()
        for one in sorted(found["devices"], key=lambda d: d["device"]):
            index = int(one["device"])
            present.add(index)
            read_report(self._reports[index], one)
            yield Update(index, number, mean, int(one["rows"]), float(one["loss"]))
        absent = sorted(set(range(self._plan.config.devices)) - present - self._lost)
        failures = {index: self._failure(index, number) for index in absent}
        hopeless = bool(absent) and not present and all(failures.values())  # they would fail again, on the same model
        for index in absent:
            self._note_absent(index, number, failures[index], hopeless)
        if hopeless:
            raise DevicesLost("every device failed")

    def _failure(self, index: int, number: int) -> str | None:
        from edgefast.federated.flower_app import failure_path

        path = failure_path(self.folder / "job", number + 1, index)
        return f"its ClientApp failed: {path.read_text(encoding='utf-8')}" if path.exists() else None

    def _note_absent(self, index: int, number: int, failure: str | None, hopeless: bool) -> None:
        assert self._deployment is not None
        if self._deployment.nodes[index % self._nodes].poll() is not None:
            self._lost.add(index)
            self.faults.append(Fault(index, number + 1, "lost", "its SuperNode has ended"))
        else:
            kind: Literal["lost", "late"] = "lost" if hopeless else "late"
            self.faults.append(Fault(index, number + 1, kind, failure or "no answer within device_timeout"))

    def _check_alive(self, number: int, path: Path) -> None:
        assert self._deployment is not None
        if all(node.poll() is not None for node in self._deployment.nodes):
            for index in sorted(set(range(self._plan.config.devices)) - self._lost):
                self.faults.append(Fault(index, number + 1, "lost", "its SuperNode has ended"))
            raise DevicesLost("every SuperNode has ended")
        if self._run.poll() is not None and not path.exists():
            raise RuntimeError(f"Flower's run ended in round {number + 1}:\n{self._deployment.log('run')}")

    def reports(self) -> list[DeviceReport]:
        return self._reports

    def gauge(self) -> tuple[int, bool]:
        return 0, True  # the queues are in the nodes' processes

    def complete(self, metrics: dict[str, Any]) -> None:
        """Metrics only this engine knows: where the time of a round went."""
        aggregation = sum(r["aggregation"] for r in self.rounds)
        seconds = sum(r["seconds"] for r in self.rounds)
        updates = metrics["stages"]["aggregate"]["items"]
        metrics["stages"]["aggregate"] = {
            "unit": "updates",
            "items": updates,
            "cpu_seconds": aggregation,
            "per_second": updates / aggregation if aggregation else None,
        }
        metrics["flower"] = {
            "nodes": self._nodes,
            "round_seconds": [r["seconds"] for r in self.rounds],
            "aggregation_seconds": [r["aggregation"] for r in self.rounds],
            "aggregation_share": aggregation / seconds if seconds else None,
        }

    def close(self) -> None:
        if self._deployment is not None:
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C must not leave processes behind
                self._deployment.close()
            self._deployment.close()
        shutil.rmtree(self.folder, ignore_errors=True)
