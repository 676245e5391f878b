"""Three devices sketch the rows they have; what they send adds up to the sketch of all rows, bit for bit.

Each device keeps 80 rows of sums whatever it sees, in 64-bit integers: the order of arrival, the batches and the tree
of gateways cannot change a bit. The union is then solved, without the rows ever having left a device. Uses
scikit-learn's breast cancer table.
"""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from edgefast.sketch import RowSketch

X, y = load_breast_cancer(return_X_y=True)
table = np.column_stack([StandardScaler().fit_transform(X)[:, :10], 2.0 * y - 1])  # the target is the last column
rows = np.array_split(table, [200, 450])  # a big device, a bigger one and a small one

messages = []
for device, mine in enumerate(rows):
    sketch = RowSketch(table.shape[1], 80, seed=9, stream=device, accumulate="int64")
    for batch in np.array_split(mine, 7):
        sketch.update(batch)
    messages.append(sketch.to_bytes())

merged = []
for order in ((0, 1, 2), (2, 0, 1)):
    gateway = RowSketch.from_bytes(messages[order[0]])
    for device in order[1:]:
        gateway.merge(RowSketch.from_bytes(messages[device]))
    merged.append(gateway)
assert merged[0].toarray().tobytes() == merged[1].toarray().tobytes()

# Any other way to cut the same rows gives the same bytes: here one device's rows are split over two sketches.
first = RowSketch(table.shape[1], 80, seed=9, stream=1, accumulate="int64").update(rows[1][:100])
rest = RowSketch(table.shape[1], 80, seed=9, stream=1, accumulate="int64").update(rows[1][100:], row_start=100)
assert first.merge(rest).toarray().tobytes() == RowSketch.from_bytes(messages[1]).toarray().tobytes()

coefficients = merged[0].lstsq()
exact = np.linalg.lstsq(table[:, :-1], table[:, -1], rcond=None)[0]
fit = [float(np.linalg.norm(table[:, :-1] @ c - table[:, -1])) for c in (coefficients, exact)]
print(f"{merged[0].n_seen} rows in {len(messages[0]):,} bytes a device; residual {fit[0] / fit[1]:.3f} of the best")
assert fit[0] < 1.25 * fit[1]
