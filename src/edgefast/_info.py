"""What this installation is and what it chose: edgefast.show_config() and `edgefast info`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any, Literal, overload

from edgefast import backends
from edgefast._threads import available_cpus
from edgefast._version import __version__

__all__ = ["config", "show_config"]

#: numpy, and what the extras bring or what is read and written where it is there.
PACKAGES = (
    *("numpy", "scipy", "numba", "scikit-learn", "rich", "matplotlib", "pandas", "pyarrow"),
    *("cryptography", "dp-accounting", "flwr", "torch", "ml_dtypes"),
)


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def config() -> dict[str, Any]:
    """Version, backends, build and machine as one JSON-ready dict."""
    from edgefast.backends import native

    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    return {
        "edgefast": __version__,
        "backend": backends.backend(),
        "simd": backends.simd(),
        "num_threads": backends.num_threads(),
        "backends": {
            name: {"available": reason is None, "reason": reason}
            for name in backends.BACKENDS
            for reason in [backends._why_missing(name)]
        },
        "simd_levels": list(backends.simd_levels()),
        "build": native.build_config(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "gil": gil,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": available_cpus(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("EDGEFAST_")},
        "packages": {p: _version_of(p) for p in PACKAGES},
    }


def _lines(value: dict[str, Any], indent: str = "") -> list[str]:
    out = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            out += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        else:
            text = ", ".join(map(str, item)) if isinstance(item, list) else str(item)
            text = "-" if item is None or item == {} else text
            out.append(f"{indent}{key}: {text}")
    return out


@overload
def show_config(mode: Literal["print"] = "print") -> None: ...
@overload
def show_config(mode: Literal["dict"]) -> dict[str, Any]: ...
def show_config(mode: Literal["print", "dict"] = "print") -> dict[str, Any] | None:
    """Print, or return, what this installation is: version, backends and why one is missing, compiler, machine.

    Args:
        mode: "print" writes to standard output, "dict" returns a JSON-ready dict, as numpy.show_config does.

    Raises:
        ValueError: `mode` is neither.

    Examples:
        >>> import edgefast as ef
        >>> ef.show_config(mode="dict")["edgefast"] == ef.__version__
        True
    """
    if mode == "dict":
        return config()
    if mode != "print":
        raise ValueError(f"mode: expected 'print' or 'dict', got {mode!r}")
    print("\n".join(_lines(config())))
    return None
