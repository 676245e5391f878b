"""average_checkpoints on 50 .safetensors files: time, and peak memory in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import average_checkpoints, map_checkpoint
from edgefast.aggregate.checkpoints import CheckpointWriter, Entry

FILES, PARAMETERS = 50, 4_000_000

OURS = """
import resource, sys
from edgefast.aggregate import average_checkpoints
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
average_checkpoints(sys.argv[2:], out=sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("soup")
    rng = np.random.default_rng(0)
    entries = [Entry(f"layer{i}", np.dtype("f4"), (PARAMETERS // 8,), None) for i in range(8)]
    paths = []
    for k in range(FILES):
        paths.append(folder / f"c{k}.safetensors")
        with CheckpointWriter(paths[-1], entries).open() as writer:
            for entry in entries:
                with writer.tensor(entry) as file:
                    file.write((rng.standard_normal(entry.size, np.float32) + k).tobytes())
    return paths


def start(benchmark: Any) -> int:
    benchmark.group = f"average float32 {FILES} safetensors files x {PARAMETERS} 2t"
    return (FILES + 1) * PARAMETERS * 4


def test_ours(benchmark: Any, contender: Any, files: list[Path]) -> None:
    moved = start(benchmark)
    out = files[0].with_name("mean.safetensors")
    command = [sys.executable, "-c", OURS, str(out), *map(str, files)]
    extra = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
    assert extra <= PARAMETERS * 4 + (64 << 20)
    assert abs(float(map_checkpoint(out)["layer0"].mean()) - (FILES - 1) / 2) < 0.01
    contender(benchmark, "edgefast average_checkpoints", ours=True, bytes=moved, peak_bytes=extra)
    benchmark(average_checkpoints, files, out=out, num_threads=2)


def test_safetensors_and_numpy(benchmark: Any, contender: Any, files: list[Path]) -> None:
    """What people write: load each file, add, divide, save. Holds two models in memory."""
    package = pytest.importorskip("safetensors.numpy")
    moved = start(benchmark)
    out = files[0].with_name("mean2.safetensors")

    def work() -> None:
        total = package.load_file(files[0])
        for path in files[1:]:
            for key, value in package.load_file(path).items():
                total[key] += value
        for value in total.values():
            value /= len(files)
        package.save_file(total, out)

    work()
    assert abs(float(map_checkpoint(out)["layer0"].mean()) - (FILES - 1) / 2) < 0.01
    contender(benchmark, "safetensors + numpy, file by file", bytes=moved)
    benchmark(work)
