"""One timed pipeline call: seconds of all of it and of its U-Net, without making the device wait in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Call:
    """What is generated: the same for all variants of a cell."""

    prompts: Sequence[str]  # one an image
    height: int
    width: int
    steps: int
    guidance: float
    seed: int  # of the first image; the next have the next

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, batch {len(self.prompts)}"

    def __call__(self, pipe: Any, steps: int | None = None) -> np.ndarray:
        """The images [N, H, W, 3] in 0..1, of `steps` instead of the call's steps if given."""
        generators = [torch.Generator().manual_seed(self.seed + i) for i in range(len(self.prompts))]
        images: np.ndarray = pipe(
            list(self.prompts),
            height=self.height,
            width=self.width,
            num_inference_steps=steps or self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            output_type="np",
        ).images
        return images


@dataclass(frozen=True)
class Timed:
    """What one call gave."""

    images: np.ndarray
    seconds: float
    unet_seconds: float
    unet_calls: int


class UNetClock:
    """Seconds inside of the calls of a pipe's U-Net.

    Hooks of the module that the pipeline calls, outside of all that a variant has put on it. On CUDA, a pair of events
    around each call, which the stream passes by: read at the end, when the images have been waited for.
    """

    def __init__(self, unet: Any, device: str) -> None:
        self._now: Callable[[], Any] = _event if device == "cuda" else time.perf_counter
        self._starts: list[Any] = []
        self._ends: list[Any] = []
        unet.register_forward_pre_hook(lambda *_: self._starts.append(self._now()))
        unet.register_forward_hook(lambda *_: self._ends.append(self._now()))

    def read(self) -> tuple[float, int]:
        """(seconds, calls) since the last time; the device must be done with them."""
        pairs = list(zip(self._starts, self._ends, strict=True))
        self.reset()
        if self._now is _event:
            return sum(start.elapsed_time(end) for start, end in pairs) / 1000, len(pairs)
        return sum(end - start for start, end in pairs), len(pairs)

    def reset(self) -> None:
        """Forget what has not been read, that of a call that failed too."""
        self._starts, self._ends = [], []


def timed(call: Call, pipe: Any, clock: UNetClock) -> Timed:
    """One call of the pipe; its images are on the host when it ends, so the device is done."""
    clock.reset()
    start = time.perf_counter()
    images = call(pipe)
    seconds = time.perf_counter() - start
    return Timed(images, seconds, *clock.read())


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
