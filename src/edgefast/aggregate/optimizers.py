"""Server optimizers: what the server does with the mean of its clients' models."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._template import Template
from edgefast.aggregate._whole import Whole
from edgefast.aggregate.accumulator import MeanAccumulator
from edgefast.aggregate.errors import StructureMismatch
from edgefast.backends.table import Array

__all__ = ["FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi", "ServerOptimizer"]

Preset = Literal["paper", "flower", "tff"]
_PRESETS = ("paper", "flower", "tff")
_RULES = {"average": 0, "momentum": 1, "nesterov": 2, "adagrad": 3, "adam": 4, "yogi": 5}
_STATE_VERSION = 1


def _number(value: Any, name: str, low: float, high: float, *, open_low: bool = False) -> float:
    if isinstance(value, (bool, np.bool_, str)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not (low < number if open_low else low <= number) or not number <= high or math.isinf(number):
        bounds = f"{low} {'<' if open_low else '<='} {name} {'<' if math.isinf(high) else '<='} {high}"
        raise ValueError(f"{name}: expected {bounds}, got {number}")
    return number


class ServerOptimizer(Whole):
    """Base of the server optimizers: one step of the global model a round.

    The mean of the clients' models is taken as a direction to go in: d = mean - x is a pseudo-gradient's negative, and
    the rules of gradient descent apply (Reddi et al., "Adaptive federated optimization", ICLR 2021). Floating-point
    tensors are stepped; integer and bool tensors take the value of the mean. The state has a float32 number (float64
    for float64 tensors) or two per parameter, which arise in the first step. Arithmetic is float64, every state is
    rounded once and the model once: the bits do not depend on backend, SIMD level or threads.
    """

    _rule: ClassVar[str]
    _states: ClassVar[tuple[str, ...]]  # which of m and v the rule has
    _cut_off = (
        "a step() was interrupted and has moved a part of the state; "
        "reset() it, or load_state_dict() what was saved before"
    )

    def __init__(self, lr: float, *, num_threads: int | None = None) -> None:
        self.lr: float = _number(lr, "lr", 0, np.inf, open_low=True)
        if num_threads is not None:
            backends.num_threads(num_threads)
        self.num_threads: int | None = num_threads
        self._lock = threading.Lock()
        self._template: Template | None = None
        self._m: list[Array] = []
        self._v: list[Array] = []
        self._round = 0

    @property
    def round(self) -> int:
        """Steps taken."""
        return self._round

    # What a rule says about itself.
    def _numbers(self, round_: int) -> list[float]:
        """lr, beta1, 1 - beta1, beta2, 1 - beta2, tau of step number `round_` (from 1)."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        raise NotImplementedError

    _tau_inside = False
    _initial_v = 0.0

    def step(self, x: Any, update: Any, *, out: Any = None) -> Any:
        """Move the global model.

        Args:
            x: the global model: an update as `weighted_mean` takes them (arrays in containers, torch tensors, a file).
            update: the mean of the clients' models, of the same structure; or a `MeanAccumulator` of it, whose float64
                sums are divided on the way, with the same bits as its result().
            out: containers of arrays like x, for the new model; x itself is fine.

        Returns:
            The new model in x's containers and dtypes; `out` when given. Its bits are the same for both forms of
            `update`.

        Raises:
            StructureMismatch, ShapeMismatch, DtypeMismatch: update or out do not fit x, or x the models of earlier
                steps.
            ZeroWeightError: the accumulator is empty.
            TypeError, ValueError: out cannot be written.
            RuntimeError: an earlier step was interrupted, such as by Ctrl-C, and has moved a part of the state.
        """
        with self._lock, contextlib.ExitStack() as stack:
            self._check_whole()
            template = Template(x, client="x")
            if self._template is not None and (mine := _shape(self._template)) != (theirs := _shape(template)):
                raise StructureMismatch.of("x", None, mine, theirs)
            model = template.arrays
            floats = [t for t, a in enumerate(model) if _policy.is_float(a)]
            if isinstance(update, MeanAccumulator):
                source, total, values = stack.enter_context(update._unfinished(template))
            else:
                source = values = template.flatten(update, "update")
                total = 0.0
            targets, copies = template.outputs(out, [])
            self._begin(template, floats)
            numbers = self._numbers(self._round + 1)
            self._torn = True
            backends.kernels().server_step(
                _RULES[self._rule],
                numbers,
                self._tau_inside,
                [model[t] for t in floats],
                [source[t] for t in floats],
                total,
                self._m,
                self._v,
                [targets[t] for t in floats],
                backends.num_threads(self.num_threads),
            )
            self._round, self._torn = self._round + 1, False
            for t in set(range(len(model))) - set(floats):
                np.copyto(targets[t], values[t])
            for part, target in copies:
                np.copyto(target, part)
        return template.build(targets) if out is None else out

    def _begin(self, template: Template, floats: list[int]) -> None:
        if self._template is not None:
            return
        m: list[Array] = []
        v: list[Array] = []
        for t in floats:
            a = template.arrays[t]
            dtype = np.float64 if a.dtype == np.float64 else np.float32
            if "m" in self._states:
                m.append(np.zeros(a.shape, dtype))
            if "v" in self._states:
                v.append(np.full(a.shape, self._initial_v, dtype))
        # Only the shape of things is kept, not the caller's arrays.
        template.arrays = [np.broadcast_to(np.zeros((), a.dtype), a.shape) for a in template.arrays]
        self._template, self._m, self._v = template, m, v

    def reset(self) -> None:
        """Forget the state: the next step is the first."""
        with self._lock:
            self._template, self._m, self._v, self._round, self._torn = None, [], [], 0, False

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as copies: numbers, strings, and numpy arrays under "m" and "v".

        Arrays are in the order of the model's floating-point tensors. `load_state_dict` restores it exactly.
        """
        with self._lock:
            self._check_whole()
            state: dict[str, Any] = {
                "version": _STATE_VERSION,
                "rule": type(self).__name__,
                "round": self._round,
                **self._options(),
            }
            if self._round:
                state["m"] = [a.copy() for a in self._m]
                state["v"] = [a.copy() for a in self._v]
            return state

    def load_state_dict(self, state: Mapping[str, Any], model: Any = None) -> None:
        """Go on where `state_dict` was taken. On an error nothing has changed.

        Args:
            state: of an optimizer of the same class and options.
            model: a model of the structure the state belongs to; needed when the state is not that of round 0.

        Raises:
            TypeError: state is no mapping.
            ValueError: another version, class or options, or arrays that do not fit the model.
            StructureMismatch and its kin: the model holds something that cannot be averaged.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
        wanted = {"version": _STATE_VERSION, "rule": type(self).__name__, **self._options()}
        for key, value in wanted.items():
            if key not in state or state[key] != value:
                raise ValueError(f"state: expected {key} {value!r}, got {state.get(key)!r}")
        round_ = state.get("round")
        if isinstance(round_, bool) or not isinstance(round_, int) or round_ < 0:
            raise ValueError(f"state: expected round to be an integer >= 0, got {round_!r}")
        fresh = type(self)(**self._options(), num_threads=self.num_threads)
        if round_:
            if model is None:
                raise ValueError("model: expected the model the state belongs to, got None")
            template = Template(model, client="model")
            floats = [t for t, a in enumerate(template.arrays) if _policy.is_float(a)]
            fresh._begin(template, floats)
            for name, mine in (("m", fresh._m), ("v", fresh._v)):
                given = list(state.get(name, ()))
                if len(given) != len(mine):
                    raise ValueError(f"state: expected {len(mine)} arrays in {name!r}, got {len(given)}")
                for i, (to, value) in enumerate(zip(mine, given, strict=True)):
                    array = np.asarray(value)
                    if array.shape != to.shape or array.dtype != to.dtype:
                        raise ValueError(
                            f"state: expected {name}[{i}] of {to.dtype} {to.shape}, got {array.dtype} {array.shape}"
                        )
                    to[...] = array
        with self._lock:
            self._template, self._m, self._v, self._round = fresh._template, fresh._m, fresh._v, round_
            self._torn = False

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self._options().items())
        return f"{type(self).__name__}({options})"

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _shape(template: Template) -> str:
    return f"{template.structure} of {[(str(a.dtype), a.shape) for a in template.arrays]}"


class FedAvg(ServerOptimizer):
    """x' = x + lr (mean - x): federated averaging; with lr=1 the mean.

    Args:
        lr: how far to go towards the mean, above 0.
        num_threads: threads of a step; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        B. McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import FedAvg
        >>> FedAvg(lr=0.5).step(np.array([1.0, 2.0]), np.array([3.0, 2.0]))
        array([2., 2.])
    """

    _rule = "average"
    _states = ()

    def __init__(self, lr: float = 1.0, *, num_threads: int | None = None) -> None:
        super().__init__(lr, num_threads=num_threads)

    def _numbers(self, round_: int) -> list[float]:
        return [self.lr, 0.0, 0.0, 0.0, 0.0, 0.0]

    def _options(self) -> dict[str, Any]:
        return {"lr": self.lr}


class FedAvgM(ServerOptimizer):
    """Server momentum: v' = momentum v + (x - mean), x' = x - lr v'.

    The same in the paper, Flower and TFF (which call it sgdm with learning rate lr), so there are no presets.

    Args:
        lr: learning rate, above 0.
        momentum: 0 to 1.
        nesterov: x' = x - lr ((x - mean) + momentum v') instead.
        num_threads: threads of a step; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        T. Hsu, H. Qi and M. Brown, "Measuring the effects of non-identical data distribution for federated visual
        classification", 2019.
    """

    _states = ("v",)

    def __init__(
        self, lr: float = 1.0, momentum: float = 0.9, *, nesterov: bool = False, num_threads: int | None = None
    ) -> None:
        super().__init__(lr, num_threads=num_threads)
        self.momentum: float = _number(momentum, "momentum", 0, 1)
        self.nesterov: bool = bool(nesterov)

    @property
    def _rule(self) -> str:  # type: ignore[override]
        return "nesterov" if self.nesterov else "momentum"

    def _numbers(self, round_: int) -> list[float]:
        return [self.lr, self.momentum, 1.0, 0.0, 0.0, 0.0]

    def _options(self) -> dict[str, Any]:
        return {"lr": self.lr, "momentum": self.momentum, "nesterov": self.nesterov}


class _Adaptive(ServerOptimizer):
    """What FedAdagrad, FedAdam and FedYogi share: arguments with defaults per preset."""

    _states = ("m", "v")
    #: preset -> lr, beta_1, beta_2, tau, initial v (None: tau ** 2).
    _defaults: ClassVar[dict[str, tuple[float, float, float, float, float | None]]]

    def __init__(
        self,
        lr: float | None = None,
        *,
        beta_1: float | None = None,
        beta_2: float | None = None,
        tau: float | None = None,
        initial_v: float | None = None,
        preset: Preset = "paper",
        num_threads: int | None = None,
    ) -> None:
        _policy.check_choice(preset, "preset", _PRESETS)
        default = self._defaults[preset]
        super().__init__(default[0] if lr is None else lr, num_threads=num_threads)
        self.preset: Preset = preset
        self.beta_1: float = _number(default[1] if beta_1 is None else beta_1, "beta_1", 0, 1)
        self.beta_2: float = _number(default[2] if beta_2 is None else beta_2, "beta_2", 0, 1)
        self.tau: float = _number(default[3] if tau is None else tau, "tau", 0, np.inf)
        start = default[4] if initial_v is None else initial_v
        self.initial_v: float = _number(self.tau * self.tau if start is None else start, "initial_v", 0, np.inf)

    @property
    def _initial_v(self) -> float:  # type: ignore[override]
        return self.initial_v

    def _rate(self, round_: int) -> float:
        return self.lr

    def _numbers(self, round_: int) -> list[float]:
        return [self._rate(round_), self.beta_1, 1 - self.beta_1, self.beta_2, 1 - self.beta_2, self.tau]

    def _options(self) -> dict[str, Any]:
        names = ("lr", "beta_1", "beta_2", "tau", "initial_v", "preset")
        return {name: getattr(self, name) for name in names}

    def _corrected(self, exponent: int) -> float:
        """The learning rate with Kingma and Ba's correction of the moments' start at 0."""
        root = (1 - self.beta_2**exponent) ** 0.5
        return self.lr * root / (1 - self.beta_1**exponent)


_ADAPTIVE_ARGS = """
    d = mean - x, m' = beta_1 m + (1 - beta_1) d; m starts at 0.

    Args:
        lr: learning rate, above 0; None for the preset's.
        beta_1: decay of the momentum, 0 to 1; None for the preset's.
        beta_2: decay of the squares, 0 to 1; None for the preset's (FedAdagrad does not use it).
        tau: what keeps the divisor away from 0; None for the preset's.
        initial_v: where v starts; None for the preset's.
        preset: "paper": Reddi et al., v starting at tau ** 2. "flower": what flwr's strategy of that name computes.
            "tff": TensorFlow Federated's server optimizer. The table in docs/optimizers.md has their numbers.
        num_threads: threads of a step; None for the default (see edgefast.using).

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    References:
        S. Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2.
"""


class FedAdagrad(_Adaptive):
    __doc__ = (
        """Adagrad on the server: v' = v + d d, x' = x + lr m' / (sqrt(v') + tau); preset "tff": / sqrt(v' + tau).
"""
        + _ADAPTIVE_ARGS
    )

    _rule = "adagrad"
    _defaults: ClassVar[dict[str, tuple[float, float, float, float, float | None]]] = {
        "paper": (0.1, 0.0, 0.0, 1e-3, None),
        "flower": (0.1, 0.0, 0.0, 1e-3, 0.0),
        "tff": (0.1, 0.0, 0.0, 1e-7, 0.1),
    }

    @property
    def _tau_inside(self) -> bool:  # type: ignore[override]
        return self.preset == "tff"


class FedAdam(_Adaptive):
    __doc__ = (
        """Adam on the server: v' = beta_2 v + (1 - beta_2) d d, x' = x + lr m' / (sqrt(v') + tau).

    The paper has no bias correction. Presets "tff" and "flower" multiply lr by sqrt(1 - beta_2 ** t) / (1 - beta_1 **
    t), t counting steps from 1 in "tff", from 2 in "flower" (whose exponent is one more than Kingma and Ba's).
"""
        + _ADAPTIVE_ARGS
    )

    _rule = "adam"
    _defaults: ClassVar[dict[str, tuple[float, float, float, float, float | None]]] = {
        "paper": (0.1, 0.9, 0.99, 1e-3, None),
        "flower": (0.1, 0.9, 0.99, 1e-3, 0.0),
        "tff": (0.001, 0.9, 0.999, 1e-7, 0.0),
    }

    def _rate(self, round_: int) -> float:
        if self.preset == "paper":
            return self.lr
        return self._corrected(round_ + 1 if self.preset == "flower" else round_)


class FedYogi(_Adaptive):
    __doc__ = (
        """Yogi on the server: v' = v - (1 - beta_2) d d sign(v - d d), x' = x + lr m' / (sqrt(v') + tau).

    Preset "tff" corrects the start of the moments as FedAdam's does.
"""
        + _ADAPTIVE_ARGS
    )

    _rule = "yogi"
    _defaults: ClassVar[dict[str, tuple[float, float, float, float, float | None]]] = {
        "paper": (0.01, 0.9, 0.99, 1e-3, None),
        "flower": (0.01, 0.9, 0.99, 1e-3, 0.0),
        "tff": (0.01, 0.9, 0.999, 1e-3, 1e-6),
    }

    def _rate(self, round_: int) -> float:
        return self._corrected(round_) if self.preset == "tff" else self.lr
