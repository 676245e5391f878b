"""Pure-Python twin of _collect.pyx."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["collect_items", "collect_values"]

_PLAIN = (np.ndarray, np.memmap)


def collect_values(update: dict[Any, Any], keys: list[Any]) -> list[Any] | None:
    """update[k] for k in keys when those are all its keys and every value is a plain ndarray, else None."""
    if len(update) != len(keys):
        return None
    try:
        values = [update[k] for k in keys]
    except KeyError:
        return None
    return values if all(type(v) in _PLAIN for v in values) else None


def collect_items(update: list[Any] | tuple[Any, ...], count: int) -> list[Any] | None:
    """The items as a list when there are `count` of them and every one is a plain ndarray, else None."""
    if len(update) != count:
        return None
    return list(update) if all(type(v) in _PLAIN for v in update) else None
