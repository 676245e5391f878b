"""Builds the sdist and from it a wheel for every CPython >= 3.11 on this machine, and tests each as a user gets it.

Every wheel is installed into a fresh environment and tested outside the source tree with no compiler on PATH; the
pure-Python wheel is built and tested as well. Free-threaded interpreters are included when found.

    python tools/wheels.py [--out dist] [--only 3.12] [--quick]
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 3_000_000  # of a native wheel, as promised to small devices


def interpreters() -> dict[str, str]:
    """{"3.12": path, "3.14t": path, ...}: one executable per version and threading flavour."""
    candidates = [sys.executable]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        candidates += glob.glob(os.path.join(folder, "python3.[0-9]*"))
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates += glob.glob(os.path.join(pyenv, "versions", "*", "bin", "python3"))
    probe = (
        "import sys, sysconfig; print(sys.implementation.name, '%d.%d' % sys.version_info[:2] + "
        "('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''), sys.version_info >= (3, 11))"
    )
    found: dict[str, str] = {}
    for path in candidates:
        if not re.fullmatch(r"python3?(\.\d+t?)?", os.path.basename(path)) or not os.access(path, os.X_OK):
            continue  # such as python3.11-config and python3.11-gdb.py
        done = subprocess.run([path, "-c", probe], capture_output=True, text=True)
        parts = done.stdout.split()
        if done.returncode == 0 and parts[0] == "cpython" and parts[2] == "True":
            found.setdefault(parts[1], path)
    return dict(sorted(found.items()))


def call(*command: str | Path, env: dict[str, str] | None = None, cwd: str | Path | None = None) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(c) for c in command], check=True, env=env, cwd=cwd)


def no_compiler_env() -> dict[str, str]:
    """A user's machine without a compiler: none of our build settings either."""
    user = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFAST_")}
    return {**user, "CC": "/bin/false", "CXX": "/bin/false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def environment(python: str, folder: Path) -> Path:
    call(python, "-m", "venv", folder)
    call(folder / "bin/python", "-m", "pip", "install", "-q", "pip>=25.1")
    return folder / "bin/python"


def test_wheel(wheel: Path, python: str, work: Path, sdist: Path, *, native: bool, scope: str) -> None:
    interpreter = environment(python, work / f"venv-{wheel.stem}")
    env = no_compiler_env()
    call(
        interpreter,
        "-m",
        "pip",
        "install",
        "-q",
        f"{wheel}[sklearn,cli]",
        "--group",
        f"{sdist}/pyproject.toml:test",
        env=env,
    )
    expected = "native" if native else "numpy"
    call(
        interpreter,
        "-c",
        f"import edgefast as ef; assert ef.available_backends()[0] == {expected!r}, ef.available_backends()",
        env=env,
        cwd=work,
    )
    tests = work / f"tests-{wheel.stem}"
    shutil.copytree(sdist / "tests", tests / "tests")
    shutil.copy(sdist / "pyproject.toml", tests)
    chosen = ["tests"]
    if scope == "brief":
        # `make test` and `make pure` have run on this interpreter: left are the parts of the package and the commands.
        chosen = ["tests/cli", *sorted(f"tests/{path.name}" for path in (tests / "tests").glob("test_*.py"))]
    args = [*chosen, "-q", "-p", "no:cacheprovider", "-o", "testpaths=tests"] + (["--require-native"] if native else [])
    if scope != "all":
        # The other levels and backends are the main suite's business; here it is the package that is tested.
        args += ["-m", "not slow", "--backends", "native-scalar,numpy" if native else "numpy"]
    call(interpreter, "-m", "pytest", *args, env=env, cwd=tests)


def build(python: Path, archive: Path, out: Path, env: dict[str, str]) -> Path:
    """A wheel from the sdist."""
    before = set(out.glob("*.whl"))
    call(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, archive, env=env)
    (wheel,) = set(out.glob("*.whl")) - before
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--only", help="one version, such as 3.12")
    parser.add_argument("--quick", action="store_true", help="two backends, and not again what make test has run")
    options = parser.parse_args()
    pythons = interpreters()
    if options.only:
        pythons = {v: p for v, p in pythons.items() if v == options.only}
    if not pythons:
        sys.exit("no CPython >= 3.11 found")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        first = next(iter(pythons.values()))
        builder = environment(first, work / "builder")
        call(builder, "-m", "pip", "install", "-q", "build")
        call(builder, "-m", "build", "--sdist", "--outdir", options.out, ROOT)
        (archive,) = options.out.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(work / "sdist", filter="data")
        (sdist,) = (work / "sdist").iterdir()
        built = []
        for version, python in pythons.items():
            interpreter = environment(python, work / f"build-{version}")
            wheel = build(interpreter, archive, options.out, {**os.environ, "EDGEFAST_REQUIRE_EXTENSIONS": "1"})
            scope = "all" if not options.quick else "brief" if python == sys.executable else "quick"
            test_wheel(wheel, python, work, sdist, native=True, scope=scope)
            built.append(wheel)
        # The pure wheel, built the way a machine without a compiler builds it: by failing to find one.
        pure = build(work / f"build-{next(iter(pythons))}/bin/python", archive, options.out, no_compiler_env())
        if not pure.name.endswith("-py3-none-any.whl"):
            sys.exit(f"a build without a compiler made {pure.name}, expected a py3-none-any wheel")
        test_wheel(pure, first, work, sdist, native=False, scope="brief" if options.quick else "all")
        for wheel in [*built, pure]:
            print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
        if large := [wheel.name for wheel in built if wheel.stat().st_size > MOST_BYTES]:
            sys.exit(f"expected wheels of at most {MOST_BYTES / 1e6:.1f} MB, got more: {', '.join(large)}")


if __name__ == "__main__":
    main()
