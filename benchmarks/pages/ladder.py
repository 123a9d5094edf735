"""What tables and plots of `stepcache bench` share: the ladders of a CSV, the kinds of variants, names and numbers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.pages.trusted import trusted
from stepcache.bench.rows import Rig
from stepcache.bench.schema import BenchRow
from stepcache.bench.spec import LADDER, MODES

MODELS = {"demo": "Demo pipeline", "sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}
STOCK, DEEPCACHE, STEPCACHE = "diffusers", "DeepCache", "stepcache"
Reuse = tuple[int | None, int | None]  # (interval, branch)
LEAST_REPEATS = 3
ALONE = (None, None)  # where nothing is reused, and no number of steps is chosen by what is
RATIOS = "Speed-ups are medians of the ratios within a repeat, so they may differ from the ratio of the seconds shown."


class LadderKey(NamedTuple):
    """What all rows of a ladder share: the fields of `BenchRow` of these names, and the run that measured them.

    commit, command and machine are the run's. Rows of two runs are never in one table: speeds differ between machines
    and hours. (One command that is run twice on one machine is one run, whose better rows count.)
    """

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
    commit: str
    command: str
    cpu: str
    gpu: str
    threads: int
    torch: str

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


@dataclass
class Ladder:
    """A run's rows for one size and batch: without reuse first, then from eager up; and the rigs they were measured on.

    first: the (interval, branch) that was measured first, together with the rows without reuse; ALONE if there is none.
    Others have an eager of their own beside them, which has no row.
    """

    rows: list[BenchRow]
    rigs: list[Rig]
    first: Reuse

    def of(self, pair: Reuse) -> list[BenchRow]:
        """The rows of an (interval, branch)."""
        return [row for row in self.rows if reuse(row) == pair]

    @property
    def reuses(self) -> list[Reuse]:
        """The (interval, branch) pairs that differ in work, in order.

        In short runs two intervals may have as many full steps: of 6, both 3 and 5 have two. Of these only the first,
        if images mean nothing; else they differ in fidelity.
        """
        found: dict[Hashable, Reuse] = {}
        for pair in dict.fromkeys(map(reuse, self.rows)):
            row = next((row for row in self.of(pair) if row.flop_bound and not row.fewer), None)
            same = row is not None and pair != ALONE and row.weights == "random"
            found.setdefault(("work", pair[1], row.flop_bound) if same else pair, pair)
        return [pair for pair in found.values() if pair != ALONE]


def ladders(path: Path) -> dict[LadderKey, Ladder]:
    """The ladders of a CSV, as in the file.

    Of several rows for one variant, those that ran come first, then those with more repeats, then the earlier one.
    Rows that are not trusted (trusted.py) are left out.
    """
    found: dict[LadderKey, dict[Hashable, tuple[BenchRow, Rig]]] = {}
    rows, rigs, _ = trusted(path)
    for row, rig in zip(rows, rigs, strict=True):
        shared = [getattr(row if hasattr(row, name) else rig, name) for name in LadderKey._fields]
        rungs = found.setdefault(LadderKey(*shared), {})
        there, _ = rungs.get((label(row), reuse(row)), (None, None))
        if there is None or (ran(row), row.repeats) > (ran(there), there.repeats):
            rungs[label(row), reuse(row)] = row, rig
    made = {}
    for key, rungs in found.items():
        ordered = sorted(rungs.values(), key=lambda pair: _place(pair[0]))
        first = next((pair for _, pair in rungs if pair != ALONE), ALONE)
        made[key] = Ladder([row for row, _ in ordered], [rig for _, rig in ordered], first)
    return made


def _place(row: BenchRow) -> tuple[int, ...]:
    """The sort key of a row in its ladder. A rung that today's ladder does not have comes last."""
    rung, mode = (
        known.index(name) if name in known else len(known)
        for known, name in ((list(LADDER.values()), row.variant), (["", *MODES], row.mode))
    )
    return -1 if row.branch is None else row.branch, row.interval or 0, rung, mode


def kind(row: BenchRow) -> str:
    """Whose work the variant is: STOCK, DEEPCACHE or STEPCACHE."""
    name = row.variant.lower()
    return STEPCACHE if "stepcache" in name else DEEPCACHE if "deepcache" in name else STOCK


def engine(row: BenchRow) -> str:
    """How the variant runs its U-Net: eager or compiled."""
    return "compiled" if "compile" in row.variant else "eager"


def reuse(row: BenchRow) -> Reuse:
    """(interval, branch), or ALONE."""
    return row.interval, row.branch


def label(row: BenchRow) -> str:
    """The variant, with its number of steps if they are fewer, its prediction and its mode of torch.compile."""
    steps = f": {row.fewer}" if row.fewer else ""
    predict = f", predict={literal(row.predict)}" if row.predict != "hold" else ""
    return f"{row.variant}{steps}{predict}" + (f", {row.mode}" if row.mode else "")


def literal(predict: str) -> str:
    """As in a call of `accelerate`: of "auto" and "1,-0.25", "auto" in quotes and (1,-0.25)."""
    if predict.isalpha():
        return f'"{predict}"'
    return f"({predict})" if "," in predict else predict


def ran(row: BenchRow) -> bool:
    """Whether there is a time to show."""
    return row.status == "ok" and row.pipeline_s is not None


def fastest(rows: Sequence[BenchRow]) -> BenchRow | None:
    """The row with the fastest whole call. If none ran, the first one; None if there are no rows."""
    return min((row for row in rows if ran(row)), key=lambda row: row.pipeline_s, default=rows[0] if rows else None)


def clearly_fastest(rows: Sequence[BenchRow | None]) -> BenchRow | None:
    """The row whose interval (20th to 80th percentile) ends before all others' begin.

    None if two overlap, or if a row has fewer repeats than an interval needs.
    """
    timed = [row for row in rows if row and ran(row) and row.pipeline_s_p20 is not None]
    if any(row.repeats < LEAST_REPEATS for row in timed):
        return None
    best = fastest(timed)
    others = [row.pipeline_s_p20 for row in timed if row is not best]
    return best if best and others and best.pipeline_s_p80 < min(others) else None


def seconds(value: float) -> str:
    """Three digits, without the unit: 0.123, 1.23, 12.3, 123; or 0."""
    if value == 0:
        return "0"
    return f"{value:.{3 if value < 0.9995 else 2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def reason(row: BenchRow, longest: int = 72) -> str:
    """Why there is no time: the first line of the status, shortened."""
    first = row.status.splitlines()[0] if row.status else "not measured"
    return first if len(first) <= longest else first[: longest - 1].rstrip() + "…"
