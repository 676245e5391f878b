"""De-duplication at a sensor: send only what was not sent a moment ago.

Windows of a measured membrane potential, one every 10 samples. Where the signal repeats itself the filter says so, in
constant memory, and only new windows leave the device. Draws dedup_sensor_stream.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np

from edgefast.sketch import DedupFilter

WINDOW, HOP = 100, 10
with matplotlib.cbook.get_sample_data("membrane.dat") as file:
    signal = np.fromfile(file, np.float32)
starts = np.arange(0, len(signal) - WINDOW, HOP)
windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[starts]
level = float(signal.mean())

budgets = (0, 2, 4, 8, 12, 16, 24)
kept, missed = [], []
for h in budgets:
    keep = DedupFilter(256, h, window=512).add(windows - level)
    kept.append(keep.mean())
    # What the receiver lacks: the angle between each window and the nearest one it has.
    unit = (windows - level) / np.linalg.norm(windows - level, axis=1, keepdims=True)
    cosine = (unit @ unit[keep].T).max(axis=1)
    missed.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))).max())

budget = 8
sent = DedupFilter(256, budget, window=512)
mask = np.concatenate([sent.add(batch - level) for batch in np.array_split(windows, 40)])  # as they come
print(
    f"{mask.sum()} of {len(mask)} windows sent ({mask.mean():.0%}), {sent.nbytes / 1024:.0f} kB of state; "
    f"no window is more than {missed[budgets.index(budget)]:.0f} degrees from one that was sent"
)
assert mask.mean() < 0.7
assert kept == sorted(kept, reverse=True)

figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", height_ratios=(1.2, 1))
top.plot(signal, color="0.6", linewidth=0.7, label="signal")
middle = starts[mask] + WINDOW // 2
top.plot(middle, signal[middle], ".", color="#0072b2", markersize=3, label=f"windows sent: {mask.mean():.0%}")
top.set_xlabel("sample")
top.set_ylabel("membrane potential")
top.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
bottom.plot(budgets, [100 * k for k in kept], "o-", color="#0072b2")
bottom.set_xlabel("bits of 256 in which duplicates may differ")
bottom.set_ylabel("windows sent, %")
bottom.set_ylim(0, 105)
for axes in (top, bottom):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig("dedup_sensor_stream.png", dpi=130)
