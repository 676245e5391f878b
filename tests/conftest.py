"""Every public test runs on every backend and on every SIMD level this machine has."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import edgefast as ef
from edgefast import backends

settings.register_profile(
    "ci",
    deadline=None,  # numba compiles inside the first example
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ci")

LEVELS = [f"native-{level}" for level in backends.SIMD_LEVELS]
ALL = [*LEVELS, "numba", "numpy"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backends", default="all", help="comma-separated subset of " + ", ".join(ALL))
    parser.addoption("--require-native", action="store_true", help="fail instead of skip when native is missing")
    parser.addoption("--require-numba", action="store_true", help="fail instead of skip when numba is missing")


def _unavailable(name: str) -> str | None:
    backend, _, simd = name.partition("-")
    if backend not in ef.available_backends():
        return f"backend {backend} is not available"
    if simd and simd not in backends.simd_levels():
        return f"this machine has no {simd}"
    return None


def pytest_configure(config: pytest.Config) -> None:
    for backend in ("native", "numba"):
        if config.getoption(f"--require-{backend}") and backend not in ef.available_backends():
            raise pytest.UsageError(f"--require-{backend}: {backends._why_missing(backend)}")


def pytest_report_header(config: pytest.Config) -> str:
    names, levels = ", ".join(ef.available_backends()), ", ".join(backends.simd_levels())
    return f"edgefast {ef.__version__}: backends {names}; simd {levels}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--backends")
        names = ALL if wanted == "all" else wanted.split(",")
        # A SIMD level of another architecture is no missing backend: it is left out, not skipped.
        names = [
            n for n in names if not (n in LEVELS and n.partition("-")[2] not in (backends.simd_levels() or LEVELS))
        ]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test inside `ef.using(...)` of one backend; the value is its name, such as "native-avx2"."""
    reason = _unavailable(request.param)
    if reason:
        pytest.skip(reason)
    name, _, simd = request.param.partition("-")
    with ef.using(name, simd=simd or None):
        yield request.param


Each = Callable[..., Iterator[int]]


def _interrupted(install: Callable[[Any], object], events: tuple[str, ...]) -> Iterator[Each]:
    def each(work: Callable[[], Any], *modules: ModuleType, step: int = 1) -> Iterator[int]:
        files = {module.__file__ for module in modules}
        number = 1 - step
        left = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            code = frame.f_code
            if code.co_filename not in files or code.co_name in ("__del__", "<genexpr>"):  # which may ignore it
                return None
            if event in events:
                left -= 1
                if left == 0:
                    signal.raise_signal(signal.SIGINT)
            return trace

        while True:
            number += step
            left = number
            before = sys.gettrace() if install is sys.settrace else sys.getprofile()
            install(trace)
            try:
                work()
                interrupted = False
            except KeyboardInterrupt:
                interrupted = True
            finally:
                install(before)
            yield number
            if left > 0:
                return
            assert interrupted, f"Ctrl-C number {number} was lost"

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield each
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def ctrl_c_at_every_line() -> Iterator[Each]:
    """`for n in f(work, *modules)`: calls work() again and again, each time with Ctrl-C before the next line of the
    modules' code, until one call ends before its line is reached. Asks that each of the others is interrupted.
    With step=3 every third line."""
    yield from _interrupted(sys.settrace, ("line",))


@pytest.fixture
def ctrl_c_at_every_call() -> Iterator[Each]:
    """As ctrl_c_at_every_line, where CPython looks for signals: as a function begins and after one in C returned. For
    code that holds a lock: between the end of a with block and its __exit__ no signal comes, but a line does."""
    yield from _interrupted(sys.setprofile, ("call", "c_return"))
