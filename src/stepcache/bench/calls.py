"""One timed pipeline call: its seconds and those of its U-Net, without making the device wait in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..images.make import Request


@dataclass(frozen=True)
class Timed:
    """One call: its images [N, H, W, 3] in 0..1, its seconds, and those of its U-Net calls."""

    images: np.ndarray
    seconds: float
    unet_seconds: float
    unet_calls: int


class UNetClock:
    """Seconds inside the calls of a pipe's U-Net.

    Measured by hooks on the module that the pipeline calls, around all that a variant has put on it. On CUDA by events
    in the stream, which are read when the images are on the host.
    """

    def __init__(self, unet: Any, device: str) -> None:
        self._now: Callable[[], Any] = event if device == "cuda" else time.perf_counter
        self._starts: list[Any] = []
        self._ends: list[Any] = []
        unet.register_forward_pre_hook(lambda *_: self._starts.append(self._now()))
        unet.register_forward_hook(lambda *_: self._ends.append(self._now()))

    def read(self) -> tuple[float, int]:
        """(seconds, calls) since the last `read` or `reset`. The device must be done with them."""
        pairs = list(zip(self._starts, self._ends, strict=True))
        self.reset()
        if self._now is event:
            return sum(start.elapsed_time(end) for start, end in pairs) / 1000, len(pairs)
        return sum(end - start for start, end in pairs), len(pairs)

    def reset(self) -> None:
        """Forget what has not been read, also of a call that failed."""
        self._starts, self._ends = [], []


def timed(request: Request, pipe: Any, clock: UNetClock, steps: int | None = None) -> Timed:
    """One call of the pipe. steps: instead of the request's. NaN in its images is reported in the variant's row."""
    clock.reset()
    made = request.make(pipe, steps, allow_nan=True)
    return Timed(made.images, made.seconds, *clock.read())


def event() -> torch.cuda.Event:
    """A timing event, recorded on the current stream."""
    recorded = torch.cuda.Event(enable_timing=True)
    recorded.record()
    return recorded
