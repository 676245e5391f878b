"""The messages of secure aggregation and their wire form. Nothing is unpickled; layout in docs/privacy.md."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from edgefast.aggregate import _shamir
from edgefast.aggregate._ring import FixedPoint
from edgefast.aggregate._wire import Format
from edgefast.aggregate.errors import ProtocolError

__all__ = [
    "Advertise",
    "Confirm",
    "Confirmations",
    "Delivery",
    "Masked",
    "Roster",
    "SecureMessage",
    "Setup",
    "Shares",
    "Survivors",
    "Unmask",
]

# magic, version, type, session, sender, bytes of payload; then the payload and the CRC-32.
_FORMAT: Final = Format("message", b"EFSA", (1,), struct.Struct("<4sHBx16sQQ"), ProtocolError)
_SERVER: Final = 2**64 - 1  # as sender
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
#: Sender and recipient, two shares, and the tag of ChaCha20-Poly1305.
SEALED_BYTES: Final = 16 + 2 * _shamir.SHARE_BYTES + 16
_types: dict[int, type[SecureMessage]] = {}


class _Reader:
    def __init__(self, payload: memoryview) -> None:
        self._payload = payload
        self._at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._payload) - self._at:
            raise ValueError("fewer bytes than it says")
        self._at += count
        return bytes(self._payload[self._at - count : self._at])

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def rest(self) -> memoryview:
        found = self._payload[self._at :]
        self._at = len(self._payload)
        return found

    def entries(self, size: int) -> list[tuple[int, bytes]]:
        """Ids, ascending, with `size` bytes each."""
        count = self.number(4)
        if count * (8 + size) > len(self._payload) - self._at:
            raise ValueError("fewer bytes than it says")
        found = [(self.number(8), self.take(size)) for _ in range(count)]
        ids = [i for i, _ in found]
        if any(a >= b for a, b in itertools.pairwise(ids)) or _SERVER in ids:
            raise ValueError("ids out of order")
        return found

    def end(self) -> None:
        if self._at != len(self._payload):
            raise ValueError(f"{len(self._payload) - self._at} bytes too many")


def _entries(pairs: list[tuple[int, bytes]]) -> bytes:
    ordered = sorted(pairs)
    return len(ordered).to_bytes(4, "little") + b"".join(i.to_bytes(8, "little") + data for i, data in ordered)


@dataclass(frozen=True, slots=True)
class SecureMessage:
    """Base of the messages: `to_bytes` and `from_bytes`.

    Attributes:
        session: 16 random bytes that name the run of the protocol.
    """

    session: bytes

    _type: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super(SecureMessage, cls).__init_subclass__(**kwargs)
        _types[cls._type] = cls

    @property
    def sender(self) -> int:
        """The client it comes from; 2**64 - 1 for the server."""
        return getattr(self, "client", _SERVER)

    def _payload(self) -> bytes | memoryview:
        raise NotImplementedError

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """Versioned, little-endian, with a checksum against accidents."""
        payload = self._payload()
        return _FORMAT.seal(1, (self._type, self.session, self.sender, len(payload)), [payload])

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Self:
        """The message of bytes made by to_bytes, of this class or, from SecureMessage, of any.

        Raises:
            TypeError: data is not bytes-like.
            ProtocolError: the bytes are damaged, truncated, of an unknown version, of another kind of message, or
                contradict themselves.
        """
        _, (number, session, sender, length), payload = _FORMAT.open(data)
        if length != len(payload):
            raise ProtocolError(f"message: expected {length} bytes of payload, got {len(payload)}")
        found = _types.get(number)
        if found is None or not issubclass(found, cls):
            wanted = "a message" if cls is SecureMessage else f"a message {cls.__name__}"
            raise ProtocolError(f"message: expected {wanted}, got {found.__name__ if found else f'type {number}'}")
        reader = _Reader(payload)
        try:
            message = found._read(session, sender, reader)
            reader.end()
            if message.sender != sender:
                raise ValueError(f"sender {sender}")
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
            raise ProtocolError(f"message {found.__name__}: it does not hold together ({error})") from None
        return message  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Setup(SecureMessage):
    """Server to all: what is to be added up, and how many have to stay."""

    threshold: int
    fixed: FixedPoint

    _type: ClassVar[int] = 1

    def _payload(self) -> bytes:
        meta = {"threshold": self.threshold, "fixed": self.fixed.describe()}
        return json.dumps(meta, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        meta = json.loads(bytes(reader.rest()))
        if set(meta) != {"threshold", "fixed"}:
            raise ValueError("unexpected fields")
        fixed, threshold = FixedPoint.restore(meta["fixed"]), meta["threshold"]
        if type(threshold) is not int or not 2 <= threshold <= fixed.clients:
            raise ValueError(f"threshold {threshold} of {fixed.clients}")
        return cls(session, threshold, fixed)


@dataclass(frozen=True, slots=True)
class Advertise(SecureMessage):
    """Client to server: public keys for shares and for masks, and a signature of them or nothing."""

    client: int
    cipher_key: bytes
    mask_key: bytes
    signature: bytes = b""

    _type: ClassVar[int] = 2

    def _payload(self) -> bytes:
        return self.cipher_key + self.mask_key + self.signature

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        keys = reader.take(KEY_BYTES), reader.take(KEY_BYTES)
        signature = bytes(reader.rest())
        if len(signature) not in (0, SIGNATURE_BYTES) or sender == _SERVER:
            raise ValueError("signature or sender")
        return cls(session, sender, *keys, signature)


@dataclass(frozen=True, slots=True)
class Roster(SecureMessage):
    """Server to all: everybody's keys."""

    members: tuple[Advertise, ...]

    _type: ClassVar[int] = 3

    def _payload(self) -> bytes:
        size = KEY_BYTES * 2 + SIGNATURE_BYTES + 1
        rows = []
        for m in self.members:
            row = bytes([len(m.signature)]) + m.cipher_key + m.mask_key + m.signature
            rows.append((m.client, row.ljust(size, b"\0")))
        return _entries(rows)

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        members = []
        for client, row in reader.entries(KEY_BYTES * 2 + SIGNATURE_BYTES + 1):
            length, keys, rest = row[0], row[1 : 1 + 2 * KEY_BYTES], row[1 + 2 * KEY_BYTES :]
            if length not in (0, SIGNATURE_BYTES) or any(rest[length:]):
                raise ValueError("signature")
            members.append(Advertise(session, client, keys[:KEY_BYTES], keys[KEY_BYTES:], rest[:length]))
        return cls(session, tuple(members))


@dataclass(frozen=True, slots=True)
class Shares(SecureMessage):
    """Client to server, for the others: shares of its secrets, sealed for each; and a commitment to its self-mask."""

    client: int
    commitment: bytes
    sealed: dict[int, bytes]

    _type: ClassVar[int] = 4

    def _payload(self) -> bytes:
        return self.commitment + _entries(list(self.sealed.items()))

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, sender, reader.take(32), dict(reader.entries(SEALED_BYTES)))


@dataclass(frozen=True, slots=True)
class Delivery(SecureMessage):
    """Server to one client: the shares the others sealed for it."""

    recipient: int
    sealed: dict[int, bytes]

    _type: ClassVar[int] = 5

    def _payload(self) -> bytes:
        return self.recipient.to_bytes(8, "little") + _entries(list(self.sealed.items()))

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, reader.number(8), dict(reader.entries(SEALED_BYTES)))


@dataclass(frozen=True, slots=True)
class Masked(SecureMessage):
    """Client to server: its update under its masks, little-endian words of the ring."""

    client: int
    vector: bytes | memoryview

    _type: ClassVar[int] = 6

    def _payload(self) -> bytes | memoryview:
        return self.vector

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, sender, reader.rest())


@dataclass(frozen=True, slots=True)
class Survivors(SecureMessage):
    """Server to all: whose updates are in the sum."""

    clients: tuple[int, ...]

    _type: ClassVar[int] = 7

    def _payload(self) -> bytes:
        return _entries([(i, b"") for i in self.clients])

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, tuple(i for i, _ in reader.entries(0)))


@dataclass(frozen=True, slots=True)
class Confirm(SecureMessage):
    """Client to server, for the others: its signature of the survivors it was told."""

    client: int
    signature: bytes

    _type: ClassVar[int] = 8

    def _payload(self) -> bytes:
        return self.signature

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, sender, reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Confirmations(SecureMessage):
    """Server to all: the signatures of Confirm."""

    signatures: dict[int, bytes]

    _type: ClassVar[int] = 9

    def _payload(self) -> bytes:
        return _entries(list(self.signatures.items()))

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        return cls(session, dict(reader.entries(SIGNATURE_BYTES)))


@dataclass(frozen=True, slots=True)
class Unmask(SecureMessage):
    """Client to server: shares of the self-masks of survivors, and of the mask keys of those who dropped out."""

    client: int
    seeds: dict[int, bytes]
    keys: dict[int, bytes]

    _type: ClassVar[int] = 10

    def _payload(self) -> bytes:
        return _entries(list(self.seeds.items())) + _entries(list(self.keys.items()))

    @classmethod
    def _read(cls, session: bytes, sender: int, reader: _Reader) -> Self:
        size = _shamir.SHARE_BYTES
        seeds, keys = dict(reader.entries(size)), dict(reader.entries(size))
        if seeds.keys() & keys.keys():
            raise ValueError("a seed and a key of one client")
        return cls(session, sender, seeds, keys)
