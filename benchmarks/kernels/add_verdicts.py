"""Adds verdicts measured on a GPU to the table that comes with the package, csrc_triton/defaults.csv.

    stepcache tune sd15 --size 512 && stepcache tune sdxl --size 1024      # on the GPU
    python -m benchmarks.kernels.add_verdicts ~/.cache/stepcache/joins.csv

Both files are tables of verdicts (src/stepcache/graphs/verdicts.py). A verdict on the same setup (GPU, torch, Triton,
stepcache) and join is replaced; all others stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import ROOT
from stepcache.graphs.verdict_file import add_to_file, cache_folder, from_csv

DEFAULTS = ROOT / "csrc_triton" / "defaults.csv"


def main(argv: list[str] | None = None) -> None:
    """Read the given tables and update the package's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, default=[cache_folder() / "joins.csv"], help="default: yours")
    parser.add_argument("--out", type=Path, default=DEFAULTS, help="default: the package's table")
    args = parser.parse_args(argv)
    verdicts = [verdict for path in args.tables for verdict in from_csv(path.read_text())]
    add_to_file(args.out, verdicts)
    faster = sum(verdict.for_triton for verdict in verdicts)
    print(f"{len(verdicts)} verdicts, {faster} of them for Triton: {args.out}")


if __name__ == "__main__":
    main()
