"""What a device computes: fixed-point standardisation and softmax regression, in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.aggregate import weighted_mean

__all__ = ["Scaler", "SoftmaxTrainer", "accuracy", "fit_centralised"]

_LIMIT = 8  # standard deviations; beyond it a value is clipped


class Scaler:
    """Standardises features and rounds them to fixed point, so that a sketch adds them up without rounding.

    A value becomes a multiple of 2**-bits within +-8 standard deviations, and `bits` is so small that a sum of all
    features, in any order and with any signs, is exact in float32 (float64 beyond 2**15 features). Every kind of
    sketch therefore gives the same bytes on every backend and machine.

    Args:
        mean, deviation: shape (d,), float64. A deviation of 0 marks a constant feature: it becomes 0.
    """

    def __init__(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        self.mean: NDArray[np.float64] = mean
        self.deviation: NDArray[np.float64] = deviation
        carry = math.ceil(math.log2(max(1, len(mean)))) + int(math.log2(_LIMIT))
        self.dtype: type[np.floating[Any]] = np.float32 if len(mean) <= 2**15 else np.float64
        self.bits: int = np.finfo(self.dtype).nmant - carry
        with np.errstate(divide="ignore"):
            self._factor = np.where(deviation > 0, 2.0**self.bits / deviation, 0.0)

    @classmethod
    def fit(cls, shards: Sequence[NDArray[Any]]) -> Scaler:
        """Mean and deviation over all devices, from what each would send: its own means, then its own mean squares."""
        weights = [len(shard) for shard in shards]
        mean = weighted_mean([shard.mean(axis=0, dtype=np.float64) for shard in shards], weights)
        spread = [np.square(shard - mean).mean(axis=0) for shard in shards]
        deviation = np.sqrt(weighted_mean(spread, weights))
        # Rounding of the mean leaves a trace of deviation in a constant feature.
        deviation[deviation <= 1e-12 * np.abs(mean)] = 0.0
        return cls(mean, deviation)

    def transform(self, X: NDArray[Any]) -> NDArray[Any]:
        """Shape (n, d), in the scaler's dtype."""
        fixed = X - self.mean
        fixed *= self._factor
        np.rint(fixed, out=fixed)
        np.clip(fixed, -_LIMIT * 2.0**self.bits, _LIMIT * 2.0**self.bits, out=fixed)
        fixed *= 2.0**-self.bits
        return fixed.astype(self.dtype)


def log_softmax(scores: NDArray[Any]) -> NDArray[Any]:
    """Row by row, without overflow."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def accuracy(model: dict[str, NDArray[Any]], Z: NDArray[Any], y: NDArray[Any]) -> float:
    """Share of the rows whose class the model finds."""
    return float((np.argmax(Z @ model["weights"] + model["bias"], axis=1) == y).mean())


class SoftmaxTrainer:
    """Softmax regression by plain stochastic gradient descent on the batches it is handed.

    Args:
        model: {"weights": (k, C), "bias": (C,)}, where to start from; copied.
        step: learning rate.
    """

    def __init__(self, model: dict[str, NDArray[Any]], step: float) -> None:
        self.model: dict[str, NDArray[Any]] = {key: value.copy() for key, value in model.items()}
        self.rows: int = 0
        self.loss: float = 0.0
        self._step = model["weights"].dtype.type(step)

    def train(self, Z: NDArray[Any], y: NDArray[Any]) -> None:
        """One step on a batch: Z of shape (n, k), y the class numbers."""
        weights, bias = self.model["weights"], self.model["bias"]
        logs = log_softmax(Z @ weights + bias)
        rows = np.arange(len(y))
        self.loss -= float(logs[rows, y].sum())
        self.rows += len(y)
        gradient = np.exp(logs)
        gradient[rows, y] -= 1
        gradient *= self._step / gradient.dtype.type(len(y))
        weights -= Z.T @ gradient
        bias -= gradient.sum(axis=0)


def fit_centralised(Z: NDArray[Any], y: NDArray[Any], Z_test: NDArray[Any], y_test: NDArray[Any]) -> float:
    """Accuracy of the same model family trained with all rows in one place (scikit-learn's LogisticRegression)."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged after max_iter: the accuracy is still what it is
        fitted = LogisticRegression(C=1.0, max_iter=500).fit(Z, y)
    return float(fitted.score(Z_test, y_test))
