"""The wire form shared by all sketches with a state: one header, one payload, one checksum. Layout in
docs/sketch-streams.md. Pure Python; nothing is allocated that did not arrive."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["COUNT_SKETCH", "DEDUP_FILTER", "FREQUENT_DIRECTIONS", "ROW_SKETCH", "Record", "array_of", "pack", "unpack"]

_MAGIC: Final = b"EFSK"
_VERSION: Final = 1
# magic, version, family, dtype, flags; operator; six counts; bytes of payload. Then the payload and the CRC-32.
_HEADER: Final = struct.Struct("<4sBBBB24s6QQ")
_CHECKSUM: Final = struct.Struct("<I")

ROW_SKETCH, FREQUENT_DIRECTIONS, COUNT_SKETCH, DEDUP_FILTER = 1, 2, 3, 4
_FAMILIES: Final = {
    ROW_SKETCH: "RowSketch",
    FREQUENT_DIRECTIONS: "FrequentDirections",
    COUNT_SKETCH: "CountSketch",
    DEDUP_FILTER: "DedupFilter",
}
_DTYPES: Final = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i8"), 4: np.dtype("u1")}
_CODES: Final = {dtype.newbyteorder("="): code for code, dtype in _DTYPES.items()}


class Record(NamedTuple):
    """What a buffer says, its checksum verified, its meaning not."""

    dtype: np.dtype[Any]  # little-endian
    flags: int
    operator: bytes
    counts: tuple[int, ...]
    payload: memoryview


def pack(family: int, array: NDArray[Any], *, operator: bytes, counts: tuple[int, ...], flags: int = 0) -> bytes:
    """The wire form of a sketch: `counts` are up to six numbers from 0 to 2**64 - 1."""
    code = _CODES[array.dtype]
    payload = array.astype(_DTYPES[code], order="C", copy=False).tobytes()
    counts = (*counts, *(0,) * (6 - len(counts)))
    body = _HEADER.pack(_MAGIC, _VERSION, family, code, flags, operator, *counts, len(payload)) + payload
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(data: Any, family: int) -> Record:
    """Header and payload of a sketch of one family.

    Raises:
        TypeError: not bytes-like.
        ValueError: damaged, truncated, too long, of another family or of an unknown version.
    """
    try:
        raw = memoryview(data).cast("B")
    except TypeError:
        raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}") from None
    least = _HEADER.size + _CHECKSUM.size
    if len(raw) < least:
        raise ValueError(f"data: expected at least {least} bytes, got {len(raw)}")
    magic, version, found, code, flags, operator, *rest = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise ValueError(f"data: expected bytes that start with {_MAGIC!r}, got {magic!r}")
    if version != _VERSION:
        raise ValueError(f"data: expected version {_VERSION}, got {version}")
    if rest[6] != len(raw) - least:
        raise ValueError(f"data: expected {rest[6]} bytes of payload, got {len(raw) - least}")
    if zlib.crc32(raw[: -_CHECKSUM.size]) != _CHECKSUM.unpack(raw[-_CHECKSUM.size :])[0]:
        raise ValueError("data: the checksum does not match; the bytes are damaged")
    if found != family:
        name = _FAMILIES.get(found, f"family {found}")
        raise ValueError(f"data: expected a {_FAMILIES[family]}, got {name}")
    if code not in _DTYPES:
        raise ValueError(f"data: expected a dtype from 1 to {max(_DTYPES)}, got {code}")
    return Record(_DTYPES[code], flags, operator, tuple(rest[:6]), raw[_HEADER.size : -_CHECKSUM.size])


def array_of(record: Record, shape: tuple[int, ...]) -> NDArray[Any]:
    """The payload as a fresh native array of `shape`.

    Raises:
        ValueError: the payload has another size.
    """
    size = record.dtype.itemsize
    for length in shape:
        size *= length
    if size != len(record.payload):
        raise ValueError(f"data: expected {size} bytes of payload for shape {shape}, got {len(record.payload)}")
    values = np.frombuffer(record.payload, record.dtype).reshape(shape)
    return values.astype(record.dtype.newbyteorder("="), copy=True)
