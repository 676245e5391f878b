"""Secure aggregation: masks a second, one client's and the server's part of a round; and the private mean.

Limits: a mask costs its keystream, 7 GB/s of ChaCha20 per core on an AVX-512 machine (`openssl speed -evp chacha20`),
and one addition in cache, 40 GB/s and more. A client of n makes n of them, the server one for every survivor and one
for every pair of a survivor and a client that dropped out. Peers: Flower's helpers for SecAgg+, whose generator is
numpy's MT19937 with a 32-bit seed; numpy's Philox, which is no cryptographic generator either; the keystream without
tiles. The private mean has to read every update twice (norm, then sum) and to draw its noise.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import GaussianMechanism, SecureAggregator, SecureClient
from edgefast.aggregate._ring import add_masks

P, CLIENTS, GONE, THRESHOLD = 1_000_000, 20, 2, 14
THREADS = (1, 2)
KEYS = [(np.random.default_rng(k).bytes(32), 1 if k % 2 else -1) for k in range(CLIENTS)]

pytest.importorskip("cryptography")


def keystream(key: bytes, size: int) -> Any:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    return Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor().update(bytes(size))


@pytest.mark.parametrize("threads", THREADS)
def test_masks_ours(benchmark: Any, contender: Any, threads: int) -> None:
    benchmark.group = f"masks {CLIENTS} keys x uint32 {P} {threads}t"
    vector = np.zeros(P, "<u4")
    contender(benchmark, "edgefast", ours=True, bytes=CLIENTS * vector.nbytes)
    add_masks(vector, KEYS, threads)
    expected = np.zeros(P, "<u4")
    for key, sign in KEYS:
        expected += np.uint32(sign % 2**32) * np.frombuffer(keystream(key, vector.nbytes), "<u4")
    assert (vector == expected).all()
    benchmark(add_masks, vector, KEYS, threads)


def test_masks_keystream_at_once(benchmark: Any, contender: Any) -> None:
    benchmark.group = f"masks {CLIENTS} keys x uint32 {P} 1t"
    vector = np.zeros(P, "<u4")
    contender(benchmark, "cryptography + numpy, whole vectors", bytes=CLIENTS * vector.nbytes)

    def work() -> None:
        for key, sign in KEYS:
            mask = np.frombuffer(keystream(key, vector.nbytes), "<u4")
            (np.add if sign > 0 else np.subtract)(vector, mask, out=vector)

    work()
    expected = np.zeros(P, "<u4")
    add_masks(expected, KEYS)
    assert (vector == expected).all()
    benchmark(work)


def test_masks_philox(benchmark: Any, contender: Any) -> None:
    benchmark.group = f"masks {CLIENTS} keys x uint32 {P} 1t"
    vector = np.zeros(P, "<u4")
    contender(benchmark, "numpy Philox (not cryptographic)", bytes=CLIENTS * vector.nbytes)

    def work() -> None:
        for key, sign in KEYS:
            mask = np.random.Philox(key=key[0]).random_raw(P // 2).view("<u4")
            (np.add if sign > 0 else np.subtract)(vector, mask, out=vector)

    work()
    assert vector.any()
    benchmark(work)


def test_masks_flower(benchmark: Any, contender: Any) -> None:
    utils = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
    arrays = pytest.importorskip("flwr.common.secure_aggregation.ndarrays_arithmetic")
    benchmark.group = f"masks {CLIENTS} keys x uint32 {P} 1t"
    contender(benchmark, "Flower SecAgg+ helpers", bytes=CLIENTS * P * 4)

    def work() -> Any:
        total = [np.zeros(P, np.int64)]
        for key, sign in KEYS:
            mask = utils.pseudo_rand_gen(key, 1 << 32, [(P,)])
            total = (arrays.parameters_addition if sign > 0 else arrays.parameters_subtraction)(total, mask)
        return arrays.parameters_mod(total, 1 << 32)

    assert work()[0].any()
    benchmark.pedantic(work, rounds=2)


@functools.cache
def made_updates() -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (CLIENTS, P)).astype(np.float32)


class Session:
    """Everything up to the step that is measured."""

    def __init__(self, threads: int) -> None:
        self.updates = made_updates()
        self.server = SecureAggregator(self.updates[0], CLIENTS, THRESHOLD, num_threads=threads)
        setup = self.server.setup()
        self.clients = [SecureClient(i, setup, num_threads=threads) for i in range(CLIENTS)]
        for c in self.clients:
            self.server.receive(c.advertise())
        roster = self.server.roster()
        for c in self.clients:
            self.server.receive(c.share(roster))
        self.mail = self.server.deliveries()

    def masked(self) -> None:
        for c in self.clients[GONE:]:
            self.server.receive(c.mask(self.mail[c.client], self.updates[c.client]))
        alive = self.server.survivors()
        for c in self.clients[GONE:]:
            self.server.receive(c.unmask(alive))


@pytest.mark.parametrize("threads", THREADS)
def test_client_ours(benchmark: Any, contender: Any, threads: int) -> None:
    """What a client does between the others' shares and its masked update: shares opened, encoded, 20 masks."""
    benchmark.group = f"client of {CLIENTS} masks float32 {P} {threads}t"
    contender(benchmark, "edgefast", ours=True, bytes=P * 4)
    s = Session(threads)
    c = s.clients[5]

    def again() -> Any:
        c._step = "mask"
        return c.mask(s.mail[5], s.updates[5])

    first = bytes(again().vector)
    c._step = "mask"
    s.masked()
    np.testing.assert_allclose(s.server.result(), s.updates[GONE:].mean(axis=0), atol=2e-6)
    assert bytes(benchmark(again).vector) == first


def test_client_flower(benchmark: Any, contender: Any) -> None:
    """Quantise, mask with 20 keys, modulus: what its client mod does with the same vector."""
    utils = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
    arrays = pytest.importorskip("flwr.common.secure_aggregation.ndarrays_arithmetic")
    quantization = pytest.importorskip("flwr.common.secure_aggregation.quantization")
    benchmark.group = f"client of {CLIENTS} masks float32 {P} 1t"
    contender(benchmark, "Flower SecAgg+ helpers", bytes=P * 4)
    x = np.random.default_rng(0).uniform(-1, 1, P).astype(np.float32)

    def masked(total: Any, flip: int) -> Any:
        for key, sign in KEYS:
            mask = utils.pseudo_rand_gen(key, 1 << 32, [(P,)])
            add = arrays.parameters_addition if sign * flip > 0 else arrays.parameters_subtraction
            total = add(total, mask)
        return arrays.parameters_mod(total, 1 << 32)

    def work() -> Any:
        return masked([a.astype(np.int64) for a in quantization.quantize([x], 1.0, 1 << 22)], 1)

    back = quantization.dequantize(masked(work(), -1), 1.0, 1 << 22)[0]
    np.testing.assert_allclose(back, x, atol=1e-5)
    benchmark.pedantic(work, rounds=2)


@pytest.mark.parametrize("threads", THREADS)
def test_server_ours(benchmark: Any, contender: Any, threads: int) -> None:
    """From the last message to the sum: 18 self-masks and 36 pairs lifted, secrets put together from their shares."""
    benchmark.group = f"server lifts {CLIENTS - GONE} + {GONE * (CLIENTS - GONE)} masks uint32 {P} {threads}t"
    contender(benchmark, "edgefast", ours=True, bytes=(1 + GONE) * (CLIENTS - GONE) * P * 4)
    s = Session(threads)
    s.masked()
    masked = s.server._total.copy()

    def again() -> Any:
        s.server._step = "unmask"
        s.server._total[...] = masked
        return s.server.ring_sum()

    expected = np.rint(s.updates[GONE:].astype(np.float64) / s.server.resolution).sum(axis=0)
    assert (benchmark(again) == expected).all()


def test_server_flower(benchmark: Any, contender: Any) -> None:
    """As many masks lifted as its workflow does, shares not counted."""
    utils = pytest.importorskip("flwr.common.secure_aggregation.secaggplus_utils")
    arrays = pytest.importorskip("flwr.common.secure_aggregation.ndarrays_arithmetic")
    count = (1 + GONE) * (CLIENTS - GONE)
    benchmark.group = f"server lifts {CLIENTS - GONE} + {GONE * (CLIENTS - GONE)} masks uint32 {P} 1t"
    contender(benchmark, "Flower SecAgg+ helpers", bytes=count * P * 4)

    def work() -> Any:
        total = [np.zeros(P, np.int64)]
        for k in range(count):
            mask = utils.pseudo_rand_gen(bytes([k]) * 36, 1 << 32, [(P,)])
            total = (arrays.parameters_addition if k % 2 else arrays.parameters_subtraction)(total, mask)
        return arrays.parameters_mod(total, 1 << 32)

    assert work()[0].any()
    benchmark.pedantic(work, rounds=1)


@pytest.mark.parametrize("threads", THREADS)
def test_round_ours(benchmark: Any, contender: Any, threads: int) -> None:
    """Everything, all clients and the server one after the other in one process: keys, shares, masks, sum."""
    benchmark.group = f"round of {CLIENTS}, {GONE} drop out, float32 {P} {threads}t"
    contender(benchmark, "edgefast", ours=True, bytes=CLIENTS * P * 4)

    def work() -> Any:
        s = Session(threads)
        s.masked()
        return s, s.server.result()

    s, mean = benchmark.pedantic(work, rounds=3)
    np.testing.assert_allclose(mean, s.updates[GONE:].mean(axis=0), atol=2e-6)


# ---- the private mean ----------------------------------------------------------------------------------------------


def updates() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.standard_normal(P, np.float32) for _ in range(10)]


def test_private_mean_ours(benchmark: Any, contender: Any) -> None:
    benchmark.group = f"private mean 10 clients float32 {P} 1t"
    contender(benchmark, "edgefast", ours=True, bytes=11 * P * 4)
    mechanism = GaussianMechanism(1.0, 10.0, num_threads=1)
    made = updates()
    assert abs(mechanism.mean(made).std() - 1.0) < 0.05
    benchmark(mechanism.mean, made)


def test_private_mean_numpy(benchmark: Any, contender: Any) -> None:
    """The textbook in numpy: a seedable generator, floating-point noise, float64 sums."""
    benchmark.group = f"private mean 10 clients float32 {P} 1t"
    contender(benchmark, "numpy (PCG64, no grid)", bytes=11 * P * 4)
    made = updates()
    rng = np.random.default_rng()

    def work() -> Any:
        total = np.zeros(P)
        for u in made:
            total += u * min(1.0, 10.0 / float(np.linalg.norm(u)))
        return ((total + rng.normal(0.0, 10.0, P)) / 10).astype(np.float32)

    assert abs(work().std() - 1.0) < 0.05
    benchmark(work)
