"""Backend selection: one function table (`Kernels`) in three implementations.

native (C++), numba (optional extra) and numpy (always there) give the same values and raise the same exceptions.
The public packages validate their input, then call `kernels()`.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from edgefast._threads import available_cpus, parse_num_threads
from edgefast.backends.table import Kernels

__all__ = [
    "Kernels",
    "available_backends",
    "backend",
    "kernels",
    "num_threads",
    "process_backend",
    "simd",
    "simd_levels",
    "using",
]

BACKENDS = ("native", "numba", "numpy")
SIMD_LEVELS = ("scalar", "avx2", "avx512", "neon")

_log = logging.getLogger("edgefast")


@dataclass(frozen=True, slots=True)
class _Selection:
    backend: str
    simd: str | None  # None for backends without a choice
    num_threads: int | None  # None: the default
    table: Kernels


def _why_missing(name: str) -> str | None:
    """None when the backend can be used, else the reason it cannot."""
    if name == "numpy":
        return None
    if name == "native":
        from edgefast.backends import native

        return native.unavailable
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed; pip install 'edgefast[numba]'"
    return None


def available_backends() -> tuple[str, ...]:
    """Names of the backends usable on this machine, fastest first."""
    return tuple(name for name in BACKENDS if _why_missing(name) is None)


def simd_levels() -> tuple[str, ...]:
    """SIMD levels of the native backend that this CPU runs, fastest first; empty without the native backend."""
    from edgefast.backends import native

    return native.simd_levels()


def _load(name: str, simd: str) -> tuple[Kernels, str | None]:
    if name not in BACKENDS:
        raise ImportError(f"unknown backend {name!r}: expected one of auto, {', '.join(BACKENDS)}")
    if simd != "auto" and simd not in SIMD_LEVELS:
        raise ImportError(f"unknown SIMD level {simd!r}: expected one of auto, {', '.join(SIMD_LEVELS)}")
    reason = _why_missing(name)
    if reason is not None:
        raise ImportError(
            f"backend {name!r} is not available: {reason}. Available here: {', '.join(available_backends())}"
        )
    if name != "native":
        return importlib.import_module(f"edgefast.backends.{name}"), None  # type: ignore[return-value]
    from edgefast.backends import native

    levels = native.simd_levels()
    if simd == "auto":
        simd = levels[0]
    if simd not in levels:
        raise ImportError(f"SIMD level {simd!r} is not available here: expected one of auto, {', '.join(levels)}")
    return native.table(simd), simd


def _select(name: str, simd: str, threads: int | None) -> _Selection:
    if name == "auto":
        name = available_backends()[0]
    table, level = _load(name, simd)
    return _Selection(name, level, threads, table)


def _from_environment() -> _Selection:
    name = os.environ.get("EDGEFAST_BACKEND", "").strip() or "auto"
    simd = os.environ.get("EDGEFAST_SIMD", "").strip() or "auto"
    threads_text = os.environ.get("EDGEFAST_NUM_THREADS", "").strip()
    try:
        threads = parse_num_threads(threads_text, "EDGEFAST_NUM_THREADS") if threads_text else None
        if name == "auto":
            # An explicit choice of another backend is no reason to complain about the native one.
            from edgefast.backends import native

            if native.load_error is not None:
                warnings.warn(
                    f"edgefast's native kernels are installed but did not load ({native.load_error}); "
                    "using a slower backend",
                    RuntimeWarning,
                    stacklevel=2,
                )
        selection = _select(name, simd, threads)
    except ValueError as error:
        raise ImportError(str(error)) from None
    _log.debug("backend %s, simd %s", selection.backend, selection.simd)
    return selection


_default = _from_environment()
_active: contextvars.ContextVar[_Selection | None] = contextvars.ContextVar("edgefast_backend", default=None)


def kernels() -> Kernels:
    """The function table of the backend in use in this context."""
    return (_active.get() or _default).table


def process_backend() -> str:
    """The backend the process started with; using() does not change it."""
    return _default.backend


def backend() -> str:
    """Name of the backend in use in this context: "native", "numba" or "numpy".

    Examples:
        >>> import edgefast as ef
        >>> ef.backend() in ef.available_backends()
        True
    """
    return (_active.get() or _default).backend


def simd() -> str | None:
    """SIMD level in use ("scalar", "avx2", "avx512", "neon"), or None when the backend is not native."""
    return (_active.get() or _default).simd


def num_threads(requested: int | None = None) -> int:
    """Threads a kernel may use: `requested`, else using(num_threads=), EDGEFAST_NUM_THREADS, the available CPUs.

    Raises:
        TypeError, ValueError: `requested` is not a positive integer.
    """
    if requested is not None:
        return parse_num_threads(requested, "num_threads")
    selection = _active.get() or _default
    if selection.num_threads is not None:
        return selection.num_threads
    if _default.num_threads is not None:
        return _default.num_threads
    return available_cpus()


@contextlib.contextmanager
def using(backend: str | None = None, *, simd: str | None = None, num_threads: int | None = None) -> Iterator[None]:
    """Choose backend, SIMD level and thread count of array kernels inside a `with` block.

    The choice belongs to the current context (contextvars): other threads and tasks are not affected, and a thread
    started inside the block begins with the process default. Queues choose their implementation at import.

    Args:
        backend: "auto", "native", "numba" or "numpy"; None keeps the current one.
        simd: "auto", "scalar", "avx2", "avx512" or "neon"; None keeps the current one. Only native has a choice.
        num_threads: default of every `num_threads=None` argument inside the block.

    Raises:
        ImportError: the backend or SIMD level is unknown or not available here.
        TypeError, ValueError: `num_threads` is not a positive integer.
    """
    current = _active.get() or _default
    threads = current.num_threads if num_threads is None else parse_num_threads(num_threads, "num_threads")
    name = current.backend if backend is None else backend
    if simd is None:
        simd = current.simd if name == "native" and current.simd is not None else "auto"
    token = _active.set(_select(name, simd, threads))
    try:
        yield
    finally:
        _active.reset(token)
