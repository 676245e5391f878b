"""Build of the native extensions. All metadata lives in pyproject.toml.

Knobs (environment variables):
    EDGEFAST_NO_EXTENSIONS=1        build the pure-Python package
    EDGEFAST_REQUIRE_EXTENSIONS=1   a failed native build is fatal (CIBUILDWHEEL, CONDA_BUILD, PIWHEELS_BUILD imply it)
    EDGEFAST_DEBUG=1                -O0 -g, assertions on
    EDGEFAST_SANITIZE=address,undefined | thread
    EDGEFAST_COVERAGE=1             gcov instrumentation
    EDGEFAST_WERROR=1               compiler warnings are errors (CI)
    EDGEFAST_BUILD_JOBS=n           parallel compiler processes
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no")


class BuildFailed(Exception):
    """The native build did not succeed; the caller decides whether that is fatal."""


def version() -> str:
    source = (ROOT / "src/edgefast/_version.py").read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("src/edgefast/_version.py: expected an assignment to __version__")


def compile_flags() -> tuple[list[str], list[str]]:
    """(compile, link) flags common to every extension; nothing here may raise the ISA floor."""
    cflags = ["-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow", "-Wno-psabi"]
    # GCC 12 takes the "undefined" operands inside its own AVX-512 intrinsics for ours (GCC bug 105593).
    cflags += ["-Wno-unknown-warning-option", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
    # Contraction would let the compiler fuse a*b+c differently per ISA: results would no longer be bit-identical.
    cflags += ["-ffp-contract=off", "-fno-math-errno"]
    ldflags: list[str] = []
    sanitize = os.environ.get("EDGEFAST_SANITIZE", "").strip()
    if flag("EDGEFAST_DEBUG"):
        cflags += ["-O0", "-g3", "-UNDEBUG"]
    else:
        cflags += ["-O3", "-g0", "-DNDEBUG"]
        if sys.platform == "linux" and not sanitize:
            ldflags += ["-Wl,-s"]  # names of local symbols, a twentieth of the wheel
    if sanitize:
        cflags += [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1"]
        if "undefined" in sanitize:
            cflags += ["-fno-sanitize-recover=undefined"]
        ldflags += [f"-fsanitize={sanitize}"]
    if flag("EDGEFAST_COVERAGE"):
        cflags += ["--coverage", "-O0"]
        ldflags += ["--coverage"]
    if flag("EDGEFAST_WERROR"):
        cflags += ["-Werror"]
    return cflags, ldflags


def extensions() -> list[Extension]:
    # Imported here so that a pure build needs neither pybind11 nor Cython.
    import pybind11
    from Cython.Build import cythonize

    cflags, ldflags = compile_flags()
    python_includes = sorted({sysconfig.get_path("include"), sysconfig.get_path("platinclude")})

    def extension(name: str, sources: list[str], *, includes: list[str] | None = None, extra: list[str] | None = None):
        return Extension(
            name,
            sources,
            include_dirs=["csrc", "src/edgefast/include"],
            define_macros=[("EDGEFAST_VERSION", f'"{version()}"')],
            # -isystem: warnings are about our code, not about pybind11's and Python's headers.
            extra_compile_args=cflags + (extra or []) + [f"-isystem{d}" for d in [*(includes or []), *python_includes]],
            extra_link_args=[*ldflags, "-pthread"],
            language="c++",
        )

    kernels = sorted(
        str(p.relative_to(ROOT)) for d in ("common", "sketch", "aggregate") for p in (ROOT / "csrc" / d).glob("*.cpp")
    )
    bindings = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/bindings").glob("kernels*.cpp"))
    exts = [extension("edgefast._native", kernels + bindings, includes=[pybind11.get_include()])]
    if (ROOT / "csrc/bindings/object_queue.cpp").exists():
        exts.append(extension("edgefast.queues._native", ["csrc/bindings/object_queue.cpp"]))
    cython_sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*.pyx"))
    if not sys.platform.startswith("linux"):  # it rests on futexes and open-file-description locks
        cython_sources.remove("src/edgefast/queues/_shared.pyx")
    if cython_sources:
        generated = [
            # Cython's generated code is not ours to keep free of shadowing and unused helpers.
            extension(
                p.removeprefix("src/").removesuffix(".pyx").replace("/", "."),
                [p],
                extra=["-Wno-shadow", "-Wno-unused-function", "-Wno-error"],
            )
            for p in cython_sources
        ]
        exts += cythonize(
            generated,
            build_dir="build/cython",
            compiler_directives={
                "language_level": 3,
                "boundscheck": flag("EDGEFAST_DEBUG"),
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "freethreading_compatible": True,
            },
        )
    return exts


class ParallelBuildExt(build_ext):
    """Compiles all sources of all extensions in parallel and rebuilds what a changed header or flag touches.

    distutils knows neither headers nor flags: a changed .hpp would leave stale objects behind. Every object
    therefore keeps two neighbours, the compiler's own dependency list (.d) and the command line (.cmd).
    """

    def build_extensions(self) -> None:
        self._compile_all()
        super().build_extensions()

    def _compile_all(self) -> None:
        compiler = self.compiler
        jobs = []
        for ext in self.extensions:
            macros = [f"-D{k}={v}" for k, v in ext.define_macros]
            includes = [f"-I{d}" for d in ext.include_dirs]
            objects = []
            for source in ext.sources:
                obj = (
                    Path(self.build_temp)
                    / ext.name
                    / (Path(source).with_suffix(".o").as_posix().replace("/", "__").replace("..", "_"))
                )
                obj.parent.mkdir(parents=True, exist_ok=True)
                driver = list(getattr(compiler, "compiler_so_cxx", None) or compiler.compiler_so)
                command = [
                    *driver,
                    *macros,
                    *includes,
                    *ext.extra_compile_args,
                    "-fPIC",
                    "-MMD",
                    "-MF",
                    f"{obj}.d",
                    "-c",
                    source,
                    "-o",
                    str(obj),
                ]
                objects.append(str(obj))
                if self.force or not self._fresh(obj, command):
                    jobs.append((obj, command, source))
            # The stock step below then has nothing to compile and only links.
            ext.extra_objects = [*(ext.extra_objects or []), *objects]
            ext.depends = [*(ext.depends or []), *objects, *ext.sources]
            ext.sources = []

        def run(job: tuple[Path, list[str], str]) -> None:
            obj, command, source = job
            print(f"compiling {source}", flush=True)
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            if done.returncode != 0 or done.stderr.strip():
                print(done.stderr, file=sys.stderr, flush=True)
            if done.returncode != 0:
                raise BuildFailed(f"{source}: compiler exit status {done.returncode}")
            Path(f"{obj}.cmd").write_text("\0".join(command))

        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = int(os.environ.get("EDGEFAST_BUILD_JOBS", "0")) or cpus
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            list(pool.map(run, jobs))

    @staticmethod
    def _fresh(obj: Path, command: list[str]) -> bool:
        depfile, cmdfile = Path(f"{obj}.d"), Path(f"{obj}.cmd")
        if not (obj.exists() and depfile.exists() and cmdfile.exists()) or cmdfile.read_text() != "\0".join(command):
            return False
        built = obj.stat().st_mtime
        prerequisites = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        for name in prerequisites:
            path = ROOT / name
            if not path.exists() or path.stat().st_mtime > built:
                return False
        return True


def build_native() -> list[Extension]:
    """Compile and link everything before setuptools decides what kind of package this is.

    A failure inside the real `setup()` would come too late: the wheel is already tagged for the platform then.

    Raises:
        BuildFailed: no compiler, or it did not succeed.
    """
    try:
        modules = extensions()
        command = ParallelBuildExt(
            Distribution({"name": "edgefast", "script_name": "setup.py", "ext_modules": modules})
        )
        command.ensure_finalized()
        command.run()
    except (Exception, SystemExit) as error:
        raise BuildFailed(f"{type(error).__name__}: {error}") from error
    return modules


def main() -> None:
    pure = flag("EDGEFAST_NO_EXTENSIONS")
    required = [n for n in ("EDGEFAST_REQUIRE_EXTENSIONS", "CIBUILDWHEEL", "CONDA_BUILD", "PIWHEELS_BUILD") if flag(n)]
    if pure and flag("EDGEFAST_REQUIRE_EXTENSIONS"):
        raise SystemExit(
            "EDGEFAST_NO_EXTENSIONS and EDGEFAST_REQUIRE_EXTENSIONS are both set: expected at most one of them"
        )
    os.chdir(ROOT)
    builds = any(
        command in sys.argv for command in ("build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop")
    )
    if pure or not builds:  # metadata and sdist need no compiler
        setup()
        return
    try:
        modules = build_native()
    except BuildFailed as error:
        if required:
            raise SystemExit(f"native build failed and {required[0]} is set: {error}") from error
        line = "*" * 78
        print(
            f"{line}\nedgefast: the native kernels could not be built ({error}).\n"
            "Installing the pure-Python package: same results, much slower. A C++17 compiler\n"
            f"(g++ or clang++) gives the fast one. EDGEFAST_REQUIRE_EXTENSIONS=1 makes this an error.\n{line}",
            file=sys.stderr,
            flush=True,
        )
        setup()
        return
    setup(ext_modules=modules, cmdclass={"build_ext": ParallelBuildExt})


main()
