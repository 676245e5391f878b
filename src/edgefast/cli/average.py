"""edgefast average: many model files into one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    text = "combine .safetensors or .npz models into one, in constant memory: federated checkpoints, model soups"
    parser = commands.add_parser("average", help=text, description=text)
    parser.add_argument("files", nargs="+", metavar="FILE", help=".safetensors or .npz, all with the same tensors")
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="the model to write, .safetensors or .npz")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one a file (default: equal)")
    parser.add_argument("--rule", default="mean", help="mean, median, trimmed or meamed (mean)")
    parser.add_argument("--trim", type=float, metavar="SHARE", help="trimmed: share cut off at each end")
    parser.add_argument("--byzantine", type=int, metavar="F", help="trimmed, meamed: number of files that may lie")
    parser.add_argument("--accumulate", default="float64", help="mean: float64, float32 or reproducible (float64)")
    parser.add_argument("--ints", default="round", help="mean: integers are round, max, first, skip or error (round)")
    parser.add_argument("--nonfinite", default="raise", help="mean: NaN and infinity raise, drop or propagate (raise)")
    parser.add_argument("--backend", help="auto, native, numba or numpy")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a kernel")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(function=_average)


def _average(args: argparse.Namespace) -> int:
    import edgefast as ef
    from edgefast.aggregate import average_checkpoints
    from edgefast.cli._files import ending_cleanly
    from edgefast.errors import InputError

    if args.rule in ("trimmed", "trimmed_mean") and (args.trim is None) == (args.byzantine is None):
        raise InputError(f"rule: expected exactly one of --trim and --byzantine with {args.rule!r}")
    if args.rule == "meamed" and args.byzantine is None:
        raise InputError("rule: expected --byzantine with 'meamed'")
    options = {k: v for k, v in (("trim", args.trim), ("f", args.byzantine)) if v is not None}
    written = 0

    def count(done: int, total: int) -> None:
        nonlocal written
        written = done

    begin = time.perf_counter()
    try:
        with (
            ending_cleanly(),
            ef.using(args.backend, num_threads=args.threads),
            _Bar(args.out, count) as progress,
        ):
            average_checkpoints(
                args.files,
                args.weights,
                out=args.out,
                rule=args.rule,
                options=options,
                accumulate=args.accumulate,
                ints=args.ints,
                nonfinite=args.nonfinite,
                progress=progress,
            )
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    seconds = time.perf_counter() - begin
    if args.json:
        found = {"out": args.out, "files": len(args.files), "rule": args.rule, "bytes": written, "seconds": seconds}
        print(json.dumps(found))
    else:
        rate = (len(args.files) + 1) * written / seconds / 1e9
        files = f"{len(args.files)} file{'s' if len(args.files) > 1 else ''}"
        print(f"{args.out}: {args.rule} of {files}, {written:,} bytes, {seconds:.2f} s, {rate:.1f} GB/s")
    return 0


class _Bar:
    """A progress bar on standard error, in a terminal and with rich installed; otherwise nothing."""

    def __init__(self, name: str, also: Callable[[int, int], None]) -> None:
        self._name, self._also = name, also
        self._bar: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
            except ImportError:
                return self._also
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._name.replace("[", "("), total=None)
            self._bar.start()
        return self._update

    def _update(self, done: int, total: int) -> None:
        self._also(done, total)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
