"""IEC's correction of a step (Test-Time Iterative Error Correction, ICLR 2026, zysxmu/IEC), in partial steps.

As published, a step is repeated as a fixed point: the U-Net is evaluated again at the latents that the step has just
made, at the same timestep, and the step is done again from where it started with that output. Its authors do so where
the whole U-Net runs. Here the further evaluation is a second partial step on the same feature, so that it is cheap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.solver import Run


class Corrected(Run):
    """Partial steps repeated once. gamma: the share of the second output, 1 as published, 0 for none."""

    def __init__(self, *args: Any, gamma: float) -> None:
        super().__init__(*args)
        self.gamma = gamma

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        if self.is_full(self.at):
            return self.solve(output, timestep, latents)
        before = self.history()
        again = self._evaluated(self.solve(output, timestep, latents), timestep)
        self.rewind(before)
        # The step is affine in the output. So this is the same share of both steps' latents, and the solver's history
        # fits to them.
        return self.solve(output + self.gamma * (again - output), timestep, latents)

    def _evaluated(self, latents: Tensor, timestep: Any) -> Tensor:
        """A second partial step, on the next latents, which the scheduler scales as such, at this step's timestep."""
        self.spent += self.share
        sample = self.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        feature = self._value(self.at)
        return self.guided(self.family.partial(self.unet, self.cut, feature, **{**self.inputs, "sample": sample}))
