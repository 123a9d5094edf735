"""What a comparison found: for each prompt, the original's image and one for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..images.make import Request
from ..reuse.schedule import Schedule


@dataclass(frozen=True)
class Variant:
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
    """One image. Figures compare it with the original of the same prompt; None: not measured.

    picture, difference: data URIs; an original has no difference. kinds: "FPPF", a letter for each U-Net call.
    psnr in dB, infinite if identical; ssim up to 1; lpips from 0; clip: the CLIP score, of originals too. censored: the
    pipeline's safety checker replaced this image or its original with a black one.
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
    """One prompt's images: the original, and one for each variant, in their order. height and width in pixels."""

    request: Request
    height: int
    width: int
    original: Shot
    reused: Sequence[Shot]


@dataclass
class Comparison:
    """All results. drifts: for each variant, the drift of each step (drift.py) for each prompt it was measured on.

    facts: what was run and on what, as (label, value); missing: which scores were not computed, and why.
    """

    model: str
    summary: str
    variants: Sequence[Variant]
    results: list[Compared] = field(default_factory=list)
    drifts: dict[Variant, list[list[float]]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
