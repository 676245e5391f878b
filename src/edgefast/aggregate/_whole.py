"""State that changes in several steps, and says so when a change was cut off in the middle."""

from __future__ import annotations

from typing import ClassVar

__all__ = ["Whole"]


class Whole:
    """Base of what is added to: who changes it sets _torn for as long as that lasts.

    An exception out of a signal handler, such as Ctrl-C, leaves it set; every method that reads or changes the state
    asks _check_whole() first.
    """

    _torn = False
    _cut_off: ClassVar[str] = (
        "an add() or merge() was interrupted and its update is half added; expected reset(), or a copy made before"
    )

    def _check_whole(self) -> None:
        if self._torn:
            raise RuntimeError(f"{type(self).__name__}: {self._cut_off}")
