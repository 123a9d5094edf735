"""Images of one pipeline call: what is asked for, and what came out of it."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import StepCacheError, UnsupportedPipeline


@dataclass(frozen=True)
class Made:
    """Images [N, H, W, C] in 0..1, and the seconds of the pipeline call.

    censored: for each image, whether the pipeline's safety checker replaced it with a black one.
    """

    images: np.ndarray
    seconds: float
    censored: tuple[bool, ...]


@dataclass(frozen=True)
class Request:
    """What one pipeline call generates: an image of one prompt and seed, or one each of several.

    call: further arguments, by the pipeline's own names ("guidance_scale", "height", ...), passed as they are.
    """

    prompt: str | Sequence[str]
    seed: int | Sequence[int]
    steps: int
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt; the first of several."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def make(
        self,
        pipe: Any,
        steps: int | None = None,
        each_step: Callable[[], object] | None = None,
        allow_nan: bool = False,
    ) -> Made:
        """Run the pipeline. steps: instead of the request's own. each_step: called at the end of each step.

        StepCacheError for images with NaN or infinite values, as half precision can give, unless `allow_nan`.
        """
        call = dict(self.call)
        if each_step is not None:

            def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                each_step()
                return tensors

            call["callback_on_step_end"] = on_step_end
        # One generator for each image, so that an image does not depend on the others in its batch. On the CPU, so that
        # noise is the same on every device.
        start = time.perf_counter()
        output = pipe(
            prompt=self.prompt if isinstance(self.prompt, str) else list(self.prompt),
            num_inference_steps=steps or self.steps,
            generator=_generator(self.seed) if isinstance(self.seed, int) else [_generator(s) for s in self.seed],
            output_type="np",
            **call,
        )
        seconds = time.perf_counter() - start  # a GPU is done when the arrays are here
        images = np.asarray(output.images)
        if not allow_nan and not np.isfinite(images).all():
            raise StepCacheError(
                f"The pipeline's images of {self.text!r} have NaN or infinite values, in {pipe.dtype}: load it in "
                "bfloat16 or float32 (--dtype)."
            )
        flags = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
        return Made(images, seconds, tuple(map(bool, flags)))


def check_text_to_image(pipe: Any, needed: Iterable[str], what: str) -> None:
    """UnsupportedPipeline if the pipe's call lacks one of the arguments `needed`, or takes an image to start from.

    what: who needs a text-to-image pipeline, for the message.
    """
    takes = set(inspect.signature(type(pipe).__call__).parameters)
    missing = set(needed) - takes
    # IP-Adapter's image is optional. Any other is what the pipeline starts from.
    images = {name for name in takes if name.endswith("image")} - {"ip_adapter_image"}
    if missing or images:
        why = f"takes {', '.join(sorted(images))}" if images else f"takes no {', '.join(sorted(missing))}"
        raise UnsupportedPipeline(f"{type(pipe).__name__} {why}: {what} is for text-to-image pipelines.")


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
