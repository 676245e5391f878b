"""Selection of backend, SIMD level and thread count."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

import edgefast as ef
from edgefast import backends


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGEFAST_")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **env}, capture_output=True, text=True, timeout=120
    )


def test_using_selects_and_restores(backend: str) -> None:
    name, _, simd = backend.partition("-")
    assert ef.backend() == name
    assert (backends.simd() or "") == simd
    with ef.using("numpy"):
        assert ef.backend() == "numpy"
        assert backends.simd() is None
    assert ef.backend() == name


def test_using_belongs_to_the_context() -> None:
    seen: list[str] = []
    with ef.using("numpy"):
        thread = threading.Thread(target=lambda: seen.append(ef.backend()))
        thread.start()
        thread.join()
    assert seen == [ef.backend()]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"EDGEFAST_BACKEND": "cuda"}, "unknown backend 'cuda': expected one of auto, native, numba, numpy"),
        ({"EDGEFAST_SIMD": "sse9"}, "unknown SIMD level 'sse9': expected one of"),
        ({"EDGEFAST_NUM_THREADS": "many"}, "EDGEFAST_NUM_THREADS: expected a positive integer, got 'many'"),
        ({"EDGEFAST_NUM_THREADS": "0"}, "EDGEFAST_NUM_THREADS: expected a positive integer, got 0"),
    ],
)
def test_bad_environment_is_an_import_error(env: dict[str, str], message: str) -> None:
    done = run("import edgefast", **env)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("name", ef.available_backends())
def test_environment_selects(name: str) -> None:
    done = run("import edgefast as ef; print(ef.backend())", EDGEFAST_BACKEND=name)
    assert done.stdout.strip() == name, done.stderr


@pytest.mark.parametrize("level", backends.simd_levels())
def test_environment_selects_simd(level: str) -> None:
    done = run("from edgefast import backends; print(backends.simd())", EDGEFAST_SIMD=level)
    assert done.stdout.strip() == level, done.stderr


def test_missing_simd_level_names_what_there_is() -> None:
    missing = next((s for s in backends.SIMD_LEVELS if s not in backends.simd_levels()), None)
    if missing is None or not backends.simd_levels():
        pytest.skip("native missing or every level present")
    message = f"SIMD level '{missing}' is not available here: expected one of auto, "
    with pytest.raises(ImportError, match=message), ef.using("native", simd=missing):
        pass


def test_broken_extension_warns_once_and_falls_back() -> None:
    code = """
import sys, warnings, importlib.machinery
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "edgefast._native":
            raise ImportError("libbroken.so: undefined symbol: nothing")
sys.meta_path.insert(0, Broken())
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import edgefast as ef
    import edgefast.sketch
print(ef.backend() != "native", len([w for w in seen if "did not load" in str(w.message)]))
try:
    ef.using("native").__enter__()
except ImportError as e:
    print("undefined symbol" in str(e))
"""
    done = run(code)
    assert done.stdout.split() == ["True", "1", "True"], done.stdout + done.stderr


def test_num_threads() -> None:
    with ef.using(num_threads=3):
        assert backends.num_threads() == 3
        assert backends.num_threads(2) == 2
        with ef.using("numpy"):
            assert backends.num_threads() == 3
    with pytest.raises(ValueError, match="num_threads: expected a positive integer, got 0"):
        backends.num_threads(0)
    with pytest.raises(TypeError, match="num_threads: expected a positive integer, got float"):
        backends.num_threads(2.0)  # type: ignore[arg-type]
    assert backends.num_threads(2**70) == backends.num_threads(
        2**40
    )  # more than any machine has, not more than a C int
    done = run("from edgefast import backends; print(backends.num_threads())", EDGEFAST_NUM_THREADS="5")
    assert done.stdout.strip() == "5"


def test_import_is_lazy_and_quick() -> None:
    code = """
import sys
import numpy
import time
t = time.perf_counter()
import edgefast
took = time.perf_counter() - t
heavy = [m for m in ("numba", "scipy", "sklearn", "torch", "rich", "matplotlib", "pandas") if m in sys.modules]
lazy = [m for m in ("sketch", "queues", "aggregate", "federated") if "edgefast." + m in sys.modules]
print(heavy, lazy, took < 1.0)
edgefast.sketch, edgefast.queues, edgefast.aggregate
print("numba" in sys.modules)
"""
    done = run(code)
    assert done.stdout.splitlines() == ["[] [] True", "False"], done.stdout + done.stderr


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = ef.show_config(mode="dict")
    assert config is not None
    assert config["edgefast"] == ef.__version__
    assert set(config["backends"]) == {"native", "numba", "numpy"}
    ef.show_config()
    assert f"edgefast: {ef.__version__}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mode: expected 'print' or 'dict', got 'yaml'"):
        ef.show_config(mode="yaml")  # type: ignore[call-overload]


def test_native_version_is_the_package_version() -> None:
    if "native" not in ef.available_backends():
        pytest.skip("native backend missing")
    from edgefast import _native

    assert _native.__version__ == ef.__version__
