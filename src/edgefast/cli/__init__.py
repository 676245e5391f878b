"""The `edgefast` command: argument parsing over the public API, nothing else."""

from __future__ import annotations

import argparse
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
        The exit status: 0 done, 2 input that cannot be used, 130 interrupted.
    """
    from edgefast.cli import average, dedup, info, predict, run, sketch, top

    parser = _Parser(prog="edgefast", description="Sketching, backpressure queues and federated aggregation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in (run, predict, sketch, dedup, average, top, info):
        module.add(commands)
    args = parser.parse_args(argv)

    from edgefast.errors import InputError

    try:
        return args.function(args)
    except (InputError, ImportError) as error:
        message = " ".join(str(error).split())
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print(f"edgefast {args.command}: interrupted", file=sys.stderr)
        return 130
    print(f"edgefast {args.command}: error: {message}", file=sys.stderr)
    return 2
