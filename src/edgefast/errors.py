"""The one error a person can cause: input that cannot be used."""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Data, a file or an option that cannot be used; the message is one line that names the problem and the fix."""
