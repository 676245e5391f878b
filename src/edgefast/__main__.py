"""python -m edgefast: the same as the `edgefast` command."""

import sys

from edgefast.cli import main

if __name__ == "__main__":
    sys.exit(main())
