"""The code on every page runs."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import edgefast.queues

ROOT = Path(__file__).resolve().parent.parent
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if p.exists()]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

#: What a page needs beside the package itself.
NEEDS = {"flower.md": "flwr.serverapp.strategy"}
#: Where there is no SharedQueue these cannot run.
NEED_SHARED_QUEUE = ("shared-queue.md", "killed_worker.py")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="needs the source tree")


def skip_without_shared_queue(path: Path) -> None:
    if path.name in NEED_SHARED_QUEUE and (edgefast.queues.IMPLEMENTATION != "native" or sys.platform != "linux"):
        pytest.skip("SharedQueue needs the native backend and Linux")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    skip_without_shared_queue(page)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if ">>>" in block:
            examples = doctest.DocTestParser().get_doctest(block, namespace, page.name, str(page), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(examples, clear_globs=False)
            assert runner.summarize(verbose=False).failed == 0
            namespace = examples.globs
        else:
            exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_example(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_shared_queue(path)
    monkeypatch.chdir(tmp_path)
    exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__", "__file__": str(path)})
