"""edgefast top: a living pipeline of another process, leftovers, hostile names and files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefast.cli import _top, main
from edgefast.pipeline import Decision, Pipeline, PipelineStatistics, StageStatistics, _publish, _slots
from edgefast.queues import IMPLEMENTATION, Queue, QueueStatistics

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="publishing needs POSIX file locks")

shared = pytest.mark.skipif(
    sys.platform != "linux" or IMPLEMENTATION != "native", reason="SharedQueue needs Linux and the native backend"
)

CHILD = """
import sys, threading
from edgefast.pipeline import Pipeline, Stage
from edgefast.queues import Queue
hold = threading.Event()
queue = Queue(8, name="inbox", high_watermark=4, low_watermark=1)
with Pipeline([Stage(str, name="fast"), Stage(lambda x: hold.wait(), name="stuck", maxsize=3)],
              name="job \\x1b[2J\\u202e", adapt="none", publish=True) as pipeline:
    for i in range(40):
        pipeline.submit(i, timeout=5)
        if pipeline.statistics().stages[1].depth >= 2:
            break
    print("up", flush=True)
    sys.stdin.read()
    hold.set()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "edgefast"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def call(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        status = main(["top", *argv])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
    return found


def pictures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status, text, error = call(capsys, "--json")
    assert (status, error, text.count("\n")) == (0, "", 1)
    return json.loads(text)


def test_json_of_a_pipeline_in_another_process(
    capsys: pytest.CaptureFixture[str], child: subprocess.Popen[str]
) -> None:
    (process,) = until(lambda: pictures(capsys)["processes"])
    assert process["pid"] == child.pid
    assert 0 <= process["age"] < 60
    (pipeline,) = process["pipelines"]
    assert (pipeline["name"], pipeline["state"]) == ("job \x1b[2J\u202e", "running")
    fast, stuck = pipeline["stages"]
    assert (fast["name"], stuck["name"]) == ("fast", "stuck")
    assert stuck["depth"] >= 2
    assert stuck["limit"] == 3
    assert stuck["max_bytes"] is None
    assert 0 <= fast["busy_share"] <= 1
    child.communicate("")
    assert until(lambda: pictures(capsys)["processes"] == [])


def test_text_of_a_pipeline_in_another_process(
    capsys: pytest.CaptureFixture[str], child: subprocess.Popen[str]
) -> None:
    until(lambda: pictures(capsys)["processes"])
    status, text, error = call(capsys, "--once")
    assert (status, error) == (0, "")
    assert "1 process, 1 pipeline, 2 stages" in text
    head, *rows = text.split("\npipelines\n")[1].split("\n\n")[0].splitlines()
    assert {"pipeline", "stage", "depth", "limit", "low", "gate", "in/s", "out/s", "dropped", "waits"} <= set(
        head.split()
    )
    assert rows[0].split()[0] == str(child.pid)
    assert "job \\x1b[2J\\u202e" in rows[0]
    assert rows[1].split()[0] == "stuck"
    assert not any(c in text for c in "\x1b\u202e")


def test_live_in_a_terminal_until_q(child: subprocess.Popen[str]) -> None:
    pytest.importorskip("rich")
    pty = pytest.importorskip("pty")
    terminal, its_side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgefast", "top", "--interval", "0.2"],
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "30"},
    )
    os.close(its_side)
    seen = b""
    try:
        deadline = time.monotonic() + 60
        while b"stuck" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 0.5)[0]:
                seen += os.read(terminal, 1 << 16)
        os.write(terminal, b"q")
        with contextlib.suppress(OSError):  # how Linux tells that the other side is closed
            while os.read(terminal, 1 << 16):
                pass
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert b"\\x1b[2J\\u202e" in seen  # written out, not obeyed
    assert "\u202e".encode() not in seen


def test_without_rich_once_is_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert call(capsys, "--once")[1].startswith("edgefast top  ")
    status, _, error = call(capsys)
    assert status == 2
    assert error.startswith("edgefast top: error: the live view needs rich; pip install 'edgefast[cli]'")


def test_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures(capsys)["processes"] == []
    text = call(capsys, "--once")[1]
    assert "0 processes, 0 pipelines, 0 stages" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--once", "--interval", "0"], "interval: expected 0.1 to 3600 seconds, got 0.0"),
        (["--once", "--interval", "nan"], "interval: expected 0.1 to 3600 seconds, got nan"),
        ([], "expected a terminal to draw on; --once prints one picture, --json one JSON object"),
    ],
    ids=["0", "nan", "pipe"],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert call(capsys, *argv) == (2, "", f"edgefast top: error: {message}\n")


def test_a_folder_of_others_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    status, text, error = call(capsys, "--once")
    assert (status, text) == (2, "")
    assert error.startswith(f"edgefast top: error: {folder}: expected a folder of user {os.geteuid()} with mode 0700")
    assert error.count("\n") == 1


def test_damaged_files_are_told_and_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    slots = [_slots.Slot() for _ in range(3)]
    try:
        slots[0].write(b"[" * 100_000)
        slots[1].write(b'{"format": 1, "pid": "\\u001b[2J"}')
        slots[2].write(os.urandom(1000))
        status, text, error = call(capsys, "--once")
        assert (status, error) == (0, "")
        assert "3 files not readable: damaged, or of another version of edgefast" in text
        assert len(pictures(capsys)["unreadable"]) == 3
    finally:
        for slot in slots:
            slot.close()


@shared
def test_shared_queues_of_the_living_and_the_dead(capsys: pytest.CaptureFixture[str]) -> None:
    from edgefast.queues import SharedQueue

    name = f"top-{os.getpid()}"
    code = f"""
import os
from edgefast.queues import SharedQueue
SharedQueue.create(4, itemsize=8, name="{name}-left")
os._exit(0)
"""
    with SharedQueue.create(
        10, itemsize=64, name=f"{name}-here", high_watermark=6, low_watermark=2, policy="drop_newest"
    ) as queue:
        subprocess.run([sys.executable, "-c", code], check=True)
        try:
            for _ in range(7):
                queue.put(b"x")
            views = {view["name"]: view for view in pictures(capsys)["shared"]}
            here, left = views[f"{name}-here"], views[f"{name}-left"]
            assert here["state"] == "in use"
            assert [p["pid"] for p in here["participants"]] == [os.getpid()]
            found = here["statistics"]
            assert (found["current_buffer_used"], found["high_watermark"], found["low_watermark"]) == (6, 6, 2)
            assert (found["writable"], found["dropped_newest"], found["participants"]) == (False, 1, 1)
            assert (left["state"], left["statistics"]) == ("left behind", None)
            text = call(capsys, "--once", "--interval", "0.1")[1]
            (line,) = (line for line in text.splitlines() if line.startswith(f"{name}-here"))
            assert "closed" in line
            assert re.search(rf"^{name}-left +left behind ", text, re.MULTILINE)
            assert "edgefast.queues.cleanup() removes" in text
        finally:
            with contextlib.suppress(FileNotFoundError):
                SharedQueue.attach(f"{name}-left").unlink()
    assert f"{name}-here" not in {view["name"] for view in pictures(capsys)["shared"]}


@shared
def test_a_damaged_segment_is_shown_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    from edgefast.queues import SharedQueue

    name = f"top-{os.getpid()}-bad"
    with SharedQueue.create(4, itemsize=8, name=name):
        with open(f"/dev/shm/edgefast-{os.geteuid()}-{name}", "r+b") as f:
            f.write(b"\xff" * 64)
        (view,) = (view for view in pictures(capsys)["shared"] if view["name"] == name)
        assert view["statistics"] is None
        assert view["state"] not in ("in use", "left behind")
        assert call(capsys, "--once")[0] == 0


# ---- drawing -------------------------------------------------------------------------------------------------------


def stage(name: str, **changed: Any) -> StageStatistics:
    values: dict[str, Any] = dict.fromkeys(StageStatistics._fields, 0)
    values |= {"name": name, "backend": "thread", "workers": 1, "writable": True, "limit": 8, "max_bytes": math.inf}
    return StageStatistics(**{**values, "sojourn": None, **changed})


def picture(*stages: StageStatistics, decisions: tuple[Decision, ...] = (), silent: float = 0.0) -> _top.Picture:
    pipeline = PipelineStatistics(
        "job", "running", "thread", "threads", 0.2, 1.0, 0, 0, 0, 0, 0, 0.0, 0, math.inf, stages, decisions
    )
    process = _publish.ProcessSnapshot(77, "python job.py", "1", 1000.0 - silent, (pipeline,), ())
    shares = {(77, 0, i): 0.5 for i in range(len(stages))}
    return _top.Picture(1000.0, _publish.Snapshots((process,), ()), (), shares)


def rows(shown: _top.Picture, width: float = math.inf) -> list[str]:
    (table,) = _top.tables(shown)
    return ["  ".join(cell.text for cell in row) for row in _top.lines(table, width)]


def test_counts_and_decisions_are_in_their_columns() -> None:
    decision = Decision(998.5, "slow", "limit", 8, 16, "starved\x07")
    shown = picture(
        stage(
            "slow", depth=6, writable=False, low=2, dropped_oldest=3, expired=1, full_waits=1234, lost=5, sojourn=0.25
        ),
        decisions=(decision, decision._replace(stage="other")),
    )
    head, row = rows(shown)
    for title, value in {
        "depth": "6",
        "limit": "8",
        "low": "2",
        "gate": "closed",
        "dropped": "4",
        "waits": "1,234",
        "lost": "5",
        "wait": "250 ms",
        "busy": "50%",
    }.items():
        end = head.index(f" {title} ") + 1 + len(title)
        assert value in row[end - 12 : end + 3], title
    assert row.endswith("1.5 s ago limit 8 → 16: starved\\x07")


@pytest.mark.parametrize("width", range(40, 200, 7))
def test_lines_fit_the_width_and_keep_what_matters(width: int) -> None:
    decision = Decision(999.0, "send", "workers", 1, 2, "a reason of some length, such as they are")
    found = rows(picture(stage("decode", depth=3), stage("send"), decisions=(decision,)), width)
    assert len({len(line) for line in found}) == 1
    if width >= 82:
        assert len(found[0]) <= width
    for title in ("pid", "pipeline", "stage", "depth", "limit", "gate", "in/s", "out/s", "dropped"):
        assert title in found[0]


def test_nothing_wraps_in_a_narrow_terminal() -> None:
    console = pytest.importorskip("rich.console")
    from edgefast.cli.top import _screen

    shown = picture(stage("decode", depth=3), stage("send"))
    rendered = console.Console(width=50).render_lines(_screen(shown, 50, 30), pad=False)
    found = ["".join(segment.text for segment in line) for line in rendered]
    assert [line[:9] for line in found[-2:]] == [line[:9] for line in rows(shown, 50)[-2:]]
    assert len(found) == 2 + 2 + 3  # heading, command; blank, title; head and two stages
    assert max(map(len, found)) <= 50


def test_a_silent_process_is_told() -> None:
    assert _top.notes(picture(stage("a"))) == []
    (note,) = _top.notes(picture(stage("a"), silent=75))
    assert note == "process 77 has not reported for 1 min: stopped, or short of CPU"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("", ""),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x9b31m", "\\x9b31m"),
        ("\ud800", "\\ud800"),
        ("[bold]x[/bold]", "[bold]x[/bold]"),
        ("x" * 30, "x" * 23 + "…"),
        ("カ" * 20, "カ" * 11 + "…"),
    ],
)
def test_names_of_others(text: str, shown: str) -> None:
    assert _top.clean(text) == shown


def test_rates_of_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pipeline([abs], name="p", adapt="none") as pipeline:
        pipeline.submit(1)
        pipeline.join()
        statistics = pipeline.statistics()
    first = statistics._replace(elapsed=4.0, stages=(statistics.stages[0]._replace(busy=1.0, workers=2),))
    second = first._replace(elapsed=5.0, stages=(first.stages[0]._replace(busy=2.5),))
    pictures = iter((first, first, second))
    clocks = iter((104.0, 104.0, 105.0))

    def read() -> _publish.Snapshots:
        process = _publish.ProcessSnapshot(1, "x", "1", next(clocks), (next(pictures),), ())
        return _publish.Snapshots((process,), ())

    monkeypatch.setattr(_top, "read_published", read)
    monkeypatch.setattr(_top.Watcher, "_segments", lambda self: ())
    watcher = _top.Watcher()
    assert watcher.look().busy == {(1, 0, 0): 1.0 / 4 / 2}  # since its start
    assert watcher.look().busy == {(1, 0, 0): 1.0 / 4 / 2}  # the same picture again
    assert watcher.look().busy == {(1, 0, 0): 1.5 / 1 / 2}


def test_every_queue_can_be_shown() -> None:
    statistics: QueueStatistics = Queue(0, name="q").statistics()
    snapshot = _publish.ProcessSnapshot(1, "x", "1", 0.0, (), (_publish.QueueSnapshot("q", statistics),))
    shown = _top.Picture(0.0, _publish.Snapshots((snapshot,), ()), (), {})
    assert "∞" in _top.plain(shown)
    assert json.loads(json.dumps(_top.as_json(shown), allow_nan=False))
