"""Where there is no SharedQueue it says so: pure installs, the numba and numpy backends, other systems than Linux."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import edgefast.queues
from edgefast.queues import _shared_pure

CALLS = [
    lambda: _shared_pure.SharedQueue.create(1, itemsize=1),
    lambda: _shared_pure.SharedQueue.attach("x"),
    _shared_pure.SharedQueue,
    _shared_pure.list_shared,
    _shared_pure.cleanup,
]


@pytest.mark.parametrize("choice", ["numpy", "numba"])
def test_other_backends(choice: str) -> None:
    code = """
from edgefast.queues import CorruptedError, RecoveryReport, SharedQueue, cleanup
for call in (lambda: SharedQueue.create(1, itemsize=1), lambda: SharedQueue.attach("x"), cleanup):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    if choice == "numba":
        pytest.importorskip("numba")
    env = {**os.environ, "EDGEFAST_BACKEND": choice}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.count("SharedQueue needs the native backend: ") == 3


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    for call in CALLS:
        with pytest.raises(ImportError, match=r"SharedQueue needs Linux .* this is darwin"):
            call()


@pytest.mark.skipif(edgefast.queues.IMPLEMENTATION == "native" or sys.platform != "linux", reason="it is there")
def test_the_public_names_are_there_without_it() -> None:
    for call in (edgefast.queues.SharedQueue, edgefast.queues.list_shared, edgefast.queues.cleanup):
        with pytest.raises(ImportError, match="SharedQueue needs the native backend"):
            call()
