"""Model files: mapping them, averaging them in constant memory, and what damaged ones do."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefast.aggregate import (
    DtypeMismatch,
    IntegerRange,
    MeanAccumulator,
    NonFiniteUpdate,
    ShapeMismatch,
    StructureMismatch,
    ZeroWeightError,
    average_checkpoints,
    map_checkpoint,
    weighted_mean,
)
from edgefast.aggregate.average import COORDINATEWISE_RULES
from edgefast.aggregate.checkpoints import CheckpointReader, CheckpointWriter, Entry
from edgefast.backends.table import BF16
from edgefast.cli import main
from edgefast.errors import InputError


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    """An independent writer of the format."""
    codes = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64", "uint8": "U8", "bool": "BOOL"}
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, a in arrays.items():
        code = "BF16" if a.dtype == BF16 else codes[str(a.dtype)]
        header[name] = {"dtype": code, "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in arrays.values()))
    return path


def model(k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(k)
    return {
        "layer.weight": rng.normal(size=(31, 7)).astype(np.float32),
        "layer.bias": rng.normal(size=7).astype(np.float16),
        "wide": rng.normal(size=(9001,)),
        "brain": rng.integers(0, 0x7F00, 33, dtype=np.uint16).view(BF16),
        "steps": np.array(10 * k),
        "mask": rng.random(5) < 0.5,
        "empty": np.zeros((0, 4), np.float32),
    }


def without_brain(k: int) -> dict[str, np.ndarray]:
    return {key: a for key, a in model(k).items() if key != "brain"}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sorted(found) == sorted(expected)
    for key, a in expected.items():
        b = np.asarray(found[key])
        assert (b.shape, b.tobytes(), b.dtype.itemsize) == (np.shape(a), np.asarray(a).tobytes(), a.dtype.itemsize), key


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    meta = [{"format": "pt", "run": str(k)} for k in range(3)]
    return [write_safetensors(tmp_path / f"c{k}.safetensors", model(k), meta[k]) for k in range(3)]


# ---- mapping -------------------------------------------------------------------------------------------------------


def test_files_are_updates(backend: str, files: list[Path], tmp_path: Path) -> None:
    mapped = map_checkpoint(files[1])
    same(mapped, model(1))
    assert not mapped["wide"].flags.writeable
    expected = weighted_mean([model(k) for k in range(3)], [1, 2, 3])
    same(weighted_mean(files, [1, 2, 3]), expected)
    same(weighted_mean([files[0], model(1), files[2]], [1, 2, 3]), expected)
    acc = MeanAccumulator(files[0])
    acc.add_many(files, [1, 2, 3])
    same(acc.result(), expected)
    np.savez(tmp_path / "c.npz", **without_brain(0))
    np.savez_compressed(tmp_path / "z.npz", **without_brain(1))
    found = weighted_mean([tmp_path / "c.npz", tmp_path / "z.npz"], partial=True)
    same(found, weighted_mean([without_brain(0), without_brain(1)]))
    with pytest.raises(StructureMismatch, match="client 1: expected the template's 7 keys, got missing 'brain'"):
        weighted_mean([files[0], tmp_path / "c.npz"])


def test_a_mapped_file_outlives_its_name(files: list[Path]) -> None:
    mapped = map_checkpoint(files[0])
    files[0].unlink()
    same(mapped, model(0))


def test_the_safetensors_package_agrees(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    arrays = {k: np.ascontiguousarray(a) for k, a in without_brain(3).items() if k != "empty"}
    package.save_file(arrays, tmp_path / "p.safetensors", metadata={"format": "np"})
    same(map_checkpoint(tmp_path / "p.safetensors"), arrays)
    average_checkpoints([tmp_path / "p.safetensors"] * 2, out=tmp_path / "mean.safetensors")
    same(package.load_file(tmp_path / "mean.safetensors"), arrays)
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(tmp_path / "mean.safetensors", framework="np") as f:
        assert f.metadata() == {"format": "np"}


# ---- averaging -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", ["float64", "float32", "reproducible"])
def test_average_is_weighted_mean(
    backend: str, files: list[Path], tmp_path: Path, accumulate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgefast.aggregate import average

    monkeypatch.setattr(average, "_BUFFER_BYTES", 1)  # many small tiles
    monkeypatch.setattr(average, "_LEAST_TILE", 64)
    seen: list[tuple[int, int]] = []
    out = average_checkpoints(
        [str(f) for f in files],
        [1, 2, 3],
        out=tmp_path / "mean.safetensors",
        accumulate=accumulate,
        progress=lambda done, total: seen.append((done, total)),
    )
    expected = weighted_mean([model(k) for k in range(3)], [1, 2, 3], accumulate=accumulate)
    with CheckpointReader(out) as reader:
        assert list(reader.entries) == list(model(0))
        assert reader.metadata == {"format": "pt"}
        same(reader.map(), expected)
    total = sum(a.nbytes for a in model(0).values())
    assert seen[-1] == (total, total)
    assert [d for d, _ in seen] == sorted({d for d, _ in seen})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "c0.safetensors",
        "c1.safetensors",
        "c2.safetensors",
        out.name,
    ]


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_in_and_out(tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgefast.aggregate import average

    monkeypatch.setattr(average, "_BUFFER_BYTES", 1)
    monkeypatch.setattr(average, "_LEAST_TILE", 100)
    paths = [tmp_path / f"c{k}.npz" for k in range(3)]
    for k, path in enumerate(paths):
        (np.savez_compressed if compressed else np.savez)(path, **without_brain(k))
    expected = weighted_mean([without_brain(k) for k in range(3)], ints="max")
    with np.load(average_checkpoints(paths, out=tmp_path / "mean.npz", ints="max")) as found:
        same(dict(found), expected)
    mixed = average_checkpoints([paths[0], paths[1], paths[2]], out=tmp_path / "mean.safetensors", ints="max")
    same(map_checkpoint(mixed), expected)


def test_policies_and_overwriting_an_input(files: list[Path], tmp_path: Path) -> None:
    bad = model(1)
    bad["wide"][8000] = np.nan
    write_safetensors(files[1], bad)
    out = tmp_path / "mean.safetensors"
    with pytest.raises(NonFiniteUpdate, match=r"client .*c1.safetensors, key 'wide': expected finite values, got nan"):
        average_checkpoints(files, out=out)
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 3
    expected = weighted_mean([model(0), model(2)], [1, 4])
    average_checkpoints(files, [1, 2, 4], out=out, nonfinite="drop")
    same(map_checkpoint(out), expected)
    assert np.isnan(map_checkpoint(average_checkpoints(files, out=out, nonfinite="propagate"))["wide"][8000])
    average_checkpoints([files[0], files[2]], [1, 4], out=files[0])
    same(map_checkpoint(files[0]), expected)
    with pytest.raises(NonFiniteUpdate, match="c1"):
        average_checkpoints([files[1]], out=out, nonfinite="drop")


def test_rules_get_tiles(files: list[Path], tmp_path: Path) -> None:
    def smallest(rows: list[np.ndarray], *, factor: int) -> np.ndarray:
        assert all(r.ndim == 1 for r in rows)
        return rows[0] if rows[0].dtype == BF16 else np.minimum.reduce(rows) * np.array(factor, rows[0].dtype)

    out = average_checkpoints(files, out=tmp_path / "o.safetensors", rule=smallest, options={"factor": 1})
    assert map_checkpoint(out)["steps"] == 0
    expected = np.minimum.reduce([model(k)["wide"] for k in range(3)])
    assert map_checkpoint(out)["wide"].tolist() == expected.tolist()
    with pytest.raises(ValueError, match=r"rule: expected \(.*\) float32, got \(.*\) float64"):
        average_checkpoints(files, out=tmp_path / "o.safetensors", rule=lambda rows: np.zeros(len(rows[0])))
    with pytest.raises(ValueError, match="weights: only the mean takes weights"):
        average_checkpoints(files, [1, 2, 3], out=tmp_path / "o.safetensors", rule=smallest)
    with pytest.raises(ValueError, match=r"rule: expected one of mean.*, got 'mode'"):
        average_checkpoints(files, out=tmp_path / "o.safetensors", rule="mode")
    with pytest.raises(ValueError, match="options: the mean takes none, got f"):
        average_checkpoints(files, out=tmp_path / "o.safetensors", options={"f": 1})


@pytest.mark.parametrize(("rule", "options"), [("median", {}), ("trimmed", {"f": 1}), ("meamed", {"f": 1})])
def test_robust_rules(tmp_path: Path, rule: str, options: dict[str, int]) -> None:
    from edgefast import aggregate

    name = COORDINATEWISE_RULES[rule]
    if not hasattr(aggregate, name):
        pytest.skip(f"edgefast.aggregate.{name} is not part of this build")
    arrays = [{k: a for k, a in without_brain(k).items() if a.dtype.kind == "f"} for k in range(5)]
    paths = [write_safetensors(tmp_path / f"c{k}.safetensors", a) for k, a in enumerate(arrays)]
    found = map_checkpoint(average_checkpoints(paths, out=tmp_path / "o.safetensors", rule=rule, options=options))
    for key in arrays[0]:
        same({key: found[key]}, {key: getattr(aggregate, name)([a[key] for a in arrays], **options)})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"wide": np.zeros(9002)},
            ShapeMismatch,
            r"c1.safetensors, key 'wide': expected shape \(9001,\), got \(9002,\)",
        ),
        ({"wide": np.zeros(9001, np.float32)}, DtypeMismatch, "key 'wide': expected float64, got float32"),
        ({"more": np.zeros(1)}, StructureMismatch, "key 'more': expected only the tensors of .*c0.safetensors"),
        ({"wide": None}, StructureMismatch, "key 'wide': expected the tensor of .*c0.safetensors, got none"),
        ({"steps": np.array(2**60)}, IntegerRange, "client .*c1.safetensors, key 'steps': expected integers"),
    ],
)
def test_files_that_do_not_fit(files: list[Path], tmp_path: Path, change: Any, error: Any, message: str) -> None:
    arrays = {k: a for k, a in {**model(1), **change}.items() if a is not None}
    write_safetensors(files[1], arrays)
    with pytest.raises(error, match=message):
        average_checkpoints(files, out=tmp_path / "o.safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_arguments_that_do_not_fit(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "o.safetensors"
    with pytest.raises(ValueError, match="paths: expected at least one file"):
        average_checkpoints([], out=out)
    with pytest.raises(ValueError, match="weights: expected 3 weights"):
        average_checkpoints(files, [1], out=out)
    with pytest.raises(ZeroWeightError, match="3 zeros"):
        average_checkpoints(files, [0, 0, 0], out=out)
    with pytest.raises(InputError, match=r"expected a name that ends in .safetensors or .npz"):
        average_checkpoints(files, out=tmp_path / "o.pt")
    with pytest.raises(InputError, match=r"tensor 'brain' is bfloat16, which .npz does not have"):
        average_checkpoints(files, out=tmp_path / "o.npz")
    with pytest.raises(OSError, match="No such file"):
        average_checkpoints(files, out=tmp_path / "no" / "o.safetensors")
    with pytest.raises(OSError, match="No such file"):
        average_checkpoints([tmp_path / "absent.safetensors"], out=out)
    np.savez(tmp_path / "c.npz", a=np.array(["text"]))
    with pytest.raises(DtypeMismatch, match=r"key 'a': expected one of float16.*, got <U4"):
        average_checkpoints([tmp_path / "c.npz"], out=out)


# ---- damaged files -------------------------------------------------------------------------------------------------


def header(fields: Any, data: bytes = b"") -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "fewer than 8 bytes"),
        (b"\xff" * 40, "got something else"),
        (struct.pack("<Q", 2**62) + b"{}", "got something else"),
        (header(b"[1, 2"), "not a .safetensors header"),
        (header([1]), "not a .safetensors header"),
        (header(b'{"a":' * 3000), "not a .safetensors header"),
        (header(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "its name is no Unicode text"),
        (header({"a": 3}), "tensor 'a': expected dtype, shape and data_offsets"),
        (header({"a": tensor("F8_E4M3")}, b"\0" * 8), "tensor 'a': expected dtype F64, .* got F8_E4M3"),
        (header({"a": tensor(shape=[-2])}, b"\0" * 8), "tensor 'a': shape"),
        (header({"a": tensor(shape=[2.0])}, b"\0" * 8), "tensor 'a': shape"),
        (header({"a": tensor(shape=[2**40, 2**40])}, b"\0" * 8), "tensor 'a': expected"),
        (header({"a": tensor()}, b"\0" * 7), "tensor 'a': expected 8 bytes"),
        (header({"a": tensor()}, b"\0" * 9), "expected .* bytes, got"),
        (header({"a": tensor(), "b": tensor()}, b"\0" * 8), "overlap or leave a hole"),
        (header({"a": tensor(offsets=(1, 9))}, b"\0" * 9), "overlap or leave a hole"),
        (header(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'), "a key twice"),
        (header({"__metadata__": {"a": 3}}), "__metadata__: expected strings"),
        (b"PK\x03\x04" + b"\0" * 40, "not an .npz file"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        map_checkpoint(path)
    assert str(path) in str(caught.value)


def test_npz_members_that_are_no_arrays(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a.npy", b"not an array")
    with pytest.raises(InputError, match=r"not an .npz file"):
        map_checkpoint(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="never unpickled"):
        map_checkpoint(path)
    np.savez_compressed(path, a=np.arange(20000) % 7)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.npz"):
        map_checkpoint(path)


def test_random_damage_is_an_error_or_a_model(tmp_path: Path) -> None:
    rng = random.Random(0)
    good = {}
    write_safetensors(tmp_path / "a", {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.uint8)}, {"k": "v"})
    np.savez(tmp_path / "b.npz", a=np.ones(3), b=np.arange(4))
    np.savez_compressed(tmp_path / "c.npz", a=np.ones(3), b=np.arange(4))
    good = [(tmp_path / n).read_bytes() for n in ("a", "b.npz", "c.npz")]
    path = tmp_path / "damaged"
    for trial in range(600):
        data = bytearray(good[trial % 3])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            found = map_checkpoint(path)
        except InputError:
            continue
        assert sum(a.nbytes for a in found.values()) <= 1000


def test_a_file_that_shrinks_while_it_is_read(files: list[Path], tmp_path: Path) -> None:
    with CheckpointReader(files[0]) as reader:
        files[0].write_bytes(files[0].read_bytes()[:-40000])
        with pytest.raises(InputError, match="the file ends early"):
            reader.read("wide", 0, np.empty(9001))


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    entry = Entry("a", np.dtype("f4"), (2,), None)

    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "o.safetensors", [entry]).open() as writer:
            with writer.tensor(entry) as file:
                file.write(b"\0" * 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


SLOW = """
import sys, time
from edgefast.aggregate import average
tiles = average._tiles
def slow(readers, entry):
    for rows in tiles(readers, entry):
        yield rows
        print("tile", flush=True)
        for _ in range(6000):  # a signal just before a long sleep would be handled after it
            time.sleep(0.01)
average._tiles = slow
from edgefast.cli import main
sys.exit(main(["average", sys.argv[1], "-o", sys.argv[2]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_ended_command_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    path = write_safetensors(tmp_path / "c.safetensors", {"a": np.ones(9, np.float32)})
    command = [sys.executable, "-c", SLOW, str(path), str(tmp_path / "o.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"tile\n"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "c.safetensors", {"a": np.ones(9, np.float32)})

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        average_checkpoints([path], out=tmp_path / "o.npz")
    assert caught.value.filename == str(tmp_path / "o.npz")
    assert list(tmp_path.iterdir()) == [path]


# ---- memory --------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from edgefast.aggregate import average_checkpoints
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
average_checkpoints(sys.argv[2:], out=sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_memory_is_a_tile_whatever_the_size(tmp_path: Path) -> None:
    # 12 files of 16 MiB, one tensor each: 208 MiB pass through.
    arrays = {"a": np.ones(4 << 20, np.float32)}
    paths = [write_safetensors(tmp_path / f"c{k}.safetensors", arrays) for k in range(12)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "o.safetensors"), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 48 << 20
    assert map_checkpoint(tmp_path / "o.safetensors")["a"].min() == 1.0


# ---- command line --------------------------------------------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *argv: Any) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in argv])
    except SystemExit as error:
        status = int(error.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command(capsys: pytest.CaptureFixture[str], files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    status, text, error = call(capsys, "average", *files, "-o", out, "--weights", 1, 2, 3)
    assert (status, error) == (0, "")
    assert f"{out}: mean of 3 files" in text
    same(map_checkpoint(out), weighted_mean([model(k) for k in range(3)], [1, 2, 3]))
    options = ["--accumulate", "reproducible", "--ints", "max", "--nonfinite", "propagate", "--threads", 1]
    status, text, error = call(capsys, "average", "--json", *options, "--backend", "numpy", *files, "-o", out)
    assert (status, error) == (0, "")
    found = json.loads(text)
    assert (found["files"], found["rule"], found["out"]) == (3, "mean", str(out))
    assert found["bytes"] == sum(a.nbytes for a in model(0).values())
    expected = weighted_mean([model(k) for k in range(3)], accumulate="reproducible", ints="max")
    same(map_checkpoint(out), expected)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["c0.safetensors"], "the following arguments are required: -o/--out"),
        (["c0.safetensors", "-o", "o.pt"], "o.pt: expected a name that ends in .safetensors or .npz"),
        (["absent.npz", "-o", "o.npz"], "absent.npz: No such file or directory"),
        (["c0.safetensors", "-o", "o.safetensors", "--weights", "1", "2"], "weights: expected 1 weights"),
        (["c0.safetensors", "-o", "o.safetensors", "--weights", "-1"], "weights[0]: expected a finite weight >= 0"),
        (["c0.safetensors", "-o", "o.safetensors", "--weights", "0"], "weights: expected at least one weight above 0"),
        (["c0.safetensors", "-o", "o.safetensors", "--rule", "mode"], "rule: expected one of mean"),
        (["c0.safetensors", "-o", "o.safetensors", "--ints", "sum"], "ints: expected one of round"),
        (["c0.safetensors", "-o", "o.safetensors", "--threads", "0"], "num_threads: expected a positive integer"),
        (["c0.safetensors", "-o", "o.safetensors", "--backend", "gpu"], "unknown backend 'gpu'"),
        (["c0.safetensors", "-o", "o.npz"], "tensor 'brain' is bfloat16"),
        (["c0.safetensors", "-o", "o.safetensors", "--byzantine", "1"], "options: the mean takes none, got f"),
        (
            ["c0.safetensors", "-o", "o.safetensors", "--rule", "meamed", "--byzantine", "0", "--trim", "0.1"],
            "options: expected those of meamed, got trim",
        ),
        (["c0.safetensors", "-o", "o.safetensors", "--rule", "meamed"], "rule: expected --byzantine with 'meamed'"),
        (
            ["c0.safetensors", "-o", "o.safetensors", "--rule", "trimmed", "--byzantine", "1"],
            "error: trimmed_mean: expected at least 3 updates",
        ),
        (["c0.safetensors", "-o", "absent/o.safetensors"], "error: absent/o.safetensors: No such file or directory"),
    ],
)
def test_command_errors_are_one_line(
    capsys: pytest.CaptureFixture[str],
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text, error = call(capsys, "average", *argv)
    assert (status, text) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 3
