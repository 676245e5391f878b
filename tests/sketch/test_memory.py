"""What a call holds beyond its input and output: less than 4 MiB a thread, however many features there are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgefast as ef

# Peak resident size of a fresh process, reset before every call (clear_refs), so that C++ memory counts too.
SCRIPT = """
import numpy as np
from edgefast.sketch import SketchOperator, inverse_rotate, rotate

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10

def reset():
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")

d, k, n = 1_000_000, 64, 20
X = np.ones((n, d), np.float32)
out, turned = np.ones((n, k), np.float32), np.ones((2, d), np.float32)
small = np.ones((3, 100), np.float32)
for kind in ("sparse_stack", "countsketch", "sparse", "srht", "rademacher", "gaussian", "rotation"):
    SketchOperator(kind, 100, 100 if kind == "rotation" else 8).transform(small)  # what is set up once
    op = SketchOperator(kind, d, d if kind == "rotation" else k, density="auto")
    x, y = (X[:2], turned) if kind == "rotation" else (X, out)
    reset()
    before = peak()
    op.transform(x, out=y, num_threads=1)
    print(kind, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.skipif("native" not in ef.available_backends(), reason="the compiled kernels' promise")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer has memory of its own")
def test_peak_memory_at_a_million_features() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "EDGEFAST_BACKEND": "native", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    used = {kind: int(size) for kind, size in map(str.split, done.stdout.splitlines())}
    assert len(used) == 7
    assert {kind: size for kind, size in used.items() if size >= 4 << 20} == {}, used
