"""Pipeline tests run over the native queue and over its pure-Python twin, and leave nothing behind."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgefast as ef
from edgefast.pipeline import _runtime
from edgefast.queues import _pure

sys.path.insert(0, str(Path(__file__).parent))  # pipeline_functions.py, here and in processes


@pytest.fixture(params=["native", "python"])
def queues(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The implementation of the queues between the stages."""
    if request.param == "python":
        monkeypatch.setattr(_runtime, "Queue", _pure.Queue)
    elif "native" not in ef.available_backends():
        pytest.skip("backend native is not available")
    else:
        from edgefast.queues import _native_queue

        monkeypatch.setattr(_runtime, "Queue", _native_queue.Queue)
    return request.param


@pytest.fixture(params=["thread", "asyncio", "process", "max_weight"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of Pipeline for each kind of worker."""
    if request.param == "max_weight":
        return {"scheduler": "max_weight", "pool": 2}
    return {"backend": request.param}


@pytest.fixture(autouse=True)
def nobody_looks_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wake-up that is missed holds a test up for good instead of for half a second."""
    monkeypatch.setattr(_runtime, "LOOK_AGAIN", 1e6)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """No thread and no process outlives the test."""
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + 10

    def left() -> list[Any]:
        threads = [t for t in threading.enumerate() if t not in before and t.is_alive()]
        return threads + multiprocessing.active_children()

    while left() and time.monotonic() < until:
        time.sleep(0.01)
    assert not left()
