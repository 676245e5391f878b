"""The numpy backend: always there, the reference the others are compared with."""

from __future__ import annotations

# --- sketch -----------------------------------------------------------------------------------------------------

# --- aggregate --------------------------------------------------------------------------------------------------
