"""Denoising without seeing the clean data: frequent directions of a noisy stream, learnt in one pass.

The digits, with noise as strong as the signal, stream past in batches of 64. A sketch of 20 directions keeps what is
common to them; projecting onto it removes the noise of the other 44. Draws denoise.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from edgefast.sketch import FrequentDirections

clean = load_digits().data
clean = clean - clean.mean(axis=0)
rng = np.random.default_rng(0)
noisy = clean + clean.std() * rng.standard_normal(clean.shape)

sketch = FrequentDirections(20)
for batch in np.array_split(noisy, 28):
    sketch.partial_fit(batch)


def snr(X: np.ndarray) -> float:
    """Signal-to-noise ratio in decibels."""
    return 10 * float(np.log10(np.sum(clean**2) / np.sum((X - clean) ** 2)))


ranks = range(1, 21)
gains = [snr(sketch.denoise(noisy, n_components=r)) for r in ranks]
best = int(np.argmax(gains)) + 1
restored = sketch.denoise(noisy, n_components=best)
U, s, Vt = np.linalg.svd(noisy, full_matrices=False)
offline = [snr(noisy @ Vt[:r].T @ Vt[:r]) for r in ranks]
print(
    f"noisy {abs(snr(noisy)):.1f} dB; denoised with {best} directions {max(gains):.1f} dB; "
    f"the best with all rows at hand (PCA) {max(offline):.1f} dB"
)
assert max(gains) > snr(noisy) + 3
assert max(gains) > max(offline) - 0.5

figure = plt.figure(figsize=(9.5, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
for row, (name, X) in enumerate({"clean": clean, "noisy": noisy, "denoised": restored}.items()):
    for column in range(8):
        axes = left.add_subplot(3, 8, row * 8 + column + 1)
        axes.imshow(X[column + 20].reshape(8, 8), cmap="gray_r")
        axes.set_xticks([])
        axes.set_yticks([])
        if column == 0:
            axes.set_ylabel(name)
axes = right.add_subplot()
axes.axhline(snr(noisy), color="0.4", linestyle="--", label="noisy")
axes.plot(ranks, offline, color="#e69f00", label="PCA, all rows at hand")
axes.plot(ranks, gains, "o-", color="#0072b2", markersize=4, label="frequent directions, one pass")
axes.set_xlabel("directions kept")
axes.set_ylabel("signal to noise, dB")
axes.set_xticks(range(2, 21, 3))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
figure.savefig("denoise.png", dpi=130)
