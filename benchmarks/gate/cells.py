"""The cells of the seed grid that the gate measures on a GPU, most telling first."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gate.jobs import OUT_OF_TIME

FILE = "bench_gpu.csv"
"""All of the cells' rows, with the columns of `stepcache bench`."""

QUICK = ("eager", "deepcache", "stepcache-eager")
"""Nothing of these is compiled."""
OURS, RIVAL, TREES, TRITON = ("stepcache-graphs",), ("compile",), ("stepcache-compiled",), ("stepcache-triton",)
"""OURS is what `accelerate` does by itself on a GPU. TREES leaves the capture to torch, as RIVAL does."""
GRAPHS = {"modes": ("reduce-overhead",)}
"""Compiled and captured, of torch's modes: what OURS is fairest compared with."""
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
        """What runs too. Its rows are another cell's.

        Speed-ups are taken within a repeat, so eager and DeepCache are in each. And whether images are right is seen
        beside the same schedule with nothing compiled: stepcache eager for what is ours, eager for the rest.
        """
        ours = any(key.startswith("stepcache") and key != "stepcache-eager" for key in self.variants)
        beside = ("eager", "deepcache", *(("stepcache-eager",) if ours else ()))
        return tuple(key for key in beside if key not in self.variants)

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
    "sd21-512-b1-ours": Cell(60, 150, "sd21", 512, 1, OURS),
    "sd21-768-b1": Cell(40, 90, "sd21", 768, 1, QUICK),
    "sd21-768-b1-ours": Cell(70, 150, "sd21", 768, 1, OURS),
    "sdxl-1024-b1": Cell(70, 140, "sdxl", 1024, 1, QUICK),
    "sdxl-1024-b1-ours": Cell(100, 240, "sdxl", 1024, 1, OURS),
    "sd21-512-b1-compile": Cell(60, 150, "sd21", 512, 1, RIVAL, GRAPHS),
    "sdxl-1024-b1-compile": Cell(100, 240, "sdxl", 1024, 1, RIVAL, GRAPHS),
    "sd21-512-b1-trees": Cell(60, 150, "sd21", 512, 1, TREES, GRAPHS),
    "sd21-512-b1-triton": Cell(80, 180, "sd21", 512, 1, TRITON),
    "sd21-512-b4": Cell(45, 100, "sd21", 512, 4, QUICK),
    "sd21-512-b4-ours": Cell(80, 180, "sd21", 512, 4, OURS),
    "sd21-768-b4": Cell(90, 160, "sd21", 768, 4, QUICK),
    "sd21-768-b4-ours": Cell(110, 220, "sd21", 768, 4, OURS),
    "sdxl-1024-b4": Cell(160, 260, "sdxl", 1024, 4, QUICK),
    "sdxl-1024-b4-ours": Cell(220, 360, "sdxl", 1024, 4, OURS),
    "sd21-512-b1-deeper": Cell(60, 120, "sd21", 512, 1, QUICK[1:], DEEPER),
    "sdxl-1024-b1-deeper": Cell(100, 200, "sdxl", 1024, 1, QUICK[1:], DEEPER),
    "sd21-512-b1-autotune": Cell(240, 480, "sd21", 512, 1, RIVAL + TREES, {"modes": ("max-autotune",)}),
}
"""In order of worth. The seconds are estimates that no GPU has confirmed yet: a cell that is cut short says so."""

DRY = {"demo-64-b1": Cell(5, 90, "demo", 64, 1, QUICK, {"steps": 2, "repeats": 1})}
"""What a dry run on a CPU measures: that the script works."""


def run_cell(name: str, out: Path, seconds: float) -> None:
    """Measure the cell of that name and add its rows to `out / FILE`.

    SystemExit names what failed, and variants whose images are not those of their reference: they are rows without
    figures. Where only time was lacking, its status is OUT_OF_TIME.
    """
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
    late = [f"{row.variant}: {row.status}" for row in rows if row.status.startswith("not run")]
    wrong = [f"{row.variant}: {row.status}" for row in rows if not row.status.startswith(("ok", "not run"))]
    if wrong:
        raise SystemExit("; ".join(wrong + late))
    if late or not rows:
        print("; ".join(late) or "No time was left for a first repeat.")
        raise SystemExit(OUT_OF_TIME)
