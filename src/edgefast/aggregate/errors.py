"""Errors of aggregation: each names the client, the key, what was expected and what came."""

from __future__ import annotations

from typing import Self

__all__ = [
    "DtypeMismatch",
    "IntegerRange",
    "NonFiniteUpdate",
    "ProtocolError",
    "SecureAggregationError",
    "ShapeMismatch",
    "StructureMismatch",
    "TamperedMessage",
    "TooFewSurvivors",
    "TooFewUpdates",
    "UnequalWeights",
    "UpdateError",
    "ZeroWeightError",
]


class UpdateError(ValueError):
    """An update that does not fit.

    Attributes:
        client: index of the update, or the name it was added under.
        key: path of the tensor inside the update, such as "encoder.weight" or "[3]"; None for the whole update.
        expected: what the template asks for.
        got: what came.
    """

    def __init__(
        self,
        message: str,
        *,
        client: object = None,
        key: str | None = None,
        expected: object = None,
        got: object = None,
    ) -> None:
        super().__init__(message)
        self.client = client
        self.key = key
        self.expected = expected
        self.got = got

    @classmethod
    def of(cls, client: object, key: str | None, expected: object, got: object) -> Self:
        """The error with its standard message."""
        where = f"client {client}" + (f", key {key!r}" if key is not None else "")
        return cls(f"{where}: expected {expected}, got {got}", client=client, key=key, expected=expected, got=got)


class StructureMismatch(UpdateError):
    """Other keys, another number of arrays, or another kind of container than the template's."""


class ShapeMismatch(UpdateError):
    """A tensor of another shape than the template's."""


class DtypeMismatch(UpdateError):
    """A tensor of another dtype than the template's, or of one that cannot be averaged."""


class NonFiniteUpdate(UpdateError):
    """NaN or infinity in an update while nonfinite="raise", or in every update while nonfinite="drop"."""


class IntegerRange(UpdateError):
    """An integer beyond 2**53 where ints="round" would lose its last digits."""


class ZeroWeightError(UpdateError):
    """No weight at all: the mean is not defined."""


class TooFewUpdates(UpdateError):
    """Fewer updates than a robust rule needs for the number of bad ones it is asked to tolerate."""


class UnequalWeights(UpdateError):
    """Weights that differ where the privacy analysis needs equal ones."""


class SecureAggregationError(ValueError):
    """Secure aggregation cannot go on, or refuses to."""


class ProtocolError(SecureAggregationError):
    """A message that is damaged, of another session, repeated, out of turn, or asks for what must not be given."""


class TamperedMessage(SecureAggregationError):
    """A key, share or signature that does not authenticate, or shares that give another secret than was announced."""


class TooFewSurvivors(SecureAggregationError):
    """Fewer clients are left than the threshold of secure aggregation.

    Attributes:
        step: what they were to do: "advertise", "share", "mask" or "unmask".
        expected: the threshold.
        got: how many are left.
    """

    def __init__(self, step: str, expected: int, got: int) -> None:
        super().__init__(step, expected, got)
        self.step = step
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return f"{self.step}: expected at least {self.expected} clients (the threshold), got {self.got}"
