"""edgefast sketch: project the rows of a file to fewer columns."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from edgefast.backends import streams
    from edgefast.cli import _files

    text = "project the rows of a file to fewer columns, streaming: any size of file, bounded memory"
    parser = commands.add_parser("sketch", help=text, description=text)
    _files.add_options(parser)
    parser.add_argument("--components", type=int, metavar="K", help="columns of OUT; needed without --operator")
    parser.add_argument(
        "--kind", choices=tuple(streams.KIND_NUMBERS), default="sparse_stack", help="of the operator (%(default)s)"
    )
    parser.add_argument(
        "--nnz", type=int, default=8, metavar="N", help="entries per column of IN, for sparse_stack (%(default)s)"
    )
    parser.add_argument(
        "--operator", metavar="FILE", help="24 bytes another run saved: sketch as it did, instead of --components"
    )
    parser.add_argument("--save-operator", metavar="FILE", help="write the 24 bytes that make the same sketch anywhere")
    parser.add_argument("--float32", action="store_true", help="compute and write float32 whatever IN has")
    parser.set_defaults(function=_sketch)


def _sketch(args: argparse.Namespace) -> int:
    import numpy as np

    import edgefast as ef
    from edgefast.cli import _files
    from edgefast.errors import InputError
    from edgefast.files import open_sink, open_source, replacing

    started = time.perf_counter()
    _files.start(args)
    if args.save_operator is not None:
        if any(_files.same_file(args.save_operator, name) for name in (args.source, args.target)):
            raise InputError(f"{args.save_operator}: expected a file of its own for the operator")
        if not Path(args.save_operator).absolute().parent.is_dir():
            raise InputError(f"{args.save_operator}: there is no folder {Path(args.save_operator).parent}")
    source = open_source(args.source)
    op = _operator(args, source.width)
    names = tuple(f"sketch{i}" for i in range(op.n_components))
    rows = 0
    with (
        _files.ending_cleanly(),
        ef.using(args.backend, num_threads=args.threads),
        open_sink(args.target, columns=names) as sink,
    ):
        for block in _files.blocks(source, quiet=args.json):
            X = block.numbers
            if args.float32 and X.dtype != np.float32:
                X = X.astype(np.float32)
            try:
                sink.write(op.transform(X))
            except (TypeError, ValueError) as error:
                raise InputError(f"{source.name}: {error}") from None
            rows += X.shape[0]
        if rows == 0:
            raise InputError(f"{source.name}: expected rows, the file has none")
        if args.save_operator is not None:
            with replacing(Path(args.save_operator)) as file:
                file.write_bytes(op.to_bytes())
    _files.report(
        args,
        started,
        f"{rows:,} rows of {source.width:,} columns to {op.n_components:,}: operator {op.to_bytes().hex()}",
        {
            "rows": rows,
            "columns": source.width,
            "components": op.n_components,
            "kind": op.kind,
            "seed": op.seed,
            "operator": op.to_bytes().hex(),
            "fingerprint": f"{op.fingerprint:016x}",
        },
    )
    return 0


def _operator(args: argparse.Namespace, width: int) -> Any:
    from edgefast.errors import InputError
    from edgefast.sketch import SketchOperator

    try:
        if args.operator is not None:
            if args.components is not None:
                raise InputError("components: the operator of --operator has its own")
            op = SketchOperator.from_bytes(Path(args.operator).read_bytes())
            if op.n_features != width:
                raise InputError(
                    f"{args.operator}: expected an operator for {width} columns, got one for {op.n_features}"
                )
            return op
        if args.components is None:
            raise InputError("components: expected --components K, the number of columns of OUT (or --operator FILE)")
        return SketchOperator(args.kind, width, args.components, seed=args.seed, nnz=args.nnz)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{args.operator}: {error}" if args.operator is not None else str(error)) from None
