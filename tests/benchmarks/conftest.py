"""The scripts of benchmarks/ import each other by file name, as when they are run: their folder goes on sys.path."""

import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
