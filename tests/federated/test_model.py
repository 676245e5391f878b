"""Model files: round trips, damage, and what predict accepts."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgefast as ef
from edgefast.federated import Dataset, InputError, Model, RunConfig, run


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = rng.normal(size=(90, 10)) + 3 * rng.normal(size=(3, 10))[y]
    return Dataset.of(X, np.array(["low", "mid", "high"])[y], target="level")


@pytest.fixture(scope="module")
def model(data: Dataset) -> Model:
    return run(RunConfig(devices=3, rounds=3, components=6), data).model


def test_round_trip(model: Model, data: Dataset, tmp_path: Path) -> None:
    model.save(tmp_path / "new" / "folder")
    loaded = ef.load_model(tmp_path / "new" / "folder")
    assert loaded.operator == model.operator
    assert (loaded.features, loaded.target) == (model.features, "level")
    assert loaded.predict(data.X).tolist() == model.predict(data.X).tolist()
    assert loaded.predict_proba(data.X).tobytes() == model.predict_proba(data.X).tobytes()
    assert (tmp_path / "new" / "folder" / "operator.bin").stat().st_size == 24
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["model.npz", "operator.bin"]
    model.save(tmp_path / "new" / "folder")  # over what is there


def test_predictions_do_not_depend_on_the_backend(backend: str, model: Model, data: Dataset) -> None:
    with ef.using("numpy"):
        expected = model.predict_proba(data.X)
    assert model.predict_proba(data.X).tobytes() == expected.tobytes()


def test_predict(model: Model, data: Dataset) -> None:
    proba = model.predict_proba(data.X)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    assert model.predict(data.X).tolist() == model.classes[proba.argmax(axis=1)].tolist()
    assert (model.predict(data.X) == data.classes[data.y]).mean() > 0.8
    assert model.predict(data.X[0]).shape == (1,)
    assert model.predict(data.X[:0]).shape == (0,)
    assert model.predict(data.X[::2, :].astype(">f8")).tolist() == model.predict(data.X[::2]).tolist()


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros((2, 9)), ValueError, r"X: expected shape \(n, 10\) or \(10,\), got \(2, 9\)"),
        (np.zeros((2, 2, 10)), ValueError, "expected shape"),
        (np.full((1, 10), np.nan), ValueError, "expected finite numbers, got NaN or infinity"),
        (np.full((1, 10), np.inf), ValueError, "expected finite numbers, got NaN or infinity"),
        (np.full((1, 10), "a"), TypeError, "X: expected numbers, got dtype <U1"),
        (3.0, ValueError, "expected shape"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "sketch"])
def test_rows_that_cannot_be_scored(model: Model, method: str, X: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        getattr(model, method)(X)


def test_folders_without_a_model(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model\.npz in it"):
        ef.load_model(tmp_path / "nowhere")
    model.save(tmp_path)
    (tmp_path / "operator.bin").unlink()
    with pytest.raises(InputError, match=r"there is no operator\.bin in it"):
        ef.load_model(tmp_path)


def test_files_of_different_runs_do_not_mix(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    other = ef.sketch.SketchOperator("srht", 10, 5)
    (tmp_path / "operator.bin").write_bytes(other.to_bytes())
    with pytest.raises(InputError, match=r"expected weights of shape \(5, 3\), got \(6, 3\)"):
        ef.load_model(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", np.int64(2), "expected version 1, got 2"),
        ("bias", np.zeros(4, np.float32), r"expected bias of shape \(3,\), got \(4,\)"),
        ("weights", np.full((6, 3), np.nan), "expected finite floating-point numbers in weights"),
        ("mean", np.zeros(10, np.int64), "expected finite floating-point numbers in mean"),
        ("target", np.array(["a", "b"]), "expected at most one target"),
        ("classes", None, "there is no classes"),
        ("features", np.array([{}] * 10, object), "not a readable model"),
    ],
)
def test_model_files_that_contradict_themselves(
    model: Model, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    model.save(tmp_path)
    with np.load(tmp_path / "model.npz") as stored:
        arrays = {k: stored[k] for k in stored.files}
    if value is None:
        del arrays[field]
    else:
        arrays[field] = value
    np.savez(tmp_path / "model.npz", **arrays)
    with pytest.raises(InputError, match=message):
        ef.load_model(tmp_path)


def test_damaged_bytes_load_or_are_an_input_error(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path)
    rng = random.Random(0)
    for name in ("model.npz", "operator.bin"):
        good = (tmp_path / name).read_bytes()
        for _ in range(150):
            bad = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            (tmp_path / name).write_bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
            with contextlib.suppress(InputError):  # nothing else may come out
                ef.load_model(tmp_path)
        (tmp_path / name).write_bytes(good)
