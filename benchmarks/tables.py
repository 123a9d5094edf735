"""The README's tables, made from the CSVs in `results/`.

    make tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between them is never edited by hand, and
tests/benchmarks/test_tables.py fails where it is not what the CSVs say. A table whose CSV is missing is left empty.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import cold_start
import cpu_ratio
import host_overhead
from stepcache.bench.rows import RESULTS, ROOT, Rig, read

README = ROOT / "README.md"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def caption(path: Path) -> str:
    """Where the figures come from: the rig of the first row, which is one of those shown."""
    rig = read(path, Rig)[0]
    threads = f"{rig.threads} thread" + "s" * (rig.threads > 1)
    return (
        f"\n{rig.gpu or rig.cpu}, {threads}, torch {rig.torch}, diffusers {rig.diffusers}, {rig.date[:10]}, "
        f"commit {rig.commit}. `{rig.command}`"
    )


def cpu_ratio_table(path: Path) -> str:
    """Speed-up against the original and the FLOP bound, for stepcache and DeepCache's helper."""
    rows, rigs = read(path, cpu_ratio.Row), read(path, Rig)
    lines = []
    settings = dict.fromkeys((rig.threads, r.heads, r.interval, r.branch) for r, rig in zip(rows, rigs, strict=True))
    for threads, heads, interval, branch in settings:
        if branch is None or threads > 1:  # more of the same: the CSV has them
            continue
        found = {
            r.variant: r
            for r, rig in zip(rows, rigs, strict=True)
            if (rig.threads, r.heads, r.interval, r.branch) == (threads, heads, interval, branch)
        }
        ours, theirs = found["stepcache"], found["deepcache"]
        lines.append(
            (
                f"{interval}, {branch}", f"{heads}", f"**{ours.speedup:.2f}x**", f"{theirs.speedup:.2f}x",
                f"{ours.bound:.2f}x", f"{ours.reachable:.2f}x",
            )
        )  # fmt: skip
    header = ("interval, branch", "heads", "stepcache", "DeepCache 0.1.1", "FLOP bound", "bare forwards")
    return table(header, lines) + "\n" + caption(path)


def host_overhead_table(path: Path) -> str:
    """Microseconds a U-Net call."""
    lines = [
        (row.method, row.variant, f"{row.interval}", f"{row.call:.0f}", f"{row.added:+.0f}")
        for row in read(path, host_overhead.Row)
    ]
    return table(("method", "variant", "interval", "µs per call", "added µs"), lines) + "\n" + caption(path)


def cold_start_table(path: Path) -> str:
    """Seconds to the first image, and later ones."""
    lines = [
        (
            row.variant, f"{row.first_image_s:.1f}", f"{row.compile_s:.1f}", f"{row.steady_s:.3f}",
            f"{row.steady_speedup_over_eager:.2f}x",
        )
        for row in read(path, cold_start.Row)
    ]  # fmt: skip
    header = ("graphs", "first image, s", "of it compiling, s", "later images, s", "over eager")
    return table(header, lines) + "\n" + caption(path)


TABLES: dict[str, Callable[[Path], str]] = {
    "cpu_ratio": cpu_ratio_table,
    "host_overhead": host_overhead_table,
    "cold_start": cold_start_table,
}


def fill(text: str, results: Path = RESULTS) -> str:
    """`text` with each of its tables made anew. KeyError for a table that nobody here makes."""

    def made(match: re.Match[str]) -> str:
        make, path = TABLES[match[1]], results / f"{match[1]}.csv"
        body = make(path) + "\n" if path.exists() else ""
        return f"<!-- table: {match[1]} -->\n{body}<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(fill(README.read_text()))
