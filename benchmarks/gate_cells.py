"""The cells of the seed grid that the gate measures on a GPU, most telling first."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "bench_gpu.csv"
"""All of the cells' rows, with the columns of `stepcache bench`."""

QUICK = ("eager", "deepcache", "stepcache-eager")
"""Nothing of these is compiled."""
OURS, RIVAL, OWN, TRITON = ("stepcache-compiled",), ("compile",), ("stepcache-graphs",), ("stepcache-triton",)
"""OWN compiles with the options that `accelerate` has by itself, whose coordinate descent takes minutes."""
GRAPHS = {"modes": ("reduce-overhead",)}
"""Compiled and captured, of torch's modes: the fairest against each other, and the quickest to compile."""
DEEPER = {"reuse": ((5, 0), (5, 1))}


@dataclass(frozen=True)
class Cell:
    """A `GridSpec` in a process of its own: begun with `least` seconds left, given up after `most`.

    Whatever is compiled has a cell for itself, so that minutes of compiling, or a hang in it, do not cost the others.
    """

    least: float
    most: float
    model: str
    size: int  # pixels, height and width
    batch: int
    variants: tuple[str, ...]
    more: dict[str, Any] = field(default_factory=dict)  # further fields of GridSpec

    @property
    def beside(self) -> tuple[str, ...]:
        """What runs too, since speed-ups are taken within a repeat. Its rows are another cell's."""
        return tuple(key for key in ("eager", "deepcache") if key not in self.variants)

    def spec(self) -> Any:
        """The `GridSpec`: 50 steps, guidance 7.5, interval 3, branch 0 and 3 repeats where `more` does not differ."""
        from stepcache.bench.grid import GridSpec

        return GridSpec(
            model=self.model,
            sizes=((self.size, self.size),),
            batches=(self.batch,),
            variants=self.beside + self.variants,
            **{"reuse": ((3, 0),), "repeats": 3, **self.more},
        )


CELLS = {
    "sd21-512-b1": Cell(35, 80, "sd21", 512, 1, QUICK),
    "sd21-512-b1-ours": Cell(60, 150, "sd21", 512, 1, OURS, GRAPHS),
    "sd21-512-b1-compile": Cell(60, 150, "sd21", 512, 1, RIVAL, GRAPHS),
    "sdxl-1024-b1": Cell(70, 140, "sdxl", 1024, 1, QUICK),
    "sdxl-1024-b1-ours": Cell(100, 240, "sdxl", 1024, 1, OURS, GRAPHS),
    "sd21-512-b1-own": Cell(150, 360, "sd21", 512, 1, OWN),
    "sd21-768-b1": Cell(40, 90, "sd21", 768, 1, QUICK),
    "sd21-768-b1-ours": Cell(70, 150, "sd21", 768, 1, OURS, GRAPHS),
    "sdxl-1024-b1-compile": Cell(100, 240, "sdxl", 1024, 1, RIVAL, GRAPHS),
    "sd21-512-b4": Cell(45, 100, "sd21", 512, 4, QUICK),
    "sd21-512-b4-ours": Cell(80, 180, "sd21", 512, 4, OURS, GRAPHS),
    "sd21-768-b4": Cell(90, 160, "sd21", 768, 4, QUICK),
    "sd21-768-b4-ours": Cell(110, 220, "sd21", 768, 4, OURS, GRAPHS),
    "sdxl-1024-b4": Cell(160, 260, "sdxl", 1024, 4, QUICK),
    "sdxl-1024-b4-ours": Cell(220, 360, "sdxl", 1024, 4, OURS, GRAPHS),
    "sd21-512-b1-deeper": Cell(60, 120, "sd21", 512, 1, QUICK[1:], DEEPER),
    "sdxl-1024-b1-deeper": Cell(100, 200, "sdxl", 1024, 1, QUICK[1:], DEEPER),
    "sd21-512-b1-autotune": Cell(240, 480, "sd21", 512, 1, RIVAL + OURS, {"modes": ("max-autotune",)}),
    "sd21-512-b1-triton": Cell(150, 360, "sd21", 512, 1, TRITON),
}
"""In order of worth. The seconds are estimates that no GPU has confirmed yet: a cell that is cut short says so."""

DRY = {"demo-64-b1": Cell(5, 90, "demo", 64, 1, QUICK, {"steps": 2, "repeats": 1})}
"""What a dry run on a CPU measures: that the script works."""


def run_cell(name: str, out: Path, seconds: float) -> None:
    """Measure the cell of that name and add its rows to `out / FILE`. SystemExit where not all of it was measured."""
    from stepcache.bench.grid import run_grid
    from stepcache.bench.rows import read, write
    from stepcache.bench.schema import BenchRow
    from stepcache.bench.variants import LADDER

    end = time.monotonic() + seconds
    cell = (DRY if name in DRY else CELLS)[name]
    own = {LADDER[key] for key in cell.variants}
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / FILE
        try:
            run_grid(cell.spec(), measured, deadline=end)
        finally:  # an interrupt too leaves the repeats that were done
            if measured.exists():
                rows = [row for row in read(measured, BenchRow) if row.variant in own]
            write(out / FILE, [row for row in rows if not row.status.startswith("not run")], append=True)
    missing = [f"{row.variant}: {row.status}" for row in rows if not row.status.startswith("ok")]
    if not rows or missing:
        raise SystemExit("; ".join(missing) or "No time was left for a first repeat.")
