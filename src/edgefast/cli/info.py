"""edgefast info: what this installation is."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    text = "what this installation is: backends, SIMD levels, build, machine"
    parser = commands.add_parser("info", help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(function=_info)


def _info(args: argparse.Namespace) -> int:
    from edgefast._info import config, show_config

    if args.json:
        print(json.dumps(config(), indent=2))
    else:
        show_config()
    return 0
