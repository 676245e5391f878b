"""Sketch-and-precondition: least squares to full accuracy, in a number of steps that the conditioning cannot change.

Predicts a measured membrane potential from its last 200 values, 11,800 equations whose matrix has a condition number
of 2000. LSQR alone crawls; the R factor of a small sketch of the rows makes it a well-conditioned problem (V. Rokhlin
and M. Tygert, PNAS 2008; H. Avron, P. Maymounkov and S. Toledo, "Blendenpik", SIAM J. Sci. Comput. 2010). Draws
least_squares.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.cbook
import matplotlib.pyplot as plt
import numpy as np
from scipy.linalg import qr, solve_triangular
from scipy.sparse.linalg import LinearOperator, lsqr

from edgefast.sketch import RowSketch

LAGS, STEPS = 200, (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
with matplotlib.cbook.get_sample_data("membrane.dat") as file:
    signal = np.fromfile(file, np.float32).astype(np.float64)
windows = np.lib.stride_tricks.sliding_window_view(signal, LAGS + 1)
A, b = np.ascontiguousarray(windows[:, :LAGS]), windows[:, LAGS]
exact = np.linalg.lstsq(A, b, rcond=None)[0]

# One pass over the rows, as they come: a 4 x LAGS sketch and its triangular factor are all that is kept.
sketch = RowSketch(LAGS, 4 * LAGS, seed=1)
for rows in np.array_split(A, 25):
    sketch.update(rows)
R = qr(sketch.toarray(), mode="economic")[1]
preconditioned = LinearOperator(
    A.shape,
    matvec=lambda y: A @ solve_triangular(R, y),
    rmatvec=lambda r: solve_triangular(R, A.T @ r, trans=1),
    dtype=A.dtype,
)


def error(x: np.ndarray) -> float:
    """How far a solution's fit is from the best one, relative to it."""
    return float(np.linalg.norm(A @ (x - exact)) / np.linalg.norm(A @ exact))


plain = [error(lsqr(A, b, iter_lim=n, atol=0, btol=0)[0]) for n in STEPS]
ours = [error(solve_triangular(R, lsqr(preconditioned, b, iter_lim=n, atol=0, btol=0)[0])) for n in STEPS]
condition, better = np.linalg.cond(A), np.linalg.cond(solve_triangular(R, A.T, trans=1))
print(f"condition {condition:.0f}, after preconditioning {better:.1f}")
print(f"relative error after {STEPS[-1]} steps of LSQR: {plain[-1]:.1e} alone, {ours[-1]:.1e} preconditioned")
assert ours[-1] < 1e-12

figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
axes.semilogy(STEPS, plain, "s-", color="0.4", label="LSQR alone")
axes.semilogy(STEPS, ours, "o-", color="#0072b2", label="LSQR preconditioned by an 800-row sketch")
axes.set_xlabel("steps (each two passes over the data)")
axes.set_ylabel("relative error of the fit")
axes.set_title(f"{len(b):,} equations, {LAGS} unknowns, condition {condition:.0f} → {better:.1f}", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
figure.savefig("least_squares.png", dpi=130)
