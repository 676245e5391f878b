"""Lets the benchmark find the workloads and contenders beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
