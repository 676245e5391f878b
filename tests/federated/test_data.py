"""Files of every format give the same table; files that cannot be used give one line that says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.federated import Dataset, InputError, digits, read_dataset, read_features

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)


def write_csv(path: Path, columns: dict[str, Any]) -> Path:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def table(**replaced: Any) -> dict[str, Any]:
    return {"a": X[:, 0].tolist(), "b": X[:, 1].tolist(), "c": X[:, 2].tolist(), "label": Y.tolist(), **replaced}


def with_value(column: str, row: int, value: Any) -> dict[str, Any]:
    columns = table()
    columns[column][row] = value
    return columns


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "matrix.npz", X=X, label=Y)
    np.savez(tmp_path / "columns.npz", **{k: np.array(v) for k, v in table().items()})
    np.save(tmp_path / "matrix.npy", np.c_[X, Y])
    record = np.zeros(40, [("a", "f8"), ("b", "f8"), ("c", "f8"), ("label", "i4")])
    for name, values in table().items():
        record[name] = values
    np.save(tmp_path / "record.npy", record)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "target", "features"),
    [
        ("matrix.npz", "label", ("0", "1", "2")),
        ("columns.npz", "label", ("a", "b", "c")),
        ("matrix.npy", "3", ("0", "1", "2")),
        ("matrix.npy", "-1", ("0", "1", "2")),
        ("record.npy", "label", ("a", "b", "c")),
    ],
)
def test_numpy_files(folder: Path, name: str, target: str, features: tuple[str, ...]) -> None:
    data = read_dataset(folder / name, target)
    assert data.X.tobytes() == X.tobytes()
    assert data.y.tolist() == Y.tolist()
    assert data.classes.tolist() == [0, 1]
    assert data.features == features
    assert data.name == name
    scored, labels = read_features(folder / name, data.features, data.target)
    assert scored.tobytes() == X.tobytes()
    assert labels is not None
    assert labels.tolist() == Y.tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    path = tmp_path / f"t.{suffix}"
    frame = pandas.DataFrame(table(label=np.where(Y, "warm", "cold"), c=X[:, 2] > 0))
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    data = read_dataset(str(path), "label")
    assert data.classes.tolist() == ["cold", "warm"]
    np.testing.assert_array_equal(data.X, np.c_[X[:, :2], X[:, 2] > 0])
    shuffled = tmp_path / f"s.{suffix}"
    frame = frame[["c", "label", "b", "a"]].assign(extra="text")
    frame.to_csv(shuffled, index=False) if suffix == "csv" else frame.to_parquet(shuffled)
    scored, labels = read_features(shuffled, data.features, data.target)
    np.testing.assert_array_equal(scored, data.X)  # by name, whatever the order and whatever else is there
    assert labels is not None
    assert labels.tolist() == np.where(Y, "warm", "cold").tolist()


def test_new_rows_need_no_label(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    path = write_csv(tmp_path / "new.csv", {k: v for k, v in table().items() if k != "label"})
    scored, labels = read_features(path, ("a", "b", "c"), "label")
    assert labels is None
    np.testing.assert_array_equal(scored, X)
    with pytest.raises(InputError, match="the model needs columns that are not there: 'd'"):
        read_features(path, ("a", "d"), "label")
    np.save(tmp_path / "new.npy", X)
    assert read_features(tmp_path / "new.npy", ("0", "1", "2"), "3")[1] is None
    with pytest.raises(InputError, match="expected 2 columns, one per feature of the model, got 3"):
        read_features(tmp_path / "new.npy", ("0", "1"), None)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "f2", "?", "f4", ">f4"])
def test_narrow_dtypes_become_float32_exactly(dtype: str) -> None:
    values = (X > 0).astype(dtype)
    data = Dataset.of(values, Y)
    assert data.X.dtype == np.float32
    assert data.X.dtype.isnative
    np.testing.assert_array_equal(data.X, values)


@pytest.mark.parametrize("dtype", ["i4", "i8", "u8", "f8", ">f8"])
def test_wide_dtypes_become_float64(dtype: str) -> None:
    assert Dataset.of((X * 1e6 + 1e8).astype(dtype), Y).X.dtype == np.float64


def test_digits() -> None:
    pytest.importorskip("sklearn")
    data = digits()
    assert data.X.shape == (1797, 64)
    assert data.X.dtype == np.float32
    assert data.classes.tolist() == list(range(10))


CSV_ERRORS = [
    (with_value("b", 7, "hello"), "label", "expected numbers in column 'b', got text ('hello'); encode it as numbers"),
    (with_value("c", 7, "nan"), "label", "got NaN (a missing value) in row 7, column 'c' (1 in all); fill or remove"),
    (with_value("c", 7, ""), "label", "got NaN (a missing value) in row 7, column 'c'"),
    (with_value("a", 3, "-inf"), "label", "expected finite numbers, got infinity in row 3, column 'a'"),
    (
        table(label=[1] * 40),
        "label",
        "expected at least two classes to tell apart, every label is 1; is this the right",
    ),
    (table(label=X[:, 1].tolist()), "label", "expected classes, got the continuous value"),
    (table(label=list(range(40))), "label", "expected classes, got 40 different values in 40 rows"),
    (with_value("label", 5, ""), "label", "target column 'label': row 5 has no label (1 such rows); remove them"),
    (table(), "level", "there is no column 'level'; there are 'a', 'b', 'c', 'label'"),
    (table(), None, "which column holds the class? name it with --target; there are 'a', 'b', 'c', 'label'"),
    ({"label": Y.tolist()}, "label", "expected features beside the target column, there are none"),
    ({k: [] for k in "ab"}, "a", "expected rows, the file has none"),
]


@pytest.mark.parametrize(("columns", "target", "message"), CSV_ERRORS, ids=[e[2][:40] for e in CSV_ERRORS])
def test_tables_that_cannot_be_used(tmp_path: Path, columns: Any, target: str | None, message: str) -> None:
    pytest.importorskip("pandas")
    with pytest.raises(InputError) as error:
        read_dataset(write_csv(tmp_path / "t.csv", columns), target)
    assert message in str(error.value)
    assert str(error.value).startswith("t.csv: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv", "parquet"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00", bytes(range(256)) * 9]
)
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    if suffix in ("csv", "parquet"):
        pytest.importorskip("pyarrow")
        pytest.importorskip("pandas")
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_dataset(path, "label")
    assert "\n" not in str(error.value)


def test_every_truncation_of_a_file_is_an_input_error(folder: Path) -> None:
    for name, target in (("matrix.npz", "label"), ("record.npy", "label")):
        content = (folder / name).read_bytes()
        path = folder / f"cut{Path(name).suffix}"
        for length in range(0, len(content) - 1, 37):
            path.write_bytes(content[:length])
            with pytest.raises(InputError):
                read_dataset(path, target)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a")
    np.save(tmp_path / "flat.npy", np.arange(5))
    np.savez(tmp_path / "lengths.npz", X=np.zeros((4, 2)), y=np.zeros(3))
    np.save(tmp_path / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    for name, target, message in (
        ("t.txt", "y", "expected a file ending in .npz, .npy, .csv, .parquet"),
        ("none.csv", "y", "there is no such file"),
        ("", "y", "expected a file, this is a folder"),
        ("flat.npy", "0", "expected a matrix (rows, columns), got shape (5,)"),
        ("lengths.npz", "y", "expected arrays of one length, got {'X': 4, 'y': 3}"),
        ("object.npy", "0", "it holds Python objects, which are not read; save plain numbers"),
    ):
        with pytest.raises(InputError) as error:
            read_dataset(tmp_path / name, target)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (np.zeros((0, 3)), [], "expected rows and features, got shape (0, 3)"),
        (np.zeros((3, 0)), [0, 1, 0], "expected rows and features, got shape (3, 0)"),
        (np.zeros(3), [0, 1, 0], "expected a matrix (rows, features), got shape (3,)"),
        (np.zeros((3, 2)), [0, 1], "expected a label for each of the 3 rows, got 2 labels"),
        (np.zeros((2, 2), complex), [0, 1], "expected numbers in column 'X', got complex128"),
        (np.zeros((2, 2)), [[0], [1]], "labels: expected one label a row, got shape (2, 1)"),
        (np.zeros((2, 2)), np.array([None, 1], object), "row 0 has no label"),
        (np.zeros((2, 2)), np.array([0, 1], "M8[s]"), "expected text or whole numbers, got datetime64[s]"),
    ],
)
def test_arrays_that_cannot_be_used(values: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        Dataset.of(values, labels)
    assert message in str(error.value)


def test_bytes_labels_are_text() -> None:
    assert Dataset.of(X[:4], np.array([b"a", b"b", b"a", b"b"])).classes.tolist() == ["a", "b"]
