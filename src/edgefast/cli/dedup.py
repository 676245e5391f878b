"""edgefast dedup: drop the rows of a file that nearly repeat a recent one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["add"]

_CENTER_ROWS = 1000
_DENSE_BYTES = 8 << 20


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from edgefast.cli import _files

    text = "copy a file without the rows that nearly repeat a recent one, streaming: any size, bounded memory"
    parser = commands.add_parser("dedup", help=text, description=text)
    _files.add_options(parser)
    parser.add_argument("--bits", type=int, default=256, metavar="N", help="bits of a row's code (%(default)s)")
    parser.add_argument(
        "--max-hamming",
        type=int,
        default=8,
        metavar="H",
        help="bits in which duplicates may differ (%(default)s)",
    )
    parser.add_argument("--window", type=int, default=1024, metavar="N", help="kept rows remembered (%(default)s)")
    parser.add_argument(
        "--no-center",
        dest="center",
        action="store_false",
        help=f"compare rows by their angle from 0 instead of from the mean of the first {_CENTER_ROWS} rows "
        "(always so for sparse matrices)",
    )
    parser.set_defaults(function=_dedup)


def _dedup(args: argparse.Namespace) -> int:
    import edgefast as ef
    from edgefast.cli import _files
    from edgefast.errors import InputError
    from edgefast.files import open_sink, open_source
    from edgefast.sketch import DedupFilter

    started = time.perf_counter()
    _files.start(args)
    if Path(args.source).suffix.lower() != Path(args.target).suffix.lower():
        raise InputError(
            f"{args.target}: expected a file ending in {Path(args.source).suffix}, rows are copied as they are"
        )
    source = open_source(args.source)
    try:
        keep = DedupFilter(args.bits, args.max_hamming, args.window, seed=args.seed)
    except ValueError as error:
        raise InputError(str(error)) from None
    with (
        _files.ending_cleanly(),
        ef.using(args.backend, num_threads=args.threads),
        open_sink(args.target) as sink,
    ):
        stream = _files.blocks(source, quiet=args.json)
        for rows, numbers in _centered(stream) if args.center and not source.sparse else _plain(stream):
            try:
                kept = keep.add(numbers)
            except ValueError as error:
                raise InputError(f"{source.name}: {error}") from None
            sink.write(rows[kept])
        if keep.n_seen == 0:
            raise InputError(f"{source.name}: expected rows, the file has none")
    dropped = keep.n_seen - keep.n_kept
    share = f"{dropped / keep.n_seen:.1%}"
    _files.report(
        args,
        started,
        f"{keep.n_kept:,} of {keep.n_seen:,} rows kept, {dropped:,} near-duplicates dropped ({share})",
        {"rows": keep.n_seen, "kept": keep.n_kept, "dropped": dropped, "columns": source.width, "seed": args.seed},
    )
    return 0


def _plain(blocks: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    import numpy as np

    for block in blocks:
        numbers = block.numbers
        if numbers.dtype.kind != "f":
            numbers = numbers.astype(np.float64)  # as with a center; angles do not mind the last bits of large integers
        if not hasattr(numbers, "tocsr"):
            yield block.rows, numbers
            continue
        step = max(1, _DENSE_BYTES // (8 * numbers.shape[1]))  # codes are made from dense rows, a few at a time
        for first in range(0, numbers.shape[0], step):
            yield block.rows[first : first + step], numbers[first : first + step].toarray()


def _centered(blocks: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Rows and their numbers less the mean of the first rows, whatever the blocks they come in."""
    import numpy as np

    held: list[Any] = []
    for block in blocks:
        held.append(block)
        if sum(len(b.numbers) for b in held) >= _CENTER_ROWS:
            break
    if not held:
        return
    first = np.concatenate([b.numbers for b in held])[:_CENTER_ROWS]
    center = first.mean(axis=0, dtype=np.float64)
    for group in (held, blocks):
        for block in group:
            yield block.rows, block.numbers - center
