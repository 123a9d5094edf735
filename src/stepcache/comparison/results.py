"""What a comparison found: for each prompt, the original's image and one for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..images.make import Request
from ..reuse.predict import Predict, as_option
from ..reuse.schedule import Schedule
from .cost import Cost


@dataclass(frozen=True)
class Variant:
    """One way to accelerate. predict: as `accelerate` takes it."""

    interval: int
    branch: int
    predict: Predict = "hold"

    @property
    def name(self) -> str:
        """ "interval 3, branch 0"; with another `predict` than the default "interval 3, branch 0, predict linear"."""
        return f"interval {self.interval}, {self.detail}"

    @property
    def holds(self) -> bool:
        """Whether partial steps take the feature of the last full step as it is."""
        return self.predict in ("hold", 0, (0, 0))

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `accelerate`."""
        return {"interval": self.interval, "branch": self.branch, "predict": self.predict}

    @property
    def detail(self) -> str:
        """The name without its interval."""
        if self.predict == "hold":
            return f"branch {self.branch}"
        return f"branch {self.branch}, predict {as_option(self.predict)}"

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.uniform(self.interval)


@dataclass(frozen=True)
class FewerSteps:
    """The original pipeline with `steps` steps instead of `of`: the most that cost no more than `variants`."""

    steps: int
    of: int
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """ "fewer steps: 12 of 30"."""
        return f"fewer steps: {self.steps} of {self.of}"


Setting = Variant | FewerSteps
"""What is compared with the original."""


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
    """One prompt's images: the original, and one for each setting, in their order. height and width in pixels."""

    request: Request
    height: int
    width: int
    original: Shot
    shots: Sequence[Shot]


@dataclass
class Comparison:
    """All results. drifts: for each variant, the drift of each step (drift.py) for each prompt it was measured on.

    facts: what was run and on what, as (label, value); missing: which scores were not computed, and why. cost: of full
    and partial steps over all prompts, None if it was not counted.
    """

    model: str
    summary: str
    settings: Sequence[Setting]
    results: list[Compared] = field(default_factory=list)
    drifts: dict[Variant, list[list[float]]] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cost: Cost | None = None

    @property
    def variants(self) -> list[Variant]:
        """The settings that are accelerated."""
        return [setting for setting in self.settings if isinstance(setting, Variant)]
