"""How much the feature changes from step to step: the error of a partial step, which reuses an older one.

The drift of step i is ||f_i - f_b|| / ||f_b||, with b the last full step before it (or itself) of the schedule in
question and the 2-norm over all values of the feature, of both halves of classifier-free guidance; 0 in full steps.
Both features are those of the original's run, so errors that earlier steps leave in later ones are not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..images.features import features_read
from ..reuse.schedule import Schedule
from .results import Variant


def measure_drift(
    unet: Any, variants: Sequence[Variant], run: Callable[[Callable[[], None]], object]
) -> dict[Variant, list[float]]:
    """The drift of each step for each variant, from one run of the original pipeline.

    run: runs the pipeline of `unet` once and calls its argument at the end of each step. Price: that run, and the
    memory of a feature for each variant, and of each U-Net call of a step for each branch.
    """
    # By branch, one feature for each U-Net call of the present step.
    features: dict[int, list[Tensor]] = {variant.branch: [] for variant in variants}
    drifts = {variant: _Drift(variant.schedule) for variant in variants}

    def each_step() -> None:
        for variant, drift in drifts.items():
            drift.see(features[variant.branch])
        for step in features.values():
            step.clear()

    # Cloned, since the view that is read holds the memory of its skip as well.
    with features_read(unet, list(features), lambda branch, feature: features[branch].append(feature.clone())):
        run(each_step)
    return {variant: drift.values for variant, drift in drifts.items()}


class _Drift:
    """The drift under one schedule, step after step."""

    def __init__(self, schedule: Schedule) -> None:
        self.values: list[float] = []
        self._schedule = schedule
        self._base: list[Tensor] = []

    def see(self, features: list[Tensor]) -> None:
        """Add the next step, which had these features."""
        shapes = [tensor.shape for tensor in features]
        # A run goes full at sizes that are new to it, for example when guidance ends midway.
        if self._schedule.is_full(len(self.values)) or shapes != [tensor.shape for tensor in self._base]:
            self._base = list(features)
            self.values.append(0.0)
            return
        change = _norm([now.float() - base.float() for now, base in zip(features, self._base, strict=True)])
        self.values.append(float(change / _norm(self._base).clamp_min(torch.finfo(torch.float32).tiny)))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]).norm()
