"""What ends a pipeline."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

__all__ = ["PipelineError", "WorkerDied"]


def _shown(how: Callable[[Any], str], what: Any) -> str:
    """how(what), which may be anybody's code and fail."""
    try:
        return how(what)
    except Exception:
        return f"<{type(what).__name__} that cannot be shown>"


class PipelineError(RuntimeError):
    """A stage failed and stopped the pipeline; `__cause__` is what it raised.

    Attributes:
        stage: its name.
        item: what it was working on, a list for a stage with batch above 1; None when the error belongs to no item.
    """

    def __init__(self, message: str, stage: str, item: Any = None) -> None:
        super().__init__(message)
        self.stage = stage
        self.item = item

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.stage, self.item)

    @classmethod
    def of(cls, stage: str, error: BaseException, item: Any = None) -> PipelineError:
        """The error of a stage, with `error` as its cause."""
        where = f"stage {stage!r} failed" + ("" if item is None else f" on {_shown(reprlib.repr, item)}")
        self = cls(f"{where}: {type(error).__name__}: {_shown(str, error)}", stage, item)
        self.__cause__ = error
        return self


class WorkerDied(RuntimeError):
    """The process of a worker ended while it worked on an item."""
