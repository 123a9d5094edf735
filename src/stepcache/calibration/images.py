"""Images of a set of prompts, by the original and under candidates, and how close they are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import StepCacheError, UnsupportedPipeline
from ..graphs.settings import GraphSettings
from ..images import fidelity
from ..reuse.schedule import Schedule
from ..run.attach import attach, detach
from ..settings import Settings
from .candidates import Candidate
from .features import Grams

# What an identical image counts, in dB.
IDENTICAL = 120.0

# What a pipeline's call must take.
NEEDED = {"prompt", "num_inference_steps", "guidance_scale", "generator", "output_type"}


def check_call(pipe: Any) -> None:
    """UnsupportedPipeline where the pipe does not make images from prompts alone, as far as its call's names say."""
    takes = set(inspect.signature(type(pipe).__call__).parameters)
    # IP-Adapter's is an extra; any other image is what the pipeline starts from.
    images = {name for name in takes if name.endswith("image")} - {"ip_adapter_image"}
    if NEEDED - takes or images:
        why = f"takes {', '.join(sorted(images))}" if images else f"takes no {', '.join(sorted(NEEDED - takes))}"
        raise UnsupportedPipeline(f"{type(pipe).__name__} {why}: calibration is for text-to-image pipelines.")


@dataclass(frozen=True)
class Shots:
    """Prompts with the seeds of their images, and the pipeline call's further arguments. batch: images a call."""

    prompts: tuple[str, ...]
    negatives: tuple[str, ...]
    seeds: tuple[int, ...]
    call: dict[str, Any]
    batch: int

    def batches(self) -> list[slice]:
        """The images of each call."""
        return [slice(at, at + self.batch) for at in range(0, len(self.prompts), self.batch)]

    def make(self, pipe: Any, part: slice) -> np.ndarray:
        """Images of one call, [N, H, W, C] in 0..1."""
        # On the CPU: the same noise on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds[part]]
        call = dict(self.call)
        if any(self.negatives):
            call["negative_prompt"] = list(self.negatives[part])
        images = np.asarray(pipe(list(self.prompts[part]), generator=generators, output_type="np", **call).images)
        if not np.isfinite(images).all():
            raise StepCacheError(
                f"Images of {self.prompts[part][0]!r} have values that are no numbers, in {pipe.dtype}: load the "
                "pipeline in bfloat16 or float32."
            )
        return images

    def under(self, pipe: Any, candidate: Candidate, grams: Grams) -> np.ndarray:
        """All images, accelerated (eager) as `accelerate` would do it with the candidate's plan."""
        settings = Settings(
            Schedule.explicit(candidate.mask),
            candidate.branch,
            GraphSettings(compile=False, cuda_graphs=False, kernels=False),
            max_buckets=2,
            predictor=candidate.predictor(grams),
            reuse_guidance=candidate.reuse,
            channels_last=False,
        )
        attach(pipe, settings)
        try:
            return np.concatenate([self.make(pipe, part) for part in self.batches()])
        finally:
            detach(pipe)


@dataclass(frozen=True)
class Closeness:
    """PSNR of each image, in dB (infinite where it is identical), and the mean SSIM."""

    psnr: tuple[float, ...]
    ssim: float

    @classmethod
    def of(cls, images: np.ndarray, originals: np.ndarray) -> Closeness:
        """Measured."""
        each = tuple(fidelity.psnr(images, originals).tolist())
        return cls(each, float(fidelity.ssim(images, originals).mean()))

    @property
    def mean_psnr(self) -> float:
        """As fidelity.mean_psnr has it: of the images that are not identical."""
        finite = [value for value in self.psnr if np.isfinite(value)]
        return float(np.mean(finite)) if finite else float("inf")


def score(psnr: Sequence[float]) -> float:
    """What candidates are compared by: the mean, in which an identical image counts as IDENTICAL dB."""
    return float(np.minimum(psnr, IDENTICAL).mean())
