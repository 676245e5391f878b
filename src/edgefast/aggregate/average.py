"""average_checkpoints: many model files into one, a tile of every file in memory at a time."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgefast import backends
from edgefast.aggregate import _policy
from edgefast.aggregate._policy import Accumulate, Ints, Nonfinite
from edgefast.aggregate._template import DTYPES, dtype_name
from edgefast.aggregate.checkpoints import CheckpointReader, CheckpointWriter, Entry, check_suffix
from edgefast.aggregate.errors import (
    DtypeMismatch,
    ShapeMismatch,
    StructureMismatch,
    TooFewUpdates,
    UpdateError,
    ZeroWeightError,
)
from edgefast.aggregate.mean import nonfinite_error, weighted_mean
from edgefast.backends.table import Array

__all__ = ["COORDINATEWISE_RULES", "average_checkpoints"]

#: Rules that look at one coordinate at a time and so work tile by tile: option to function of edgefast.aggregate.
COORDINATEWISE_RULES = {
    "median": "median",
    "trimmed": "trimmed_mean",
    "trimmed_mean": "trimmed_mean",
    "meamed": "meamed",
}

_BUFFER_BYTES = 16 << 20  # all tiles together
_LEAST_TILE = 4096  # elements

#: K flat arrays of one tensor's tile to the flat result of the same dtype.
Rule = Callable[[list[Array]], Array]


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    weights: Sequence[float] | Array | None = None,
    *,
    out: str | os.PathLike[str],
    rule: str | Rule = "mean",
    options: Mapping[str, Any] | None = None,
    accumulate: Accumulate = "float64",
    ints: Ints = "round",
    nonfinite: Nonfinite = "raise",
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Combine .safetensors or .npz files of the same tensors into one: federated checkpoints, model soups.

    A tile of every file is in memory at a time, 16 MB in all, however large the models are. Names, their order, shapes
    and dtypes are those of the first file; of its metadata, what all files share is kept. The result appears
    under its name when it is complete, or not at all.

    Args:
        paths: K files, .safetensors and .npz mixed as you like. Compressed .npz members are read as streams.
        weights: K weights as in weighted_mean; None for equal ones. Files of weight 0 are not read. Only the mean
            takes weights.
        out: the file to write, .safetensors or .npz by its suffix; it may be one of `paths`.
        rule: "mean"; a coordinate-wise robust rule ("median", "trimmed", "meamed"); or a function from K flat
            arrays of a tile to a flat array of their dtype, called with pieces of at most a tile.
        options: further arguments of the rule, such as {"f": 2} or {"trim": 0.1} for "trimmed".
        accumulate, ints, nonfinite: as in weighted_mean, for the mean. "drop" reads the files twice. Robust rules and
            functions get every tensor as it is.
        num_threads: threads to use; None for the default (see edgefast.using).
        progress: called with (bytes of output written, bytes in all) after every tile.

    Returns:
        The path written.

    Raises:
        StructureMismatch, ShapeMismatch, DtypeMismatch, NonFiniteUpdate, IntegerRange, ZeroWeightError: as
            weighted_mean; the client is the file's path.
        InputError: a file is damaged or of another format, or the output format has no such dtype.
        ValueError, TypeError: no paths, weights that do not fit, an unknown rule or option.
        OSError: a file cannot be read or written.

    References:
        Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models", ICML 2022.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from edgefast.aggregate import average_checkpoints
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/client{k}.npz" for k in (1, 3)]
        ...     for path, k in zip(paths, (1, 3)):
        ...         np.savez(path, w=np.full(2, k, np.float32))
        ...     with np.load(average_checkpoints(paths, out=f"{folder}/mean.npz")) as mean:
        ...         mean["w"]
        array([2., 2.], dtype=float32)
    """
    _policy.check_options(accumulate, ints, nonfinite)
    threads = backends.num_threads(num_threads)
    names = [Path(p) for p in paths]
    if not names:
        raise ValueError("paths: expected at least one file, got none")
    if weights is not None and rule != "mean":
        raise ValueError("weights: only the mean takes weights")
    target = Path(out)
    check_suffix(target)
    used = _policy.weights_of(weights, len(names), accumulate)
    chosen = [i for i, w in enumerate(used) if w > 0]
    if not chosen:
        raise ZeroWeightError(f"weights: expected at least one weight above 0, got {len(names)} zeros")
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(names[i])) for i in chosen]
        entries = _common(readers)
        kept = list(range(len(readers)))
        if nonfinite == "drop" and rule == "mean":
            kept = _finite_files(readers, entries, threads)
        combine = _rule(
            rule, dict(options or {}), [used[chosen[i]] for i in kept], accumulate, ints, nonfinite, threads
        )
        readers = [readers[i] for i in kept]
        writer = CheckpointWriter(target, entries, _shared([r.metadata for r in readers]))
        total = sum(e.nbytes for e in entries)
        done = 0
        with writer.open():
            for entry in entries:
                with writer.tensor(entry) as file:
                    for rows in _tiles(readers, entry):
                        with _named(entry, readers):
                            mean = np.ascontiguousarray(combine(rows))
                        if mean.dtype != entry.dtype or mean.shape != rows[0].shape:
                            raise ValueError(
                                f"rule: expected {rows[0].shape} {dtype_name(entry.dtype)}, "
                                f"got {mean.shape} {dtype_name(mean.dtype)}"
                            )
                        file.write(mean.view(np.uint8).data)
                        done += mean.nbytes
                        if progress is not None:
                            progress(done, total)
    return target


def _common(readers: list[CheckpointReader]) -> list[Entry]:
    """The first file's tensors, after the others were found to have the same."""
    first = readers[0]
    for entry in first.entries.values():
        if entry.dtype not in DTYPES or not entry.dtype.isnative:
            expected = f"one of {', '.join(map(dtype_name, DTYPES))}"
            raise DtypeMismatch.of(first.path, entry.name, expected, dtype_name(entry.dtype))
    for reader in readers[1:]:
        if missing := [n for n in first.entries if n not in reader.entries]:
            raise StructureMismatch.of(reader.path, missing[0], f"the tensor of {first.path}", "none of that name")
        if extra := [n for n in reader.entries if n not in first.entries]:
            raise StructureMismatch.of(reader.path, extra[0], f"only the tensors of {first.path}", "one more")
        for name, expected in first.entries.items():
            found = reader.entries[name]
            if found.dtype != expected.dtype:
                raise DtypeMismatch.of(reader.path, name, dtype_name(expected.dtype), dtype_name(found.dtype))
            if found.shape != expected.shape:
                raise ShapeMismatch.of(reader.path, name, f"shape {expected.shape}", found.shape)
    return list(first.entries.values())


def _shared(metadata: list[dict[str, str]]) -> dict[str, str]:
    return {k: v for k, v in metadata[0].items() if all(m.get(k) == v for m in metadata)}


def _tiles(readers: list[CheckpointReader], entry: Entry) -> Iterator[list[Array]]:
    """Pieces of one tensor, one flat array a file; the arrays are reused."""
    step = max(_LEAST_TILE, _BUFFER_BYTES // (entry.dtype.itemsize * (len(readers) + 1)))
    buffers = [np.empty(min(step, entry.size), entry.dtype) for _ in readers]
    for start in range(0, entry.size, step):
        rows = [b[: min(step, entry.size - start)] for b in buffers]
        for reader, row in zip(readers, rows, strict=True):
            reader.read(entry.name, start, row)
        yield rows


def _finite_files(readers: list[CheckpointReader], entries: list[Entry], threads: int) -> list[int]:
    """Indices of the files without NaN and infinity."""
    faults = [_first_fault(reader, entries, threads) for reader in readers]
    kept = [i for i, fault in enumerate(faults) if fault is None]
    if not kept and faults[0] is not None:
        raise faults[0]
    return kept


def _first_fault(reader: CheckpointReader, entries: list[Entry], threads: int) -> UpdateError | None:
    kernels = backends.kernels()
    with CheckpointReader(reader.path) as again:
        for entry in entries:
            if entry.dtype.kind in "fV":
                for (row,) in _tiles([again], entry):
                    if not kernels.all_finite([row], threads):
                        return nonfinite_error([row], [entry.name], reader.path)
    return None


def _rule(
    rule: str | Rule,
    options: dict[str, Any],
    weights: list[float],
    accumulate: Accumulate,
    ints: Ints,
    nonfinite: Nonfinite,
    threads: int,
) -> Rule:
    if rule == "mean":
        if options:
            raise ValueError(f"options: the mean takes none, got {', '.join(options)}")

        def mean(rows: list[Array]) -> Array:
            out = np.empty_like(rows[0])
            policy: Nonfinite = "propagate" if nonfinite == "drop" else nonfinite
            weighted_mean(
                rows, weights, out=out, accumulate=accumulate, ints=ints, nonfinite=policy, num_threads=threads
            )
            return out

        return mean
    if callable(rule):
        return lambda rows: np.asarray(rule(rows, **options))
    from edgefast import aggregate

    function = getattr(aggregate, COORDINATEWISE_RULES.get(rule, ""), None)
    if function is None:
        available = ["mean", *(r for r, name in COORDINATEWISE_RULES.items() if hasattr(aggregate, name))]
        raise ValueError(f"rule: expected one of {', '.join(available)}, or a function, got {rule!r}")
    known = list(inspect.signature(function).parameters.values())[1:]
    if unknown := [name for name in options if name not in {p.name for p in known}]:
        raise ValueError(f"options: expected those of {function.__name__}, got {unknown[0]}")
    if missing := [p.name for p in known if p.default is p.empty and p.name not in options]:
        raise ValueError(f"options: {function.__name__} needs {missing[0]}")
    return lambda rows: np.asarray(function(rows, **options))


@contextlib.contextmanager
def _named(entry: Entry, readers: list[CheckpointReader]) -> Iterator[None]:
    """Errors of a tile name the file and the tensor."""
    try:
        yield
    except TooFewUpdates:  # which is about no tensor
        raise
    except UpdateError as error:
        client = readers[error.client].path if isinstance(error.client, int) else error.client
        raise type(error).of(client, entry.name, error.expected, error.got) from None
