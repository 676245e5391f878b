"""Tables in blocks: every format there and back, bounded memory, damaged files."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast import files
from edgefast.backends import native
from edgefast.errors import InputError

scipy_sparse = pytest.importorskip("scipy.sparse")


def read(path: Path) -> tuple[Any, list[int]]:
    source = files.open_source(path)
    blocks = list(source.blocks())
    sizes = [b.numbers.shape[0] for b in blocks]
    if source.n_rows is not None:
        assert sum(sizes) == source.n_rows
    assert all(b.numbers.shape[1] == source.width for b in blocks)
    if source.sparse:
        return scipy_sparse.vstack([b.numbers for b in blocks]), sizes
    return np.concatenate([b.numbers for b in blocks]) if blocks else np.empty((0, source.width)), sizes


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", 800)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [0, 1, 7, 64, 97])
def test_there_and_back(small_blocks: None, tmp_path: Path, suffix: str, dtype: str, n: int) -> None:
    if suffix in (".csv", ".parquet"):
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
    X = np.random.default_rng(n).standard_normal((n, 3)).astype(dtype)
    path = tmp_path / f"t{suffix}"
    with files.open_sink(path, columns=("a", "b", "c")) as sink:
        for first in range(0, n, 10):
            sink.write(X[first : first + 10])
    assert os.listdir(tmp_path) == [path.name]
    if n == 0 and suffix != ".parquet":
        return  # no dtype, no numeric column: the commands refuse to write such a table
    Y, sizes = read(path)
    assert Y.shape == (n, 3)
    # Decimals of .csv read back to the same numbers, in the reader's float64.
    np.testing.assert_array_equal(Y.astype(dtype), X)
    assert n < 97 or len(sizes) > 1


@pytest.mark.parametrize("compressed", [False, True])
def test_csr(small_blocks: None, tmp_path: Path, compressed: bool) -> None:
    A = scipy_sparse.random(300, 40, density=0.1, format="csr", random_state=0)
    # One row above the block's size, and empty ones.
    A = scipy_sparse.vstack([A, scipy_sparse.csr_matrix(np.ones((1, 40))), scipy_sparse.csr_matrix((5, 40))]).tocsr()
    scipy_sparse.save_npz(tmp_path / "a.npz", A, compressed=compressed)
    B, sizes = read(tmp_path / "a.npz")
    assert len(sizes) > 3
    assert (A != B).nnz == 0
    with files.open_sink(tmp_path / "b.npz") as sink:
        for block in files.open_source(tmp_path / "a.npz").blocks():
            sink.write(block.rows)
    C = scipy_sparse.load_npz(tmp_path / "b.npz")
    assert (A != C).nnz == 0
    for suffix in (".npy", ".csv"):
        if suffix == ".csv":
            pytest.importorskip("pandas")
        with pytest.raises(InputError, match="sparse rows"), files.open_sink(tmp_path / f"c{suffix}") as sink:
            sink.write(A)
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


def test_layouts_and_types(tmp_path: Path) -> None:
    X = np.arange(35, dtype=np.int16).reshape(5, 7)
    for array in (X, np.asfortranarray(X), X.astype(">i2"), X.astype(np.float16), X > 3):
        np.save(tmp_path / "x.npy", array)
        Y, _ = read(tmp_path / "x.npy")
        assert Y.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(Y, array)
    np.savez_compressed(tmp_path / "x.npz", labels=np.arange(5), X=X)  # a label vector beside the matrix
    np.testing.assert_array_equal(read(tmp_path / "x.npz")[0], X)


def test_text_columns_pass_through(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "t.csv").write_text("id,x,ok,y\na,1,True,2.5\nb,3,False,4.5\n")
    source = files.open_source(tmp_path / "t.csv")
    assert source.columns == ("x", "ok", "y")
    (block,) = source.blocks()
    np.testing.assert_array_equal(block.numbers, [[1, 1, 2.5], [3, 0, 4.5]])
    assert list(block.rows.columns) == ["id", "x", "ok", "y"]


BAD: dict[str, Any] = {
    "no such file": ("missing.npy", None),
    "expected a file ending in": ("t.txt", b"1 2"),
    "not a readable .npy": ("t.npy", b"\x93NUMPY\x01\x00"),
    "not a readable .npz": ("t.npz", b"PK\x03\x04 nothing"),
    "not a readable .parquet": ("t.parquet", b"PAR1 and no more"),
    "expected columns of numbers": ("t.csv", b"a,b\nx,y\n"),
    "got NaN (a missing value) in row 1, column 'b'": ("t.csv", b"a,b\n1,2\n3,\n"),
    "got infinity in row 0, column 'a'": ("t.csv", b"a,b\ninf,2\n3,1\n"),
    "not a readable .csv": ("t.csv", b""),
    "expected rows after the header line, got none": ("t.csv", b"a,b\n"),
    "expected as many fields in a row as in the header line": ("t.csv", b"a,b\n1,2,3\n4,5,6\n"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files(tmp_path: Path, message: str) -> None:
    name, data = BAD[message]
    if name.endswith((".csv", ".parquet")):
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_arrays(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array, message in (
        (np.arange(3.0), "expected a matrix"),
        (np.array([["a"]]), "expected numbers"),
        (np.array([[1j]]), "expected numbers"),
        (np.empty((3, 0)), "at least one column"),
        (np.array([[1.0, np.nan]]), "got NaN"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=message):
            read(path)
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        read(path)
    for members in ({"a": np.eye(2), "b": np.eye(2)}, {"a": np.arange(3)}, {}):
        np.savez(tmp_path / "x.npz", **members)
        with pytest.raises(InputError, match="expected one matrix"):
            read(tmp_path / "x.npz")
    scipy_sparse.save_npz(tmp_path / "x.npz", scipy_sparse.eye(3, format="csc"))
    with pytest.raises(InputError, match="CSR format, got csc"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("change", ["pointer", "order", "short", "shape", "index"])
def test_malformed_csr(tmp_path: Path, change: str) -> None:
    A = scipy_sparse.random(20, 9, density=0.4, format="csr", random_state=1)
    members = {"data": A.data, "indices": A.indices, "indptr": A.indptr.copy(), "format": np.array(b"csr")}
    members["shape"] = np.array(A.shape)
    if change == "pointer":
        members["indptr"][-1] += 5
    elif change == "order":
        members["indptr"][3] = 70
    elif change == "short":
        members["data"] = A.data[:-1]
    elif change == "index":
        members["indices"] = np.where(np.arange(A.nnz) == 5, 2**30, A.indices).astype(np.int32)
    else:
        members["shape"] = np.array([21, 9])
    np.savez(tmp_path / "a.npz", **members)
    with pytest.raises(InputError, match="not a readable"):
        read(tmp_path / "a.npz")


def test_flipped_bytes_never_do_more_than_raise(tmp_path: Path) -> None:
    A = scipy_sparse.random(30, 9, density=0.4, format="csr", random_state=1)
    scipy_sparse.save_npz(tmp_path / "a.npz", A)
    np.save(tmp_path / "b.npy", np.eye(9))
    rng = np.random.default_rng(0)
    for name in ("a.npz", "b.npy"):
        good = (tmp_path / name).read_bytes()
        for _ in range(150):
            damaged = bytearray(good)
            for at in rng.integers(min(len(good), 400), size=rng.integers(1, 4)):
                damaged[at] ^= 1 << rng.integers(8)
            (tmp_path / f"x{name[1:]}").write_bytes(damaged)
            with contextlib.suppress(InputError):
                read(tmp_path / f"x{name[1:]}")


def test_nothing_appears_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    sink = files.open_sink(path)
    sink.write(np.eye(3))
    with pytest.raises(ValueError, match="expected blocks"), sink:
        sink.write(np.eye(4))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.npz"]
    for bad, message in ((tmp_path, "ending in"), (tmp_path / "no" / "x.npy", "no folder"), ("x.txt", "ending in")):
        with pytest.raises(InputError, match=message):
            files.open_sink(bad)


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("a.npz", "b.npz"):
        with files.open_sink(tmp_path / name) as sink:
            sink.write(np.eye(3))
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.skipif((native.build_config() or {}).get("sanitizer") is not None, reason="sanitizers keep freed memory")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Sketching a compressed 96 MB matrix adds far less than its size to what an empty one needs."""
    script = (
        "import sys\nfrom edgefast.cli import main\n"
        "assert main(['sketch', sys.argv[1], sys.argv[2], '--components', '8', '--json', '--threads', '1']) == 0\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss is the parent's, too
    )
    peaks = []
    for rows in (100, 24_000):
        np.savez_compressed(tmp_path / "x.npz", np.ones((rows, 1000), np.float32))
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "x.npz"), str(tmp_path / "y.npy")],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split()[-1]) // 1024)
    assert peaks[1] - peaks[0] < 60


def test_where_a_sparse_matrix_is_not_finite(small_blocks: None, tmp_path: Path) -> None:
    A = np.eye(50)
    A[31, 7] = np.inf
    scipy_sparse.save_npz(tmp_path / "a.npz", scipy_sparse.csr_matrix(A))
    with pytest.raises(InputError, match="got infinity in row 31, column 7"):
        read(tmp_path / "a.npz")


def test_text_is_not_read_as_anything_else(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    text = "id,x,y\nDE,0,1.0\nNA,1,0.1\n007,2,-0.30000000000000004\nnull,3,5e-324\n"
    (tmp_path / "t.csv").write_text(text)
    with files.open_sink(tmp_path / "o.csv") as sink:
        for block in files.open_source(tmp_path / "t.csv").blocks():
            sink.write(block.rows)
    assert (tmp_path / "o.csv").read_text() == text


def test_an_index_of_pandas_is_copied_and_not_a_number(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": [0.5, 1.5]}, index=pandas.Index([7, 9], name="id"))
    frame.to_parquet(tmp_path / "t.parquet")
    source = files.open_source(tmp_path / "t.parquet")
    assert source.columns == ("a",)
    with files.open_sink(tmp_path / "o.parquet") as sink:
        for block in source.blocks():
            np.testing.assert_array_equal(block.numbers, [[0.5], [1.5]])
            sink.write(block.rows)
    assert pandas.read_parquet(tmp_path / "o.parquet").to_dict("list") == {"a": [0.5, 1.5], "id": [7, 9]}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(InputError, match="expected a regular file"):
        files.open_source(tmp_path / "t.csv")
