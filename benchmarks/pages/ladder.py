"""What tables and plots of `stepcache bench` share: the cells of a CSV, the kinds of variants, names and numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.pages.trusted import trusted
from stepcache.bench.schema import BenchRow
from stepcache.bench.spec import LADDER, MODES

MODELS = {"demo": "Demo pipeline", "sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}
STOCK, DEEPCACHE, STEPCACHE = "diffusers", "DeepCache", "stepcache"
Reuse = tuple[int | None, int | None]  # (interval, branch); (None, None) where nothing is reused


class CellKey(NamedTuple):
    """The fields of `BenchRow` that all rows of a cell share."""

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
        return f"{MODELS.get(self.model, self.model)}, {self.height} x {self.width}, batch {self.batch}"

    @property
    def settings(self) -> str:
        guidance = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        weights = ", random weights" * self.random
        return f"{self.steps} {self.scheduler.removesuffix('Scheduler')} steps, {guidance}, {self.dtype}{weights}"

    @property
    def title(self) -> str:
        return f"{self.size}, {self.settings}"

    @property
    def random(self) -> bool:
        """Whether the weights are random: times are real, images mean nothing."""
        return self.weights == "random"


def cells(path: Path) -> dict[CellKey, list[BenchRow]]:
    """The rows of each cell of a CSV: without reuse first, then from eager up the ladder. Cells as in the file.

    Of several rows for one variant, those that ran come first, then those with more repeats, then the earlier one.
    Rows that are not trusted (trusted.py) are left out.
    """
    found: dict[CellKey, dict[Hashable, BenchRow]] = {}
    for row in trusted(path).rows:
        rungs = found.setdefault(CellKey(*(getattr(row, name) for name in CellKey._fields)), {})
        there = rungs.get((label(row), reuse(row)))
        if there is None or (ran(row), row.repeats) > (ran(there), there.repeats):
            rungs[label(row), reuse(row)] = row
    return {cell: sorted(rungs.values(), key=_place) for cell, rungs in found.items()}


def _place(row: BenchRow) -> tuple[int, ...]:
    """The sort key of a row in its cell. A rung that today's ladder does not have comes last."""
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
    """(interval, branch); (None, None) without reuse."""
    return row.interval, row.branch


def reuses(rows: Iterable[BenchRow]) -> list[Reuse]:
    """The distinct (interval, branch) pairs, in order, without (None, None)."""
    return [pair for pair in dict.fromkeys(map(reuse, rows)) if pair != (None, None)]


def label(row: BenchRow) -> str:
    """The variant and its mode of torch.compile."""
    return f"{row.variant}, {row.mode}" if row.mode else row.variant


def ran(row: BenchRow) -> bool:
    """Whether there is a time to show."""
    return row.status == "ok" and row.pipeline_s is not None


def fastest(rows: Sequence[BenchRow]) -> BenchRow | None:
    """The row with the fastest whole call. If none ran, the first one; None if there are no rows."""
    return min((row for row in rows if ran(row)), key=lambda row: row.pipeline_s, default=rows[0] if rows else None)


def seconds(value: float) -> str:
    """Three digits, without the unit: 0.123, 1.23, 12.3, 123; or 0."""
    if value == 0:
        return "0"
    return f"{value:.{3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def reason(row: BenchRow, longest: int = 72) -> str:
    """Why there is no time: the first line of the status, shortened."""
    first = row.status.splitlines()[0] if row.status else "not measured"
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"
