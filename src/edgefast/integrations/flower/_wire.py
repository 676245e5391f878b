"""What travels in Flower's Arrays beside .npy bytes: bfloat16, compressed updates, partial sums.

Each has a stype of its own, so that a reader who does not know it fails (Array.numpy raises TypeError) instead of
reading something else:

    "edgefast.bfloat16"     .npy bytes whose dtype is [('bfloat16', '<u2')], the upper halves of float32 numbers
    "edgefast.encoded"      Encoded.to_bytes() of the whole model, the only Array of its ArrayRecord
    "edgefast.difference"   the same of the float tensors' difference to the model the client was sent
    "edgefast.sums"         MeanAccumulator.to_bytes(): the sums of several clients' models
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgefast.aggregate import DtypeMismatch, Encoded, MeanAccumulator, StructureMismatch
from edgefast.aggregate import _npy as npy
from edgefast.backends.numpy.elements import round_to_brain, widen
from edgefast.backends.table import BF16
from edgefast.integrations.flower._flwr import Array, ArrayRecord, app

__all__ = [
    "BFLOAT16",
    "DIFFERENCE",
    "ENCODED",
    "SUMS",
    "decoded",
    "expanded",
    "from_encoded",
    "from_sums",
    "is_own",
    "model_of",
    "packed_of",
    "sums_of",
    "to_bfloat16",
    "to_record",
]

NUMPY = "numpy.ndarray"
BFLOAT16 = "edgefast.bfloat16"
ENCODED = "edgefast.encoded"
DIFFERENCE = "edgefast.difference"
SUMS = "edgefast.sums"
_WHOLE = (ENCODED, DIFFERENCE, SUMS)
#: Key of the one Array that stands for a whole model.
KEY = "edgefast"


def is_own(record: ArrayRecord) -> bool:
    """Whether the record holds anything but .npy bytes of this package's making."""
    return any(a.stype.startswith("edgefast.") for a in record.values())


def to_record(arrays: Mapping[str, Any]) -> ArrayRecord:
    """An ArrayRecord of Arrays, or of numpy arrays."""
    record = app.ArrayRecord()
    for key, value in arrays.items():
        record[key] = value if isinstance(value, Array) else _plain(np.asarray(value))
    return record


def _plain(array: Any) -> Array:
    return app.Array(dtype=str(array.dtype), shape=tuple(array.shape), stype=NUMPY, data=npy.encode(array))


# ---- bfloat16 --------------------------------------------------------------------------------------------------------


def to_bfloat16(record: ArrayRecord) -> ArrayRecord:
    """The record with its float32 and float64 arrays rounded to bfloat16, to nearest even; other arrays as they are."""
    new = app.ArrayRecord()
    for key, array in record.items():
        new[key] = array
        if array.stype == NUMPY and array.dtype in ("float32", "float64"):
            values = npy.array_in(array.data)
            bits = round_to_brain(values).view(BF16).reshape(values.shape)
            new[key] = app.Array(dtype="bfloat16", shape=values.shape, stype=BFLOAT16, data=npy.encode(bits))
    return new


def _from_bfloat16(array: Array, client: object, key: str) -> Any:
    """A float32 array."""
    try:
        values = npy.array_in(array.data)
    except ValueError as error:
        raise DtypeMismatch.of(client, key, "an Array of bfloat16 .npy bytes", str(error)) from None
    if values.dtype != BF16:
        raise DtypeMismatch.of(client, key, "bfloat16", values.dtype)
    return widen(values, np.float32).reshape(values.shape)


# ---- whole models ----------------------------------------------------------------------------------------------------


def _whole(stype: str, dtype: str, data: bytes) -> ArrayRecord:
    return app.ArrayRecord({KEY: app.Array(dtype=dtype, shape=(len(data),), stype=stype, data=data)})


def from_encoded(encoded: Encoded, *, difference: bool) -> ArrayRecord:
    """The record that carries a compressed model, or difference of models."""
    return _whole(DIFFERENCE if difference else ENCODED, "uint8", encoded.to_bytes())


def from_sums(accumulator: MeanAccumulator) -> ArrayRecord:
    """The record that carries the sums of several models."""
    return _whole(SUMS, "uint8", accumulator.to_bytes())


def packed_of(record: ArrayRecord, client: object) -> tuple[str, Array] | None:
    """(stype, Array) of the one Array that stands for a whole model; None for a record of tensors.

    Raises:
        StructureMismatch: there are others beside it.
    """
    kinds = {a.stype for a in record.values()}
    if kinds.isdisjoint(_WHOLE):
        return None
    if len(record) != 1:
        stype = next(k for k in _WHOLE if k in kinds)
        raise StructureMismatch.of(client, None, f"one Array of stype {stype!r}", f"{len(record)} Arrays")
    (array,) = record.values()
    return array.stype, array


def _encoded_in(array: Array, client: object) -> Encoded:
    try:
        return Encoded.from_bytes(array.data)
    except ValueError as error:
        raise DtypeMismatch.of(client, None, "a compressed update", str(error)) from None


def sums_of(array: Array, client: object) -> MeanAccumulator:
    """The accumulator in an Array of stype "edgefast.sums"."""
    try:
        return MeanAccumulator.from_bytes(array.data)
    except ValueError as error:
        raise DtypeMismatch.of(client, None, "the sums of an accumulator", str(error)) from None


def model_of(record: ArrayRecord, client: object, *, difference: bool = False) -> Any:
    """What the aggregation functions take: the record itself where it holds .npy bytes, a dict of arrays where it
    holds bfloat16 or foreign stypes, an Encoded where it is compressed.

    Args:
        difference: whether a difference to the model the client was sent is fine.

    Raises:
        StructureMismatch: a difference or sums where they are not expected.
        DtypeMismatch: bytes that do not hold together.
    """
    kinds = {a.stype for a in record.values()}
    if kinds <= {NUMPY}:
        return record
    found = packed_of(record, client)
    if found is not None:
        stype, array = found
        if stype == SUMS or (stype == DIFFERENCE and not difference):
            what = "sums of several models" if stype == SUMS else "a difference to the model it was sent"
            raise StructureMismatch.of(client, None, "a model", f"{what} (a strategy of edgefast can add it)")
        return _encoded_in(array, client)
    return {key: _tensor(array, client, key) for key, array in record.items()}


def _tensor(array: Array, client: object, key: str) -> Any:
    if array.stype == NUMPY:
        return array
    if array.stype == BFLOAT16:
        return _from_bfloat16(array, client, key)
    try:
        return np.asarray(array.numpy())
    except TypeError as error:
        raise DtypeMismatch.of(client, key, "an Array that numpy() can read", str(error)) from None


def expanded(record: ArrayRecord, client: object) -> Any:
    """model_of, compressed models decompressed."""
    model = model_of(record, client)
    return model.decode() if isinstance(model, Encoded) else model


def decoded(record: ArrayRecord, client: object) -> ArrayRecord:
    """The record as Arrays of .npy bytes, whatever it was; the record itself where it is that already."""
    model = expanded(record, client)
    return model if isinstance(model, ArrayRecord) else to_record(model)
