"""The `edgefast` command: argument parsing over the public API, nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (0 done, 2 bad input)."""
    parser = argparse.ArgumentParser(prog="edgefast")
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="what this installation is: backends, SIMD levels, build, machine")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)

    from edgefast._info import config, show_config

    if args.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0
