"""An edge gateway as one pipeline: find what repeats, sketch what sensors send, train, join the models.

Four devices send mini-batches of digits faster than the gateway trains. The pipeline keeps a few kilobytes in flight,
slows the devices down instead of piling up, and says where the time went. Needs scikit-learn for the data.
"""

import itertools
import threading

import numpy as np
from sklearn.datasets import load_digits

from edgefast.aggregate import MeanAccumulator
from edgefast.pipeline import Pipeline, Stage
from edgefast.sketch import DedupFilter, SketchOperator

DEVICES, PASSES, BATCH, CLASSES = 4, 12, 25, 10
X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
train, test = np.arange(0, 1500), np.arange(1500, len(X))
operator = SketchOperator("sparse_stack", n_features=64, n_components=32, seed=7)
models = [{"w": np.zeros((32, CLASSES), np.float32), "b": np.zeros(CLASSES, np.float32)} for _ in range(DEVICES)]
locks = [threading.Lock() for _ in range(DEVICES)]
sent = DedupFilter(256, 0, window=4096)


def readings():
    """(device, rows), as the devices would send them; from the second pass on every mini-batch repeats."""
    shards = np.array_split(train, DEVICES)
    for _, k in itertools.product(range(PASSES), range(len(shards[0]) // BATCH)):
        for device, rows in enumerate(shards):
            yield device, rows[k * BATCH : (k + 1) * BATCH]


def fresh(reading):
    """Counts the rows that have to travel: what repeats, the gateway has in its memory."""
    device, rows = reading
    return device, rows, int(sent.add(X[rows]).sum())


def sketch(reading):
    device, rows, new = reading
    return device, operator.transform(X[rows]), y[rows], new


def step(sketches):
    """One step of softmax regression for each mini-batch, on its device's model."""
    for device, Z, labels, new in sketches:
        with locks[device]:
            model = models[device]
            p = np.exp(Z @ model["w"] + model["b"])
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(labels)), labels] -= 1
            model["w"] -= 0.5 * Z.T @ p / len(labels)
            model["b"] -= 0.5 * p.mean(axis=0)
        yield device, len(labels), new


stages = [fresh, Stage(sketch, workers=2), Stage(step, batch=8, workers=2, ordered=False)]
weights = np.zeros(DEVICES)
uplink = 0
with Pipeline(stages, max_bytes=1 << 18, name="gateway") as pipeline:
    for device, rows, new in pipeline.map(readings()):
        weights[device] += rows
        uplink += new
    statistics = pipeline.statistics()

accumulator = MeanAccumulator(models[0])
for model, weight in zip(models, weights, strict=True):
    accumulator.add(model, weight)
model = accumulator.result()

accuracy = float((np.argmax(operator.transform(X[test]) @ model["w"] + model["b"], axis=1) == y[test]).mean())
for stage in statistics.stages:
    print(
        f"{stage.name:7} {stage.completed:5} items, at most {stage.peak:3} waiting ({stage.peak_bytes} bytes), "
        f"busy {stage.busy:.2f} s, blocked {stage.blocked:.2f} s, starved {stage.starved:.2f} s"
    )
print(f"{uplink} of {int(weights.sum())} rows were new; accuracy {accuracy:.3f}")
assert accuracy > 0.8
assert uplink <= len(train)
assert all(stage.peak_bytes <= 1 << 18 for stage in statistics.stages)
