"""The C++ backend: one table per SIMD level, chosen at run time."""

from __future__ import annotations

import functools
from typing import Any

from edgefast.backends.table import Kernels

__all__ = ["build_config", "load_error", "simd_levels", "table", "unavailable"]

_native: Any = None
#: Why the backend cannot be used, or None.
unavailable: str | None = None
#: The import error of an extension that is installed but did not load (a broken build), or None.
load_error: str | None = None

try:
    from edgefast import _native  # type: ignore[no-redef,attr-defined]
except ModuleNotFoundError as _error:
    if _error.name not in ("edgefast._native", None):
        raise
    unavailable = "this installation is the pure-Python package (built without a C++ compiler)"
except ImportError as _error:
    if "_native" in str(_error) and "cannot import name" in str(_error):
        unavailable = "this installation is the pure-Python package (built without a C++ compiler)"
    else:
        load_error = unavailable = str(_error)


def simd_levels() -> tuple[str, ...]:
    """SIMD levels of this build that this machine runs, fastest first; empty when the backend is unavailable."""
    return () if _native is None else tuple(_native.simd_levels())


@functools.cache
def table(simd: str) -> Kernels:
    """The kernels compiled for one SIMD level."""
    return _native.Kernels(simd)


def build_config() -> dict[str, Any] | None:
    """Compiler and flags of the extension; None when the backend is unavailable."""
    return None if _native is None else dict(_native.build_config())
