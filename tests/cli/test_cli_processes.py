"""edgefast run --processes: what a person sees, and what is left when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefast.queues import IMPLEMENTATION

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

LONG = ["run", "--processes", "--devices", "3", "--rounds", "1000000"]


def start(*argv: Any, **environment: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal runs it, with Ctrl-C enabled."""
    words = [sys.executable, "-m", "edgefast", *map(str, argv)]
    code = f"import signal, os; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv({words[0]!r}, {words!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **environment},
    )


def members(group: int) -> list[int]:
    """Processes of a group that are not zombies."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def devices(server: subprocess.Popen[str]) -> list[int]:
    """Processes of the devices: forked from the server's forkserver."""
    found = []
    for pid in members(server.pid):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent != server.pid and pid != server.pid and parent != os.getpid():
            found.append(pid)
    return sorted(found)


def nothing_is_left(server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while members(server.pid):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.02)
    assert not [name for name in os.listdir("/dev/shm") if f"-run-{server.pid}-" in name]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A run without end, after its first round."""
    if sys.platform != "linux" or IMPLEMENTATION != "native":
        pytest.skip("SharedQueue needs Linux and the native backend")
    out = tmp_path / "out"
    server = start(*LONG, "--out", out, XDG_RUNTIME_DIR=str(tmp_path))
    assert server.stderr is not None
    try:
        line = server.stderr.readline()
        assert line.startswith("round 1/1000000"), line
        yield server, out
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.communicate()


def test_a_killed_device_and_ctrl_c(running: tuple[subprocess.Popen[str], Path]) -> None:
    server, out = running
    victim = devices(server)[0]
    os.kill(victim, signal.SIGKILL)
    assert server.stderr is not None
    line = server.stderr.readline()
    assert "lost in round" in line
    assert line.rstrip().endswith("killed by SIGKILL")
    os.killpg(server.pid, signal.SIGINT)  # as the terminal does: to the devices, too
    text, error = server.communicate(timeout=60)
    assert server.returncode == 130, error
    assert "Traceback" not in error
    assert "interrupted after" in error
    nothing_is_left(server)
    (fault,) = json.loads((out / "metrics.json").read_text())["faults"]
    said = f"device {fault['device']} in round {fault['round']}: killed by SIGKILL; 2 of 3 devices went on"
    assert f"lost        {said}" in text.splitlines()
    page = (out / "report.html").read_text()
    assert f"Lost: {said}." in page
    assert "another run gives another model" in page


def test_top_shows_the_devices_and_their_queues(running: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> None:
    server, _ = running
    deadline = time.monotonic() + 60
    while True:
        text = subprocess.run(
            [sys.executable, "-m", "edgefast", "top", "--json"],
            check=True,
            capture_output=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        ).stdout
        found = json.loads(text)["processes"]
        if len(found) == 4:
            break
        assert time.monotonic() < deadline, f"expected the server and 3 devices, got {found}"
    queues = {q["name"]: q["statistics"] for p in found for q in p["queues"]}
    assert {name.partition(f"run-{server.pid}-")[2].partition("-")[2] for name in queues} == {
        "updates",
        "model-0",
        "model-1",
        "model-2",
    }
    pipelines = {p["name"]: p for process in found for p in process["pipelines"]}
    assert sorted(pipelines) == ["device-0", "device-1", "device-2"]
    assert [s["name"] for s in pipelines["device-1"]["stages"]] == ["sketch", "train"]
    assert {p["pid"] for p in found} == {server.pid, *devices(server)}


def test_the_end_of_every_device_is_the_end(running: tuple[subprocess.Popen[str], Path]) -> None:
    server, out = running
    for pid in devices(server):
        os.kill(pid, signal.SIGKILL)
    text, error = server.communicate(timeout=60)
    assert server.returncode == 1, error
    assert "edgefast run: every device was lost, after" in error
    assert text.count("killed by SIGKILL") == 3
    assert "Every device was lost after" in (out / "report.html").read_text()
    nothing_is_left(server)


def test_ctrl_c_before_the_devices_are_ready() -> None:
    if sys.platform != "linux" or IMPLEMENTATION != "native":
        pytest.skip("SharedQueue needs Linux and the native backend")
    server = start(*LONG)
    try:
        deadline = time.monotonic() + 60
        while not devices(server) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(server.pid, signal.SIGINT)
        _, error = server.communicate(timeout=60)
    finally:
        server.kill()
    assert server.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in error
    nothing_is_left(server)


@pytest.mark.parametrize("chosen", ["numpy", "numba"])
def test_without_the_native_backend_it_is_one_line(chosen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgefast", "run", "--processes"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "EDGEFAST_BACKEND": chosen},
    )
    if "numba is not installed" in done.stderr:
        pytest.skip("numba is not installed")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("edgefast run: error: processes: SharedQueue needs ")
    assert done.stderr.count("\n") == 1
