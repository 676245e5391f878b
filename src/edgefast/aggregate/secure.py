"""Secure aggregation: the server learns the sum of the clients' updates and nothing else about them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgefast import backends
from edgefast.aggregate import _extras, _shamir
from edgefast.aggregate._batch import check_count, check_number
from edgefast.aggregate._ring import FixedPoint, add_masks
from edgefast.aggregate._template import Template
from edgefast.aggregate.errors import ProtocolError, TamperedMessage, TooFewSurvivors, ZeroWeightError
from edgefast.aggregate.secure_messages import (
    Advertise,
    Confirm,
    Confirmations,
    Delivery,
    Masked,
    Roster,
    SecureMessage,
    Setup,
    Shares,
    Survivors,
    Unmask,
)

__all__ = ["SecureAggregator", "SecureClient"]

_LABEL: Final = b"edgefast secure aggregation v1 "
_M = TypeVar("_M", bound=SecureMessage)
Wire = bytes | bytearray | memoryview


def _id(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _context(setup: Setup) -> bytes:
    """What every key and signature is bound to: the session and all its parameters."""
    return hashlib.sha256(setup.to_bytes()).digest()


def _derive(shared: bytes, context: bytes, purpose: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) of a key agreement."""
    hashes, kdf = _extras.crypto("hashes"), _extras.crypto("kdf.hkdf")
    return kdf.HKDF(algorithm=hashes.SHA256(), length=32, salt=context, info=_LABEL + purpose).derive(shared)


def _agree(private: Any, public: bytes, whose: int) -> bytes:
    """X25519 (RFC 7748)."""
    x25519 = _extras.crypto("asymmetric.x25519")
    try:
        return private.exchange(x25519.X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise TamperedMessage(f"client {whose}: its public key is of low order") from None


def _pair_key(shared: bytes, context: bytes, a: int, b: int) -> bytes:
    return _derive(shared, context, b"mask" + _id(min(a, b)) + _id(max(a, b)))


def _commitment(context: bytes, client: int, seed: bytes) -> bytes:
    return hashlib.sha256(_LABEL + b"seed" + context + _id(client) + seed).digest()


def _signed_keys(context: bytes, client: int, cipher_key: bytes, mask_key: bytes) -> bytes:
    return _LABEL + b"keys" + context + _id(client) + cipher_key + mask_key


def _digest(roster: Mapping[int, Advertise]) -> bytes:
    """Of everybody's keys, which are new in every run: what is signed in one is worth nothing in another."""
    return hashlib.sha256(b"".join(_id(i) + m.cipher_key + m.mask_key for i, m in sorted(roster.items()))).digest()


def _signed_survivors(context: bytes, roster: bytes, clients: tuple[int, ...]) -> bytes:
    return _LABEL + b"survivors" + context + roster + b"".join(map(_id, clients))


def _verified(public: bytes, signature: bytes, text: bytes) -> bool:
    """Ed25519 (RFC 8032)."""
    ed25519 = _extras.crypto("asymmetric.ed25519")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except Exception:  # InvalidSignature, or a key that is none
        return False
    return True


def _raw(key: Any) -> bytes:
    return key.public_key().public_bytes_raw()


def _opened(message: SecureMessage | Wire, kind: type[_M], session: bytes) -> _M:
    if isinstance(message, (bytes, bytearray, memoryview)):
        message = kind.from_bytes(message)
    if not isinstance(message, kind):
        raise ProtocolError(f"message: expected {kind.__name__}, got {type(message).__name__}")
    if message.session != session:
        raise ProtocolError(f"message {kind.__name__}: expected session {session.hex()}, got {message.session.hex()}")
    return message


class SecureAggregator:
    """The server's side of secure aggregation: the exact sum of fixed-point updates, and of no part of the clients.

    Every client hides its update under one mask of its own and one for every other client; the masks of a pair cancel
    in the sum. The secrets behind the masks are shared among the clients, any `threshold` of whom can lift what a
    client that dropped out left behind, between any two steps. The protocol is that of Bonawitz et al., with X25519,
    HKDF-SHA256, ChaCha20 masks, Shamir's sharing, shares sealed with ChaCha20-Poly1305, and Ed25519 signatures where
    the clients ask for them (package `cryptography`). docs/privacy.md says whom it protects against.

    One object is one round of learning. Each step takes what the clients send through `receive`, in any order, from
    whoever answers in time, and is closed by asking for what the clients get next:

    1. setup() to all; they send advertise(); roster() closes
    2. roster() to those; they send share(roster); deliveries() closes
    3. deliveries()[i] to client i; they send mask(delivery, update); survivors() closes
    4. survivors() to those; they send unmask(survivors); result() closes

    With signatures, between 3 and 4: they send confirm(survivors), and get confirmations() for unmask.

    Args:
        template: an update (see weighted_mean) of floating-point tensors.
        clients: at most so many; at least 2. The sum has room for all.
        threshold: clients that have to stay to the end, more than half of `clients`; None for two thirds. Fewer than
            `threshold` colluding clients, with the server, learn nothing but the sum of the others.
        limit: largest magnitude of a coordinate.
        bits: 32 or 64, of the ring. The step of the fixed-point grid is the finest power of two with room for the sum:
            about clients * max_weight * limit / 2**(bits - 1), and no less than limit / 2**52.
        max_weight: largest weight of a client, an integer. With 1, all count the same, and no weights are sent.
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        ImportError: `cryptography` is not installed (extra `privacy`).
        DtypeMismatch: the template holds other than floating-point tensors.
        TypeError, ValueError: an argument out of range, or no room for the sum.

    References:
        K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017.

    Examples:
        >>> import numpy as np
        >>> from edgefast.aggregate import SecureAggregator, SecureClient
        >>> server = SecureAggregator(np.zeros(2), clients=3)
        >>> members = [SecureClient(i, server.setup()) for i in range(3)]
        >>> for c in members:
        ...     server.receive(c.advertise())
        >>> roster = server.roster()
        >>> for c in members:
        ...     server.receive(c.share(roster))
        >>> mail = server.deliveries()
        >>> for c, x in zip(members, ([0.25, 0.5], [0.5, 0.5], [0.0, 0.5])):
        ...     server.receive(c.mask(mail[c.client], np.array(x)))
        >>> alive = server.survivors()
        >>> for c in members:
        ...     server.receive(c.unmask(alive))
        >>> server.result()
        array([0.25, 0.5 ])
    """

    def __init__(
        self,
        template: Any,
        clients: int,
        threshold: int | None = None,
        *,
        limit: float = 1.0,
        bits: int = 32,
        max_weight: int = 1,
        num_threads: int | None = None,
    ) -> None:
        _extras.crypto("ciphers")
        count = check_count(clients, "clients", 2)
        least = 2 * count // 3 + 1 if threshold is None else check_count(threshold, "threshold", 2)
        if not count < 2 * least <= 2 * count:
            raise ValueError(f"threshold: expected more than half and at most all of {count} clients, got {least}")
        if bits not in (32, 64):
            raise ValueError(f"bits: expected 32 or 64, got {bits!r}")
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._template = Template(template, client="template")
        bound = check_number(limit, "limit", zero=False)
        fixed = FixedPoint.fitting(self._template, bits, bound, count, check_count(max_weight, "max_weight", 1))
        self._setup = Setup(os.urandom(16), least, fixed)
        self._context = _context(self._setup)
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._step = "advertise"
        self._keys: dict[int, Advertise] = {}
        self._shares: dict[int, Shares] = {}
        self._total = np.zeros(fixed.length, fixed.dtype)
        self._alive: dict[int, None] = {}
        self._confirms: dict[int, bytes] = {}
        self._unmasked: dict[int, Unmask] = {}
        self._weight = 0

    @property
    def session(self) -> bytes:
        """16 random bytes that name this run."""
        return self._setup.session

    @property
    def threshold(self) -> int:
        """Clients that have to stay to the end."""
        return self._setup.threshold

    @property
    def step(self) -> str:
        """What is being waited for: "advertise", "share", "mask" or "unmask"; "done" after result()."""
        return self._step

    @property
    def resolution(self) -> float:
        """Step of the fixed-point grid."""
        return 2.0**self._setup.fixed.exponent

    @property
    def clients(self) -> tuple[int, ...]:
        """Who is still in the step: those whose message has come, in ascending order."""
        current: Mapping[int, object] = {
            "advertise": self._keys,
            "share": self._shares,
            "mask": self._alive,
            "unmask": self._unmasked,
        }.get(self._step, self._alive)
        return tuple(sorted(current))

    @property
    def weight(self) -> int:
        """Sum of the weights in the result."""
        return self._weight

    def setup(self) -> Setup:
        """What the clients are told first."""
        return self._setup

    def receive(self, message: SecureMessage | Wire) -> None:
        """Take a client's message of the current step. On an error the state stays as it was.

        Raises:
            ProtocolError: it is damaged, of another session or step, of a client that is not in the step, a second one
                of the same client, or does not fit.
            TamperedMessage: a public key is of low order.
            TypeError: neither a message nor bytes.
        """
        if isinstance(message, (bytes, bytearray, memoryview)):
            message = SecureMessage.from_bytes(message)
        if not isinstance(message, SecureMessage):
            raise TypeError(f"message: expected a SecureMessage or bytes, got {type(message).__name__}")
        with self._lock:
            steps: dict[str, tuple[type[SecureMessage], ...]] = {
                "advertise": (Advertise,),
                "share": (Shares,),
                "mask": (Masked,),
                "unmask": (Unmask, Confirm),
            }
            wanted = steps.get(self._step, ())
            if not isinstance(message, wanted):
                names = " or ".join(kind.__name__ for kind in wanted) or "nothing"
                raise ProtocolError(f"step {self._step}: expected {names}, got {type(message).__name__}")
            if message.session != self.session:
                raise ProtocolError(f"session: expected {self.session.hex()}, got {message.session.hex()}")
            if isinstance(message, Advertise):
                self._advertised(message)
            elif isinstance(message, Shares):
                self._once(message.client, self._keys, self._shares)
                expected = self._keys.keys() - {message.client}
                if message.sealed.keys() != expected:
                    raise ProtocolError(f"client {message.client}: expected shares for {len(expected)} others")
                self._shares[message.client] = message
            elif isinstance(message, Masked):
                self._once(message.client, self._shares, self._alive)
                expected_bytes = self._total.nbytes
                if len(message.vector) != expected_bytes:
                    got = len(message.vector)
                    raise ProtocolError(f"client {message.client}: expected {expected_bytes} bytes, got {got}")
                self._total += np.frombuffer(message.vector, self._total.dtype)
                self._alive[message.client] = None
            elif isinstance(message, Confirm):
                self._once(message.client, self._alive, self._confirms)
                self._confirms[message.client] = message.signature
            elif isinstance(message, Unmask):
                self._once(message.client, self._alive, self._unmasked)
                if message.seeds.keys() != self._alive.keys() or message.keys.keys() != self._gone():
                    raise ProtocolError(f"client {message.client}: expected a share of every secret that is needed")
                self._unmasked[message.client] = message

    def _advertised(self, message: Advertise) -> None:
        if message.client in self._keys:
            raise ProtocolError(f"client {message.client}: expected one message, got a second one")
        if len(self._keys) == self._setup.fixed.clients:
            raise ProtocolError(f"clients: expected at most {len(self._keys)}, got one more ({message.client})")
        if len({message.cipher_key, message.mask_key} | self._public()) != 2 * len(self._keys) + 2:
            raise ProtocolError(f"client {message.client}: expected keys nobody else has")
        # One key of low order would stop every other client.
        probe = _extras.crypto("asymmetric.x25519").X25519PrivateKey.generate()
        for key in (message.cipher_key, message.mask_key):
            _agree(probe, key, message.client)
        self._keys[message.client] = message

    def _public(self) -> set[bytes]:
        return {key for m in self._keys.values() for key in (m.cipher_key, m.mask_key)}

    def _gone(self) -> set[int]:
        return self._shares.keys() - self._alive.keys()

    @staticmethod
    def _once(client: int, members: Mapping[int, object], done: Mapping[int, object]) -> None:
        if client not in members:
            raise ProtocolError(f"client {client}: it is not, or no longer, taking part")
        if client in done:
            raise ProtocolError(f"client {client}: expected one message, got a second one")

    def _require(self, step: str, arrived: Mapping[int, object]) -> None:
        if self._step != step:
            raise ProtocolError(f"step {self._step}: expected step {step}")
        if len(arrived) < self.threshold:
            raise TooFewSurvivors(step, self.threshold, len(arrived))

    def roster(self) -> Roster:
        """Closes the first step: everybody's keys.

        Raises:
            TooFewSurvivors: fewer than the threshold; more may still come.
            ProtocolError: the step has been closed.
        """
        with self._lock:
            self._require("advertise", self._keys)
            self._step = "share"
            return Roster(self.session, tuple(self._keys[i] for i in sorted(self._keys)))

    def deliveries(self) -> dict[int, Delivery]:
        """Closes the second step: what each client gets of the others' shares.

        Raises:
            TooFewSurvivors, ProtocolError: as roster.
        """
        with self._lock:
            self._require("share", self._shares)
            self._step = "mask"
            return {
                i: Delivery(self.session, i, {j: m.sealed[i] for j, m in self._shares.items() if j != i})
                for i in self._shares
            }

    def survivors(self) -> Survivors:
        """Closes the third step: whose updates are in the sum.

        Raises:
            TooFewSurvivors, ProtocolError: as roster.
        """
        with self._lock:
            self._require("mask", self._alive)
            self._step = "unmask"
            return Survivors(self.session, tuple(sorted(self._alive)))

    def confirmations(self) -> Confirmations:
        """The signatures of the survivors so far, where clients sign.

        Raises:
            TooFewSurvivors: fewer than the threshold have confirmed.
            ProtocolError: survivors() has not been called, or the result has.
        """
        with self._lock:
            self._require("unmask", self._confirms)
            return Confirmations(self.session, dict(self._confirms))

    def ring_sum(self) -> NDArray[np.int64]:
        """Closes the last step: the exact sum of the survivors' integers (P,), weighted where there are weights, with
        the sum of the weights at the end. In units of `resolution`.

        Raises:
            TooFewSurvivors: fewer than the threshold have sent their shares; more may still come.
            TamperedMessage: shares give another secret than the client announced. One client's wrong shares are left
                out where more than the threshold have answered.
            ProtocolError: survivors() has not been called.
        """
        with self._lock:
            if self._step != "done":
                self._require("unmask", self._unmasked)
                total = self._total.copy()
                add_masks(total, self._masks(), self._num_threads)
                self._total, self._step = total, "done"  # in one step, or after Ctrl-C some would be lifted twice
            return self._total.view(f"<i{self._total.itemsize}").astype(np.int64)

    def result(self) -> Any:
        """Closes the last step: the mean of the survivors' updates, in the template's containers and dtypes.

        Raises:
            ZeroWeightError: the weights add up to 0.
            TooFewSurvivors, TamperedMessage, ProtocolError: as ring_sum.
        """
        integers = self.ring_sum()
        fixed = self._setup.fixed
        weight = int(integers[-1]) if fixed.max_weight > 1 else len(self._alive)
        if weight <= 0:
            raise ZeroWeightError(f"weights: expected a sum above 0, got {weight}")
        self._weight = weight
        return fixed.decode(integers, weight, self._template)

    def _masks(self) -> list[tuple[bytes, int]]:
        """What has to be added to the sum to lift the masks: seeds of the survivors, pairs of those who dropped out."""
        load = _extras.crypto("asymmetric.x25519").X25519PrivateKey.from_private_bytes
        answers = sorted(self._unmasked)[: self.threshold + 1]
        # With one answer to spare, one that does not fit is left out.
        choices = [answers[: self.threshold]]
        if len(answers) > self.threshold:
            choices += [[i for i in answers if i != left_out] for left_out in answers[:-1]]
        points = {i: x for x, i in enumerate(sorted(self._keys), start=1)}
        lagrange = [_shamir.coefficients([points[h] for h in helpers]) for helpers in choices]

        def secret(client: int, what: str, fits: Callable[[bytes], bool]) -> bytes:
            for helpers, factors in zip(choices, lagrange, strict=True):
                shares = [getattr(self._unmasked[h], what)[client] for h in helpers]
                try:
                    found = _shamir.combine(shares, factors)
                except ValueError:
                    continue
                if fits(found):
                    return found
            raise TamperedMessage(f"client {client}: the shares of its {what[:-1]} give another one than it announced")

        masks: list[tuple[bytes, int]] = []
        for i in self._alive:
            commitment = self._shares[i].commitment
            masks.append((secret(i, "seeds", lambda s: _commitment(self._context, i, s) == commitment), -1))  # noqa: B023
        for i in self._gone():
            public = self._keys[i].mask_key
            private = load(secret(i, "keys", lambda s: _raw(load(s)) == public))  # noqa: B023
            for j in self._alive:
                key = _pair_key(_agree(private, self._keys[j].mask_key, j), self._context, i, j)
                masks.append((key, -1 if j < i else 1))
        return masks

    def __repr__(self) -> str:
        fixed = self._setup.fixed
        return (
            f"<SecureAggregator of {fixed.clients} clients, threshold {self.threshold}, {fixed.length} x {fixed.bits} "
            f"bits: {self._step}, {len(self.clients)} clients>"
        )


class SecureClient:
    """A client's side of secure aggregation: one object a round of learning; see SecureAggregator for the steps.

    It refuses whatever would give away more than the sum: too low a threshold, keys that are not its own, a second
    update under the same masks, a second and different list of survivors.

    Args:
        client: its number, 0 to 2**64 - 2, known to the server.
        setup: the server's message, or its bytes. What it says is checked for consistency, not for sense: compare
            `setup.threshold` and `setup.fixed` (clients, limit, max_weight) with what was agreed.
        signing_key: 32 bytes, an Ed25519 private key (see new_signing_key), to sign its keys and the list of survivors.
        trusted: the Ed25519 public keys (32 bytes) of all clients that may take part, from somewhere other than the
            server. With them the server cannot make clients up, nor tell clients different lists of survivors.
        num_threads: threads to use; None for the default (see edgefast.using).

    Raises:
        ImportError: `cryptography` is not installed (extra `privacy`).
        ProtocolError: the setup does not hold together, or its threshold is no majority.
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    def __init__(
        self,
        client: int,
        setup: Setup | Wire,
        *,
        signing_key: bytes | None = None,
        trusted: Mapping[int, bytes] | None = None,
        num_threads: int | None = None,
    ) -> None:
        x25519 = _extras.crypto("asymmetric.x25519")
        self.client: int = check_count(client, "client")
        if self.client >= 2**64 - 1:
            raise ValueError(f"client: expected 0 to 2**64 - 2, got {client}")
        if isinstance(setup, (bytes, bytearray, memoryview)):
            setup = Setup.from_bytes(setup)
        if not isinstance(setup, Setup):
            raise TypeError(f"setup: expected a Setup or bytes, got {type(setup).__name__}")
        if not setup.fixed.clients < 2 * setup.threshold <= 2 * setup.fixed.clients:
            raise ProtocolError(
                f"setup: expected a threshold of more than half of {setup.fixed.clients}, got {setup.threshold}"
            )
        if num_threads is not None:
            backends.num_threads(num_threads)
        self._setup = setup
        self._context = _context(setup)
        self._num_threads = num_threads
        self._signer: Any = None
        if signing_key is not None:
            ed25519 = _extras.crypto("asymmetric.ed25519")
            self._signer = ed25519.Ed25519PrivateKey.from_private_bytes(signing_key)
        self._trusted = None if trusted is None else dict(trusted)
        self._cipher = x25519.X25519PrivateKey.generate()
        self._mask = x25519.X25519PrivateKey.generate()
        self._seed = os.urandom(32)
        self._lock = threading.Lock()
        self._step = "advertise"
        self._roster: dict[int, Advertise] = {}
        self._own: tuple[bytes, bytes] = (b"", b"")
        self._held: dict[int, tuple[bytes, bytes]] = {}  # by client: shares of its mask key and of its seed
        self._agreed: tuple[int, ...] | None = None
        self._answer: Unmask | None = None

    @staticmethod
    def new_signing_key() -> tuple[bytes, bytes]:
        """A private and the public Ed25519 key that goes with it, 32 bytes each."""
        ed25519 = _extras.crypto("asymmetric.ed25519")
        private = ed25519.Ed25519PrivateKey.generate()
        return private.private_bytes_raw(), _raw(private)

    @property
    def session(self) -> bytes:
        """16 random bytes that name the server's run."""
        return self._setup.session

    def advertise(self) -> Advertise:
        """First message: its public keys."""
        cipher_key, mask_key = _raw(self._cipher), _raw(self._mask)
        signature = b""
        if self._signer is not None:
            signature = self._signer.sign(_signed_keys(self._context, self.client, cipher_key, mask_key))
        return Advertise(self.session, self.client, cipher_key, mask_key, signature)

    def share(self, roster: Roster | Wire) -> Shares:
        """Second message: shares of its secrets, sealed for each of the others.

        Raises:
            ProtocolError: a second call, another session, or a roster without this client's own keys, with too few or
                too many clients, or with one key twice.
            TamperedMessage: a signature is missing or wrong, or a key is of low order.
        """
        message = _opened(roster, Roster, self.session)
        members = {m.client: m for m in message.members}
        fixed, threshold = self._setup.fixed, self._setup.threshold
        if not threshold <= len(members) <= fixed.clients or len(members) != len(message.members):
            raise ProtocolError(f"roster: expected {threshold} to {fixed.clients} clients, got {len(message.members)}")
        mine = members.get(self.client)
        if mine is None or (mine.cipher_key, mine.mask_key) != (_raw(self._cipher), _raw(self._mask)):
            raise ProtocolError(f"roster: expected the keys of client {self.client} as it sent them")
        if len({key for m in message.members for key in (m.cipher_key, m.mask_key)}) != 2 * len(members):
            raise ProtocolError("roster: expected keys that differ")
        if self._trusted is not None:
            for m in message.members:
                text = _signed_keys(self._context, m.client, m.cipher_key, m.mask_key)
                if m.client not in self._trusted or not _verified(self._trusted[m.client], m.signature, text):
                    raise TamperedMessage(f"client {m.client}: its keys are not signed by a key that is trusted")
        with self._lock:
            if self._step != "advertise":
                raise ProtocolError(f"client {self.client}: expected step {self._step}, got share")
            order = sorted(members)
            keys = _shamir.split(self._mask.private_bytes_raw(), threshold, len(order))
            seeds = _shamir.split(self._seed, threshold, len(order))
            sealed = {}
            for i, key_share, seed_share in zip(order, keys, seeds, strict=True):
                if i == self.client:
                    self._own = (key_share, seed_share)
                    continue
                text = _id(self.client) + _id(i) + key_share + seed_share
                sealed[i] = self._aead(members[i], self.client, i).encrypt(bytes(12), text, self._context)
            self._roster = members
            self._step = "mask"
            return Shares(self.session, self.client, _commitment(self._context, self.client, self._seed), sealed)

    def _aead(self, other: Advertise, sender: int, recipient: int) -> Any:
        """ChaCha20-Poly1305 (RFC 8439) under a key of one direction and one session, used once."""
        shared = _agree(self._cipher, other.cipher_key, other.client)
        aead = _extras.crypto("ciphers.aead")
        return aead.ChaCha20Poly1305(_derive(shared, self._context, b"share" + _id(sender) + _id(recipient)))

    def mask(self, delivery: Delivery | Wire, update: Any, *, weight: int = 1, saturate: bool = False) -> Masked:
        """Third message: the update, times its weight, under all masks.

        Args:
            delivery: the others' shares.
            update: of the template's structure, with magnitudes up to its limit.
            weight: 1 to the setup's largest.
            saturate: bring values beyond the limit to it, instead of an error.

        Raises:
            ProtocolError: out of turn, a second call, another session or recipient, shares of strangers or too few.
            TamperedMessage: a share does not authenticate.
            StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate: the update is not like the template, or
                has NaN or infinity. These and the next leave the client as it was: it may try again.
            UpdateError: a value is beyond the limit.
            TypeError, ValueError: the weight is out of range.
        """
        message = _opened(delivery, Delivery, self.session)
        fixed, threshold = self._setup.fixed, self._setup.threshold
        factor = check_count(weight, "weight", 1)
        if factor > fixed.max_weight:
            raise ValueError(f"weight: expected 1 to {fixed.max_weight}, got {factor}")
        with self._lock:
            if self._step != "mask":
                raise ProtocolError(f"client {self.client}: expected step {self._step}, got mask")
            if message.recipient != self.client:
                raise ProtocolError(f"delivery: expected one for client {self.client}, got client {message.recipient}")
            if not message.sealed.keys() <= self._roster.keys() - {self.client}:
                raise ProtocolError("delivery: expected shares of clients of the roster")
            if len(message.sealed) + 1 < threshold:
                raise ProtocolError(f"delivery: expected shares of at least {threshold - 1}, got {len(message.sealed)}")
            held = {self.client: self._own}
            for i, data in message.sealed.items():
                held[i] = self._unsealed(i, data)
            vector = fixed.encode(update, factor, saturate, self.client)
            masks = [(self._seed, 1)]
            for i in message.sealed:
                shared = _agree(self._mask, self._roster[i].mask_key, i)
                masks.append((_pair_key(shared, self._context, self.client, i), 1 if self.client < i else -1))
            add_masks(vector, masks, self._num_threads)
            self._held = held
            self._step = "unmask"
            return Masked(self.session, self.client, vector.view(np.uint8).data)

    def _unsealed(self, sender: int, data: bytes) -> tuple[bytes, bytes]:
        try:
            text = self._aead(self._roster[sender], sender, self.client).decrypt(bytes(12), data, self._context)
        except TamperedMessage:
            raise
        except Exception:  # InvalidTag has no more to say
            raise TamperedMessage(f"client {sender}: its share does not authenticate") from None
        size = _shamir.SHARE_BYTES
        if text[:16] != _id(sender) + _id(self.client):
            raise TamperedMessage(f"client {sender}: its share is for somebody else")
        return text[16 : 16 + size], text[16 + size :]

    def _checked(self, survivors: Survivors | Wire) -> tuple[int, ...]:
        message = _opened(survivors, Survivors, self.session)
        if self._step != "unmask":
            raise ProtocolError(f"client {self.client}: expected step {self._step}, got unmask")
        alive = set(message.clients)
        if not alive <= self._held.keys() or len(alive) != len(message.clients):
            raise ProtocolError("survivors: expected clients whose shares were delivered")
        if self.client not in alive:
            raise ProtocolError(f"survivors: expected client {self.client} among them")
        if len(alive) < self._setup.threshold:
            raise ProtocolError(f"survivors: expected at least {self._setup.threshold}, got {len(alive)}")
        if self._agreed not in (None, tuple(sorted(alive))):
            raise ProtocolError(f"client {self.client}: expected the survivors of the first time, got others")
        return tuple(sorted(alive))

    def confirm(self, survivors: Survivors | Wire) -> Confirm:
        """Between third and fourth message, with signatures: its signature of the survivors.

        Raises:
            ProtocolError: out of turn, without a signing key, or survivors it cannot agree to; see unmask.
        """
        if self._signer is None:
            raise ProtocolError(f"client {self.client}: expected a signing key to confirm with, got none")
        with self._lock:
            self._agreed = alive = self._checked(survivors)
            text = _signed_survivors(self._context, _digest(self._roster), alive)
            return Confirm(self.session, self.client, self._signer.sign(text))

    def unmask(self, survivors: Survivors | Wire, confirmations: Confirmations | Wire | None = None) -> Unmask:
        """Last message: its shares of the survivors' self-masks and of the mask keys of those who dropped out: of every
        client one or the other, never both. A second call gives the same message, for the same survivors.

        Raises:
            ProtocolError: out of turn, another session, survivors that are strangers, too few, without this client, or
                other than in the first call.
            TamperedMessage: with trusted keys, fewer than the threshold have signed these survivors.
        """
        with self._lock:
            alive = self._checked(survivors)
            if self._answer is not None:
                return self._answer
            if self._trusted is not None:
                self._check_confirmations(alive, confirmations)
            seeds = {i: self._held[i][1] for i in alive}
            keys = {i: held[0] for i, held in self._held.items() if i not in seeds}
            self._agreed = alive
            self._answer = Unmask(self.session, self.client, seeds, keys)
            return self._answer

    def _check_confirmations(self, alive: tuple[int, ...], confirmations: Confirmations | Wire | None) -> None:
        if confirmations is None:
            raise TamperedMessage("confirmations: expected the others' signatures of the survivors, got none")
        message = _opened(confirmations, Confirmations, self.session)
        text, trusted = _signed_survivors(self._context, _digest(self._roster), alive), self._trusted or {}
        good = sum(
            i in trusted and _verified(trusted[i], signature, text)
            for i, signature in message.signatures.items()
            if i in alive
        )
        if good < self._setup.threshold:
            raise TamperedMessage(f"confirmations: expected {self._setup.threshold} valid signatures, got {good}")

    def __repr__(self) -> str:
        return f"<SecureClient {self.client} of session {self.session.hex()[:8]}: {self._step}>"
