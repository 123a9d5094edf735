"""The cells of the benchmark grid that the gate measures on a GPU, most important first."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import OUT_OF_TIME

FILE = "bench_gpu.csv"
"""The rows of all cells, with the columns of `stepcache bench`."""

QUICK = ("eager", "deepcache", "stepcache-eager")
"""Variants that compile nothing."""
OURS, RIVAL, TREES, TRITON = ("stepcache-graphs",), ("compile",), ("stepcache-compiled",), ("stepcache-triton",)
"""OURS is what `accelerate` does by default on a GPU. TREES leaves the capture to torch, as RIVAL does."""
FEWER = ("fewer-steps", "compile+fewer-steps")
"""The rival that every user has, at no higher cost. It runs the pipelines of eager and RIVAL, and compiles nothing."""
GRAPHS = {"modes": ("reduce-overhead",)}
"""The mode of torch.compile that also captures, and so the fairest comparison with OURS."""
DEEPER = {"reuse": ((5, 0), (5, 1))}


@dataclass(frozen=True)
class GateCell:
    """A `GridSpec` in its own process: started if `least` seconds are left, stopped after `most`.

    Variants are compared within a cell, so those that belong in one table share one: no table has rows of two.
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
        """Variants that run too, since no table mixes cells.

        Speed-ups are taken within a repeat, so eager and DeepCache are in each cell. Images are checked against the
        same schedule uncompiled: stepcache eager for stepcache's variants, eager for the others.
        """
        ours = any(key.startswith("stepcache") and key != "stepcache-eager" for key in self.variants)
        beside = ("eager", "deepcache", *(("stepcache-eager",) if ours else ()))
        return tuple(key for key in beside if key not in self.variants)

    def spec(self) -> Any:
        """The `GridSpec`. Unless `more` says otherwise: 50 steps, guidance 7.5, interval 3, branch 0, 3 repeats."""
        from stepcache.bench.spec import GridSpec

        return GridSpec(
            model=self.model,
            sizes=((self.size, self.size),),
            batches=(self.batch,),
            variants=self.beside + self.variants,
            **{"reuse": ((3, 0),), "repeats": 3, **self.more},
        )


CELLS = {
    "sd21-512-b1": GateCell(60, 270, "sd21", 512, 1, QUICK + OURS + TRITON + RIVAL + FEWER, GRAPHS),
    "sd21-768-b1": GateCell(70, 150, "sd21", 768, 1, QUICK + OURS),
    "sdxl-1024-b1": GateCell(100, 330, "sdxl", 1024, 1, QUICK + OURS + RIVAL + FEWER, GRAPHS),
    "sd21-512-b1-trees": GateCell(60, 150, "sd21", 512, 1, TREES, GRAPHS),
    "sd21-512-b4": GateCell(80, 180, "sd21", 512, 4, QUICK + OURS),
    "sd21-768-b4": GateCell(110, 240, "sd21", 768, 4, QUICK + OURS),
    "sdxl-1024-b4": GateCell(220, 420, "sdxl", 1024, 4, QUICK + OURS),
    "sd21-512-b1-deeper": GateCell(60, 120, "sd21", 512, 1, QUICK[1:], DEEPER),
    "sdxl-1024-b1-deeper": GateCell(100, 200, "sdxl", 1024, 1, QUICK[1:], DEEPER),
    "sd21-512-b1-autotune": GateCell(240, 480, "sd21", 512, 1, RIVAL + TREES, {"modes": ("max-autotune",)}),
}
"""Most important first. Those that ran on an H100 were well below their seconds; a cell that is cut short says so."""

DRY = {"demo-64-b1": GateCell(5, 90, "demo", 64, 1, QUICK, {"steps": 2, "repeats": 1})}
"""The cell of a dry run on a CPU, to check the script."""


def run_cell(name: str, out: Path, seconds: float) -> None:
    """Measure the cell of this name and add its rows to `out / FILE`.

    SystemExit names what failed, and variants whose images differ from their reference's: their rows have no figures.
    If only time was lacking, the exit status is OUT_OF_TIME.
    """
    from stepcache.bench.grid import run_grid
    from stepcache.bench.rows import read, write
    from stepcache.bench.schema import BenchRow

    end = time.monotonic() + seconds
    cell = (DRY if name in DRY else CELLS)[name]
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / FILE
        try:
            run_grid(cell.spec(), measured, deadline=end)
        finally:  # an interrupt keeps the finished repeats
            if measured.exists():
                rows = read(measured, BenchRow)
            write(out / FILE, [row for row in rows if not row.status.startswith("not run")], append=True)
    late = [f"{row.variant}: {row.status}" for row in rows if row.status.startswith("not run")]
    wrong = [f"{row.variant}: {row.status}" for row in rows if not row.status.startswith(("ok", "not run"))]
    if wrong:
        raise SystemExit("; ".join(wrong + late))
    if late or not rows:
        print("; ".join(late) or "No time was left for a first repeat.")
        raise SystemExit(OUT_OF_TIME)
