"""edgefast: native sketching, backpressure queues and federated aggregation for edge systems.

`sketch`, `queues`, `pipeline`, `aggregate` and `federated` load on first use.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from edgefast._info import show_config
from edgefast._version import __version__
from edgefast.backends import available_backends, backend, using

if TYPE_CHECKING:
    from edgefast import aggregate, pipeline, queues, sketch
    from edgefast.federated import load_model

__all__ = [
    "__version__",
    "aggregate",
    "available_backends",
    "backend",
    "get_include",
    "load_model",
    "pipeline",
    "queues",
    "show_config",
    "sketch",
    "using",
]

logging.getLogger("edgefast").addHandler(logging.NullHandler())


def get_include() -> str:
    """The folder of edgefast's C headers, for the include path of a compiler.

    Examples:
        >>> import edgefast, pathlib
        >>> (pathlib.Path(edgefast.get_include()) / "edgefast" / "record_queue.h").exists()
        True
    """
    return os.path.join(os.path.dirname(__file__), "include")


_SUBMODULES = ("aggregate", "federated", "pipeline", "queues", "sketch")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"edgefast.{name}")
    if name == "load_model":
        from edgefast.federated import load_model

        return load_model
    raise AttributeError(f"module 'edgefast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "federated"])
