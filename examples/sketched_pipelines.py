"""Classification, clustering and regression on sketches, against the same models on all features.

The bundled data sets of scikit-learn, projected by `RandomProjection` inside its pipelines. The diabetes table is
expanded to 285 polynomial features first: sketching is for wide data. Draws sketched_pipelines.png.
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from edgefast.integrations.sklearn import RandomProjection

SEEDS = range(5)


def classification(k: int | None, seed: int) -> float:
    """Mean accuracy of a linear classifier, digits."""
    steps = [] if k is None else [RandomProjection(k, kind="srht", random_state=seed)]
    X, y = load_digits(return_X_y=True)
    return cross_val_score(make_pipeline(*steps, RidgeClassifier()), X / 16, y, cv=3).mean()


def clustering(k: int | None, seed: int) -> float:
    """How well k-means finds benign and malign, breast cancer, as the adjusted Rand index."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    if k is not None:
        X = RandomProjection(k, kind="srht", random_state=seed).fit_transform(X)
    return adjusted_rand_score(y, KMeans(2, n_init=5, random_state=0).fit_predict(X))


def regression(k: int | None, seed: int) -> float:
    """Share of variance that ridge regression explains, diabetes with products of up to three features."""
    wide = [StandardScaler(), PolynomialFeatures(3, include_bias=False), StandardScaler()]
    steps = wide if k is None else [*wide, RandomProjection(k, random_state=seed)]
    X, y = load_diabetes(return_X_y=True)
    return cross_val_score(make_pipeline(*steps, Ridge(2000.0)), X, y, cv=5).mean()


TASKS = {
    "classification: accuracy\n(digits, 64 features)": (classification, (8, 16, 32, 48)),
    "clustering: adjusted Rand index\n(breast cancer, 30 features)": (clustering, (4, 8, 16, 24)),
    "regression: R²\n(diabetes, 285 polynomial features)": (regression, (16, 32, 64, 128)),
}

figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 3.6), layout="constrained")
for axes, (title, (task, sizes)) in zip(panels, TASKS.items(), strict=True):
    full = task(None, 0)
    scores = np.array([[task(k, seed) for seed in SEEDS] for k in sizes])
    axes.axhline(full, color="0.4", linestyle="--", label="all features")
    axes.plot(sizes, scores.mean(axis=1), "o-", color="#0072b2", label="sketched, mean of 5 operators")
    axes.fill_between(sizes, scores.min(axis=1), scores.max(axis=1), color="#0072b2", alpha=0.2, label="worst to best")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("components")
    axes.set_xticks(sizes)
    axes.spines[["top", "right"]].set_visible(False)
    sketched = ", ".join(f"{s.mean():.3f} with {k}" for k, s in zip(sizes, scores, strict=True))
    print(f"{title.partition(':')[0]}: {full:.3f} with all features; {sketched}")
    assert scores[-1].mean() > full - 0.05
panels[0].legend(loc="lower right", frameon=False, fontsize=9)
figure.savefig("sketched_pipelines.png", dpi=130)
