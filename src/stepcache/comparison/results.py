"""What a comparison found: for each prompt, the original's image and one for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..images.make import Request
from ..reuse.schedule import Schedule


@dataclass(frozen=True)
class Variant:
    """One way to accelerate. predict: as in `accelerate`."""

    interval: int
    branch: int
    predict: str | float | tuple[float, float] = "hold"

    @property
    def name(self) -> str:
        """ "interval 3, branch 0"."""
        return ", ".join(self.parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """The name's parts, of which the first is the shortest that tells most."""
        parts = (f"interval {self.interval}", f"branch {self.branch}")
        return parts if self.predict == "hold" else (*parts, f"predict {_shown(self.predict)}")

    @property
    def label(self) -> str:
        """The name for a small place: "3, 0"."""
        return f"{self.interval}, {self.branch}"

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.uniform(self.interval)


@dataclass(frozen=True)
class Fewer:
    """The original with `steps` instead of `of` steps, all of them full."""

    steps: int
    of: int

    @property
    def name(self) -> str:
        """ "8 of 20 steps"."""
        return f"{self.steps} of {self.of} steps"

    @property
    def parts(self) -> tuple[str, ...]:
        """As a variant's."""
        return (self.name, "fewer steps")

    @property
    def label(self) -> str:
        """The name for a small place."""
        return f"{self.steps} steps"


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
    """One prompt's images: the original, and one for each of `Comparison.variants`. height and width in pixels."""

    request: Request
    height: int
    width: int
    original: Shot
    reused: Sequence[Shot]


@dataclass
class Comparison:
    """All results. variants: what is compared with the original, in the order of the columns.

    rivals: for each accelerated variant, fewer steps at its cost, if there are any. drifts: for each accelerated
    variant, the drift of each step (drift.py) for each prompt it was measured on. facts: what was run and on what,
    as (label, value); missing: which scores were not computed, and why.
    """

    model: str
    summary: str
    variants: Sequence[Variant | Fewer]
    results: list[Compared] = field(default_factory=list)
    drifts: dict[Variant, list[list[float]]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rivals: dict[Variant, Fewer | None] = field(default_factory=dict)

    @property
    def accelerated(self) -> list[Variant]:
        """The variants that are accelerated."""
        return [variant for variant in self.variants if isinstance(variant, Variant)]


def columns_of(variants: Sequence[Variant], rivals: Mapping[Variant, Fewer | None]) -> list[Variant | Fewer]:
    """The columns: each variant, and behind the last of those that cost the same the run of fewer steps."""
    last = {fewer: variant for variant in variants if (fewer := rivals.get(variant)) is not None}
    columns: list[Variant | Fewer] = []
    for variant in variants:
        columns.append(variant)
        columns += [fewer for fewer, at in last.items() if at is variant]
    return columns


def _shown(predict: str | float | tuple[float, float]) -> str:
    if isinstance(predict, tuple):
        return " and ".join(f"{damping:g}" for damping in predict)
    return predict if isinstance(predict, str) else f"{predict:g}"
