"""Sets of prompts, their images by the original and under candidates, and how close they are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidSetting
from ..graphs.settings import GraphSettings
from ..images import fidelity
from ..images.make import Request
from ..reuse.predict import Predictor
from ..reuse.schedule import Schedule
from ..run.attach import attach, detach
from ..settings import Settings
from .candidates import Candidate

# Arguments that a pipeline's call must take.
NEEDED = {"prompt", "num_inference_steps", "guidance_scale", "generator", "output_type"}

# Names of the prompt sets: two to calibrate with, and one to measure the plan on.
HEATS, HELD_OUT = ("first", "second"), "held out"

# Prompts to calibrate with, and again held out, at least.
LEAST_PROMPTS = 4

# What an identical image counts, in dB.
IDENTICAL = 120.0


@dataclass(frozen=True)
class PromptSet:
    """Prompts with the seeds of their images, and what all pipeline calls share. batch: images in one call, at most.

    call: further arguments of the pipeline's call, by its own names.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    call: dict[str, Any]
    batch: int

    def requests(self) -> list[Request]:
        """The pipeline calls that make all images."""
        found = []
        for at in range(0, len(self.prompts), self.batch):
            part = slice(at, at + self.batch)
            negatives = {"negative_prompt": list(self.negatives[part])} if any(self.negatives) else {}
            found.append(Request(self.prompts[part], self.seeds[part], self.steps, self.call | negatives))
        return found

    def make(self, pipe: Any) -> np.ndarray:
        """All images, [N, H, W, C] in 0..1."""
        return np.concatenate([request.make(pipe).images for request in self.requests()])

    def under(self, pipe: Any, candidate: Candidate, predictor: Predictor) -> np.ndarray:
        """All images, accelerated (eager) as `accelerate` would do it with the candidate's plan, but this predictor."""
        settings = Settings(
            Schedule.explicit(candidate.mask),
            candidate.branch,
            GraphSettings(compile=False, cuda_graphs=False, kernels=False),
            max_buckets=2,
            predictor=predictor,
            reuse_guidance=candidate.reuse,
            channels_last=False,
        )
        attach(pipe, settings)
        try:
            return self.make(pipe)
        finally:
            detach(pipe)


def split(
    prompts: Sequence[str],
    negatives: Sequence[str] | None,
    seed: int,
    steps: int,
    call: dict[str, Any],
    batch: int,
) -> dict[str, PromptSet]:
    """A quarter and a quarter of the prompts as HEATS, and half of them as HELD_OUT. No two images share a seed."""
    negatives = [""] * len(prompts) if negatives is None else negatives
    if len(negatives) != len(prompts):
        raise InvalidSetting(f"{len(prompts)} prompts and {len(negatives)} negative prompts: each prompt needs one.")
    pairs = list(dict.fromkeys(zip(prompts, negatives, strict=True)))
    if len(pairs) < 2 * LEAST_PROMPTS:
        raise InvalidSetting(
            f"Calibration needs at least {2 * LEAST_PROMPTS} different prompts, {LEAST_PROMPTS} to search with and "
            f"{LEAST_PROMPTS} to measure the plan; got {len(pairs)}."
        )
    random.Random(seed).shuffle(pairs)
    ends = 0, len(pairs) // 4, len(pairs) // 2, len(pairs)
    sets = {}
    for name, start, end in zip((*HEATS, HELD_OUT), ends, ends[1:], strict=False):
        texts, others = zip(*pairs[start:end], strict=True)
        sets[name] = PromptSet(tuple(texts), tuple(others), tuple(range(seed + start, seed + end)), steps, call, batch)
    return sets


@dataclass(frozen=True)
class Closeness:
    """PSNR of each image, in dB (infinite if identical), and the mean SSIM."""

    psnr: tuple[float, ...]
    ssim: float

    @classmethod
    def of(cls, images: np.ndarray, originals: np.ndarray) -> Closeness:
        """Measure it."""
        each = tuple(fidelity.psnr(images, originals).tolist())
        return cls(each, float(fidelity.ssim(images, originals).mean()))


def counted(psnr: Sequence[float]) -> tuple[float, ...]:
    """PSNR as candidates are compared by it: an identical image counts as IDENTICAL dB."""
    return tuple(min(value, IDENTICAL) for value in psnr)


def score(psnr: Sequence[float]) -> float:
    """The mean of `counted` PSNR."""
    return float(np.mean(counted(psnr)))
