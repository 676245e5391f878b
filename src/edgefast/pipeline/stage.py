"""The description of one stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

from edgefast.queues import Policy
from edgefast.queues._checks import check_choice, integer, seconds

__all__ = ["Backend", "Stage"]

Backend = Literal["thread", "asyncio", "process"]
OnError = Literal["stop", "skip"] | Callable[[Any, Exception], object]
Kind = Literal["plain", "generator", "coroutine", "async generator"]


class Stage:
    """A function, how many work on it at once, and the queue in front of it. Holds no state: it may be used in several
    pipelines.

    The function gets one item and returns one output. A generator function yields any number of outputs; what it yields
    is passed on while it runs. A coroutine function or an asynchronous generator function runs as tasks of an event
    loop. With `batch` above 1 the function gets a list of 1 to `batch` items and returns a sequence with one output for
    each, or is a generator function.

    Args:
        fn: the function; for processes it is pickled unless they are forked.
        name: shown in errors and statistics; None takes the function's.
        workers: how many calls run at once.
        min_workers, max_workers: bounds for a controller that moves workers between stages. With neither the number is
            fixed; with one given the other is 1 or `workers`.
        batch: most items in one call.
        linger: seconds to wait for a full batch once there is an item.
        ordered: pass outputs on in the order of the inputs, whatever the workers' speeds; False as they come.
        maxsize: most items in the queue; None lets the pipeline choose. A controller stays below.
        low_watermark: a queue that reached its limit accepts again at this many items; None for half of the limit.
        policy: what happens to an item for which there is no room, as in Queue; "error" for the first stage only.
        max_bytes, sizer, max_age: further limits of the queue, as in Queue.
        on_error: after the last attempt failed: "stop" ends the pipeline with PipelineError, "skip" drops the item and
            counts it, a callable gets on_error(item, error) - the list with `batch` above 1 - and the item is dropped.
        retries: how many more attempts an item gets.
        backoff: seconds before the first of them, doubled before every further one; the worker waits meanwhile.
        max_backoff: longest wait.
        retry_on: exceptions that are retried; others go to on_error at once.
        on_worker_death: a process that dies is replaced, and the item it worked on goes to the new one, up to `retries`
            times and at least once, after which on_error gets a WorkerDied; "drop" counts it as lost instead.
        backend: "thread", "asyncio" or "process" when it is to differ from the pipeline's. Coroutine functions always
            run as "asyncio".

    Only subclasses of Exception are handled; anything else ends the pipeline. A generator that has yielded is not
    retried.

    Raises:
        TypeError: an argument is not of its type.
        ValueError: a number or a name is out of range, or arguments contradict each other.

    Examples:
        >>> from edgefast.pipeline import Stage
        >>> Stage(abs, workers=2, ordered=False)
        <Stage 'abs': plain, 2 workers, unordered>
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        workers: int = 1,
        min_workers: int | None = None,
        max_workers: int | None = None,
        batch: int = 1,
        linger: float = 0.0,
        ordered: bool = True,
        maxsize: int | None = None,
        low_watermark: int | None = None,
        policy: Policy = "block",
        max_bytes: int | None = None,
        sizer: Callable[[Any], int] | None = None,
        max_age: float | None = None,
        on_error: OnError = "stop",
        retries: int = 0,
        backoff: float = 0.1,
        max_backoff: float = 30.0,
        retry_on: type[Exception] | tuple[type[Exception], ...] = Exception,
        on_worker_death: Literal["redeliver", "drop"] = "redeliver",
        backend: Backend | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"fn: expected a callable, got {type(fn).__name__}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a string or None, got {type(name).__name__}")
        self.fn: Callable[..., Any] = fn
        self.kind: Kind = _kind_of(fn)
        self.name: str = name or _name_of(fn)
        self.workers: int = integer(workers, "workers", low=1, high=10_000)
        least = (self.workers if max_workers is None else 1) if min_workers is None else min_workers
        self.min_workers: int = integer(least, "min_workers", low=1, high=self.workers)
        most = self.workers if max_workers is None else max_workers
        self.max_workers: int = integer(most, "max_workers", low=self.workers, high=10_000)
        self.batch: int = integer(batch, "batch", low=1, high=1 << 30)
        self.linger: float = seconds(linger, "linger")
        if self.linger and self.batch == 1:
            raise ValueError(f"linger: expected 0 with batch=1, got {linger!r}")
        self.ordered: bool = bool(ordered)
        self.maxsize: int | None = None if maxsize is None else integer(maxsize, "maxsize", low=1, high=1 << 62)
        if self.maxsize is not None and self.maxsize < self.batch and policy != "latest":
            raise ValueError(f"maxsize: expected at least batch ({self.batch}), got {maxsize}")
        self.low_watermark: int | None = (
            None if low_watermark is None else integer(low_watermark, "low_watermark", low=0, high=1 << 62)
        )
        if self.low_watermark is not None and (self.maxsize is None or self.low_watermark >= self.maxsize):
            raise ValueError(f"low_watermark: expected below maxsize ({self.maxsize}), got {low_watermark}")
        check_choice(policy, "policy", get_args(Policy))
        self.policy: Policy = policy
        self.max_bytes: int | None = None if max_bytes is None else integer(max_bytes, "max_bytes", low=1, high=1 << 62)
        if sizer is not None and not callable(sizer):
            raise TypeError(f"sizer: expected a callable or None, got {type(sizer).__name__}")
        self.sizer: Callable[[Any], int] | None = sizer
        self.max_age: float | None = max_age if max_age is None else seconds(max_age, "max_age")
        if not callable(on_error):
            if not isinstance(on_error, str):
                raise TypeError(f'on_error: expected "stop", "skip" or a callable, got {type(on_error).__name__}')
            check_choice(on_error, "on_error", ("stop", "skip"))
        self.on_error: OnError = on_error
        self.retries: int = integer(retries, "retries", low=0, high=1 << 30)
        self.backoff: float = seconds(backoff, "backoff")
        self.max_backoff: float = seconds(max_backoff, "max_backoff")
        classes = retry_on if isinstance(retry_on, tuple) else (retry_on,)
        if not all(isinstance(c, type) and issubclass(c, Exception) for c in classes):
            raise TypeError(f"retry_on: expected Exception classes, got {retry_on!r}")
        self.retry_on: tuple[type[Exception], ...] = classes
        check_choice(on_worker_death, "on_worker_death", ("redeliver", "drop"))
        self.on_worker_death: Literal["redeliver", "drop"] = on_worker_death
        if backend is not None:
            check_choice(backend, "backend", get_args(Backend))
        if self.kind in ("coroutine", "async generator") and backend not in (None, "asyncio"):
            raise ValueError(f'stage {self.name!r}: a {self.kind} function runs as "asyncio", got backend={backend!r}')
        self.backend: Backend | None = backend

    def __repr__(self) -> str:
        parts = [self.kind, f"{self.workers} worker{'s' if self.workers > 1 else ''}"]
        if self.batch > 1:
            parts.append(f"batches of {self.batch}")
        if not self.ordered:
            parts.append("unordered")
        if self.policy != "block":
            parts.append(self.policy)
        return f"<Stage {self.name!r}: {', '.join(parts)}>"

    def delay(self, attempt: int) -> float:
        """Seconds to wait before the attempt after the given one, counted from 1."""
        return min(self.max_backoff, self.backoff * 2.0 ** min(attempt - 1, 60))


def _kind_of(fn: Callable[..., Any]) -> Kind:
    tests: tuple[tuple[Kind, Callable[[object], bool]], ...] = (
        ("coroutine", inspect.iscoroutinefunction),
        ("async generator", inspect.isasyncgenfunction),
        ("generator", inspect.isgeneratorfunction),
    )
    call = type(fn).__call__  # of an object that is called
    for kind, test in tests:
        if test(fn) or test(call):
            return kind
    return "plain"


def _name_of(fn: Any) -> str:
    while hasattr(fn, "func"):  # functools.partial
        fn = fn.func
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return str(name)
