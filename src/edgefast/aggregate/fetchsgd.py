"""FetchSGD: a server optimizer whose momentum and error feedback live in the sketch the clients send."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._batch import check_count
from edgefast.aggregate._sketched import SketchFormat
from edgefast.aggregate._template import Template
from edgefast.aggregate.accumulator import MeanAccumulator
from edgefast.aggregate.encoded import Encoded
from edgefast.aggregate.errors import StructureMismatch
from edgefast.aggregate.optimizers import _number
from edgefast.backends.numpy.elements import round_into, widen

__all__ = ["FetchSGD"]

Reset = Literal["subtract", "zero"]
_STATE_VERSION: Final = 1


class FetchSGD:
    """Server step on sketched updates: the k largest entries of what has not been applied yet.

    With S the mean of the sketches that arrived, u the momentum and e the error, both sketches of float64 counters:

        u <- momentum u + S;  e <- e + lr u;  D <- the k largest entries of e, as estimated
        e <- e - sketch(D);  x <- x + D

    Clients send what they would add to the model (their trained model minus the one they got, or minus a gradient),
    through Quantizer("countsketch"), and keep no state: a client seen once loses nothing, unlike with ErrorFeedback.
    Floating-point tensors are stepped; integer and bool tensors take the value of the mean.

    Args:
        lr: above 0; times the updates as they enter the error.
        momentum: 0 to 1.
        k: entries a step changes, at least 1; None for those the sketches name (Quantizer's fraction).
        reset: what leaves the error with D. "zero": every counter D touches becomes 0, in the momentum too (momentum
            factor masking), as in the paper's experiments. "subtract": its sketch, as in the paper's algorithm, which
            forgets nothing, but diverges where the sketch is too narrow for its estimates to be any good.
        num_threads: threads of a step; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        D. Rothchild et al., "FetchSGD: communication-efficient federated learning with sketching", ICML 2020.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import FetchSGD, Quantizer, MeanAccumulator
        >>> send = Quantizer("countsketch", width=64, fraction=0.001)
        >>> gradient = np.zeros(1000)
        >>> gradient[[3, 500]] = 1.0, -4.0
        >>> server, x = FetchSGD(lr=0.5, momentum=0.0), np.zeros(1000)
        >>> for _ in range(2):
        ...     x = server.step(x, send.encode(-gradient))
        >>> float(x[500]), np.flatnonzero(x)
        (4.0, array([500]))
    """

    def __init__(
        self,
        lr: float = 1.0,
        momentum: float = 0.9,
        *,
        k: int | None = None,
        reset: Reset = "zero",
        num_threads: int | None = None,
    ) -> None:
        self.lr: float = _number(lr, "lr", 0, np.inf, open_low=True)
        self.momentum: float = _number(momentum, "momentum", 0, 1)
        self.k: int | None = None if k is None else check_count(k, "k", 1)
        _policy.check_choice(reset, "reset", ("subtract", "zero"))
        self.reset_rule: Reset = reset
        if num_threads is not None:
            backends.num_threads(num_threads)
        self.num_threads: int | None = num_threads
        self._lock = threading.Lock()
        self._format: SketchFormat | None = None
        self._momentum: NDArray[np.float64] = np.empty((0, 0))
        self._error: NDArray[np.float64] = np.empty((0, 0))
        self._round = 0

    @property
    def round(self) -> int:
        """Steps taken."""
        return self._round

    def step(self, x: Any, update: Encoded | MeanAccumulator, *, out: Any = None) -> Any:
        """Move the global model. On an error the state stays as it was.

        Args:
            x: the global model: an update as `weighted_mean` takes them. It is not changed.
            update: the mean of the clients' sketches: an accumulator of them, or what its result() gave.
            out: containers of arrays like x, for the new model; x itself is fine.

        Returns:
            The new model in x's containers and dtypes; `out` when given.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: the sketches are not of updates like x, or not like those
                of earlier steps; or out does not fit.
            ZeroWeightError: the accumulator is empty.
            TypeError: the update is no sketch, or out cannot be written.
            ValueError: k exceeds the number of parameters.
        """
        if isinstance(update, MeanAccumulator):
            update = update.result()
        if not isinstance(update, Encoded) or update._sketch is None or update._table is None:
            got = update.kind if isinstance(update, Encoded) else type(update).__name__
            raise TypeError(f"update: expected sketches (Quantizer 'countsketch') or their accumulator, got {got}")
        sketch = update._sketch
        k = sketch.k if self.k is None else self.k
        if k > sketch.n_features:
            raise ValueError(f"k: expected at most {sketch.n_features} parameters, got {k}")
        with self._lock:
            if self._format is not None and not self._format.adds_to(sketch):
                raise StructureMismatch.of("update", None, self._format.describe(), sketch.describe())
            template = Template(x, client="x")
            order = update._order(template, "update")
            targets, copies = template.outputs(out, [])
            momentum = update._table.astype(np.float64)
            pending = self.lr * momentum
            if self._round:
                momentum += self.momentum * self._momentum
                pending = self._error + self.lr * momentum
            error = sketch.sketch(pending, self.num_threads)
            indices, values = error.top_k(k)
            if self.reset_rule == "subtract":
                remaining = error.update(-values, indices=indices).table.copy()
            else:
                touched = sketch.sketch(num_threads=self.num_threads).update(values, indices=indices).table != 0
                remaining = np.where(touched, 0.0, error.table)
                momentum[touched] = 0
            entries = sketch.split(indices, values)
            for t, target, old in zip(order, targets, template.arrays, strict=True):
                part = update._parts[t]
                np.copyto(target, old if isinstance(part, tuple) else part)
                if t in entries:
                    where, change = entries[t]
                    flat = target.reshape(-1)
                    moved = np.empty(where.size, flat.dtype)
                    round_into(moved, widen(flat[where]) + change)
                    flat[where] = moved
            for source, target in copies:
                np.copyto(target, source)
            self._format, self._momentum, self._error = sketch, momentum, remaining
            self._round += 1
        return template.build(targets) if out is None else out

    def _options(self) -> dict[str, Any]:
        return {"lr": self.lr, "momentum": self.momentum, "k": self.k, "reset": self.reset_rule}

    def reset(self) -> None:
        """Forget the state: the next step is the first."""
        with self._lock:
            self._format, self._round = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as copies: numbers, strings, and float64 tables "u" and "e"."""
        with self._lock:
            state = {"version": _STATE_VERSION, "rule": "FetchSGD", "round": self._round, **self._options()}
            if self._format is not None:
                state["format"] = self._format.describe()
                state["u"], state["e"] = self._momentum.copy(), self._error.copy()
            return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. On an error nothing has changed.

        Raises:
            TypeError: state is no mapping.
            ValueError: another version or options, or tables that do not fit.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        for key, value in {"version": _STATE_VERSION, "rule": "FetchSGD", **self._options()}.items():
            if key not in state or state[key] != value:
                raise ValueError(f"state: expected {key} {value!r}, got {state.get(key)!r}")
        steps = state.get("round")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"state: expected round to be an integer >= 0, got {steps!r}")
        sketch, tables = None, [self._momentum, self._error]
        if steps:
            try:
                sketch = SketchFormat.restore(state["format"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"state: the format does not hold together ({error})") from None
            tables = [np.array(state.get(name), np.float64) for name in ("u", "e")]
            for name, table in zip("ue", tables, strict=True):
                if table.shape != (sketch.depth, sketch.width) or not np.isfinite(table).all():
                    raise ValueError(
                        f"state: expected {name} finite, of shape {(sketch.depth, sketch.width)}, got {table.shape}"
                    )
        with self._lock:
            self._format, self._round = sketch, steps
            self._momentum, self._error = tables

    def __repr__(self) -> str:
        return f"FetchSGD({', '.join(f'{k}={v!r}' for k, v in self._options().items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
