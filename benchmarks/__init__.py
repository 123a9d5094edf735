"""Benchmarks, run as modules from the root of a checkout: `python -m benchmarks.engine.host_overhead`.

This file imports the standard library only: the GPU gate uses it before it knows whether torch is installed.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
RESULTS = ROOT / "benchmarks" / "results"
"""The committed CSVs and figures."""
OUT_OF_TIME = 75
"""Exit status (EX_TEMPFAIL) of a benchmark that stopped because its `--seconds` were over. Nothing failed."""
