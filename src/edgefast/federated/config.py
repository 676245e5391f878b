"""Options of one run."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, Literal, get_args

from edgefast.backends import streams
from edgefast.errors import InputError

__all__ = ["EngineName", "Policy", "RunConfig", "Weights"]

Policy = Literal["block", "drop_newest", "drop_oldest", "latest"]
Weights = Literal["rows", "equal"]
EngineName = Literal["local", "flower"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Options of `edgefast.federated.run`; every one is checked when the object is made.

    Attributes:
        devices: number of devices, each with its own shard of the rows.
        rounds: rounds of federated averaging.
        components: features after sketching, at most the data's own.
        kind: kind of the shared SketchOperator.
        alpha: concentration of the Dirichlet split; the smaller, the fewer classes a device sees.
        epochs: passes of a device over its shard in one round.
        batch: rows of a mini-batch.
        learning_rate: step of the local softmax regression, divided by the mean square norm of a standardised row.
        queue_size: batches the queue between source and trainer holds.
        high_watermark: the queue stops accepting at this many batches; None for three quarters of `queue_size`.
        low_watermark: and accepts again at this many; None for a quarter of `high_watermark`.
        policy: what a source does with a batch while the queue does not accept: "block" waits, "drop_newest" drops
            the batch, "drop_oldest" drops the oldest one in the queue for it; "latest" always replaces what is there.
            What is dropped depends on timing, so only "block" repeats bit for bit.
        weights: weight of a device in the average: the "rows" it trained on in the round, or "equal".
        test_fraction: share of the rows, in each class, kept for scoring.
        seed: of the operator, the split, the shards and the order of the rows; 0 to 2**64 - 1.
        backend: backend of the array kernels ("auto", "native", "numba", "numpy"); None for the current one.
        threads: threads of a kernel and devices that work at the same time; None for the default.
        processes: each device in a process of its own, all at the same time; the result is the same. Needs Linux and
            the native backend.
        device_timeout: with `processes`: seconds that a round waits for the others after the first device has
            answered. A device that is later is left out of the round, and of the following ones until it answers.
        engine: "local", or "flower": on Flower's SuperLink and SuperNodes, started on 127.0.0.1 for the run; there
            device_timeout is the time a whole round may take.

    Raises:
        InputError: a value of the wrong type or out of range; it names the option.
    """

    devices: int = 10
    rounds: int = 30
    components: int = 32
    kind: str = "sparse_stack"
    alpha: float = 0.3
    epochs: int = 5
    batch: int = 16
    learning_rate: float = 2.0
    queue_size: int = 16
    high_watermark: int | None = None
    low_watermark: int | None = None
    policy: Policy = "block"
    weights: Weights = "rows"
    test_fraction: float = 0.2
    seed: int = 0
    backend: str | None = None
    threads: int | None = None
    processes: bool = False
    device_timeout: float = 60.0
    engine: EngineName = "local"

    def __post_init__(self) -> None:
        for name in ("devices", "rounds", "components", "epochs", "batch", "queue_size"):
            self._integer(name, 1, 2**31 - 1)
        self._integer("seed", 0, 2**64 - 1)
        if self.threads is not None:
            self._integer("threads", 1, 4096)
        if self.high_watermark is not None:
            self._integer("high_watermark", 1, self.queue_size)
        if self.low_watermark is not None:
            self._integer("low_watermark", 0, self.watermarks[0] - 1)
        if not isinstance(self.processes, bool):
            raise InputError(f"processes: expected True or False, got {self.processes!r}")
        for name in ("alpha", "learning_rate", "device_timeout"):
            self._number(name, 0, math.inf)
        self._number("test_fraction", 0, 1)
        self._choice("kind", tuple(streams.KIND_NUMBERS))
        self._choice("policy", get_args(Policy))
        self._choice("weights", get_args(Weights))
        self._choice("engine", get_args(EngineName))
        if self.processes and self.engine != "local":
            raise InputError(f"processes: expected False with engine={self.engine!r}, whose devices are processes")

    @property
    def watermarks(self) -> tuple[int, int]:
        """The (high, low) watermarks of every queue, in batches."""
        high = max(1, self.queue_size * 3 // 4) if self.high_watermark is None else self.high_watermark
        return high, high // 4 if self.low_watermark is None else self.low_watermark

    def as_dict(self) -> dict[str, Any]:
        """The options by name, JSON-ready."""
        return dataclasses.asdict(self)

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        try:
            if isinstance(value, bool):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise InputError(f"{name}: expected an integer, got {value!r}") from None
        if not low <= number <= high:
            raise InputError(f"{name}: expected an integer from {low} to {high}, got {number}")
        object.__setattr__(self, name, number)

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        try:
            if isinstance(value, (bool, str, bytes)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{name}: expected a number, got {value!r}") from None
        if not low < number < high:
            raise InputError(f"{name}: expected a number above {low} and below {high}, got {number}")
        object.__setattr__(self, name, number)

    def _choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
