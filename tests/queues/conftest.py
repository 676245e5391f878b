"""Every queue test runs on the native queue and on its pure-Python twin."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edgefast as ef
import edgefast.queues
from edgefast.queues import _pure, _record_pure

sys.path.insert(0, str(Path(__file__).parent))  # linearizability.py


def _native() -> Any:
    from edgefast.queues import _native_queue

    return _native_queue.Queue


@pytest.fixture(params=["native", "python"])
def queue_class(request: pytest.FixtureRequest) -> Any:
    if request.param == "python":
        return _pure.Queue
    if "native" not in ef.available_backends():
        pytest.skip("backend native is not available")
    return _native()


@pytest.fixture
def queue_source(queue_class: Any) -> dict[str, str]:
    """Environment in which a fresh interpreter's edgefast.queues.Queue is this implementation."""
    native = queue_class is not _pure.Queue
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFAST_")}
    return {**clean, "EDGEFAST_BACKEND": "native" if native else "numpy"}


@pytest.fixture(params=["native", "python"])
def record_class(request: pytest.FixtureRequest) -> Any:
    """RecordQueue, native and its pure-Python twin."""
    if request.param == "python":
        return _record_pure.RecordQueue
    if "native" not in ef.available_backends():
        pytest.skip("backend native is not available")
    from edgefast.queues import _native_record

    return _native_record.RecordQueue


@pytest.fixture
def shared() -> Iterator[Any]:
    """SharedQueue.create; what it made is removed again."""
    made: list[Any] = []

    def create(*args: Any, **options: Any) -> Any:
        made.append(edgefast.queues.SharedQueue.create(*args, **options))
        return made[-1]

    yield create
    for q in made:
        q.unlink()
        q.close()
