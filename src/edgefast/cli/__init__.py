"""The `edgefast` command: argument parsing over the public API, nothing else."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Errors are one line on standard error, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; None for those of the process.

    Returns:
        The exit status: 0 done, 1 every device of a run was lost, 2 input that cannot be used, 130 interrupted, 141
        nobody reads the output.
    """
    from edgefast.errors import InputError

    name = "edgefast"
    try:
        args = _parser().parse_args(argv)
        name = f"edgefast {args.command}"
        status = args.function(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error has a name
        return status
    except (InputError, ImportError) as error:
        message = " ".join(str(error).split())
    except BrokenPipeError:
        # `edgefast predict ... | head`: the reader has seen enough. What the interpreter flushes at exit goes nowhere.
        if sys.stdout is not None:
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    print(f"{name}: error: {message}", file=sys.stderr)
    return 2


def _parser() -> _Parser:
    from edgefast import __version__
    from edgefast.cli import average, dedup, info, predict, run, sketch, top

    parser = _Parser(prog="edgefast", description="Sketching, backpressure queues and federated aggregation.")
    parser.add_argument("--version", action="version", version=f"edgefast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in (run, predict, sketch, dedup, average, top, info):
        module.add(commands)
    return parser
