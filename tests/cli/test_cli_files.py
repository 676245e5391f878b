"""edgefast sketch and edgefast dedup on files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.cli import main
from edgefast.sketch import DedupFilter, SketchOperator

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")


def call(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in argv])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def save(path: Path, X: np.ndarray[Any, Any]) -> Path:
    if path.suffix == ".npy":
        np.save(path, X)
    elif path.suffix == ".npz":
        np.savez_compressed(path, X=X)
    else:
        frame = pandas.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


def load(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        return np.load(path)["rows"]
    return (pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)).to_numpy()


@pytest.mark.parametrize("target", ["y.npy", "y.npz", "y.csv", "y.parquet"])
@pytest.mark.parametrize("source", ["x.npy", "x.npz", "x.csv", "x.parquet"])
def test_sketch(capsys: pytest.CaptureFixture[str], tmp_path: Path, source: str, target: str) -> None:
    X = np.random.default_rng(0).standard_normal((200, 30))
    out = tmp_path / target
    status, text, errors = call(
        capsys, "sketch", save(tmp_path / source, X), out, "--components", 8, "--seed", 3, "--json"
    )
    assert status == 0, errors
    assert errors == ""
    facts = json.loads(text)
    op = SketchOperator.from_bytes(bytes.fromhex(facts["operator"]))
    assert op == SketchOperator("sparse_stack", 30, 8, seed=3)
    assert facts["rows"] == 200
    np.testing.assert_array_equal(load(out), op.transform(X))


@pytest.mark.parametrize("kind", ["countsketch", "srht", "rademacher", "gaussian", "sparse_stack"])
def test_sketch_of_a_sparse_matrix(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    A = sparse.random(500, 3000, density=0.01, format="csr", random_state=0)
    sparse.save_npz(tmp_path / "a.npz", A)
    args = ["--components", 16, "--kind", kind, "--float32", "--save-operator", tmp_path / "op"]
    status, text, errors = call(capsys, "sketch", tmp_path / "a.npz", tmp_path / "y.npy", *args)
    assert status == 0, errors
    assert text == ""
    assert "500 rows of 3,000 columns to 16" in errors
    op = SketchOperator.from_bytes((tmp_path / "op").read_bytes())
    assert op.kind == kind
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), A.astype(np.float32) @ op.toarray().T, atol=1e-5)
    first = (tmp_path / "y.npy").read_bytes()
    again = ["--operator", tmp_path / "op", "--float32"]
    assert call(capsys, "sketch", tmp_path / "a.npz", tmp_path / "y.npy", *again)[0] == 0
    assert (tmp_path / "y.npy").read_bytes() == first


def test_float32(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((20, 30))
    for option, dtype in (([], np.float64), (["--float32"], np.float32)):
        path = save(tmp_path / "x.npy", X)
        assert call(capsys, "sketch", path, tmp_path / "y.npy", "--components", 4, *option)[0] == 0
        assert np.load(tmp_path / "y.npy").dtype == dtype


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv", "x.parquet"])
def test_dedup(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(1)
    distinct = 20 + rng.standard_normal((300, 6)).astype(
        np.float32
    )  # far from 0: without centring all would look alike
    repeats = np.repeat(distinct, 4, axis=0)
    repeats[1::4] += 1e-4
    source = save(tmp_path / name, repeats)
    status, text, errors = call(capsys, "dedup", source, tmp_path / f"out{source.suffix}", "--json")
    assert status == 0, errors
    facts = json.loads(text)
    kept = load(tmp_path / f"out{source.suffix}")
    numbers = load(source) if name != "x.npz" else repeats
    mask = DedupFilter().add(numbers - numbers[:1000].mean(axis=0, dtype=np.float64))
    np.testing.assert_array_equal(kept, numbers[mask])
    assert facts["rows"] == 1200
    assert facts["kept"] == len(kept)
    assert 280 <= len(kept) <= 300
    status, text, _ = call(
        capsys, "dedup", source, tmp_path / f"out{source.suffix}", "--json", "--no-center", "--max-hamming", 4
    )
    assert json.loads(text)["kept"] < 280


def test_dedup_keeps_text_and_sparse_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    X = np.repeat(np.random.default_rng(2).standard_normal((10, 8)), 2, axis=0)
    frame = pandas.DataFrame(X).assign(id=[f"r{i}" for i in range(20)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert call(capsys, "dedup", tmp_path / "t.csv", tmp_path / "o.csv", "--max-hamming", 0)[0] == 0
    assert pandas.read_csv(tmp_path / "o.csv")["id"].tolist() == [f"r{i}" for i in range(0, 20, 2)]
    A = sparse.random(50, 4000, density=0.01, format="csr", random_state=0)
    sparse.save_npz(tmp_path / "a.npz", sparse.vstack([A, A]).tocsr())
    assert call(capsys, "dedup", tmp_path / "a.npz", tmp_path / "b.npz")[0] == 0
    assert (sparse.load_npz(tmp_path / "b.npz") != A).nnz == 0


BAD: dict[str, list[Any]] = {
    "expected --components K": ["sketch", "x.npy", "y.npy"],
    "n_components: expected": ["sketch", "x.npy", "y.npy", "--components", "0"],
    "there is no such file": ["sketch", "none.npy", "y.npy", "--components", "2"],
    "ending in": ["sketch", "x.npy", "y.txt", "--components", "2"],
    "no folder": ["sketch", "x.npy", "none/y.npy", "--components", "2"],
    "another file": ["sketch", "x.npy", "x.npy", "--components", "2"],
    "invalid choice": ["sketch", "x.npy", "y.npy", "--components", "2", "--kind", "pca"],
    "seed: expected": ["sketch", "x.npy", "y.npy", "--components", "2", "--seed", "-1"],
    "threads: expected": ["sketch", "x.npy", "y.npy", "--components", "2", "--threads", "0"],
    "unknown backend": ["sketch", "x.npy", "y.npy", "--components", "2", "--backend", "cuda"],
    "has its own": ["sketch", "x.npy", "y.npy", "--components", "2", "--operator", "op"],
    "expected an operator for 5 columns, got one for 9": ["sketch", "x.npy", "y.npy", "--operator", "op"],
    "expected 24 bytes": ["sketch", "x.npy", "y.npy", "--operator", "x.npy"],
    "got NaN": ["sketch", "nan.npy", "y.npy", "--components", "2"],
    "expected rows": ["sketch", "empty.npy", "y.npy", "--components", "2"],
    "copied as they are": ["dedup", "x.npy", "y.csv"],
    "n_bits: expected": ["dedup", "x.npy", "y.npy", "--bits", "0"],
    "max_hamming: expected": ["dedup", "x.npy", "y.npy", "--max-hamming", "999"],
    "window: expected": ["dedup", "x.npy", "y.npy", "--window", "0"],
    "has none": ["dedup", "empty.npy", "y.npy"],
    "projection is finite": ["dedup", "--no-center", "large.npy", "y.npy"],
    "another file to write": ["sketch", "x.npy", "sub/../x.npy", "--components", "2"],
    "another file to": ["dedup", "link.npy", "x.npy"],
    "x.npy: expected a file of its own": ["sketch", "x.npy", "y.npy", "--components", "2", "--save-operator", "x.npy"],
    "y.npy: expected a file of its own": ["sketch", "x.npy", "y.npy", "--components", "2", "--save-operator", "y.npy"],
    "none/op: there is no folder none": [
        *("sketch", "x.npy", "y.npy", "--components", "2", "--save-operator", "none/op"),
    ],
}


@pytest.mark.parametrize("message", BAD)
def test_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.eye(5))
    np.save("nan.npy", np.full((2, 5), np.nan))
    np.save("empty.npy", np.empty((0, 5)))
    np.save("large.npy", np.full((3, 4), 3e38, np.float32))
    Path("sub").mkdir()
    Path("link.npy").symlink_to("x.npy")
    Path("op").write_bytes(SketchOperator("srht", 9, 4).to_bytes())
    status, text, errors = call(capsys, *BAD[message])
    assert status == 2
    assert text == ""
    assert len(errors.splitlines()) == 1
    assert message in errors
    np.testing.assert_array_equal(np.load("x.npy"), np.eye(5))
    assert not Path("y.npy").exists()
    assert not Path("y.npy").exists()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint64", "float16"])
def test_dedup_of_any_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str) -> None:
    X = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 9, (6, 40)).astype(dtype)
    twice = np.concatenate([X, X])
    np.save(tmp_path / "x.npy", twice)
    assert call(capsys, "dedup", "--no-center", tmp_path / "x.npy", tmp_path / "y.npy")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), X)
    if dtype == "float16":
        return  # SciPy has none
    sparse.save_npz(tmp_path / "x.npz", sparse.csr_matrix(twice))
    assert call(capsys, "dedup", tmp_path / "x.npz", tmp_path / "y.npz")[0] == 0
    kept = sparse.load_npz(tmp_path / "y.npz")
    assert kept.dtype == X.dtype
    np.testing.assert_array_equal(kept.toarray(), X)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM to handle")
@pytest.mark.parametrize("arguments", [("sketch", "--components", "2"), ("dedup",)])
def test_ended_from_outside_it_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    np.save(tmp_path / "x.npy", np.eye(5))
    script = """
import os, signal, sys
from edgefast import files
from edgefast.cli import main

write = files._NpyWriter.write
def end(self, array):
    write(self, array)
    os.kill(os.getpid(), signal.SIGTERM)
files._NpyWriter.write = end
sys.exit(main(sys.argv[1:]))
"""
    command, *options = arguments
    call = [sys.executable, "-c", script, command, "x.npy", "y.npy", *options]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert os.listdir(tmp_path) == ["x.npy"]
