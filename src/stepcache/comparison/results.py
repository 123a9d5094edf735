"""What a comparison found: images of each prompt, made by the original and under each setting, and their figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..images.prompts import Prompt
from ..reuse.schedule import Schedule


@dataclass(frozen=True)
class Setting:
    """One way to accelerate."""

    interval: int
    branch: int

    @property
    def name(self) -> str:
        """ "interval 3, branch 0"."""
        return f"interval {self.interval}, branch {self.branch}"

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.uniform(self.interval)


@dataclass(frozen=True)
class Shot:
    """One image. Figures compare it with the original of the same prompt; None where they could not be worked out.

    picture, difference: data URIs; an original has no difference. kinds: "FPPF", a letter for each U-Net call.
    psnr in dB, infinite where identical; ssim up to 1; lpips from 0; clip: the CLIP score, of originals too. censored:
    the pipeline's safety checker has put a black image in the place of this one, or of the original.
    """

    picture: str
    thumbnail: Image.Image
    seconds: float
    kinds: str
    difference: str = ""
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    clip: float | None = None
    censored: bool = False


@dataclass(frozen=True)
class Compared:
    """One prompt's images: the original, and one for each setting, in their order. height and width in pixels."""

    prompt: Prompt
    seed: int
    height: int
    width: int
    original: Shot
    reused: Sequence[Shot]


@dataclass
class Comparison:
    """All of it. drifts: for each setting, the drift of each step (drift.py) of each prompt that it was asked for.

    facts: what was run and on what, as (label, value); missing: scores that were not computed, and why.
    """

    model: str
    summary: str
    settings: Sequence[Setting]
    results: list[Compared] = field(default_factory=list)
    drifts: dict[Setting, list[list[float]]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figures:
    """A setting's figures over all prompts; None where no image has one.

    seconds: median per image. speed_up: median of original over accelerated, prompt by prompt, and its range. Means
    leave identical images out of PSNR (with one of them it would be infinite, whatever the others look like): it is
    infinite where all are identical. worst_*: of the least faithful image.
    """

    name: str
    kinds: str
    seconds: float
    speed_up: float | None = None
    speed_ups: tuple[float, float] | None = None
    psnr: float | None = None
    worst_psnr: float | None = None
    ssim: float | None = None
    worst_ssim: float | None = None
    lpips: float | None = None
    worst_lpips: float | None = None
    clip: float | None = None


def figures_of(comparison: Comparison) -> list[Figures]:
    """The original's figures, then those of each setting."""
    originals = [result.original for result in comparison.results]
    rows = [
        Figures(
            "original",
            originals[0].kinds,
            statistics.median(shot.seconds for shot in originals),
            clip=_mean(shot.clip for shot in originals),
        )
    ]
    for i, setting in enumerate(comparison.settings):
        shots = [result.reused[i] for result in comparison.results]
        ratios = [original.seconds / shot.seconds for original, shot in zip(originals, shots, strict=True)]
        psnr = [shot.psnr for shot in shots if shot.psnr is not None]
        ssim = [shot.ssim for shot in shots if shot.ssim is not None]
        lpips = [shot.lpips for shot in shots if shot.lpips is not None]
        different = [value for value in psnr if math.isfinite(value)]
        rows.append(
            Figures(
                setting.name,
                shots[0].kinds,
                statistics.median(shot.seconds for shot in shots),
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                psnr=_mean(different) if different else min(psnr, default=None),
                worst_psnr=min(psnr, default=None),
                ssim=_mean(ssim),
                worst_ssim=min(ssim, default=None),
                lpips=_mean(lpips),
                worst_lpips=max(lpips, default=None),
                clip=_mean(shot.clip for shot in shots),
            )
        )
    return rows


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
