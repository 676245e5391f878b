"""Devices in processes: the same bits as in one process, and what becomes of a run whose devices are killed, stopped or
fail, or whose server is."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.federated import Dataset, InputError, Progress, RunConfig, RunResult, processes, run
from edgefast.federated.device import DeviceReport, StageTotals
from edgefast.federated.plan import Plan
from edgefast.federated.processes import prepare
from edgefast.federated.training import SoftmaxTrainer
from edgefast.queues import IMPLEMENTATION

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or IMPLEMENTATION != "native", reason="SharedQueue needs Linux and the native backend"
)

SMALL: dict[str, Any] = {"devices": 3, "rounds": 4, "components": 6, "epochs": 2, "batch": 8}
MANY: dict[str, Any] = {**SMALL, "rounds": 12, "processes": True}


def small(n: int = 120, d: int = 12, classes: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    return Dataset.of(rng.normal(size=(n, d)) + 2 * rng.normal(size=(classes, d))[y], y, name="blobs")


def segments() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if f"-run-{os.getpid()}-" in name}


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert not [p for p in multiprocessing.active_children() if p.name.startswith("edgefast-")]
    assert not segments()


def process(device: int) -> Any:
    (found,) = (p for p in multiprocessing.active_children() if p.name == f"edgefast-device-{device}")
    return found


def expected(config: RunConfig, data: Dataset, absent: Callable[[int, int], bool]) -> dict[str, Any]:
    """Federated averaging without the devices that are absent(round, device), by the definition."""
    plan = Plan(config, data)
    model = plan.start()
    for number in range(config.rounds):
        models, weights = [], []
        for index, rows in enumerate(plan.shards):
            if absent(number + 1, index):
                continue
            trainer = SoftmaxTrainer(model, plan.step)
            rng = np.random.Generator(np.random.Philox(key=[config.seed, 3], counter=[0, 0, number, index]))
            for _ in range(config.epochs):
                order = rng.permutation(len(rows))
                for start in range(0, len(rows), config.batch):
                    batch = rows[order[start : start + config.batch]]
                    trainer.train(plan.sketch(data.X[batch]), data.y[batch])
            models.append(trainer.model)
            weights.append(float(trainer.rows))
        model = {
            key: (
                sum(w * m[key].astype(np.float64) for w, m in zip(weights, models, strict=True)) / sum(weights)
            ).astype(plan.scaler.dtype)
            for key in model
        }
    return model


def same_bits(result: RunResult, model: dict[str, Any]) -> bool:
    return (
        result.model.weights.tobytes() == model["weights"].tobytes()
        and result.model.bias.tobytes() == model["bias"].tobytes()
    )


def faults(result: RunResult, kind: str) -> list[tuple[int, int]]:
    return [(f["round"], f["device"]) for f in result.metrics["faults"] if f["kind"] == kind]


@pytest.mark.parametrize("options", [{}, {"policy": "drop_newest", "queue_size": 64}, {"devices": 1}], ids=str)
def test_the_same_bits_and_counts_as_in_one_process(options: dict[str, Any]) -> None:
    data = small()
    apart = run(RunConfig(**{**SMALL, **options}, processes=True), data)
    here = run(RunConfig(**{**SMALL, **options}), data)
    assert same_bits(apart, {"weights": here.model.weights, "bias": here.model.bias})
    for key in ("accuracy", "uplink_bytes", "data", "faults", "repeatable", "interrupted", "deserted"):
        assert apart.metrics[key] == here.metrics[key], key
    for one, other in zip(apart.metrics["rounds"], here.metrics["rounds"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    for stage, found in apart.metrics["stages"].items():
        assert found["items"] == here.metrics["stages"][stage]["items"], stage
    queue = apart.metrics["queue"]
    assert queue["offered"] == here.metrics["queue"]["offered"]
    assert 1 <= queue["peak"] <= queue["high_watermark"]
    assert queue["depth"]["seconds"] == sorted(queue["depth"]["seconds"])
    assert 0 <= min(queue["depth"]["max"]) <= max(queue["depth"]["max"]) <= queue["peak"]
    assert len(queue["trace"]["depth"]) == len(here.metrics["queue"]["trace"]["depth"]) > 0


def test_ctrl_c_at_any_moment_of_the_start_leaves_nothing(
    ctrl_c_at_every_line: Callable[..., Iterator[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgefast.queues import _shared_base  # not there without the native core

    def last(*_: object) -> None:
        sys.settrace(None)  # what follows, close(), would take another Ctrl-C
        raise KeyboardInterrupt

    monkeypatch.setattr(processes.ProcessEngine, "_receive", last)  # the first device is waited for
    plan = Plan(RunConfig(**{**MANY, "devices": 2}), small())
    steps = 0
    for steps in ctrl_c_at_every_line(lambda: processes.ProcessEngine(plan), processes, _shared_base):
        assert not segments(), steps
    assert steps > 100


def test_progress_counts_rows_and_devices() -> None:
    seen: list[Progress] = []
    run(RunConfig(**SMALL, processes=True), small(), on_progress=seen.append)
    assert seen[-1].round == 4
    assert seen[-1].rows == 96 * 2 * 4
    assert (seen[-1].devices, seen[-1].faults) == (3, ())


def test_a_killed_device_is_lost_and_the_others_go_on() -> None:
    data, config = small(), RunConfig(**MANY, device_timeout=60)

    def kill(progress: Progress) -> None:
        if progress.round == 3 and progress.devices == 3:
            with contextlib.suppress(ValueError):  # it is gone, and not noticed yet
                process(1).kill()

    result = run(config, data, on_progress=kill)
    ((number, device),) = faults(result, "lost")
    assert device == 1
    assert 4 <= number <= 6  # what it had sent before counts
    (fault,) = result.metrics["faults"]
    assert fault["reason"] == "killed by SIGKILL"
    rounds = result.metrics["rounds"]
    assert len(rounds) == 12
    assert [r["lost"] for r in rounds] == [[1] if r["round"] == number else [] for r in rounds]
    first = next(r["round"] for r in rounds if r["devices"] == 2)
    assert first in (number, number + 1)
    assert all(r["devices"] == (2 if r["round"] >= first else 3) for r in rounds)
    assert same_bits(result, expected(config, data, lambda r, d: d == 1 and r >= first))
    assert not result.metrics["repeatable"]


def test_a_death_is_noticed_at_once() -> None:
    """Killed in the middle of its round, where the server would wait for an hour."""
    began = 0.0
    hurt: list[Any] = []

    def hurt_it(progress: Progress) -> None:
        nonlocal began
        if progress.round == 2 and not hurt:
            hurt.append(process(0))
            os.kill(hurt[0].pid, signal.SIGSTOP)
            began = time.monotonic()
        elif hurt and time.monotonic() - began > 0.3 and hurt[0].is_alive():
            assert progress.round == 2  # the others have answered; it waits for this one
            hurt[0].kill()

    result = run(RunConfig(**MANY, device_timeout=3600), small(), on_progress=hurt_it)
    assert faults(result, "lost") == [(3, 0)]
    assert faults(result, "late") == []
    assert len(result.metrics["rounds"]) == 12


def test_a_stopped_device_is_late_once_waited_for_and_comes_back() -> None:
    data, config = small(), RunConfig(**{**MANY, "rounds": 400}, device_timeout=1.5)
    stopped: list[Any] = []

    def stop(progress: Progress) -> None:
        if progress.round == 2 and not stopped:
            stopped.append(process(2))
            os.kill(stopped[0].pid, signal.SIGSTOP)
        if progress.round == 10:
            os.kill(stopped[0].pid, signal.SIGCONT)

    result = run(config, data, on_progress=stop)
    late = faults(result, "late")
    assert {(number, 2) for number in range(3, 11)} <= set(late)
    assert faults(result, "lost") == []
    rounds = result.metrics["rounds"]
    assert rounds[2]["seconds"] >= 1.5
    assert min(r["seconds"] for r in rounds[3:10]) < 1.5  # not waited for again
    assert max(r["devices"] for r in rounds[10:]) == 3
    assert [[r["round"], d] for r in rounds for d in r["late"]] == [list(place) for place in sorted(late)]
    assert same_bits(result, expected(config, data, lambda *place: place in late))


def test_the_run_ends_with_its_last_device() -> None:
    def kill(progress: Progress) -> None:
        if progress.round == 2:
            for child in multiprocessing.active_children():
                if child.name.startswith("edgefast-device"):
                    child.kill()

    result = run(RunConfig(**{**MANY, "rounds": 10_000}), small(), on_progress=kill)
    assert result.metrics["deserted"]
    assert sorted(device for _, device in faults(result, "lost")) == [0, 1, 2]
    assert 2 <= len(result.metrics["rounds"]) <= 4
    assert result.metrics["accuracy"]["federated"] is not None


def test_interruption_keeps_the_rounds_that_were_finished() -> None:
    def interrupt(progress: Progress) -> None:
        if progress.round == 2:
            os.kill(process(0).pid, signal.SIGSTOP)  # not even then anything is left
            raise KeyboardInterrupt

    data = small()
    result = run(RunConfig(**MANY), data, on_progress=interrupt)
    assert result.metrics["interrupted"]
    assert len(result.metrics["rounds"]) == 2
    assert same_bits(result, expected(RunConfig(**{**MANY, "rounds": 2}), data, lambda *_: False))


def test_an_error_of_a_device_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process an error ends the run; here it costs the device."""
    shard = Plan.shard

    def broken(plan: Plan, index: int) -> Any:
        whole = shard(plan, index)
        if index == 1:
            object.__setattr__(whole, "X", whole.X[:, :-1])
        return whole

    monkeypatch.setattr(Plan, "shard", broken)
    result = run(RunConfig(**MANY), small())
    (fault,) = result.metrics["faults"]
    assert (fault["device"], fault["round"]) == (1, 1)
    assert fault["reason"].startswith("ValueError: ")
    assert [r["devices"] for r in result.metrics["rounds"]] == [2] * 12


def test_no_device_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "shard", lambda plan, index: None)
    with pytest.raises(ChildProcessError, match="no device could be started: its process ended with status 1"):
        run(RunConfig(**MANY), small())


def test_a_device_that_is_never_ready_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgefast.federated import processes

    monkeypatch.setattr(processes, "_START_SECONDS", 0.0)
    with pytest.raises(ChildProcessError, match="no device could be started: not ready within 0 s"):
        run(RunConfig(**MANY), small())


def test_too_many_devices() -> None:
    with pytest.raises(InputError, match="devices: expected at most 1000 with processes, got 1001; ask for fewer"):
        run(RunConfig(devices=1001, components=2, processes=True), small(n=2000))


def test_a_report_survives_its_record() -> None:
    from edgefast.federated import remote

    report = DeviceReport(StageTotals(1, 0.5), StageTotals(2, 0.25), StageTotals(3, 0.125), 4, 5, 6, 7, 8)
    assert remote.to_report(remote._numbers(report)) == report


def test_records_fit_the_description_of_a_segment() -> None:
    from edgefast.federated import remote

    for make in (remote.down_type, remote.up_type):
        text = repr(np.lib.format.dtype_to_descr(make(7, 7, np.float64))).replace(" ", "")
        assert len(text.replace("(7,", "(2147483647,").replace(",7)", ",2147483647)")) <= 256


SERVER = """
import multiprocessing, sys
from edgefast.federated import processes
from edgefast.federated import Dataset, RunConfig, run
import numpy as np
def show(progress):
    if progress.round == 2:
        print(*(p.pid for p in multiprocessing.active_children() if "device" in p.name), flush=True)
if __name__ == "__main__":
    y = np.arange(120) % 3
    data = Dataset.of(np.random.default_rng(0).normal(size=(120, 12)) + y[:, None], y)
    run(RunConfig(devices=3, rounds=10**6, components=6, processes=True), data, on_progress=show)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_devices_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    server = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        devices = [int(pid) for pid in server.stdout.readline().split()]
        assert len(devices) == 3
    finally:
        server.kill()
        server.communicate()
    deadline = time.monotonic() + 60
    while not all(map(gone, devices)):
        assert time.monotonic() < deadline, "a device outlives its server"
        time.sleep(0.02)
    assert not [name for name in os.listdir("/dev/shm") if f"-run-{server.pid}-" in name]


def test_ctrl_c_while_the_forking_process_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import forkserver

    started = []

    def start() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        started.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    monkeypatch.setattr(forkserver, "ensure_running", start)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for deaf in (False, True):
            with pytest.raises(KeyboardInterrupt):
                prepare(deaf=deaf)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [signal.SIGINT in mask for mask in started] == [False, True]  # what is forked with "deaf" never gets it


def test_a_model_that_overflows_names_the_learning_rate() -> None:
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(
            InputError, match="learning_rate: the model of device 0 is no longer finite in round 1 with 4e\\+39"
        ),
    ):
        run(RunConfig(**{**SMALL, "learning_rate": 4e39, "threads": 1}), small())
