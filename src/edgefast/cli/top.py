"""edgefast top: the queues of running pipelines, live."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgefast.cli._top import Picture

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    text = "stages and queues of this user's running pipelines, and shared queues: depth, limits, rates, drops"
    parser = commands.add_parser("top", help=text, description=text)
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("--json", action="store_true", help="print one picture as a JSON object and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between pictures (%(default)s)")
    parser.set_defaults(function=_top)


def _top(args: argparse.Namespace) -> int:
    from edgefast.cli._top import Watcher, as_json, plain
    from edgefast.errors import InputError

    if not 0.1 <= args.interval <= 3600 or math.isnan(args.interval):
        raise InputError(f"interval: expected 0.1 to 3600 seconds, got {args.interval}")
    watcher = Watcher()
    if args.json or args.once:
        picture = watcher.look()
        if picture.shared:  # their rates are a difference of two looks
            time.sleep(min(args.interval, 0.25))
            picture = watcher.look()
        if args.json:
            print(json.dumps(as_json(picture), allow_nan=False))
            return 0
        console = _console() if sys.stdout.isatty() else None
        if console is None:
            print(plain(picture))
        else:
            console.print(_screen(picture, console.size.width, math.inf), no_wrap=True, crop=False)
        return 0
    if not sys.stdout.isatty():
        raise InputError("expected a terminal to draw on; --once prints one picture, --json one JSON object")
    return _live(watcher, args.interval)


def _console() -> Any:
    """None without rich."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console()


def _live(watcher: Any, interval: float) -> int:
    from edgefast.errors import InputError

    console = _console()
    if console is None:
        raise InputError("the live view needs rich; pip install 'edgefast[cli]', or use --once or --json")
    from rich.live import Live

    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live, _Keys() as keys:
        while True:
            live.update(_screen(watcher.look(), console.size.width, console.size.height), refresh=True)
            try:
                if keys.quit(interval):
                    return 0
            except KeyboardInterrupt:
                return 0


class _Keys:
    """Single keys from the terminal while the picture stands."""

    def __enter__(self) -> _Keys:
        self._before: Any = None
        if sys.stdin.isatty():
            import termios
            import tty

            self._before = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def quit(self, seconds: float) -> bool:
        """Waits; whether q was pressed. Another key ends the wait early."""
        if self._before is None:
            time.sleep(seconds)
            return False
        import select

        if not select.select([sys.stdin], [], [], seconds)[0]:
            return False
        return os.read(sys.stdin.fileno(), 64) in (b"q", b"Q", b"", b"\x1b")


_STYLES = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "head": "bold", "": ""}


def _screen(picture: Picture, width: int, height: float) -> Any:
    """The picture for a terminal, fitted into it. Names are Text, never markup."""
    from rich.text import Text

    from edgefast.cli._top import commands, heading, lines, notes, tables

    remarks = notes(picture)
    started = commands(picture)
    found = [Text(heading(picture), style="bold"), *(Text(line, style="dim") for line in started)]
    room = height - len(found) - len(remarks) - bool(remarks)
    for table in tables(picture):
        rows = lines(table, width)
        found += [Text(), Text(table.title, style="bold cyan")]
        room -= 3
        fitting = len(rows) if len(rows) - 1 <= room else max(1, int(room))
        room -= fitting - 1
        for row in rows[:fitting]:
            text = Text()
            for i, cell in enumerate(row):
                text.append("  " if i else "")
                text.append(cell.text, style=_STYLES[cell.style])
            found.append(text)
        if fitting < len(rows):
            found.append(Text(f"… {len(rows) - fitting} more; --once prints all", style="dim"))
            room -= 1
    found += [Text(), *(Text(remark, style="yellow") for remark in remarks)] if remarks else []
    return Text("\n", no_wrap=True, overflow="crop").join(found)  # the joint decides for all
