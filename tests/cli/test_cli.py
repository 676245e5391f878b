"""The command line: what is printed where, exit statuses, one line for what a person can get wrong."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefast as ef
from edgefast.cli import main

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

QUICK = ["--rounds", "2", "--devices", "3"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 5)) + 2 * y[:, None]
    lines = ["a,b,c,d,e,state", *(",".join([*map(str, r), "on" if s else "off"]) for r, s in zip(X, y, strict=True))]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def call(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in argv])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_run_leaves_everything(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result"
    status, text, progress = call(capsys, "run", *QUICK, "--out", out)
    assert status == 0
    assert sorted(p.name for p in out.iterdir()) == ["metrics.json", "model.npz", "operator.bin", "report.html"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["rounds"]) == 2
    assert f"{metrics['accuracy']['federated']:.1%}" in text
    assert str(out / "report.html") in text
    assert "round 2/2" in progress
    assert ef.load_model(out).operator.n_components == 32


def test_json_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = call(capsys, "run", *QUICK, "--json")
    assert status == 0
    found = json.loads(text)
    assert set(found["accuracy"]) == {"federated", "centralised", "centralised_raw"}
    assert found["config"]["devices"] == 3
    assert text.count("\n") == 1


def test_options_reach_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "devices": 4,
        "rounds": 1,
        "components": 16,
        "kind": "srht",
        "alpha": 0.7,
        "epochs": 1,
        "batch": 9,
        "learning-rate": 0.5,
        "queue-size": 5,
        "high-watermark": 4,
        "low-watermark": 2,
        "policy": "drop_newest",
        "weights": "equal",
        "test-fraction": 0.3,
        "seed": 12,
        "backend": "numpy",
        "threads": 1,
        "device-timeout": 7.5,
    }
    status, text, _ = call(capsys, "run", "--json", *(x for k, v in options.items() for x in (f"--{k}", v)))
    assert status == 0
    found = json.loads(text)
    given = {k.replace("-", "_"): v for k, v in options.items()}
    assert found["config"] == given | {"processes": False, "engine": "local"}
    assert found["backend"] == {"name": "numpy", "simd": None, "threads": 1}


def test_predict_with_what_a_run_left(capsys: pytest.CaptureFixture[str], table: Path, tmp_path: Path) -> None:
    model = tmp_path / "m"
    assert call(capsys, "run", "--data", table, "--target", "state", "--components", 4, *QUICK, "--out", model)[0] == 0
    status, text, note = call(capsys, "predict", model, table)
    assert status == 0
    found = text.split()
    assert set(found) <= {"on", "off"}
    assert len(found) == 60
    status, text, _ = call(capsys, "predict", model, table, "--json", "--backend", "numpy")
    answer = json.loads(text)
    assert answer["predictions"] == found
    hits = np.mean([f == ("on" if i % 2 else "off") for i, f in enumerate(found)])
    assert answer["accuracy"] == hits > 0.8
    assert f"accuracy {hits:.1%} on 60 rows" in note
    assert call(capsys, "predict", model, table, "--out", tmp_path / "p")[0] == 0
    assert (tmp_path / "p" / "predictions.csv").read_text().split() == ["prediction", *found]
    rows = np.loadtxt(table, delimiter=",", skiprows=1, usecols=range(5))
    assert ef.load_model(model).predict(rows).tolist() == found


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = call(capsys, "info", "--json")
    assert status == 0
    assert json.loads(text)["edgefast"] == ef.__version__
    assert f"backend: {ef.backend()}" in call(capsys, "info")[1]


ERRORS: list[tuple[list[str], str]] = [
    (["run", "--data", "nowhere.csv", "--target", "y"], "nowhere.csv: there is no such file"),
    (["run", "--data", "{table}"], "which column holds the class? name it with --target"),
    (["run", "--data", "{table}", "--target", "stat"], "there is no column 'stat'; there are 'a', 'b', 'c', 'd', 'e'"),
    (["run", "--data", "{table}", "--target", "a"], "expected classes, got the continuous value"),
    (["run", "--data", "{table}", "--target", "state"], "components: expected at most the 5 features of t.csv, got 32"),
    (["run", "--target", "y"], "target: names a column of --data FILE, which is not given"),
    (["run", "--devices", "1500"], "devices: expected at most one per training row (1438), got 1500; ask for fewer"),
    (["run", "--components", "65"], "components: expected at most the 64 features of digits, got 65; ask for fewer"),
    (["run", "--kind", "rotation"], "components: expected the 64 features of digits with kind 'rotation', got 32"),
    (["run", "--learning-rate", "1e300"], "learning_rate: expected a step that float32 holds, got 1e+300"),
    (["run", "--rounds", "0"], "rounds: expected an integer from 1"),
    (["run", "--rounds", "x"], "argument --rounds: invalid int value: 'x'"),
    (["run", "--backend", "cuda"], "unknown backend 'cuda': expected one of auto, native, numba, numpy"),
    (["run", "--threads", "0"], "threads: expected an integer from 1"),
    (["run", "--device-timeout", "0"], "device_timeout: expected a number above 0"),
    (["run", "--policy", "perhaps"], "argument --policy: invalid choice: 'perhaps'"),
    (["run", "--out", "{table}"], "expected a folder to write to, this is a file"),
    (["predict", "nowhere", "{table}"], "nowhere: expected the folder of a run, there is no model.npz in it"),
    (["predict", "nowhere", "{table}", "--threads", "0"], "threads: expected a positive integer, got 0"),
    (["average", "a.npz", "-o", "b.npz", "--rule", "trimmed"], "rule: expected exactly one of --trim and --byzantine"),
    (["average", "a.npz", "-o", "b.npz", "--rule", "meamed"], "rule: expected --byzantine with 'meamed'"),
    (["jump"], "argument COMMAND: invalid choice: 'jump'"),
    ([], "the following arguments are required: COMMAND"),
]


@pytest.mark.parametrize(("argv", "message"), ERRORS, ids=[" ".join(a) or "nothing" for a, _ in ERRORS])
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], table: Path, argv: list[str], message: str
) -> None:
    status, text, error = call(capsys, *(a.format(table=table) for a in argv))
    assert status == 2
    assert text == ""
    assert error.count("\n") == 1
    assert error.startswith("edgefast")
    assert message in error


def test_module_and_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgefast", "run", "--components", "99"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("moment", ["start", "running"])
def test_ctrl_c_ends_with_a_partial_report(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "part"
    argv = [sys.executable, "-m", "edgefast", "run", "--rounds", "1000000", "--out", str(out)]
    # A parent without a terminal may have SIGINT ignored, and a child inherits that.
    code = f"import signal, os; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv({argv[0]!r}, {argv!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        if moment == "running":
            assert process.stderr is not None
            assert process.stderr.readline().startswith("round 1/1000000")
        else:
            deadline = time.monotonic() + 60
            while not out.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        text, error = process.communicate(timeout=60)
    finally:
        process.kill()
    # A signal that lands inside an import's exec() makes CPython end by the signal itself, which shells report as 130.
    assert process.returncode in (130, -signal.SIGINT), error
    assert "Traceback" not in error
    assert "interrupted" in error
    if moment == "running":
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["interrupted"]
        assert "Interrupted after" in (out / "report.html").read_text()
        assert f"interrupted after {len(metrics['rounds'])} of 1000000 rounds" in error
        assert "accuracy" in text
        ef.load_model(out)


LOST = """
import signal, sys
import edgefast.federated
from edgefast.cli import main

class Finalizer:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)  # Python ignores the KeyboardInterrupt

def digits(load=edgefast.federated.digits):
    Finalizer()
    return load()

signal.signal(signal.SIGINT, signal.default_int_handler)
edgefast.federated.digits = digits
sys.exit(main(["run", "--rounds", "1000000"]))
"""


def test_a_ctrl_c_that_python_loses_counts() -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "Exception ignored in: <function Finalizer.__del__" in done.stderr
    assert done.stderr.endswith("edgefast run: interrupted after 0 of 1000000 rounds\n")


def test_flower_missing_or_old_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)
    status, out, err = call(capsys, "run", "--engine", "flower", "--json")
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == ("edgefast run: error: --engine flower needs Flower; pip install 'edgefast[flower]'")
    monkeypatch.setitem(sys.modules, "flwr", types.SimpleNamespace(__version__="1.22.0"))
    status, out, err = call(capsys, "run", "--engine", "flower", "--json")
    assert (status, out) == (2, "")
    assert "needs Flower 1.41 or later, this is 1.22.0" in err


def test_flower_and_processes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "run", "--engine", "flower", "--processes")
    assert status == 2
    assert "processes: expected False with engine='flower'" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"edgefast {ef.__version__}\n", "")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
def test_a_reader_that_leaves_is_no_error() -> None:
    # `edgefast info | head -0`: one with a reader that has gone already.
    reader, writer = os.pipe()
    os.close(reader)
    try:
        argv = [sys.executable, "-m", "edgefast", "info"]
        done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "edgefast", "info"]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("edgefast info: error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("columns", "bar"), [(120, True), (80, True), (66, True), (45, False), (30, False)])
def test_the_live_line_fits(monkeypatch: pytest.MonkeyPatch, columns: int, bar: bool) -> None:
    from rich.console import Console

    from edgefast.cli import _live
    from edgefast.federated import Progress, RunConfig

    screen = io.StringIO()
    console = Console(file=screen, width=columns, force_terminal=True, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **options: console)
    with _live.LiveView(RunConfig(rounds=30), "digits") as view:
        view.update(Progress(12, 30, 0.912, 7, 12, True, 0, 1000, 1.5, 10, ()))
    last = [line for line in re.split("[\r\n]", screen.getvalue()) if "12/30" in line][-1]
    assert "accuracy 91.2%" in last
    assert ("queue" in last and "7/16" in last) == bar
    assert "…" not in last
