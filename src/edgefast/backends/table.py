"""The function table every backend implements.

Arguments arrive validated: dtypes, shapes, contiguity and bounds are the public layer's business. Kernels write into
the arrays they are given, never keep them, and raise nothing.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Kernels"]


class Kernels(Protocol):
    # --- sketch -------------------------------------------------------------------------------------------------

    # --- aggregate ----------------------------------------------------------------------------------------------
    pass
