"""The global model as a run leaves it: what to do to a row, in which order, to get its class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgefast.errors import InputError
from edgefast.federated.training import Scaler, log_softmax
from edgefast.files import replacing
from edgefast.sketch import SketchOperator

__all__ = ["MODEL_FILE", "OPERATOR_FILE", "Model", "load_model"]

MODEL_FILE = "model.npz"
OPERATOR_FILE = "operator.bin"
_VERSION = 1
_FIELDS = ("version", "weights", "bias", "mean", "deviation", "classes", "features", "target")


class Model:
    """Scores new rows: standardise, sketch, softmax regression.

    Attributes:
        operator: the SketchOperator all devices shared, d to k features.
        weights: shape (k, C).
        bias: shape (C,).
        classes: the C labels.
        features: the d column names.
        target: name of the label column the model was trained with, or None.
    """

    def __init__(
        self,
        operator: SketchOperator,
        scaler: Scaler,
        weights: NDArray[Any],
        bias: NDArray[Any],
        classes: NDArray[Any],
        features: tuple[str, ...],
        target: str | None = None,
    ) -> None:
        self.operator: SketchOperator = operator
        self.weights: NDArray[Any] = weights
        self.bias: NDArray[Any] = bias
        self.classes: NDArray[Any] = classes
        self.features: tuple[str, ...] = features
        self.target: str | None = target
        self._scaler = scaler

    def sketch(self, X: ArrayLike) -> NDArray[Any]:
        """What would leave a device for these rows: shape (n, k).

        Raises:
            TypeError: X is not numeric.
            ValueError: X is not of shape (n, d) or (d,), or holds NaN or infinity.
        """
        rows = np.asarray(X)
        if rows.dtype.kind not in "fiub":
            raise TypeError(f"X: expected numbers, got dtype {rows.dtype}")
        d = self.operator.n_features
        if rows.ndim not in (1, 2) or rows.shape[-1] != d:
            raise ValueError(f"X: expected shape (n, {d}) or ({d},), got {rows.shape}")
        if not np.isfinite(rows).all():
            raise ValueError("X: expected finite numbers, got NaN or infinity")
        return self.operator.transform(self._scaler.transform(np.atleast_2d(rows)))

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Probability of every class: shape (n, C), rows sum to 1, columns in the order of `classes`.

        Args:
            X: shape (n, d), or (d,) for one row; any real dtype.

        Raises:
            TypeError: X is not numeric.
            ValueError: X is not of shape (n, d) or (d,), or holds NaN or infinity.
        """
        return np.exp(log_softmax(self.sketch(X) @ self.weights + self.bias))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class of every row: shape (n,), entries of `classes`.

        Args:
            X: shape (n, d), or (d,) for one row; any real dtype.

        Raises:
            TypeError: X is not numeric.
            ValueError: X is not of shape (n, d) or (d,), or holds NaN or infinity.
        """
        return self.classes[np.argmax(self.sketch(X) @ self.weights + self.bias, axis=1)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write model.npz and operator.bin (24 bytes) into a folder, which is made if need be."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        arrays = {
            "version": np.int64(_VERSION),
            "weights": self.weights,
            "bias": self.bias,
            "mean": self._scaler.mean,
            "deviation": self._scaler.deviation,
            "classes": self.classes,
            "features": np.asarray(self.features, dtype=np.str_),
            "target": np.asarray([] if self.target is None else [self.target], dtype=np.str_),
        }
        # The new file replaces the old one whole: a run cut off here leaves one that can be read.
        with replacing(target / MODEL_FILE) as file, open(file, "wb") as f:
            np.savez(f, **arrays)
        with replacing(target / OPERATOR_FILE) as file:
            file.write_bytes(self.operator.to_bytes())

    def __repr__(self) -> str:
        return f"Model({self.operator!r}, classes={len(self.classes)})"


def load_model(folder: str | os.PathLike[str]) -> Model:
    """The model a run left in a folder: `load_model(DIR).predict(X)`.

    Args:
        folder: holds model.npz and operator.bin. Nothing in them is unpickled.

    Raises:
        InputError: the folder or a file is missing, damaged, of another version, or the two do not fit together. It
            is a ValueError.
    """
    root = Path(folder)
    for file in (MODEL_FILE, OPERATOR_FILE):
        if not (root / file).is_file():
            raise InputError(f"{root}: expected the folder of a run, there is no {file} in it")
    try:
        operator = SketchOperator.from_bytes((root / OPERATOR_FILE).read_bytes())
    except ValueError as error:
        raise InputError(f"{root / OPERATOR_FILE}: {error}") from None
    path = root / MODEL_FILE
    try:
        with open(path, "rb") as f, np.load(f, allow_pickle=False) as stored:
            missing = [f for f in _FIELDS if f not in stored.files]
            if missing:
                raise InputError(f"{path}: expected {', '.join(_FIELDS)}; there is no {missing[0]}")
            found = {f: stored[f] for f in _FIELDS}
    except InputError:
        raise
    except (
        Exception
    ) as error:  # whatever numpy's reader raises on damaged bytes: ValueError, BadZipFile, zlib.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable model ({reason})") from None
    if found["version"].shape != () or found["version"] != _VERSION:
        raise InputError(f"{path}: expected version {_VERSION}, got {found['version']}")
    d, k, c = operator.n_features, operator.n_components, len(np.atleast_1d(found["classes"]))
    shapes = {"weights": (k, c), "bias": (c,), "mean": (d,), "deviation": (d,), "classes": (c,), "features": (d,)}
    for field, shape in shapes.items():
        if found[field].shape != shape:
            raise InputError(f"{path}: expected {field} of shape {shape}, got {found[field].shape}")
    for field in ("weights", "bias", "mean", "deviation"):
        if found[field].dtype.kind != "f" or not np.isfinite(found[field]).all():
            raise InputError(f"{path}: expected finite floating-point numbers in {field}")
    if found["target"].ndim != 1 or len(found["target"]) > 1:
        raise InputError(f"{path}: expected at most one target, got shape {found['target'].shape}")
    return Model(
        operator,
        Scaler(found["mean"].astype(np.float64), found["deviation"].astype(np.float64)),
        found["weights"],
        found["bias"],
        found["classes"],
        tuple(found["features"].tolist()),
        *found["target"].tolist(),
    )
