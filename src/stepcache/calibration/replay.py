"""Runs that begin in the middle of the original's: what the U-Net gave before is replayed from a recording.

Until its start, a replayed run is the original's, without a single U-Net call. So the cost of a few partial steps
anywhere in the run is that of those steps, in any pipeline and with any scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..forwards import family_of, lora_scaled
from ..forwards.blend import Blend
from ..forwards.calls import bound
from ..forwards.guidance import steps_of
from ..forwards.join import reference_join
from ..images.make import Request
from ..pipes.seat import seat
from ..reuse.predict import DIFFERENCE, FEATURE, Predictor, of_halves
from ..run.watch import Interception


@dataclass(frozen=True)
class Recording:
    """A batch of images by the original, step by step, on the CPU.

    samples: what the U-Net was given, [B, C, H, W] for each step; outputs: what it gave. features: by branch, one for
    each step. images: [N, H, W, C]. halves: whether B is [unconditional, conditional].
    """

    samples: Sequence[Tensor]
    outputs: Sequence[Tensor]
    features: Mapping[int, Sequence[Tensor]]
    images: np.ndarray
    halves: bool


@dataclass(frozen=True)
class Partial:
    """A stretch of partial steps: the last two full ones before it, newest first, or one; and the first step after it.

    Those steps predict from the features that the original had at `full`.
    """

    full: tuple[int, ...]
    end: int
    branch: int
    reuse: bool
    predictor: Predictor


class _Reached(Exception):
    """Ends a pipeline call whose last steps nobody needs."""


class Replay:
    """Replays of one request of `pipe`, which must not be accelerated."""

    def __init__(self, pipe: Any, request: Request, recording: Recording) -> None:
        self.pipe, self.request, self.recording = pipe, request, recording
        self.unet, self.family = pipe.unet, family_of(pipe.unet)

    def errors(self, stretch: Partial, stop: int) -> dict[int, Tensor]:
        """How far the run is from the original after its first partial step, up to step `stop`: [N, values] by step.

        The error at step b is that of the U-Net's input there, so of what the steps before b have done; at the number
        of steps, it is that of the images, and only then the run goes on to its end. From `stretch.end` on steps are
        full.
        """
        samples, images = self._run(stretch, stop)
        count, steps = len(self.recording.images), len(self.recording.samples)
        found = {}
        for step, sample in samples.items():
            if step > stretch.full[0] + 1:
                error = (sample - self.recording.samples[step]).double().flatten(1)
                # Both halves are given the same, so the rows of an image are put side by side.
                found[step] = error.unflatten(0, (-1, count)).transpose(0, 1).flatten(1)
        if images is not None:
            difference = images.astype(np.float64) - self.recording.images
            found[steps] = torch.from_numpy(difference).flatten(1)
        return found

    def _run(self, stretch: Partial, stop: int) -> tuple[dict[int, Tensor], np.ndarray | None]:
        samples: dict[int, Tensor] = {}
        owner, name = seat(self.unet)

        def wrap(stock: Callable[..., Any]) -> Callable[..., Any]:
            step = -1

            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal step
                step += 1
                inputs, scale, return_dict = bound(self.family.bind, stock, args, kwargs)
                sample: Tensor = inputs["sample"]
                if step > stretch.full[0]:
                    samples[step] = sample.detach().cpu()
                if step == stop:
                    raise _Reached
                if step <= stretch.full[0]:
                    output = self.recording.outputs[step].to(sample.device)
                elif step < stretch.end:
                    with nullcontext() if scale == 1.0 else lora_scaled(self.unet, scale):
                        output = self._partial(stretch, step, inputs)
                else:
                    return stock(*args, **kwargs)
                return self.family.wrap(output, return_dict)

            return forward

        with Interception.on(owner, name, wrap):
            try:
                # What overflows here is a costly segment, and no reason to stop.
                return samples, self.request.make(self.pipe, allow_nan=True).images
            except _Reached:
                # As the pipeline does at its end: offloaded models go back.
                getattr(self.pipe, "maybe_free_model_hooks", lambda: None)()
                return samples, None

    def _partial(self, stretch: Partial, step: int, inputs: dict[str, Any]) -> Tensor:
        cut = self.family.layout(self.unet).cut(stretch.branch)
        values = [[self.recording.features[stretch.branch][at] for at in stretch.full]]
        if stretch.reuse:
            outputs = [self.recording.outputs[at].chunk(2) for at in stretch.full]
            values = [[each.chunk(2)[1] for each in values[0]], [c - u for u, c in outputs]]
        kept = tuple(self._blend(stretch, step, i, each, inputs["sample"]) for i, each in enumerate(values))
        _, partial = steps_of(self.family, cut, reference_join, stretch.reuse)
        return partial(self.unet, kept, inputs)[0]

    def _blend(self, stretch: Partial, step: int, value: int, tensors: list[Tensor], like: Tensor) -> Blend:
        weigh = stretch.predictor.weights
        weights: Any = weigh(value, step, stretch.full)
        if stretch.predictor.apart and value == FEATURE and self.recording.halves and not stretch.reuse:
            weights = of_halves(weights, weigh(DIFFERENCE, step, stretch.full))
        buffers = tuple(tensor.to(like.device) for tensor in tensors)
        return Blend(buffers, torch.tensor(weights, dtype=torch.float32, device=like.device))
