"""Tables to train on and to score: scikit-learn's digits, or a file of the user's own."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefast.errors import InputError

__all__ = ["Dataset", "digits", "read_dataset", "read_features"]

_SUFFIXES = (".npz", ".npy", ".csv", ".parquet")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A checked table: numbers without gaps, and a class for every row.

    Attributes:
        X: features, shape (n, d), float32 or float64, finite.
        y: class number of each row, shape (n,), int64, indices into `classes`.
        classes: the labels, shape (C,) with C >= 2, sorted.
        features: d column names, "0" to "d-1" where the source has none.
        target: name of the label column; None where the source has none.
        name: what to call the data in a report.
    """

    X: NDArray[Any]
    y: NDArray[np.int64]
    classes: NDArray[Any]
    features: tuple[str, ...]
    target: str | None
    name: str

    @classmethod
    def of(
        cls, X: Any, y: Any, *, features: tuple[str, ...] | None = None, target: str | None = None, name: str = "data"
    ) -> Dataset:
        """Check a matrix and its labels.

        Args:
            X: shape (n, d), any real dtype; float64 stays, everything else becomes float32 when that is exact and
                float64 when it is not.
            y: n labels: integers, booleans, strings, or floats that are whole numbers.
            features: column names.
            target: name of the label column.
            name: what to call the data in a report.

        Raises:
            InputError: no such shape, text, NaN, infinity, continuous labels, or fewer than two classes.
        """
        X = _matrix(X, name, features)
        labels = _labels(y, target, name)
        if len(labels) != len(X):
            raise InputError(f"{name}: expected a label for each of the {len(X)} rows, got {len(labels)} labels")
        classes, numbers = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise InputError(
                f"{name}: expected at least two classes to tell apart, every label is {classes[0].item()!r}; "
                "is this the right target column?"
            )
        columns = features or tuple(map(str, range(X.shape[1])))
        return cls(X, numbers.astype(np.int64), classes, columns, target, name)


def digits() -> Dataset:
    """The 1797 handwritten digits bundled with scikit-learn: 64 features, 10 classes.

    Raises:
        InputError: scikit-learn is not installed.

    References:
        E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the default data needs scikit-learn; pip install 'edgefast[sklearn]'") from None
    X, y = load_digits(return_X_y=True)
    return Dataset.of(X.astype(np.float32), y, name="digits")


def read_dataset(path: str | os.PathLike[str], target: str | None) -> Dataset:
    """A labelled table out of a .npz, .npy, .csv or .parquet file.

    Args:
        path: the file. .csv has a header line; a .npz holds a label array called `target` and one matrix; a .npy
            holds a matrix with the labels in one column, or a structured array.
        target: name of the label column or array; its number in a plain .npy (negative from the end).

    Raises:
        InputError: the file cannot be read, or what is in it cannot be trained on; one line says why and what to do.

    Examples:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "room.csv"
        ...     _ = path.write_text("heat,light,busy\\n20.5,3,no\\n22,9,yes\\n21,8,yes\\n")
        ...     data = read_dataset(path, "busy")
        >>> data.X.shape, data.classes.tolist(), data.y.tolist()
        ((3, 2), ['no', 'yes'], [0, 1, 1])
    """
    columns, name = _read(path)
    if target is None:
        raise InputError(f"{name}: which column holds the class? name it with --target; {_choices(columns)}")
    if isinstance(columns, np.ndarray):
        width = columns.shape[1]
        number = _column_number(target, width, name)
        rest = [i for i in range(width) if i != number]
        if not rest:
            raise InputError(f"{name}: expected features beside the target column, got one column in all")
        features = tuple(str(i) for i in range(width - 1))
        return Dataset.of(columns[:, rest], columns[:, number], features=features, target=str(number), name=name)
    if target not in columns:
        raise InputError(f"{name}: there is no column {target!r}; {_choices(columns)}")
    labels = columns.pop(target)
    if np.ndim(labels) != 1:
        raise InputError(f"{name}: expected one label a row in {target!r}, got shape {np.shape(labels)}")
    labels = _labels(labels, target, name)  # first: with the wrong target column the features look wrong too
    X, features = _stack(columns, name)
    return Dataset.of(X, labels, features=features, target=target, name=name)


def read_features(
    path: str | os.PathLike[str], features: tuple[str, ...], target: str | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The features a model was trained on, out of a file, and its labels when the target column is there too.

    Args:
        path: a .npz, .npy, .csv or .parquet file, as for `read_dataset`; other named columns are left out.
        features: names of the model's d features.
        target: name (number for .npy) of the label column the model was trained with.

    Returns:
        X of shape (n, d), and n labels or None.

    Raises:
        InputError: the file cannot be read, or lacks features.
    """
    columns, name = _read(path)
    d = len(features)
    if isinstance(columns, np.ndarray):
        labels = None
        width = columns.shape[1]
        if width == d + 1 and target is not None and target.isdecimal() and int(target) < width:
            labels = columns[:, int(target)]
            columns = np.delete(columns, int(target), axis=1)
        elif width != d:
            raise InputError(f"{name}: expected {d} columns, one per feature of the model, got {width}")
        return _matrix(columns, name, None), labels
    labels = columns.pop(target) if target in columns else None
    matrices = [value for value in columns.values() if np.ndim(value) == 2]
    if matrices:
        X, _ = _stack(columns, name)
        if X.shape[1] != d:
            raise InputError(f"{name}: expected {d} columns, one per feature of the model, got {X.shape[1]}")
        return _matrix(X, name, None), labels
    missing = [f for f in features if f not in columns]
    if missing and len(columns) == d and features == tuple(map(str, range(d))):
        missing, features = [], tuple(columns)  # a model trained on nameless columns: their order decides
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"{name}: the model needs columns that are not there: {shown}")
    X, _ = _stack({f: columns[f] for f in features}, name)
    return _matrix(X, name, features), labels


# ---- files ---------------------------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]] | NDArray[Any], str]:
    """Named columns, or one matrix without names, and the name to use in messages."""
    file = Path(path)
    name = file.name
    suffix = file.suffix.lower()
    if file.is_dir():
        raise InputError(f"{file}: expected a file, this is a folder")
    if not file.exists():
        raise InputError(f"{file}: there is no such file")
    if suffix not in _SUFFIXES:
        raise InputError(f"{name}: expected a file ending in {', '.join(_SUFFIXES)}")
    try:
        found = _read_numpy(file) if suffix in (".npz", ".npy") else _read_table(file)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except Exception as error:  # whatever a reader raises on damaged bytes: ValueError, BadZipFile, zlib.error, ...
        reason = str(error).strip().split("\n", 1)[0]
        if "pickle" in reason:
            reason = "damaged, or it holds Python objects, which are not read; save plain numbers"
        raise InputError(f"{name}: not a readable {suffix} file ({reason or type(error).__name__})") from None
    rows = len(found) if isinstance(found, np.ndarray) else max((len(v) for v in found.values()), default=0)
    if rows == 0:
        raise InputError(f"{name}: expected rows, the file has none")
    return found, name


def _read_numpy(file: Path) -> dict[str, NDArray[Any]] | NDArray[Any]:
    # Pickled objects stay unread: a data file must not be able to run code.
    with open(file, "rb") as f:
        loaded = np.load(f, allow_pickle=False)
        arrays = loaded if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    if isinstance(arrays, np.ndarray):
        if arrays.dtype.names:
            return {field: arrays[field] for field in arrays.dtype.names}
        if arrays.ndim != 2:
            raise InputError(f"{file.name}: expected a matrix (rows, columns), got shape {arrays.shape}")
        return arrays
    for key, value in arrays.items():
        if value.ndim not in (1, 2):
            raise InputError(f"{file.name}: expected arrays of one or two dimensions, {key!r} has shape {value.shape}")
    lengths = {key: len(value) for key, value in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{file.name}: expected arrays of one length, got {lengths}")
    return arrays


def _read_table(file: Path) -> dict[str, NDArray[Any]]:
    try:
        import pandas

        if file.suffix.lower() == ".csv":
            frame = pandas.read_csv(file, skipinitialspace=True)
        else:
            frame = pandas.read_parquet(file)
    except ImportError:
        raise InputError(f"{file.name}: reading it needs pandas and pyarrow; pip install 'edgefast[cli]'") from None
    names = [str(c) for c in frame.columns]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"{file.name}: expected every column name once, {twice!r} is there twice")
    columns = {}
    for i, column in enumerate(names):
        series = frame.iloc[:, i]
        if pandas.api.types.is_bool_dtype(series.dtype) and not series.hasnans:
            columns[column] = series.to_numpy(bool)
        elif pandas.api.types.is_integer_dtype(series.dtype) and not series.hasnans:
            columns[column] = series.to_numpy(np.int64 if series.min() >= -(2**63) and series.max() < 2**63 else float)
        elif pandas.api.types.is_numeric_dtype(series.dtype):
            columns[column] = series.to_numpy(np.float64, na_value=np.nan)
        else:
            columns[column] = series.to_numpy(object)
    return columns


def _choices(columns: dict[str, NDArray[Any]] | NDArray[Any]) -> str:
    if isinstance(columns, np.ndarray):
        return f"columns are numbered 0 to {columns.shape[1] - 1}"
    names = list(columns)
    shown = ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"there are {shown}"


def _column_number(target: str, width: int, name: str) -> int:
    try:
        number = int(target)
    except ValueError:
        raise InputError(
            f"{name}: its columns have no names; expected a number from 0 to {width - 1} as target, got {target!r}"
        ) from None
    if not -width <= number < width:
        raise InputError(f"{name}: expected a target column from 0 to {width - 1}, got {number}")
    return number % width


def _stack(columns: dict[str, NDArray[Any]], name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """One matrix and its column names. A table's matrices (in .npz) keep numbers as names after their own."""
    if not columns:
        raise InputError(f"{name}: expected features beside the target column, there are none")
    if len(columns) == 1:
        ((only, value),) = columns.items()
        if value.ndim == 2:
            return value, tuple(map(str, range(value.shape[1])))
        return _numbers(value, name, only)[:, None], (only,)
    parts, names = [], []
    for column, value in columns.items():
        numbers = _numbers(value, name, column)
        parts.append(numbers if numbers.ndim == 2 else numbers[:, None])
        names += [column] if numbers.ndim == 1 else [f"{column}[{i}]" for i in range(numbers.shape[1])]
    return np.concatenate(parts, axis=1), tuple(names)


# ---- values --------------------------------------------------------------------------------------------------------


def _numbers(value: NDArray[Any], name: str, column: str) -> NDArray[Any]:
    if value.dtype.kind in "fiub":
        return value
    text = next((v for v in value.ravel().tolist() if isinstance(v, (str, bytes)) and not _is_number(v)), None)
    if text is None:
        raise InputError(f"{name}: expected numbers in column {column!r}, got {value.dtype}")
    raise InputError(
        f"{name}: expected numbers in column {column!r}, got text ({_short(text)}); encode it as numbers or remove "
        "the column"
    )


def _is_number(text: str | bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _matrix(X: Any, name: str, features: tuple[str, ...] | None) -> NDArray[Any]:
    X = np.asarray(X)
    if X.ndim != 2:
        raise InputError(f"{name}: expected a matrix (rows, features), got shape {X.shape}")
    if 0 in X.shape:
        raise InputError(f"{name}: expected rows and features, got shape {X.shape}")
    if X.dtype.kind not in "fiub":
        _numbers(X, name, "X")
    if X.dtype.newbyteorder("=") != np.float32:
        wide = X.astype(np.float64)
        # Small integers and half precision fit float32 as they are; what does not stays in float64.
        X = wide.astype(np.float32) if X.dtype.itemsize <= 2 else wide
    X = X.astype(X.dtype.newbyteorder("="), copy=False)
    bad = ~np.isfinite(X)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        what = "NaN (a missing value)" if np.isnan(X[row, column]) else "infinity"
        where = repr(features[column]) if features else str(column)
        raise InputError(
            f"{name}: expected finite numbers, got {what} in row {row}, column {where} ({int(bad.sum())} in all); "
            "fill or remove such rows"
        )
    return X


def _labels(y: Any, target: str | None, name: str) -> NDArray[Any]:
    labels = np.asarray(y)
    where = f"{name}: target column {target!r}" if target is not None else f"{name}: labels"
    if labels.ndim != 1:
        raise InputError(f"{where}: expected one label a row, got shape {labels.shape}")
    if labels.dtype.kind == "O":
        values = labels.tolist()
        missing = [i for i, v in enumerate(values) if v is None or v != v]
        if missing:
            raise InputError(f"{where}: row {missing[0]} has no label ({len(missing)} such rows); remove them")
        if not all(isinstance(v, (str, int, float, np.generic)) for v in values):
            odd = next(v for v in values if not isinstance(v, (str, int, float, np.generic)))
            raise InputError(f"{where}: expected text or whole numbers, got {type(odd).__name__}")
        labels = np.asarray([str(v) for v in values])
    elif labels.dtype.kind == "f":
        missing_rows = np.flatnonzero(~np.isfinite(labels))
        if len(missing_rows):
            raise InputError(
                f"{where}: row {int(missing_rows[0])} has no label ({len(missing_rows)} such rows); remove them"
            )
        whole = labels.astype(np.int64)
        if (whole != labels).any():
            value = labels[whole != labels][0]
            raise InputError(f"{where}: expected classes, got the continuous value {value}; regression is not offered")
        labels = whole
    elif labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    elif labels.dtype.kind not in "iubU":
        raise InputError(f"{where}: expected text or whole numbers, got {labels.dtype}")
    count = len(np.unique(labels))
    if count > max(20, len(labels) // 2):
        raise InputError(
            f"{where}: expected classes, got {count} different values in {len(labels)} rows; is it an identifier or "
            "a measurement?"
        )
    return labels
