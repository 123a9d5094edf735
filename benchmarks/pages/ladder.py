"""A CSV of `stepcache bench` as tables and plots show it: its cells, the kinds of variants in them, their names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.pages.trusted import trusted
from stepcache.bench.schema import BenchRow
from stepcache.bench.variants import LADDER, MODES

MODELS = {"demo": "Demo pipeline", "sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}
STOCK, DEEPCACHE, STEPCACHE = "diffusers", "DeepCache", "stepcache"
Reuse = tuple[int | None, int | None]  # (interval, branch); (None, None) where nothing is reused


class Cell(NamedTuple):
    """What all rows of one ladder have in common: fields of `BenchRow`."""

    model: str
    weights: str
    device: str
    dtype: str
    scheduler: str
    steps: int
    guidance: float
    height: int
    width: int
    batch: int

    @property
    def size(self) -> str:
        """Model, pixels and batch."""
        return f"{MODELS.get(self.model, self.model)}, {self.height} x {self.width}, batch {self.batch}"

    @property
    def settings(self) -> str:
        """The rest of it."""
        guidance = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        weights = ", random weights" * self.random
        return f"{self.steps} {self.scheduler.removesuffix('Scheduler')} steps, {guidance}, {self.dtype}{weights}"

    @property
    def title(self) -> str:
        """All of it in words."""
        return f"{self.size}, {self.settings}"

    @property
    def random(self) -> bool:
        """Whether the weights are random: seconds are those of the real model, images mean nothing."""
        return self.weights == "random"


def cells(path: Path) -> dict[Cell, list[BenchRow]]:
    """The ladders of a CSV: cells in the file's order, in each first what reuses nothing, rungs from eager upwards.

    What a cell has more than once is shown once: of the rows that ran the one with the most repeats, of those the
    first. Rows that are not to be trusted (trusted.py) are left out.
    """
    found: dict[Cell, dict[Hashable, BenchRow]] = {}
    for row in trusted(path).rows:
        rungs = found.setdefault(Cell(*(getattr(row, name) for name in Cell._fields)), {})
        there = rungs.get((label(row), reuse(row)))
        if there is None or (ran(row), row.repeats) > (ran(there), there.repeats):
            rungs[label(row), reuse(row)] = row
    return {cell: sorted(rungs.values(), key=_place) for cell, rungs in found.items()}


def _place(row: BenchRow) -> tuple[int, ...]:
    """Of a row among those of its cell; a rung that the ladder of today does not have comes last."""
    rung, mode = (
        known.index(name) if name in known else len(known)
        for known, name in ((list(LADDER.values()), row.variant), (["", *MODES], row.mode))
    )
    return -1 if row.branch is None else row.branch, row.interval or 0, rung, mode


def kind(row: BenchRow) -> str:
    """Whose work the variant is: STOCK, DEEPCACHE or STEPCACHE."""
    name = row.variant.lower()
    return STEPCACHE if "stepcache" in name else DEEPCACHE if "deepcache" in name else STOCK


def reuse(row: BenchRow) -> Reuse:
    """Interval and branch."""
    return row.interval, row.branch


def reuses(rows: Iterable[BenchRow]) -> list[Reuse]:
    """The distinct (interval, branch) of a ladder in its order, without rows that reuse nothing."""
    return [pair for pair in dict.fromkeys(map(reuse, rows)) if pair != (None, None)]


def label(row: BenchRow) -> str:
    """The variant with its mode of torch.compile."""
    return f"{row.variant}, {row.mode}" if row.mode else row.variant


def ran(row: BenchRow) -> bool:
    """Whether there is a time to show."""
    return row.status == "ok" and row.pipeline_s is not None


def fastest(rows: Sequence[BenchRow]) -> BenchRow | None:
    """Of those that ran, by the median of whole calls; without any the first, whose status says why; None of none."""
    return min((row for row in rows if ran(row)), key=lambda row: row.pipeline_s, default=rows[0] if rows else None)


def seconds(value: float) -> str:
    """Three digits, without the unit: 0.123, 1.23, 12.3, 123; 0 as it is."""
    if value == 0:
        return "0"
    return f"{value:.{3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def reason(row: BenchRow, longest: int = 72) -> str:
    """Why there is no time: the first line of the status, cut."""
    first = row.status.splitlines()[0] if row.status else "not measured"
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"
