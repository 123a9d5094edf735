"""The columns of rivals.csv, and what follows from them: paired differences with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stepcache.images.bootstrap import Difference, bootstrap

HOLD, NONUNIFORM, LINE, AUTO, FIXED, SPECTRUM, FEWER = (
    "hold", "DeepCache 1:N", "line", "auto", "fixed", "Spectrum", "fewer steps",
)  # fmt: skip
"""Methods, or how their names begin: "fixed 1,-0.25", "Spectrum on features, even"."""
SPECTRUM_OWN = f"{SPECTRUM} on outputs, own schedule"  # full steps ever further apart


@dataclass(frozen=True)
class Row:
    """One method in one setting, in dB of PSNR. `psnr` and `psnr_most` are means over the images.

    psnrs, psnrs_most: each image's, two decimals, separated by spaces, prompt-major: all seeds of the first prompt,
    then all of the second. psnr, psnrs: against the original of as many steps; empty for fewer steps, which are
    originals. psnr_most, psnrs_most: against the original of `most` steps, of the same scheduler and guidance scale.
    """

    model: str
    scheduler: str  # its name in `stepcache demo --scheduler`
    steps: int
    guidance_scale: float
    method: str
    interval: int | None  # the uniform schedule whose cost the method may have; None for fewer steps
    schedule: str  # F full, P skipped
    cost: float  # of the run, in full steps, exact in MACs of the U-Net
    psnr: float | None
    psnr_most: float
    prompts: int
    seeds: int
    most: int
    psnrs: str
    psnrs_most: str

    @property
    def speedup(self) -> float:
        """In MACs, over the run of `most` steps."""
        return self.most / self.cost


class Setting(NamedTuple):
    """A model, scheduler, number of steps and guidance scale."""

    model: str
    scheduler: str
    steps: int
    guidance_scale: float


def text_of(psnrs: np.ndarray, seeds: int) -> str:
    """The column of a row. psnrs: [seeds * prompts], seed-major, as `images` makes them."""
    return " ".join(f"{psnr:.2f}" for psnr in psnrs.reshape(seeds, -1).T.ravel())


def psnrs_of(row: Row, *, most: bool = False) -> np.ndarray:
    """Each image's PSNR in dB, [prompts, seeds]. ValueError if the row has not as many."""
    text = row.psnrs_most if most else row.psnrs
    return np.array([float(number) for number in text.split()]).reshape(row.prompts, row.seeds)


def difference(ours: Row, theirs: Row, *, most: bool = False) -> Difference:
    """`ours` minus `theirs` on the same images. most: against the originals of most steps. ValueError if not the same.

    An image that one of the two has identical to its original (infinite) is left out.
    """
    same = [(row.model, row.scheduler, row.guidance_scale, row.prompts, row.seeds, row.most) for row in (ours, theirs)]
    if same[0] != same[1] or not (most or ours.steps == theirs.steps):
        raise ValueError(f"These rows are not of the same images: {same[0]}, {same[1]}.")
    return bootstrap(psnrs_of(ours, most=most) - psnrs_of(theirs, most=most))


def by_setting(rows: Iterable[Row]) -> dict[Setting, list[Row]]:
    """Rows of each setting without fewer steps, in the order of the file."""
    settings: dict[Setting, list[Row]] = {}
    for row in rows:
        if row.method != FEWER:
            settings.setdefault(Setting(row.model, row.scheduler, row.steps, row.guidance_scale), []).append(row)
    return settings


def fewer_for(row: Row, rows: Iterable[Row]) -> Row | None:
    """The run of fewer steps, of the same scheduler and guidance scale, that costs as `row`, rounded down."""
    same = row.model, row.scheduler, row.guidance_scale, math.floor(row.cost)
    found = (r for r in rows if r.method == FEWER and (r.model, r.scheduler, r.guidance_scale, r.steps) == same)
    return next(found, None)


def front(rows: Iterable[Row]) -> list[Row]:
    """The rows that no other beats in both cost and fidelity to the originals of most steps, cheapest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.cost, -row.psnr_most)):
        if not best or row.psnr_most > best[-1].psnr_most:
            best.append(row)
    return best
