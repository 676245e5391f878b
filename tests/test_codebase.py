"""Rules of the house that a reviewer would otherwise have to remember."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgefast as ef
from edgefast import federated

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the source tree")


def sources(*patterns: str) -> list[Path]:
    return [p for pattern in patterns for p in ROOT.glob(pattern) if ".venv" not in p.parts and "build" not in p.parts]


def test_every_top_level_folder_says_what_belongs_in_it() -> None:
    for folder in ("csrc", "src", "tests", "bench", "docs", "examples", "tools"):
        assert (ROOT / folder / "README.md").is_file(), folder


def test_only_the_bindings_see_python() -> None:
    for path in sources("csrc/**/*.hpp", "csrc/**/*.cpp"):
        if "bindings" not in path.parts:
            text = path.read_text()
            assert "Python.h" not in text.replace("No Python.h", ""), path
            assert "pybind11" not in text, path


def test_no_standalone_fences_and_no_unsafe_math() -> None:
    for path in sources("csrc/**/*.hpp", "csrc/**/*.cpp"):
        assert "atomic_thread_fence" not in path.read_text(), path
    build = (ROOT / "setup.py").read_text()
    for option in ('"-ffast-math', '"-march=', '"-mavx', "fopenmp"):
        assert option not in build, option


def test_backends_implement_the_whole_table() -> None:
    from edgefast.backends import numba, numpy, table

    names = {n for n in dir(table.Kernels) if not n.startswith("_")}
    assert names
    for module in (numba, numpy):
        assert names <= set(vars(module)), (module.__name__, names - set(vars(module)))
    if "native" in ef.available_backends():
        from edgefast import _native

        assert names <= set(dir(_native.Kernels)), names - set(dir(_native.Kernels))


def test_links_in_the_documents_exist() -> None:
    for page in sources("*.md", "docs/*.md", "*/README.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_conflicting_build_flags_are_an_error() -> None:
    pytest.importorskip("setuptools")
    env = {**os.environ, "EDGEFAST_NO_EXTENSIONS": "1", "EDGEFAST_REQUIRE_EXTENSIONS": "1"}
    done = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "EDGEFAST_NO_EXTENSIONS and EDGEFAST_REQUIRE_EXTENSIONS are both set" in done.stderr


def test_version_is_written_once_and_in_the_changelog() -> None:
    assert f"## {ef.__version__.split('.dev')[0]}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_method_says_what_it_does() -> None:
    """help() has words and a signature for each, those of compiled classes too."""
    silent = []
    for module in (ef, ef.sketch, ef.queues, ef.pipeline, ef.aggregate, federated):
        values = [getattr(module, name) for name in module.__all__]
        for value in values:
            if inspect.isfunction(value) and not inspect.getdoc(value):
                silent.append(f"{module.__name__}.{value.__name__}")
            if not inspect.isclass(value):
                continue
            attributes = (inspect.getdoc(value) or "").partition("Attributes:")[2]
            for owner in value.__mro__:
                if owner.__module__ in ("builtins", "typing"):
                    continue
                for name, member in vars(owner).items():
                    place = f"{module.__name__}.{value.__name__}.{name}"
                    described = inspect.getdoc(member) or re.search(rf"\b{name}\b.*:", attributes)
                    if not name.startswith("_") and hasattr(type(member), "__get__") and not described:
                        silent.append(place)
                    if not name.startswith("_") and inspect.isroutine(member):
                        inspect.signature(getattr(value, name))
    assert silent == []
