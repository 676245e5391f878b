"""Packages of the `privacy` extra, imported on use."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["accounting", "crypto"]


def crypto(module: str) -> Any:
    """A module of the `cryptography` package's hazmat.primitives."""
    return _load(f"cryptography.hazmat.primitives.{module}", "cryptography", "secure aggregation")


def accounting() -> Any:
    return _load("dp_accounting", "dp-accounting", "privacy accounting")


def _load(name: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {package!r}: pip install 'edgefast[privacy]' ({error})", name=error.name
        ) from error
