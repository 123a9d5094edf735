"""How much the feature changes from step to step: what a partial step gets wrong when it reuses an older one.

All is done with what stepcache has. With interval=1 every step is full, so that the images are the original's and each
step writes its own feature into the bucket's buffer. The pipeline calls `callback_on_step_end` inside the run, where
`session.current` is the session and its buckets hold the feature of the step that has just ended.

The drift of step i is ||f_i - f_b|| / ||f_b||, with b the last full step before it (or itself) of the schedule in
question and the 2-norm over all values of the feature, of both halves of classifier-free guidance; 0 in full steps.
Both features are those of the original run: what an error in an earlier step does to later ones is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..api import accelerate, restore
from ..reuse.schedule import Schedule
from ..run.session import current


def measure_drift(
    pipe: Any, branch: int, schedules: Sequence[Schedule], generate: Callable[[Callable[[], None]], object]
) -> list[list[float]]:
    """The drift of each step for each of the schedules, from one run of `pipe` with all steps full.

    generate: runs the pipe once, calling what it is given at the end of each step. Price: that run, and a copy of the
    feature for each schedule.
    """
    watched = [_Drift(schedule) for schedule in schedules]

    def each_step() -> None:
        features = _features()
        for drift in watched:
            drift.see(features)

    accelerate(pipe, interval=1, branch=branch, compile=False, cuda_graphs=False, channels_last=False)
    try:
        generate(each_step)
    finally:
        restore(pipe)
    return [drift.values for drift in watched]


def _features() -> list[Tensor]:
    """The features of the step that has just ended, one for each U-Net call of it (slot)."""
    session = current.get()
    if session is None:
        raise RuntimeError("The pipeline called back outside of its run.")
    bucket = next(reversed(session.engine.unet.buckets.held.values()))  # the most recently used one
    newest = [kept.values[0].tensors[0] for kept in bucket.slots]  # of what is kept, the first value is the feature
    return [tensor for tensor in newest if tensor is not None]


class _Drift:
    """The drift under one schedule, step after step."""

    def __init__(self, schedule: Schedule) -> None:
        self.values: list[float] = []
        self._schedule = schedule
        self._base: list[Tensor] = []

    def see(self, features: list[Tensor]) -> None:
        """The next step, which had these features."""
        shapes = [tensor.shape for tensor in features]
        # A run has no feature of a size that it meets for the first time (guidance that ends midway): it goes full.
        if self._schedule.is_full(len(self.values)) or shapes != [tensor.shape for tensor in self._base]:
            self._base = [tensor.clone() for tensor in features]
            self.values.append(0.0)
            return
        change = _norm([now.float() - base.float() for now, base in zip(features, self._base, strict=True)])
        self.values.append(float(change / _norm(self._base).clamp_min(torch.finfo(torch.float32).tiny)))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]).norm()
