"""One step of a server optimizer in numpy; csrc/aggregate/server.hpp fixes the arithmetic."""

from __future__ import annotations

import numpy as np

from edgefast.backends.numpy.elements import round_into, tiles, widen
from edgefast.backends.table import Array

__all__ = ["server_step"]

_AVERAGE, _MOMENTUM, _NESTEROV, _ADAGRAD, _ADAM = range(5)


def _keep(state: Array, value: Array) -> Array:
    """Store a state, rounded to its type, and read it back."""
    state[...] = value
    return state.astype(np.float64)


def server_step(
    rule: int,
    numbers: list[float],
    tau_inside: bool,
    x: list[Array],
    source: list[Array],
    total: float,
    m: list[Array],
    v: list[Array],
    out: list[Array],
    num_threads: int,
    /,
) -> None:
    lr, beta1, rest1, beta2, rest2, tau = numbers
    with np.errstate(all="ignore"):
        for t, target in enumerate(out):
            for part in tiles(target.size):
                model, given, new = (a.reshape(-1)[part] for a in (x[t], source[t], target))
                old = widen(model)
                if total > 0:
                    rounded = np.empty_like(model)
                    round_into(rounded, given / total)
                    mean = widen(rounded)
                else:
                    mean = widen(given)
                if rule == _AVERAGE:
                    round_into(new, old + (mean - old) * lr)
                    continue
                scale = v[t].reshape(-1)[part]
                if rule in (_MOMENTUM, _NESTEROV):
                    gradient = old - mean
                    velocity = _keep(scale, scale.astype(np.float64) * beta1 + gradient)
                    ahead = velocity if rule == _MOMENTUM else gradient + velocity * beta1
                    round_into(new, old - ahead * lr)
                    continue
                delta = mean - old
                square = delta * delta
                momentum = m[t].reshape(-1)[part]
                momentum = _keep(momentum, momentum.astype(np.float64) * beta1 + delta * rest1)
                before = scale.astype(np.float64)
                if rule == _ADAGRAD:
                    after = before + square
                elif rule == _ADAM:
                    after = before * beta2 + square * rest2
                else:
                    amount = square * rest2
                    after = before - np.where(before == square, 0.0, np.where(before < square, -amount, amount))
                after = _keep(scale, after)
                down = np.sqrt(after + tau) if tau_inside else np.sqrt(after) + tau
                round_into(new, old + momentum * lr / down)
