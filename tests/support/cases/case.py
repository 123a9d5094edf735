"""One row of the table of pipelines, and arguments of calls that many rows share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import torch
from support.builders import MASK, PICTURE, PIXELS


@dataclass(frozen=True)
class Case:
    """One row: a pipeline class, the feature that is tried with it, and what comes of it.

    build: makes the pipeline, tiny. call: arguments of its call. run: in the place of the call, where that is more than
    one. kinds: what `last_run(pipe).kinds` is at interval=3: one letter per U-Net call, several a step if the pipeline
    has it so. captured_kinds: that of captured graphs, where it is another, since an input that comes or goes in the
    middle of the run makes a bucket of its own there. error, pattern: of the exception of `accelerate`, where the
    pipeline is refused.
    """

    pipeline: str
    feature: str
    build: Callable[[], Any]
    call: dict[str, Any] = field(default_factory=dict)
    kinds: str = ""
    captured_kinds: str = ""
    family: str = "UNet2DConditionModel"
    run: Callable[[Any, dict[str, Any]], Any] | None = None
    error: type[Exception] | None = None
    pattern: str = ""

    @property
    def name(self) -> str:
        return f"{self.pipeline}: {self.feature}"

    @property
    def of_diffusers(self) -> bool:
        """Whether diffusers has the class. If not, the tests wrote it, for a kind of loop that users write."""
        return hasattr(diffusers, self.pipeline)

    @property
    def status(self) -> str:
        return "works" if self.error is None else "refused"

    def output(self, pipe: Any, **changes: Any) -> torch.Tensor:
        """The first of the outputs of a call of `pipe`, with `changes` to its arguments."""
        torch.manual_seed(0)  # some pipelines draw without the generator
        call = {**self.call, **changes}
        if "generator" in inspect.signature(pipe.__call__).parameters:
            call["generator"] = torch.Generator().manual_seed(0)
        result = self.run(pipe, call) if self.run is not None else pipe(**call)
        result = result if isinstance(result, torch.Tensor) else result[0]
        return (
            result if isinstance(result, torch.Tensor) else torch.from_numpy(np.stack([np.asarray(r) for r in result]))
        )

    @property
    def reuses(self) -> bool:
        """Whether features are reused at all: not in runs that stepcache lets run as they are."""
        return "P" in self.kinds


STEPS = {"num_inference_steps": 5, "output_type": "latent"}

TEXT = {**STEPS, "prompt": "tiger face", "guidance_scale": 3.0}

SIZED = {**TEXT, "height": PIXELS, "width": PIXELS}

IMAGE = {**TEXT, "image": PICTURE}

INPAINT = {**SIZED, "image": PICTURE, "mask_image": MASK}

PLAIN = "FPPFP"

SHORT = "FPPF"  # four of five steps, at strength 0.8


def works(
    pipeline: str, feature: str, build: Callable[[type], Any], call: dict[str, Any], kinds: str = PLAIN, **more: Any
) -> Case:
    return Case(pipeline, feature, functools.partial(build, getattr(diffusers, pipeline)), call, kinds, **more)


def partial(build: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[type], Any]:
    """`build` with all arguments but the first, the class of the pipeline."""
    return lambda cls: build(cls, *args, **kwargs)


def four_steps(pipe: Any, **changes: Any) -> torch.Tensor:
    """Latents that a pipeline of `sd` or `sdxl` makes from text."""
    call = {**SIZED, "num_inference_steps": 4, **changes}
    return pipe(**call, generator=torch.Generator().manual_seed(0)).images
