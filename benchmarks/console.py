"""What the benchmarks share on the command line: the parser, and tables as text. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import RESULTS


def parser(description: str | None, out: str, *, append: bool = False) -> argparse.ArgumentParser:
    """A parser with `--out`, by default the file `out` in RESULTS. append: it has `--append` too."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=RESULTS / out, help=f"CSV to write (default: results/{out})")
    if append:
        made.add_argument("--append", action="store_true", help="add rows to --out instead of replacing it")
    return made


def columns(header: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """Aligned columns of text: the first `left` to the left, the others to the right."""
    rows = [header, *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    fits = [str.ljust if i < left else str.rjust for i in range(len(header))]
    lines = ([fit(*cell) for fit, *cell in zip(fits, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def spread(median: float, p20: float, p80: float, form: str = ".3f") -> str:
    """A median with its percentiles: "1.000 (0.900 to 1.100)"."""
    return f"{median:{form}} ({p20:{form}} to {p80:{form}})"
