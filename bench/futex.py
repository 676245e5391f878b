"""The futex ping-pong that blocked wake-ups are compared with: csrc/tests/futex_pingpong.cpp, built on first use."""

from __future__ import annotations

import functools
import json
import platform
import shutil
import subprocess
from pathlib import Path

__all__ = ["round_trips"]

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def _program() -> Path | None:
    if platform.system() != "Linux" or not shutil.which("make") or not shutil.which("g++"):
        return None
    program = ROOT / "build/cpp/futex_pingpong_unit"
    subprocess.run(["make", "-s", "-C", ROOT / "csrc/tests", f"BUILD={program.parent}", program], check=True)
    return program


def round_trips(trips: int = 20_000, rounds: int = 5, cpus: tuple[int, int] | None = None) -> dict[str, float] | None:
    """{"threads": seconds, "processes": seconds} of one blocked round trip; None without Linux or a compiler.

    cpus: where the two are to run; None leaves it to the kernel.
    """
    program = _program()
    if program is None:
        return None
    done = subprocess.run(
        [program, str(trips), str(rounds), *map(str, cpus or ())], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)
