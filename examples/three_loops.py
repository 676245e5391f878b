"""The three loops by hand: ten devices sketch their data, a queue carries it to a trainer each, a mean joins models.

Needs scikit-learn for the data. `edgefast run` does the same with reports and options.
"""

import threading

import numpy as np
from sklearn.datasets import load_digits

from edgefast.aggregate import MeanAccumulator
from edgefast.queues import Queue
from edgefast.sketch import SketchOperator

DEVICES, ROUNDS, CLASSES = 10, 60, 10
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
train, test = np.arange(0, 1500), np.arange(1500, len(X))
operator = SketchOperator("sparse_stack", n_features=64, n_components=32, seed=7)


def source(rows: np.ndarray, queue: Queue) -> None:
    """Sketches mini-batches as they come; put waits while the trainer is behind."""
    for part in np.array_split(rows, max(1, len(rows) // 16)):
        queue.put((operator.transform(X[part]), y[part]))
    queue.shutdown()


def train_on(queue: Queue, model: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Softmax regression, one pass over what the queue brings."""
    model = {k: v.copy() for k, v in model.items()}
    seen = 0
    for Z, labels in queue:
        p = np.exp(Z @ model["w"] + model["b"])
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(labels)), labels] -= 1
        model["w"] -= 0.5 * Z.T @ p / len(labels)
        model["b"] -= 0.5 * p.mean(axis=0)
        seen += len(labels)
    return model, seen


model = {"w": np.zeros((32, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)}
shards = np.array_split(train[np.argsort(y[train], kind="stable")], DEVICES)  # each device sees one or two digits
for _ in range(ROUNDS):
    accumulator = MeanAccumulator(model)
    for rows in shards:
        queue = Queue(16, high_watermark=8, low_watermark=2)
        threading.Thread(target=source, args=(rows, queue)).start()
        accumulator.add(*train_on(queue, model))
    model = accumulator.result()

accuracy = float((np.argmax(operator.transform(X[test]) @ model["w"] + model["b"], axis=1) == y[test]).mean())
print(f"accuracy after {ROUNDS} rounds: {accuracy:.3f}")
assert accuracy > 0.8
