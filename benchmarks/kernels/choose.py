"""Put verdicts that were measured on a GPU into the table that comes with the package, csrc_triton/defaults.csv.

    stepcache tune sd15 --size 512 && stepcache tune sdxl --size 1024      # on the GPU
    python -m benchmarks.kernels.choose ~/.cache/stepcache/joins.csv

Both files are tables of verdicts (src/stepcache/verdicts.py). What the package's table knows of the same setup (GPU,
torch, Triton, stepcache) and join is replaced; everything else stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stepcache.bench.rows import ROOT
from stepcache.graphs.verdict_file import add_to_file, cache_folder, from_csv

DEFAULTS = ROOT / "csrc_triton" / "defaults.csv"


def main(argv: list[str] | None = None) -> None:
    """Read the tables given, write the package's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", type=Path, default=[cache_folder() / "joins.csv"])
    parser.add_argument("--out", type=Path, default=DEFAULTS)
    args = parser.parse_args(argv)
    verdicts = [verdict for path in args.tables for verdict in from_csv(path.read_text())]
    add_to_file(args.out, verdicts)
    faster = sum(verdict.for_triton for verdict in verdicts)
    print(f"{len(verdicts)} verdicts, {faster} of them for Triton: {args.out}")


if __name__ == "__main__":
    main()
