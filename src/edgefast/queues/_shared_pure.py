"""What SharedQueue is where it cannot be had: the pure-Python package, the numba and numpy backends, other systems."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

__all__ = ["SharedQueue", "cleanup", "list_shared", "unavailable"]


def unavailable() -> str:
    """Why there is no SharedQueue here."""
    if sys.platform != "linux":
        return f"SharedQueue needs Linux (futexes and file locks that end with their process); this is {sys.platform}"
    from edgefast import backends

    backend = backends.process_backend()
    reason = backends._why_missing("native") or f"this process runs with EDGEFAST_BACKEND={backend}"
    return f"SharedQueue needs the native backend: {reason}"


class SharedQueue:
    """The queue between processes; here create() and attach() raise ImportError with the reason."""

    __module__ = "edgefast.queues"

    def __init__(self) -> None:
        raise ImportError(unavailable())

    @classmethod
    def create(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ImportError: see unavailable()."""
        raise ImportError(unavailable())

    @classmethod
    def attach(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises ImportError: see unavailable()."""
        raise ImportError(unavailable())


def list_shared() -> NoReturn:
    """Raises ImportError: see unavailable()."""
    raise ImportError(unavailable())


def cleanup() -> NoReturn:
    """Raises ImportError: see unavailable()."""
    raise ImportError(unavailable())
