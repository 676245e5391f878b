"""What the wire forms of this package have in common: a header that starts with a magic and a version, any parts, and a
CRC-32 of it all; all little-endian. Layouts in docs/aggregate.md, robust.md, compression.md and privacy.md."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

__all__ = ["Format"]

_CHECKSUM: Final = struct.Struct("<I")


class Format(NamedTuple):
    """One wire form: how errors call it, what it starts with, and what kind of ValueError its errors are."""

    name: str
    magic: bytes
    versions: tuple[int, ...]
    header: struct.Struct
    error: type[ValueError] = ValueError

    def seal(self, version: int, fields: Iterable[Any], parts: Iterable[bytes | memoryview]) -> bytes:
        """Header of the version and the fields, the parts, and the checksum."""
        pieces = [self.header.pack(self.magic, version, *fields), *parts]
        crc = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        return b"".join([*pieces, _CHECKSUM.pack(crc)])

    def open(self, data: Any) -> tuple[int, tuple[Any, ...], memoryview]:
        """Version, fields and the bytes between header and checksum, which has been verified; their meaning has not.

        Raises:
            TypeError: not bytes-like.
            ValueError, or `error`: too short, of another form, of an unknown version, or damaged.
        """
        try:
            raw = memoryview(data).cast("B")
        except TypeError:
            raise TypeError(f"data: expected a bytes-like object, got {type(data).__name__}") from None
        least = self.header.size + _CHECKSUM.size
        if len(raw) < least:
            raise self.error(f"{self.name}: expected at least {least} bytes, got {len(raw)}")
        magic, version, *fields = self.header.unpack_from(raw)
        if magic != self.magic:
            raise self.error(f"{self.name}: expected bytes that start with {self.magic!r}, got {magic!r}")
        if version not in self.versions:
            known = " or ".join(filter(None, (", ".join(map(str, self.versions[:-1])), str(self.versions[-1]))))
            raise self.error(f"{self.name}: expected version {known}, got version {version}")
        body, (checksum,) = raw[: -_CHECKSUM.size], _CHECKSUM.unpack(raw[-_CHECKSUM.size :])
        if zlib.crc32(body) != checksum:
            raise self.error(f"{self.name}: the checksum does not match; the bytes are damaged or truncated")
        return version, tuple(fields), body[self.header.size :]

    def split(self, body: memoryview, length: int) -> tuple[bytes, memoryview]:
        """The description, `length` bytes that lead the body, and the rest.

        Raises:
            ValueError, or `error`: there are fewer.
        """
        if length > len(body):
            raise self.error(f"{self.name}: expected {length} bytes of description, got {len(body)}")
        return bytes(body[:length]), body[length:]
