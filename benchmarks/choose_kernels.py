"""Make `csrc_triton/defaults.csv`, the joins that run on the Triton ops by default, from what the benchmark measured.

    python benchmarks/bench_cat_group_norm_silu.py      # on the GPU
    python benchmarks/choose_kernels.py

A row for each GPU, dtype and pair of channels: our two launches with the two-input shortcut against the faster of
Inductor's two ways, summed over the sizes at which that pair was measured. A pair at which ours was wrong or failed at
any size has no row. Rows of GPUs that are not in the results given stay as they are.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from stepcache.bench.rows import RESULTS, ROOT

DEFAULTS = ROOT / "csrc_triton" / "defaults.csv"
OURS, RIVALS = "triton + shortcut", ("inductor", "inductor split")


def choose(results: list[Path], defaults: Path) -> None:
    """Put what `results` say into `defaults`."""
    sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    measured: set[str] = set()
    wrong: set[tuple[str, ...]] = set()
    for path in results:
        with path.open(newline="") as file:
            lines = list(csv.DictReader(file))
        joins: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        for line in lines:
            if not line["gpu"]:
                continue
            measured.add(line["gpu"])
            key = tuple(line[name] for name in ("gpu", "dtype", "hidden", "skip", "height", "width", "batch"))
            if line["us"]:
                joins[key][line["variant"]] = float(line["us"])
            elif line["variant"] == OURS:
                wrong.add(key[:4])
        for key, times in joins.items():
            if OURS in times and any(rival in times for rival in RIVALS):
                sums[key[:4]][0] += times[OURS]
                sums[key[:4]][1] += min(times[rival] for rival in RIVALS if rival in times)
    with defaults.open(newline="") as file:
        header, *kept = csv.reader(file)
    rows = [row for row in kept if row[0] not in measured]
    rows += [[*key, f"{ours:.2f}", f"{rival:.2f}"] for key, (ours, rival) in sums.items() if key not in wrong]
    with defaults.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *sorted(rows)])


def main() -> None:
    """Read the results, write the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, default=[RESULTS / "bench_cat_group_norm_silu.csv"])
    args = parser.parse_args()
    choose(args.results, DEFAULTS)


if __name__ == "__main__":
    main()
