"""What the commands that stream a file have in common: options, progress, the line at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from edgefast.errors import InputError
from edgefast.files import SUFFIXES, Block, Source

__all__ = ["add_options", "blocks", "ending_cleanly", "report", "same_file", "start"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments every such command has, after its own."""
    parser.add_argument("source", metavar="IN", help=f"table to read: {', '.join(SUFFIXES)} (CSR matrices too)")
    parser.add_argument("target", metavar="OUT", help="file to write, replaced only when everything went well")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="0 to 2**64 - 1 (%(default)s)")
    parser.add_argument("--backend", help="auto, native, numba or numpy")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a kernel")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def start(args: argparse.Namespace) -> None:
    """Checks what all commands share.

    Raises:
        InputError: OUT is IN, or --threads is no positive integer.
    """
    if args.threads is not None and args.threads < 1:
        raise InputError(f"threads: expected a positive integer, got {args.threads}")
    if same_file(args.source, args.target):
        raise InputError(f"{args.target}: expected another file to write than the one to read")


def same_file(a: str, b: str) -> bool:
    """Whether two names lead to one file, there already or not."""
    return os.path.realpath(a) == os.path.realpath(b)


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: nothing half written stays behind."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    changed = []
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        changed = [n for n in numbers if signal.getsignal(n) is signal.SIG_DFL]
        for number in changed:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


def blocks(source: Source, *, quiet: bool) -> Iterator[Block]:
    """The blocks of a source, with a progress bar on standard error while they are used (in a terminal)."""
    if quiet or not sys.stderr.isatty():
        yield from source.blocks()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError:
        raise InputError("the progress bar needs rich; pip install 'edgefast[cli]', or use --json") from None
    columns = (
        TextColumn(f"[bold]{source.name.replace('[', '(')}[/]"),
        BarColumn(bar_width=32),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=1.0, rows=0)
        seen = 0
        for block in source.blocks():
            yield block
            seen += block.numbers.shape[0]
            done = seen / max(1, source.n_rows) if source.n_rows is not None else source.done()
            bar.update(task, completed=done or 0, rows=seen)
        bar.update(task, completed=1.0)


def report(args: argparse.Namespace, started: float, text: str, facts: dict[str, Any]) -> None:
    """One JSON object on standard output, or one line on standard error."""
    seconds = time.perf_counter() - started
    if args.json:
        print(json.dumps({**facts, "seconds": round(seconds, 3)}))
    else:
        print(f"{text} in {seconds:.1f} s", file=sys.stderr)
