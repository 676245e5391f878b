"""What server and devices agree on before the first round."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.errors import InputError
from edgefast.federated.config import RunConfig
from edgefast.federated.data import Dataset
from edgefast.federated.partition import dirichlet_partition, stratified_split
from edgefast.federated.training import Scaler
from edgefast.sketch import SketchOperator

__all__ = ["Parameters", "Plan", "Shard"]

#: A model's parameters: {"weights": (k, C), "bias": (C,)}, in the scaler's dtype.
Parameters = dict[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """All that one device holds: its rows and what it was told. It can be pickled for a process of its own.

    Attributes:
        index: number of the device.
        X, y: its rows, shape (n, d), and their class numbers, shape (n,).
        config: options of the run.
        operator, scaler: what it sketches with.
        step: learning rate of its trainer.
        classes: number of classes.
        traced: whether it records every put and get of its first round.
    """

    index: int
    X: NDArray[Any]
    y: NDArray[np.int64]
    config: RunConfig
    operator: SketchOperator
    scaler: Scaler
    step: float
    classes: int
    traced: bool


class Plan:
    """Split, shards, operator and standardisation of a run: the same bits wherever it is made from the same input.

    Args:
        config: options.
        data: all rows.

    Raises:
        InputError: more devices than rows, components that do not go with the features and the kind, a learning rate
            beyond the numbers' range, or no row to score with.

    Attributes:
        train_rows, test_rows: row numbers, ascending.
        shards: train row numbers of every device.
        operator: the SketchOperator all devices share.
        scaler: the standardisation all devices share.
        step: learning rate of the local trainers.
        traced: number of the device that records its queue: the one with most rows.
    """

    def __init__(self, config: RunConfig, data: Dataset) -> None:
        d = data.X.shape[1]
        if config.components > d:
            raise InputError(
                f"components: expected at most the {d} features of {data.name}, got {config.components}; ask for fewer"
            )
        if config.kind == "rotation" and config.components < d:
            raise InputError(
                f"components: expected the {d} features of {data.name} with kind 'rotation', got {config.components}"
            )
        train, test = stratified_split(data.y, config.test_fraction, seed=config.seed)
        if not len(test):
            raise InputError(f"{data.name}: expected rows to score with, every class has a single row")
        shards = dirichlet_partition(data.y[train], config.devices, alpha=config.alpha, seed=config.seed)
        self.config: RunConfig = config
        self.data: Dataset = data
        self.train_rows: NDArray[np.int64] = train
        self.test_rows: NDArray[np.int64] = test
        self.shards: list[NDArray[np.int64]] = [train[s] for s in shards]
        self.operator: SketchOperator = SketchOperator(config.kind, d, config.components, seed=config.seed)
        self.scaler: Scaler = Scaler.fit([data.X[s] for s in self.shards])
        # The loss is smooth with constant m / 2 for rows of mean square norm m, here one per informative feature.
        informative = int((self.scaler.deviation > 0).sum())
        self.step: float = config.learning_rate / max(1, informative)
        if self.step > float(np.finfo(self.scaler.dtype).max):
            real = np.dtype(self.scaler.dtype).name
            raise InputError(f"learning_rate: expected a step that {real} holds, got {config.learning_rate:g}")
        self.traced: int = max(range(config.devices), key=lambda i: len(self.shards[i]))

    def start(self) -> Parameters:
        """The model of the first round: zeros."""
        k, classes = self.config.components, len(self.data.classes)
        return {"weights": np.zeros((k, classes), self.scaler.dtype), "bias": np.zeros(classes, self.scaler.dtype)}

    def sketch(self, X: NDArray[Any]) -> NDArray[Any]:
        """Standardised and sketched rows: shape (n, k)."""
        return self.operator.transform(self.scaler.transform(X))

    def shard(self, index: int) -> Shard:
        """What device `index` holds."""
        rows = self.shards[index]
        return Shard(
            index,
            self.data.X[rows],
            self.data.y[rows],
            self.config,
            self.operator,
            self.scaler,
            self.step,
            len(self.data.classes),
            index == self.traced,
        )
