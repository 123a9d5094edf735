"""The columns of frontier.csv, and what is read off them: fronts, and gains at one cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LOW, HIGH = 2.0, 4.0  # the speed-ups, in MACs, that the project's aims are stated for
AIMS = {50: 5.0, 20: 1.0}  # dB over DeepCache's algorithm at the same cost, by number of steps

DEEPCACHE, ALTERNATE, CALIBRATED = "DeepCache", "linear + alternate (prototype)", "calibrated"


@dataclass(frozen=True)
class Row:
    """One method at one cost in one setting. PSNR and SSIM are means over all held-out images."""

    model: str
    scheduler: str  # its name in `stepcache demo --scheduler`
    steps: int
    guidance_scale: float
    method: str
    predict: str  # hold, linear, a damping, or fitted
    guidance: str  # both, reuse
    branch: int
    schedule: str  # the run's own record, "FPPFPP..."
    budget: float | None  # asked of the calibration
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
    """What a frontier is of."""

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
    """What `accelerate` gives without a plan."""
    return [row for row in rows if row not in deepcache([row]) and row.method not in (ALTERNATE, CALIBRATED)]


def front(rows: Iterable[Row]) -> list[Row]:
    """Those that no other one beats in cost and fidelity both, cheapest last."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.speedup_macs, -row.psnr)):
        if not best or row.psnr > best[-1].psnr:
            best.append(row)
    return best[::-1]


def best_at(rows: Sequence[Row], speedup: float) -> Row | None:
    """The most faithful of those that are at least this fast (half a percent less counts as the same)."""
    fast = [row for row in rows if row.speedup_macs >= 0.995 * speedup]
    return max(fast, key=lambda row: row.psnr, default=None)


class Gain(NamedTuple):
    """At one point of DeepCache's front: its row, and the best of ours that costs no more."""

    theirs: Row
    ours: Row

    @property
    def decibel(self) -> float:
        """How much closer to the original ours is."""
        return self.ours.psnr - self.theirs.psnr


def gains(rows: Sequence[Row]) -> list[Gain]:
    """The gain at each point of DeepCache's front from LOW to HIGH, of one setting's rows."""
    others = [row for row in rows if row.method != ALTERNATE and row not in deepcache([row])]
    points = [row for row in front(deepcache(rows)) if LOW <= row.speedup_macs <= HIGH]
    pairs = ((theirs, best_at(others, theirs.speedup_macs)) for theirs in points)
    return [Gain(theirs, ours) for theirs, ours in pairs if ours is not None]
