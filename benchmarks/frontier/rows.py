"""The columns of frontier.csv, and what is derived from them: fronts, and gains at equal cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LOW, HIGH = 2.0, 4.0  # the project's aims are for this range of speed-ups in MACs
AIMS = {50: 5.0, 20: 1.0}  # by number of steps: dB over DeepCache's algorithm at equal cost

DEEPCACHE, ALTERNATE, CALIBRATED = "DeepCache", "linear + alternate (prototype)", "calibrated"


@dataclass(frozen=True)
class Row:
    """One method at one cost in one setting. PSNR and SSIM are means over the held-out images."""

    model: str
    scheduler: str  # its name in `stepcache demo --scheduler`
    steps: int
    guidance_scale: float
    method: str
    predict: str  # hold, linear, auto, a damping, or fitted
    guidance: str  # both, reuse
    branch: int
    schedule: str  # as recorded by the run: "FPPFPP..."
    budget: float | None  # given to the calibration
    speedup_macs: float
    seconds: float
    speedup_seconds: float
    psnr: float
    psnr_p20: float  # over images
    psnr_p80: float
    ssim: float
    prompts: int
    seeds: int


class Setting(NamedTuple):
    """A model, scheduler, number of steps and guidance scale: what a frontier is drawn for."""

    model: str
    scheduler: str
    steps: int
    guidance_scale: float

    def __str__(self) -> str:
        return f"{self.scheduler}, {self.steps} steps, guidance {self.guidance_scale:g}"


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Rows of each setting, in the order of the file."""
    settings: dict[Setting, list[Row]] = {}
    for row in rows:
        settings.setdefault(Setting(row.model, row.scheduler, row.steps, row.guidance_scale), []).append(row)
    return settings


def deepcache(rows: Iterable[Row]) -> list[Row]:
    """DeepCache's algorithm, the paper's non-uniform schedules included."""
    return [row for row in rows if row.method.startswith(DEEPCACHE)]


def settings_of_accelerate(rows: Iterable[Row]) -> list[Row]:
    """Settings of `accelerate` without a plan."""
    return [row for row in rows if row not in deepcache([row]) and row.method not in (ALTERNATE, CALIBRATED)]


def front(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other row beats in both cost and fidelity, cheapest last."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.speedup_macs, -row.psnr)):
        if not best or row.psnr > best[-1].psnr:
            best.append(row)
    return best[::-1]


def best_at(rows: Sequence[Row], speedup: float) -> Row | None:
    """The most faithful row that is at least this fast; half a percent less is accepted."""
    fast = [row for row in rows if row.speedup_macs >= 0.995 * speedup]
    return max(fast, key=lambda row: row.psnr, default=None)


class Gain(NamedTuple):
    """A point of DeepCache's front, and stepcache's best row that costs no more."""

    theirs: Row
    ours: Row

    @property
    def decibel(self) -> float:
        return self.ours.psnr - self.theirs.psnr


def gains(rows: Sequence[Row]) -> list[Gain]:
    """The gains in one setting, at each point of DeepCache's front from LOW to HIGH."""
    others = [row for row in rows if row.method != ALTERNATE and row not in deepcache([row])]
    points = [row for row in front(deepcache(rows)) if LOW <= row.speedup_macs <= HIGH]
    pairs = ((theirs, best_at(others, theirs.speedup_macs)) for theirs in points)
    return [Gain(theirs, ours) for theirs, ours in pairs if ours is not None]
