"""numba.njit on first call."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

__all__ = ["jit"]


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba.njit on first call. fastmath stays off: results have to match the other backends bit for bit."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import numba

        # Caching needs a writable directory at decoration time and fails in read-only installations: opt-in.
        return numba.njit(cache=os.environ.get("EDGEFAST_NUMBA_CACHE") == "1", nogil=True)(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return compiled()(*args)

    return call
