"""Published statistics: private, whole, gone with their process, and nothing in them trusted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefast.pipeline import Decision, PipelineStatistics, StageStatistics, _publish, _slots
from edgefast.queues import Queue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX file locks")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield tmp_path / "edgefast"
    until(lambda: not [t for t in threading.enumerate() if t.name == "edgefast-publish"])


def stage(name: str = "decode", **changed: Any) -> StageStatistics:
    values = dict.fromkeys(StageStatistics._fields, 0)
    values |= {"name": name, "backend": "thread", "workers": 1, "writable": True, "limit": 8.0, "max_bytes": math.inf}
    values |= {"time_to_drain": math.inf, "sojourn": None, "arrival_rate": 0.0, "service_rate": 0.0}
    return StageStatistics(**{**values, **changed})


class Source:
    """Looks like a pipeline; every statistics() is 10 items further."""

    def __init__(self, name: str = "job") -> None:
        self.name = name
        self.count = 0

    def statistics(self) -> PipelineStatistics:
        self.count += 10
        decision = Decision(time.monotonic(), "decode", "limit", 4, 8, "starved")
        return PipelineStatistics(
            self.name, "running", "thread", "threads", 0.2, 1.0, self.count, self.count, 0, 0, 8, 0.0, 0, math.inf,
            (stage(arrived=self.count, served=self.count),), (decision,) * 30,
        )  # fmt: skip


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return found


def processes() -> tuple[_publish.ProcessSnapshot, ...]:
    return _publish.read_published().processes


def test_what_is_published_can_be_read_until_its_end(folder: Path) -> None:
    source, queue = Source(), Queue(7, name="inbox")
    queue.put(1)
    _publish.publish(source)
    _publish.publish(queue)
    (process,) = until(processes)
    assert (process.pid, process.version) == (os.getpid(), __import__("edgefast").__version__)
    (pipeline,) = process.pipelines
    assert (pipeline.name, pipeline.state, pipeline.max_bytes) == ("job", "running", math.inf)
    assert pipeline.stages[0]._replace(arrived=0, served=0) == stage()
    assert len(pipeline.decisions) == 8
    (shown,) = process.queues
    assert (shown.name, shown.statistics.current_buffer_used, shown.statistics.max_buffer_size) == ("inbox", 1, 7)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(f.stat().st_mode & 0o777 == 0o600 for f in folder.iterdir())
    # Rates come with the second picture.
    (later,) = until(lambda: [p for p in processes() if p.clock > process.clock])
    seconds = later.clock - process.clock
    rate = (later.pipelines[0].stages[0].arrived - pipeline.stages[0].arrived) / seconds
    assert later.pipelines[0].stages[0].arrival_rate == pytest.approx(rate)
    _publish.unpublish(source)
    _publish.unpublish(queue)
    _publish.unpublish(queue)
    until(lambda: not list(folder.iterdir()))
    assert processes() == ()


def test_a_source_that_is_collected_ends_the_thread(folder: Path) -> None:
    source = Source()
    _publish.publish(source)
    until(processes)
    del source
    until(lambda: not list(folder.iterdir()))


def test_cleaned_folders_come_back(folder: Path) -> None:
    source = Source()
    _publish.publish(source)
    try:
        until(processes)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        until(processes)
    finally:
        _publish.unpublish(source)


CHILD = """
import os, sys, time
from edgefast.pipeline import _publish
from edgefast.queues import Queue
queue = Queue(3, name="child's")
_publish.publish(queue)
print("up", flush=True)
if sys.argv[1] == "fork" and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_a_killed_process_is_forgotten_and_its_files_removed(folder: Path, kind: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, kind], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        (process,) = until(processes)
        assert process.queues[0].name == "child's"
        child.kill()
        child.wait()
        assert processes() == ()  # also while a forked child lives on
        assert list(folder.iterdir()) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def test_a_process_that_ends_takes_its_files_along(folder: Path) -> None:
    code = CHILD.replace("time.sleep(60)", "sys.exit()")
    subprocess.run([sys.executable, "-c", code, "plain"], check=True, stdout=subprocess.DEVNULL)
    assert list(folder.iterdir()) == []


# ---- hostile folders and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_is_not_private_is_refused(
    folder: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "open":
        folder.mkdir(mode=0o700)
        folder.chmod(0o755)
    elif kind == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "real")
    else:
        folder.write_text("")
    _publish.publish(Source())
    assert "cannot publish statistics" in caplog.text
    assert str(folder) in caplog.text
    with pytest.raises(OSError, match="edgefast"):
        _publish.read_published()


def test_a_folder_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PermissionError, match="expected a folder of user 12345 with mode 0700, got one of user"):
        _publish.read_published()


def test_no_folder_is_nothing_published() -> None:
    assert _publish.read_published() == ((), ())


@pytest.fixture
def slot(folder: Path) -> Iterator[tuple[_slots.Slot, Path]]:
    """A living process's files, to write anything into."""
    slot = _slots.Slot()
    yield slot, folder / f"{slot._name}.json"
    slot.close()


def good() -> dict[str, Any]:
    snapshot = _publish.ProcessSnapshot(1, "x", "1", 2.0, (Source().statistics(),), ())
    return {"format": 1, **_publish._plain(snapshot)}


def read(slot: tuple[_slots.Slot, Path], data: bytes) -> _publish.Snapshots:
    slot[0].write(data)
    return _publish.read_published()


def test_the_good_file_is_read(slot: Any) -> None:
    found = read(slot, json.dumps(good()).encode())
    assert len(found.processes) == 1
    assert found.unreadable == ()


def change(path: str, value: Any) -> bytes:
    found: Any = good()
    *where, last = path.split("/")
    target = found
    for key in where:
        target = target[int(key) if key.isdecimal() else key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return json.dumps(found).encode()


BAD = {
    "empty": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "a list": b"[]",
    "deep": b"[" * 200_000,
    "a long number": b'{"format": 1, "pid": ' + b"9" * 10_000 + b"}",
    "too long": b" " * (_slots.MAX_BYTES + 1),
    "another format": change("format", 2),
    "NaN": change("clock", math.nan),
    "a pid of text": change("pid", "1"),
    "a truth as number": change("pid", True),
    "a huge number": change("clock", 1e300),
    "no clock": change("clock", KeyError),
    "long text": change("command", "x" * 201),
    "a number as name": change("pipelines/0/name", 5),
    "an unknown state": change("pipelines/0/state", "asleep"),
    "pipelines of text": change("pipelines", "none"),
    "a stage of text": change("pipelines/0/stages", ["decode"]),
    "a number as gate": change("pipelines/0/stages/0/writable", 1),
    "a queue of nothing": change("queues", [{"name": "q", "statistics": None}]),
    "many rows": change("queues", [0] * 10_001),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_damaged_files_are_counted_not_believed(slot: Any, data: bytes) -> None:
    found = read(slot, data)
    assert found.processes == ()
    assert found.unreadable == (slot[1].stem,)


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_files_of_other_kinds_are_not_opened(slot: Any, tmp_path: Path, kind: str) -> None:
    path = slot[1]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "real").write_bytes(json.dumps(good()).encode())
        path.symlink_to(tmp_path / "real")
    else:
        path.mkdir()
    try:
        assert _publish.read_published() == ((), (path.stem,))
    finally:
        path.rmdir() if kind == "folder" else None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
PLACES = ["format", "pid", "command", "clock", "pipelines", "pipelines/0/stages", "pipelines/0/stages/0/sojourn"]


@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_in_any_place_is_read_or_counted(place: str, value: Any) -> None:
    data = json.loads(change(place, value))
    try:
        found = _publish._tuple(_publish.ProcessSnapshot, data)
    except ValueError:
        return
    assert json.loads(json.dumps(_publish._plain(found), allow_nan=False))
    assert not isinstance(found.pid, bool)


def test_locks_of_dead_processes_without_data_go_too(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / f"1-{'0' * 16}.lock").write_text("")
    (folder / f"2-{'0' * 16}.lock").symlink_to("/etc/passwd")
    (folder / "notes.txt").write_text("of somebody")
    assert _publish.read_published() == ((), ())
    assert f"1-{'0' * 16}.lock" not in [f.name for f in folder.iterdir()]
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(("value", "answer"), [("", False), ("0", False), ("1", True)])
def test_the_environment_decides_when_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch, value: str, answer: bool
) -> None:
    monkeypatch.setenv("EDGEFAST_PUBLISH", value)
    assert _publish.wanted(None) is answer
    assert _publish.wanted(True)
    assert not _publish.wanted(False)


def test_an_unknown_value_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFAST_PUBLISH", "yes")
    with pytest.raises(ValueError, match="EDGEFAST_PUBLISH: expected 0 or 1, got 'yes'"):
        _publish.wanted(None)
