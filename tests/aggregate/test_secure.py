"""Secure aggregation: exact sums under every kind of drop-out, what the server sees, and what everybody refuses."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefast.aggregate import (
    DtypeMismatch,
    NonFiniteUpdate,
    ProtocolError,
    SecureAggregationError,
    SecureAggregator,
    SecureClient,
    SecureMessage,
    ShapeMismatch,
    StructureMismatch,
    TamperedMessage,
    TooFewSurvivors,
    UpdateError,
    _ring,
    _shamir,
    secure,
)
from edgefast.aggregate._ring import FixedPoint, add_masks
from edgefast.aggregate._template import Template
from edgefast.aggregate.secure_messages import (
    Advertise,
    Confirm,
    Confirmations,
    Delivery,
    Masked,
    Roster,
    Setup,
    Shares,
    Survivors,
    Unmask,
)

GOLDEN = Path(__file__).parent / "golden"
pytest.importorskip("cryptography")


def model(k: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng([seed, k])
    return {
        "w": rng.uniform(-1, 1, (3, 7)).astype(np.float32),
        "b": [rng.uniform(-1, 1, 5), rng.uniform(-1, 1, ()).astype(np.float16)],
        "none": np.zeros(0, np.float32),
    }


def flat(update: Any) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in (update["w"], *update["b"], update["none"])])


def run(
    server: SecureAggregator,
    clients: dict[int, SecureClient],
    updates: dict[int, Any],
    gone: Callable[[str, int], bool] = lambda step, i: False,
    weights: dict[int, int] | None = None,
    wire: bool = True,
) -> set[int]:
    """The protocol over bytes, with clients that drop out before a step; who is in the sum."""

    def sent(message: SecureMessage) -> Any:
        return message.to_bytes() if wire else message

    alive = {i for i in clients if not gone("advertise", i)}
    for i in alive:
        server.receive(sent(clients[i].advertise()))
    roster = server.roster()
    alive = {i for i in alive if not gone("share", i)}
    for i in alive:
        server.receive(sent(clients[i].share(sent(roster))))
    mail = server.deliveries()
    assert mail.keys() == alive
    alive = {i for i in alive if not gone("mask", i)}
    for i in alive:
        weight = 1 if weights is None else weights[i]
        server.receive(sent(clients[i].mask(sent(mail[i]), updates[i], weight=weight)))
    survivors = server.survivors()
    assert survivors.clients == tuple(sorted(alive))
    for i in alive:
        if not gone("unmask", i):
            server.receive(sent(clients[i].unmask(sent(survivors))))
    return alive


def integers(server: SecureAggregator, update: Any, weight: int = 1) -> np.ndarray:
    """The definition: round(x / step), half to even, in the order of the template's tensors."""
    return weight * np.rint(flat(update) / server.resolution).astype(np.int64)


# ---- the sum -------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(data=st.data(), n=st.integers(2, 9), bits=st.sampled_from([32, 64]), weighted=st.booleans())
def test_exact_sum_whoever_drops_out_when(data: Any, n: int, bits: int, weighted: bool) -> None:
    threshold = data.draw(st.integers(max(2, n // 2 + 1), n))
    ids = data.draw(st.lists(st.integers(0, 2**64 - 2), min_size=n, max_size=n, unique=True))
    steps = ["advertise", "share", "mask", "unmask", "never"]
    when = {i: data.draw(st.sampled_from([*steps, "never", "never"])) for i in ids}
    weights = {i: data.draw(st.integers(1, 100)) for i in ids} if weighted else None
    server = SecureAggregator(model(0), n, threshold, bits=bits, max_weight=100 if weighted else 1)
    setup = server.setup().to_bytes()
    clients = {i: SecureClient(i, setup) for i in ids}
    updates = {i: model(k) for k, i in enumerate(ids)}
    left = {s: sum(steps.index(when[i]) > steps.index(s) for i in ids) for s in steps[:-1]}
    failing = next((s for s in steps[:-1] if left[s] < threshold), None)

    def gone(step: str, i: int) -> bool:
        return when[i] == step

    if failing:
        with pytest.raises(TooFewSurvivors) as caught:  # noqa: PT012
            run(server, clients, updates, gone, weights)
            server.result()
        assert (caught.value.step, caught.value.expected, caught.value.got) == (failing, threshold, left[failing])
        return
    alive = run(server, clients, updates, gone, weights)
    assert alive == {i for i in ids if when[i] in ("unmask", "never")}
    factors = dict.fromkeys(ids, 1) if weights is None else weights
    expected = sum(integers(server, updates[i], factors[i]) for i in alive)
    total = server.ring_sum()
    assert (total[: len(expected)] == expected).all()
    weight = sum(factors[i] for i in alive)
    assert total.size == 27 + weighted
    mean = server.result()
    assert server.weight == weight
    assert server.step == "done"
    np.testing.assert_array_equal(mean["b"][0], expected[21:26] / weight * server.resolution)
    assert [a.dtype for a in (mean["w"], *mean["b"])] == [np.float32, np.float64, np.float16]
    np.testing.assert_allclose(
        flat(mean), sum(factors[i] * flat(updates[i]) for i in alive) / weight, atol=server.resolution + 1e-3
    )
    assert (server.ring_sum() == total).all()


def test_extremes_fill_the_ring_and_do_not_overflow() -> None:
    for bits in (32, 64):
        for n in (2, 3, 20):
            server = SecureAggregator(np.zeros(4), n, limit=0.7, bits=bits, max_weight=9)
            clients = {i: SecureClient(i, server.setup()) for i in range(n)}
            x = np.array([0.7, -0.7, 0.0, 0.35])
            run(server, clients, dict.fromkeys(range(n), x), weights=dict.fromkeys(range(n), 9), wire=False)
            np.testing.assert_allclose(server.result(), x, atol=server.resolution)
            assert server.weight == 9 * n
            fixed = server.setup().fixed
            assert fixed.levels * n * 9 < 2 ** (bits - 1)
            # And not four times coarser than it has to be, up to the 52 bits of a float64.
            assert bits == 64 or fixed.levels * n * 9 * 4 >= 2 ** (bits - 1)


@given(
    limit=st.floats(1e-300, 1e300),
    n=st.integers(2, 10**6),
    weight=st.integers(1, 10**6),
    bits=st.sampled_from([32, 64]),
)
def test_headroom(limit: float, n: int, weight: int, bits: int) -> None:
    try:
        fixed = FixedPoint.fitting(Template(np.zeros(2)), bits, limit, n, weight)
    except ValueError:
        assert n * weight > 2 ** (bits - 1) - 1
        return
    assert fixed.levels * n * weight < 2 ** (bits - 1)
    assert fixed.levels >= 1 or n * weight * 2 > 2 ** (bits - 1) - 1
    assert FixedPoint.restore(fixed.describe()) == fixed
    if fixed.levels:
        one = fixed.encode(np.array([limit, -limit]), weight, False, 0).view(f"<i{bits // 8}")
        assert one[:2].tolist() == [fixed.levels * weight, -fixed.levels * weight]
        assert abs(Fraction(fixed.levels) * Fraction(2) ** fixed.exponent / Fraction(limit) - 1) <= Fraction(
            1, fixed.levels
        )


def test_values_beyond_the_limit() -> None:
    server = SecureAggregator({"w": np.zeros(2)}, 2)
    clients = {i: SecureClient(i, server.setup()) for i in range(2)}
    for c in clients.values():
        server.receive(c.advertise())
    roster = server.roster()
    for c in clients.values():
        server.receive(c.share(roster))
    mail = server.deliveries()
    bad: list[tuple[Any, type[Exception], str]] = [
        ({"w": np.array([0.5, 1.5])}, UpdateError, r"client 0, key 'w': expected magnitudes of at most 1.0, got 1.5"),
        ({"w": np.array([np.nan, 0])}, NonFiniteUpdate, "client 0, key 'w': expected finite values"),
        ({"w": np.zeros(3)}, ShapeMismatch, r"expected shape \(2,\)"),
        ({"w": np.zeros(2, np.float32)}, DtypeMismatch, "expected float64"),
        ({"v": np.zeros(2)}, StructureMismatch, "missing 'w'"),
    ]
    for update, error, text in bad:
        with pytest.raises(error, match=text):
            clients[0].mask(mail[0], update)
    # None of these used up the masks.
    server.receive(clients[0].mask(mail[0], {"w": np.array([0.5, 1e300])}, saturate=True))
    server.receive(clients[1].mask(mail[1], {"w": np.array([0.5, 1.0])}))
    alive = server.survivors()
    for c in clients.values():
        server.receive(c.unmask(alive))
    np.testing.assert_allclose(server.result()["w"], [0.5, 1.0], atol=1e-8)
    with pytest.raises(DtypeMismatch, match="key 'n': expected floating-point"):
        SecureAggregator({"n": np.zeros(2, int)}, 2)


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
def test_masks_are_the_chacha20_keystream(bits: int) -> None:
    """Against one call over the whole length, at sizes around the tiles, with threads, and undone by the other sign."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    dtype = np.dtype(f"<u{bits // 8}")
    keys = [bytes([k]) * 32 for k in range(3)]
    tile = _ring._TILE_BYTES // dtype.itemsize
    for size in (0, 1, 7, 15, 16, 17, 97, tile - 1, tile, tile + 1, 20 * tile + 3):
        streams = [
            np.frombuffer(
                Cipher(algorithms.ChaCha20(k, bytes(16)), None).encryptor().update(bytes(size * bits // 8)), dtype
            )
            for k in keys
        ]
        start = np.arange(size, dtype=dtype)
        expected = start + streams[0] - streams[1] + streams[2]
        for threads in (1, 2, 3):
            vector = start.copy()
            add_masks(vector, list(zip(keys, (1, -1, 1), strict=True)), threads)
            assert (vector == expected).all()
            add_masks(vector, list(zip(keys, (-1, 1, -1), strict=True)), threads)
            assert (vector == start).all()


def test_rfc_8439_keystream() -> None:
    """Section 2.4.2's key with nonce 0 would do; appendix A.1, vector 1, is the key and the nonce of zeros."""
    vector = np.zeros(4, "<u4")
    add_masks(vector, [(bytes(32), 1)])
    assert vector.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def uniform(data: bytes) -> None:
    """Chi-square over bytes: 255 degrees of freedom, seven deviations and more."""
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 7 * math.sqrt(2 * 255) + 30


def test_what_the_server_sees_is_uniform() -> None:
    n, size = 3, 50_000
    server = SecureAggregator(np.zeros(size), n, 2)
    clients = {i: SecureClient(i, server.setup()) for i in range(n)}
    for c in clients.values():
        server.receive(c.advertise())
    roster = server.roster()
    for c in clients.values():
        server.receive(c.share(roster))
    mail = server.deliveries()
    seen = [bytes(c.mask(mail[i], np.zeros(size)).vector) for i, c in clients.items()]
    for data in seen:
        uniform(data)
    # Together they are still masked: the self-masks do not cancel.
    words = [np.frombuffer(data, "<u4") for data in seen]
    uniform((words[0] + words[1] + words[2]).tobytes())
    uniform((words[0] + words[1]).tobytes())
    # With what a client that was too slow would have had lifted, the rest keeps its own mask.
    server.receive(Masked(server.session, 0, seen[0]))
    server.receive(Masked(server.session, 1, seen[1]))
    alive = server.survivors()
    for i in (0, 1):
        server.receive(clients[i].unmask(alive))
    assert not server.ring_sum().any()
    lifted = words[2].copy()
    for j in (0, 1):
        from edgefast.aggregate.secure import _agree, _pair_key

        shared = _agree(clients[2]._mask, server._keys[j].mask_key, j)
        add_masks(lifted, [(_pair_key(shared, server._context, 2, j), 1)])  # undoes its -1 towards lower numbers
    uniform(lifted.tobytes())
    add_masks(lifted, [(clients[2]._seed, -1)])
    assert not lifted.any()


# ---- Shamir --------------------------------------------------------------------------------------------------------


@given(secret=st.binary(min_size=32, max_size=32), n=st.integers(2, 12), data=st.data())
def test_shamir(secret: bytes, n: int, data: Any) -> None:
    t = data.draw(st.integers(2, n))
    shares = _shamir.split(secret, t, n)
    points = data.draw(st.permutations(range(1, n + 1)))[:t]
    chosen = [shares[x - 1] for x in points]
    assert _shamir.combine(chosen, _shamir.coefficients(points)) == secret
    # One fewer tells nothing: for every secret there is a last share that gives it.
    other = data.draw(st.binary(min_size=32, max_size=32))
    factors = _shamir.coefficients(points)
    known = sum(int.from_bytes(share, "little") * f for share, f in zip(chosen[:-1], factors[:-1], strict=True))
    last = (int.from_bytes(other, "little") - known) * pow(factors[-1], -1, _shamir.PRIME) % _shamir.PRIME
    assert _shamir.combine([*chosen[:-1], last.to_bytes(33, "little")], factors) == other


def test_shamir_constants_and_bad_shares() -> None:
    # Miller and Rabin's test.
    odd, twos = _shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        x = pow(base, odd, _shamir.PRIME)
        powers = [x]
        for _ in range(twos - 1):
            powers.append(powers[-1] ** 2 % _shamir.PRIME)
        assert x == 1 or _shamir.PRIME - 1 in powers
    for share in (b"\xff" * 33, b"\0" * 32):
        with pytest.raises(ValueError, match="share: expected"):
            _shamir.combine([share, share], _shamir.coefficients([1, 2]))
    # Fresh polynomials every time.
    a, b = _shamir.split(bytes(32), 2, 2), _shamir.split(bytes(32), 2, 2)
    assert a != b


# ---- what is refused -----------------------------------------------------------------------------------------------


class Round:
    """A session of five clients, stopped before a step."""

    def __init__(
        self,
        before: str,
        signed: bool = False,
        n: int = 5,
        threshold: int = 3,
        *,
        setup: Setup | None = None,
        keys: dict[int, tuple[bytes, bytes]] | None = None,
    ) -> None:
        self.server = SecureAggregator(np.zeros(4), n, threshold)
        if setup is not None:  # that of another run, which an honest server does not use again
            self.server._setup, self.server._context = setup, secure._context(setup)
        self.keys = keys = keys or {i: SecureClient.new_signing_key() for i in range(n)}
        self.trusted = {i: public for i, (_, public) in keys.items()} if signed else None
        self.clients = {
            i: SecureClient(i, self.server.setup(), signing_key=keys[i][0] if signed else None, trusted=self.trusted)
            for i in range(n)
        }
        self.update = np.full(4, 0.5)
        steps = ["advertise", "share", "mask", "unmask"]
        done = steps[: steps.index(before)]
        if "advertise" in done:
            for c in self.clients.values():
                self.server.receive(c.advertise())
            self.roster = self.server.roster()
        if "share" in done:
            self.shares = {i: c.share(self.roster) for i, c in self.clients.items()}
            for m in self.shares.values():
                self.server.receive(m)
            self.mail = self.server.deliveries()
        if "mask" in done:
            for i in (0, 1, 2, 3):  # 4 drops out
                self.server.receive(self.clients[i].mask(self.mail[i], self.update))
            self.alive = self.server.survivors()


def test_messages_out_of_turn_of_strangers_and_twice() -> None:
    r = Round("share")
    stranger = SecureClient(77, r.server.setup())
    other = Round("share")
    first = r.clients[0].share(r.roster)
    r.server.receive(first)
    for message, text in [
        (r.clients[1].advertise(), "step share: expected Shares, got Advertise"),
        (first, "client 0: expected one message, got a second one"),
        (dataclasses.replace(first, client=77), "client 77: it is not, or no longer"),
        (dataclasses.replace(first, client=1), "client 1: expected shares for 4 others"),
        (other.clients[1].share(other.roster), "session: expected"),
        (r.clients[1].share(r.roster).to_bytes()[:-1], "the checksum does not match"),
    ]:
        with pytest.raises(ProtocolError, match=text):
            r.server.receive(message)
    with pytest.raises(ProtocolError, match="expected the keys of client 77"):
        stranger.share(r.roster)
    with pytest.raises(ProtocolError, match="expected step mask, got share"):
        r.clients[0].share(r.roster)
    with pytest.raises(ProtocolError, match="session"):
        r.clients[2].share(other.roster)
    with pytest.raises(TypeError, match="expected a SecureMessage"):
        r.server.receive(3)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="step share: expected step advertise"):
        r.server.roster()
    with pytest.raises(ProtocolError, match="message: expected Roster, got Survivors"):
        r.clients[2].share(Survivors(r.server.session, (1,)))  # type: ignore[arg-type]
    assert r.server.clients == (0,)

    a = Round("advertise")
    hello = a.clients[0].advertise()
    a.server.receive(hello)
    for message, text in [
        (hello, "a second one"),
        (dataclasses.replace(hello, client=1), "keys nobody else has"),
        (dataclasses.replace(a.clients[1].advertise(), mask_key=hello.cipher_key), "keys nobody else has"),
    ]:
        with pytest.raises(ProtocolError, match=text):
            a.server.receive(message)
    for field in ("cipher_key", "mask_key"):
        with pytest.raises(TamperedMessage, match="client 1: its public key is of low order"):
            a.server.receive(dataclasses.replace(a.clients[1].advertise(), **{field: bytes(32)}))
    for i in range(1, 5):
        a.server.receive(a.clients[i].advertise())
    with pytest.raises(ProtocolError, match="at most 5"):
        a.server.receive(SecureClient(9, a.server.setup()).advertise())


def test_a_client_refuses_a_wrong_roster() -> None:
    r = Round("share")
    members = r.roster.members
    swapped = dataclasses.replace(members[0], mask_key=members[0].cipher_key, cipher_key=members[0].mask_key)
    for roster, text in [
        (members[:2], "expected 3 to 5 clients, got 2"),
        ((*members, dataclasses.replace(members[1], client=9)), "expected 3 to 5 clients, got 6"),
        ((swapped, *members[1:]), "as it sent them"),
        (members[1:], "expected the keys of client 0"),
        ((members[0], members[1], dataclasses.replace(members[1], client=2)), "keys that differ"),
        ((members[0], members[1], members[1]), "expected 3 to 5 clients"),
    ]:
        with pytest.raises(ProtocolError, match=text):
            r.clients[0].share(Roster(r.server.session, roster))
    low = dataclasses.replace(members[1], cipher_key=bytes(32))
    with pytest.raises(TamperedMessage, match="client 1: its public key is of low order"):
        r.clients[0].share(Roster(r.server.session, (members[0], low, members[2])))
    # Nothing was given away: the right one still works.
    assert r.clients[0].share(r.roster).sealed.keys() == {1, 2, 3, 4}


def test_a_client_refuses_tampered_replayed_or_misdirected_shares() -> None:
    r = Round("mask")
    mail = r.mail[0]
    other = Round("mask").mail[0]
    flipped = bytes([mail.sealed[1][0] ^ 1]) + mail.sealed[1][1:]
    for sealed, error, text in [
        ({**mail.sealed, 1: flipped}, TamperedMessage, "client 1: its share does not authenticate"),
        ({**mail.sealed, 1: mail.sealed[2], 2: mail.sealed[1]}, TamperedMessage, "does not authenticate"),
        ({**mail.sealed, 1: other.sealed[1]}, TamperedMessage, "client 1: its share does not authenticate"),
        ({**mail.sealed, 1: r.mail[2].sealed[1]}, TamperedMessage, "does not authenticate"),
        ({1: mail.sealed[1]}, ProtocolError, "expected shares of at least 2"),
        ({**mail.sealed, 9: mail.sealed[1]}, ProtocolError, "clients of the roster"),
    ]:
        with pytest.raises(error, match=text):
            r.clients[0].mask(Delivery(r.server.session, 0, sealed), r.update)
    with pytest.raises(ProtocolError, match="expected one for client 0, got client 1"):
        r.clients[0].mask(r.mail[1], r.update)
    for weight, error in ((0, ValueError), (2, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="weight"):
            r.clients[0].mask(mail, r.update, weight=weight)  # type: ignore[arg-type]
    message = r.clients[0].mask(mail, r.update)
    with pytest.raises(ProtocolError, match="expected step unmask, got mask"):
        r.clients[0].mask(mail, -r.update)
    with pytest.raises(ProtocolError, match="client 0: expected 16 bytes, got 15"):
        r.server.receive(dataclasses.replace(message, vector=bytes(message.vector)[:15]))
    r.server.receive(message)
    with pytest.raises(ProtocolError, match="a second one"):
        r.server.receive(message)


def test_a_client_never_gives_both_secrets_of_another() -> None:
    r = Round("unmask")
    c, session = r.clients[0], r.server.session
    for alive, text in [
        ((0, 1), "expected at least 3, got 2"),
        ((1, 2, 3), "expected client 0 among them"),
        ((0, 1, 9), "whose shares were delivered"),
        ((0, 1, 1), "whose shares were delivered"),
    ]:
        with pytest.raises(ProtocolError, match=text):
            c.unmask(Survivors(session, alive))
    first = c.unmask(r.alive)
    assert first.seeds.keys() == {0, 1, 2, 3}
    assert first.keys.keys() == {4}
    assert c.unmask(r.alive.to_bytes()) is first  # the first may have been lost
    with pytest.raises(ProtocolError, match="expected the survivors of the first time, got others"):
        c.unmask(Survivors(session, (0, 1, 2)))
    with pytest.raises(ProtocolError, match="expected step mask, got unmask"):
        r.clients[4].unmask(r.alive)  # the one that dropped out


def test_wrong_shares_are_found_and_one_is_survived() -> None:
    r = Round("unmask")
    answers = {i: r.clients[i].unmask(r.alive) for i in (0, 1, 2, 3)}
    bad = bytes([answers[0].seeds[1][0] ^ 1]) + answers[0].seeds[1][1:]
    forged = dataclasses.replace(answers[0], seeds={**answers[0].seeds, 1: bad})
    # Not the lowest three bits, which X25519 ignores.
    key = answers[0].keys[4][:5] + bytes([answers[0].keys[4][5] ^ 1]) + answers[0].keys[4][6:]
    for message, what in ((forged, "seed"), (dataclasses.replace(answers[0], keys={4: key}), "key")):
        server = pickle_free_copy(r.server)
        for m in (message, answers[1]):
            server.receive(m)
        with pytest.raises(TooFewSurvivors):
            server.result()
        server.receive(answers[2])
        with pytest.raises(TamperedMessage, match=f"client {1 if what == 'seed' else 4}: the shares of its {what}"):
            server.result()
        server.receive(answers[3])
        assert server.result().tolist() == [0.5] * 4
    with pytest.raises(ProtocolError, match="a share of every secret"):
        r.server.receive(dataclasses.replace(answers[0], keys={}))
    with pytest.raises(ProtocolError, match="client 4: it is not, or no longer"):
        r.server.receive(dataclasses.replace(answers[0], client=4))


def pickle_free_copy(server: SecureAggregator) -> SecureAggregator:
    clone = object.__new__(SecureAggregator)
    clone.__dict__.update(server.__dict__)
    clone._unmasked, clone._total = dict(server._unmasked), server._total.copy()
    return clone


def test_signatures() -> None:
    r = Round("unmask", signed=True)
    session = r.server.session
    with pytest.raises(TamperedMessage, match="expected the others' signatures"):
        r.clients[0].unmask(r.alive)
    with pytest.raises(TooFewSurvivors):
        r.server.confirmations()
    for i in (0, 1, 2):
        r.server.receive(r.clients[i].confirm(r.alive).to_bytes())
    good = r.server.confirmations()
    # A server that tells others another list has no signatures for it, and nobody signs two.
    with pytest.raises(ProtocolError, match="expected the survivors of the first time"):
        r.clients[0].confirm(Survivors(session, (0, 1, 2)))
    with pytest.raises(ProtocolError, match="expected the survivors of the first time"):
        r.clients[0].unmask(Survivors(session, (0, 1, 2)), good)
    with pytest.raises(TamperedMessage, match="expected 3 valid signatures, got 0"):
        r.clients[3].unmask(Survivors(session, (0, 1, 3)), good)
    few = Confirmations(session, {0: good.signatures[0], 1: good.signatures[0], 2: good.signatures[2]})
    with pytest.raises(TamperedMessage, match="expected 3 valid signatures, got 2"):
        r.clients[0].unmask(r.alive, few)
    for i in (0, 1, 2, 3):
        r.server.receive(r.clients[i].unmask(r.alive, good.to_bytes()))
    assert r.server.result().tolist() == [0.5] * 4

    r = Round("share", signed=True)
    fresh = SecureClient(1, r.server.setup()).advertise()
    for made_up in (fresh, dataclasses.replace(fresh, signature=r.roster.members[1].signature)):
        members = (r.roster.members[0], made_up, *r.roster.members[2:])
        with pytest.raises(TamperedMessage, match="client 1: its keys are not signed"):
            r.clients[0].share(Roster(r.server.session, members))
    unsigned = Round("unmask")
    with pytest.raises(ProtocolError, match="expected a signing key"):
        unsigned.clients[0].confirm(unsigned.alive)


def test_signatures_of_one_run_are_worth_nothing_in_another() -> None:
    """A server that uses its session again, with clients of the same signing keys, to show them two lists."""
    first = Round("unmask", signed=True)
    for i in (0, 1, 2):
        first.server.receive(first.clients[i].confirm(first.alive))
    old = first.server.confirmations()
    again = Round("unmask", signed=True, setup=first.server.setup(), keys=first.keys)
    assert again.server.session == first.server.session
    with pytest.raises(TamperedMessage, match="expected 3 valid signatures, got 0"):
        again.clients[3].unmask(again.alive, old)
    # Nor are those of clients that were shown other keys.
    apart = Round("share", signed=True)
    signatures = set()
    for members in (apart.roster.members, apart.roster.members[:4]):
        client = copy.copy(apart.clients[0])
        client.share(Roster(apart.server.session, members))
        client._held, client._step = dict.fromkeys(range(4), (b"", b"")), "unmask"
        signatures.add(client.confirm(Survivors(apart.server.session, (0, 1, 2, 3))).signature)
    assert len(signatures) == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"clients": 1}, "clients"),
        ({"clients": 4, "threshold": 2}, "threshold: expected more than half and at most all of 4"),
        ({"clients": 4, "threshold": 5}, "threshold"),
        ({"clients": 2, "bits": 16}, "bits: expected 32 or 64"),
        ({"clients": 2, "limit": 0.0}, "limit"),
        ({"clients": 2, "max_weight": 2**31}, "bits: expected room for 2 clients"),
        ({"clients": 2, "max_weight": 0}, "max_weight"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SecureAggregator(np.zeros(3), **arguments)
    setup = SecureAggregator(np.zeros(3), 4).setup()
    with pytest.raises(ProtocolError, match="expected a threshold of more than half of 4, got 2"):
        SecureClient(0, dataclasses.replace(setup, threshold=2))
    with pytest.raises(ValueError, match="client"):
        SecureClient(2**64 - 1, setup)
    with pytest.raises(TypeError, match="setup"):
        SecureClient(0, None)  # type: ignore[arg-type]


# ---- the wire form -------------------------------------------------------------------------------------------------

SESSION = bytes(range(16))
FIXED = FixedPoint.fitting(Template({"w": np.zeros((2, 3), np.float32), "b": [np.zeros(())]}), 32, 0.75, 5, 3)
EXAMPLES: list[SecureMessage] = [
    Setup(SESSION, 4, FIXED),
    Advertise(SESSION, 3, b"c" * 32, b"m" * 32),
    Roster(
        SESSION,
        (Advertise(SESSION, 1, b"a" * 32, b"b" * 32, b"s" * 64), Advertise(SESSION, 2**40, b"c" * 32, b"d" * 32)),
    ),
    Shares(SESSION, 3, b"k" * 32, {1: b"x" * 98, 2**63: b"y" * 98}),
    Delivery(SESSION, 7, {1: b"x" * 98}),
    Masked(SESSION, 3, bytes(range(32))),
    Survivors(SESSION, (1, 5, 2**60)),
    Confirm(SESSION, 3, b"s" * 64),
    Confirmations(SESSION, {1: b"s" * 64}),
    Unmask(SESSION, 3, {1: b"1" * 33, 3: b"3" * 33}, {2: b"2" * 33}),
]
each_message = pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)


def test_golden_messages() -> None:
    data = (GOLDEN / "secure-v1.bin").read_bytes()
    assert b"".join(m.to_bytes() for m in EXAMPLES) == data
    at = 0
    for message in EXAMPLES:
        size = len(message.to_bytes())
        assert SecureMessage.from_bytes(data[at : at + size]) == message
        assert type(message).from_bytes(memoryview(data)[at : at + size]) == message
        at += size
    assert at == len(data)


@each_message
def test_damaged_and_hostile_messages(message: SecureMessage) -> None:
    data = message.to_bytes()
    rng = random.Random(3)
    for end in [*range(44), *(rng.randrange(len(data)) for _ in range(20))]:
        with pytest.raises(ProtocolError, match="message"):
            SecureMessage.from_bytes(data[:end])
    for i in range(min(len(data), 200)):
        with pytest.raises(ProtocolError, match="message"):
            SecureMessage.from_bytes(data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :])
    for _ in range(300):
        raw = bytearray(data[:-4])
        for _ in range(rng.choice((1, 1, 3))):
            raw[rng.randrange(6, len(raw))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
        if rng.random() < 0.3:
            raw = raw[: rng.randrange(40, len(raw))]
            raw[32:40] = struct.pack("<Q", len(raw) - 40)
        try:
            found = SecureMessage.from_bytes(bytes(raw) + struct.pack("<I", zlib.crc32(raw)))
        except ProtocolError:
            continue
        # What is read is a message like any other.
        assert SecureMessage.from_bytes(found.to_bytes()) == found
    with pytest.raises(ProtocolError, match="expected a message"):
        (Confirm if not isinstance(message, Confirm) else Unmask).from_bytes(data)
    with pytest.raises(TypeError, match="bytes-like"):
        SecureMessage.from_bytes("text")  # type: ignore[arg-type]


def test_a_setup_of_a_model_nobody_has_costs_nothing() -> None:
    fixed = FIXED._replace(tensors=[(np.dtype(np.float32), (2**40,)), (np.dtype(np.float64), ())], max_weight=1)
    client = SecureClient(0, Setup(SESSION, 4, fixed).to_bytes())
    with pytest.raises(ShapeMismatch, match=r"key 'w': expected shape \(1099511627776,\), got \(2, 3\)"):
        client._setup.fixed.encode({"w": np.zeros((2, 3), np.float32), "b": [np.zeros(())]}, 1, False, 0)


def test_errors_are_values_and_travel() -> None:
    error = TooFewSurvivors("mask", 3, 2)
    assert isinstance(error, SecureAggregationError)
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "mask: expected at least 3 clients (the threshold), got 2"
    assert "advertise" in repr(SecureAggregator(np.zeros(3), 3))
    assert "SecureClient 2" in repr(SecureClient(2, SecureAggregator(np.zeros(3), 3).setup()))


def test_a_sum_that_was_interrupted_is_the_same_when_asked_for_again(
    ctrl_c_at_every_call: Callable[..., Iterator[int]],
) -> None:
    whole = SecureAggregator(model(0), 3, 2)
    run(whole, {i: SecureClient(i, whole.setup()) for i in range(3)}, {i: model(i) for i in range(3)})
    expected = pickle_free_copy(whole).ring_sum()
    server = pickle_free_copy(whole)

    def work() -> None:
        server.ring_sum()

    for n in ctrl_c_at_every_call(work, secure, _ring):
        assert np.array_equal(server.ring_sum(), expected), n
        server = pickle_free_copy(whole)
    assert n > 50
