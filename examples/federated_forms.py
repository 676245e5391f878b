"""Federated learning in three forms, on the digits: with a server, through gateways, and between devices alone.

Twelve devices hold different digits each. The same local training feeds FedAvgM on a server (client-server), four
gateways whose partial sums a cloud merges (hybrid), and gossip around a ring with two shortcuts (peer to peer). Draws
federated_forms.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from edgefast.aggregate import FedAvg, FedAvgM, MeanAccumulator, gossip, metropolis_mixing

DEVICES, ROUNDS, CLASSES = 12, 25, 10
X, y = load_digits(return_X_y=True)
X = np.hstack([X / 16, np.ones((len(X), 1))])
rng = np.random.default_rng(0)
test = rng.permutation(len(X))[:400]
train = np.setdiff1d(np.arange(len(X)), test)
# Non-IID: sorted by digit, then dealt in two pieces to a device.
pieces = np.array_split(train[np.argsort(y[train], kind="stable")], 2 * DEVICES)
order = rng.permutation(2 * DEVICES)
shards = [np.concatenate([pieces[order[2 * i]], pieces[order[2 * i + 1]]]) for i in range(DEVICES)]

Model = dict[str, np.ndarray]


def train_on(model: Model, rows: np.ndarray) -> Model:
    """Four passes of gradient descent on softmax regression."""
    W = model["W"].copy()
    onehot = np.eye(CLASSES)[y[rows]]
    for _ in range(4):
        logits = X[rows] @ W
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        W -= 1.0 * X[rows].T @ (p - onehot) / len(rows)
    return {"W": W}


def accuracy(model: Model) -> float:
    return float(np.mean(np.argmax(X[test] @ model["W"], axis=1) == y[test]))


def start() -> Model:
    return {"W": np.zeros((X.shape[1], CLASSES))}


def with_a_server() -> list[float]:
    model, server, curve = start(), FedAvgM(lr=1.0, momentum=0.5), []
    for _ in range(ROUNDS):
        acc = MeanAccumulator(model)
        for rows in shards:
            acc.add(train_on(model, rows), len(rows))
        model = server.step(model, acc)
        curve.append(accuracy(model))
    return curve


def through_gateways() -> list[float]:
    model, server, curve = start(), FedAvg(), []
    for _ in range(ROUNDS):
        cloud = MeanAccumulator(model, accumulate="reproducible")
        for gateway in np.array_split(np.arange(DEVICES), 4):
            partial = MeanAccumulator(model, accumulate="reproducible")
            for device in gateway:
                partial.add(train_on(model, shards[device]), len(shards[device]))
            cloud.merge(MeanAccumulator.from_bytes(partial.to_bytes()))  # what the gateway sends
        model = server.step(model, cloud)
        curve.append(accuracy(model))
    return curve


def between_devices() -> list[float]:
    linked = np.zeros((DEVICES, DEVICES), bool)
    for a, b in [*((i, (i + 1) % DEVICES) for i in range(DEVICES)), (0, 6), (3, 9)]:
        linked[a, b] = linked[b, a] = True
    mixing = metropolis_mixing(linked)
    models, curve = [start() for _ in shards], []
    for _ in range(ROUNDS):
        models = [train_on(model, rows) for model, rows in zip(models, shards, strict=True)]
        models = gossip(gossip(models, mixing), mixing)
        curve.append(float(np.mean([accuracy(model) for model in models])))
    return curve


curves = {
    "with a server (FedAvgM)": with_a_server(),
    "through four gateways (FedAvg)": through_gateways(),
    "between devices (gossip, mean of devices)": between_devices(),
}
for name, curve in curves.items():
    print(f"{name}: accuracy {curve[0]:.3f} after one round, {curve[-1]:.3f} after {ROUNDS}")
    assert curve[-1] > 0.8

figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for (name, curve), style in zip(curves.items(), ("o-", "s-", "^-"), strict=True):
    axes.plot(range(1, ROUNDS + 1), curve, style, markersize=4, label=name)
axes.set_xlabel("round")
axes.set_ylabel("accuracy on 400 held-out digits")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
figure.savefig("federated_forms.png", dpi=130)
