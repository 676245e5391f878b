"""Private federated learning on the digits: noise and secure aggregation joined, with what it costs in epsilon.

Forty devices, a few of which drop out every round. Each clips what its training changed, adds its part of the noise,
and masks the result; the server learns the noisy sum of those who stayed, and nothing else. Needs the extra `privacy`.
"""

import importlib.util

import numpy as np
from sklearn.datasets import load_digits

from edgefast.aggregate import GaussianMechanism, SecureAggregator, SecureClient, dp_epsilon

DEVICES, THRESHOLD, COLLUDING, ROUNDS = 40, 30, 4, 12
NOISE, CLIP, DELTA = 2.0, 0.5, 1e-4
X, y = load_digits(return_X_y=True)
X = np.hstack([X / 16, np.ones((len(X), 1))])
rng = np.random.default_rng(0)
order = rng.permutation(len(X))
test, shards = order[:397], np.array_split(order[397:], DEVICES)


def trained(model: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Five passes of gradient descent on softmax regression."""
    W, onehot = model.copy(), np.eye(10)[y[rows]]
    for _ in range(5):
        p = np.exp(X[rows] @ W)
        W -= 0.5 * X[rows].T @ (p / p.sum(axis=1, keepdims=True) - onehot) / len(rows)
    return W


def one_round(model: np.ndarray) -> np.ndarray:
    # At least this many honest devices are in every sum that comes out, each with its part of the noise.
    honest = THRESHOLD - COLLUDING
    mechanism = GaussianMechanism(NOISE, CLIP)
    largest = CLIP + 8 * NOISE * CLIP / honest**0.5
    server = SecureAggregator(model, DEVICES, THRESHOLD, limit=largest)
    devices = {i: SecureClient(i, server.setup()) for i in range(DEVICES)}
    for device in devices.values():
        server.receive(device.advertise())
    roster = server.roster()
    for device in devices.values():
        server.receive(device.share(roster))
    mail = server.deliveries()
    for i in rng.choice(DEVICES, rng.integers(0, 6), replace=False):
        del devices[i]  # out of battery
    for i, device in devices.items():
        private = mechanism.randomize(trained(model, shards[i]), clients=honest, base=model)
        server.receive(device.mask(mail[i], private, saturate=True))
    survivors = server.survivors()
    for device in list(devices.values())[:THRESHOLD]:
        server.receive(device.unmask(survivors))
    return model + server.result()


def accuracy(model: np.ndarray) -> float:
    return float(np.mean(np.argmax(X[test] @ model, axis=1) == y[test]))


def main() -> None:
    model = np.zeros((X.shape[1], 10))
    for step in range(1, ROUNDS + 1):
        model = one_round(model)
        if step % 4 == 0:
            # What the server's view and all models so far cost every device.
            spent = dp_epsilon(NOISE, step, delta=DELTA, accountant="pld")
            print(f"round {step:2}: accuracy {accuracy(model):.3f}, epsilon {spent:.2f} at delta {DELTA}")
    assert accuracy(model) > 0.5


if all(importlib.util.find_spec(name) for name in ("cryptography", "dp_accounting")):
    main()
else:
    print("needs pip install 'edgefast[privacy]'")
