"""Ctrl-C wherever CPython looks for signals leaves the old file or the new one, whole, and nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast import files
from edgefast.aggregate import average_checkpoints, checkpoints
from edgefast.cli import dedup, main, sketch

Each = Callable[..., Iterator[int]]

# Ctrl-C between open() and the name of what it returned: the file is closed as it is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def whole(folder: Path, work: Callable[[], Any], each: Each, *modules: Any) -> None:
    """Before each call the files are old ones."""
    work()
    new = contents(folder)
    old = dict.fromkeys(new, b"old")

    def renew() -> None:
        for name, data in old.items():
            (folder / name).write_bytes(data)

    renew()
    n = 0
    for n in each(work, *modules):
        found = contents(folder)
        assert found.keys() == new.keys(), n
        assert all(found[name] in (old[name], new[name]) for name in new), n
        renew()
    assert n > 10


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_tables(tmp_path: Path, suffix: str, ctrl_c_at_every_call: Each) -> None:
    if suffix == ".csv":
        pytest.importorskip("pandas")

    def work() -> None:
        with files.open_sink(tmp_path / f"table{suffix}") as sink:
            sink.write(np.arange(6.0).reshape(3, 2))
            sink.write(np.ones((1, 2)))

    whole(tmp_path, work, ctrl_c_at_every_call, files)


def test_models(tmp_path: Path, ctrl_c_at_every_call: Each) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    paths = [tmp_path / "in" / f"{k}.npz" for k in range(2)]
    for k, path in enumerate(paths):
        np.savez(path, w=np.full(4, k, np.float32), b=np.ones(2))

    def work() -> None:
        average_checkpoints(paths, out=tmp_path / "out" / "mean.npz")

    whole(tmp_path / "out", work, ctrl_c_at_every_call, checkpoints)


@pytest.mark.parametrize("command", ["sketch", "dedup"])
def test_commands(tmp_path: Path, command: str, ctrl_c_at_every_call: Each) -> None:
    (tmp_path / "out").mkdir()
    np.save(tmp_path / "in.npy", np.random.default_rng(0).normal(size=(20, 16)))
    options = ["--components", "4", "--save-operator", str(tmp_path / "out" / "op")] if command == "sketch" else []

    def work() -> None:
        status = main([command, str(tmp_path / "in.npy"), str(tmp_path / "out" / "t.npy"), "--json", *options])
        if status == 130:
            raise KeyboardInterrupt

    whole(tmp_path / "out", work, ctrl_c_at_every_call, files, sketch, dedup)
