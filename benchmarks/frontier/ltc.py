"""LTC-Accel's skipped steps (Accelerating Diffusion Sampling via Exploiting Local Transition Coherence, ICCV 2025).

A skipped step runs nothing of the U-Net. As published, it moves the latents by what the step before has moved them,
times a scalar of its own, which is fitted in a run where that step's U-Net is evaluated. A second version does the same
with the guided output. The scalars are fitted over all prompts at once, and the fitting run goes on from the skipped
step's latents, as the later run will.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.solver import Run


class Coherent(Run):
    """Skipped steps repeat the change of the step before. scalars: by step; None fits them, at full cost.

    of: "latents" or "output". Needs two steps before the first skipped one: until then, steps are full.
    """

    shallow = False

    def __init__(self, *args: Any, of: str, scalars: Mapping[int, float] | None = None) -> None:
        super().__init__(*args)
        self.of, self.given = of, scalars
        self.scalars: dict[int, float] = dict(scalars or {})
        self.letters = "F" * min(3, self.steps) + self.letters[3:]
        self.skips = [step for step in range(self.steps) if not self.is_full(step)]
        if scalars is None:
            self.letters = "F" * self.steps
        self._trail: list[Tensor] = []  # of the latents, or of the outputs, oldest first

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        step = self.at
        if self.of == "output":
            value = self._skipped(step, output) if step in self.skips else output
            self._trail = [*self._trail, value][-2:]
            return self.solve(value, timestep, latents)
        self._trail = [*self._trail, latents][-2:]
        if step not in self.skips:
            return self.solve(output, timestep, latents)
        before = self.history()
        moved = self._skipped(step, self.solve(output, timestep, latents) if self.given is None else None)
        self.rewind(before)
        return self._towards(moved, timestep, latents)

    def _skipped(self, step: int, wanted: Tensor | None) -> Tensor:
        """The last value plus the scalar times its change, fitted to `wanted` first if none was given."""
        earlier, last = self._trail
        change = last - earlier
        if self.given is None:
            assert wanted is not None
            self.scalars[step] = float((change * (wanted - last)).sum() / (change * change).sum())
        return last + self.scalars[step] * change

    def _towards(self, wanted: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        """A first-order step whose output is such that it ends at `wanted`: then the solver's history knows it."""
        before = self.history()
        self.first_order()
        none = self.solve(torch.zeros_like(latents), timestep, latents)
        self.rewind(before)
        self.first_order()
        slope = (self.solve(torch.ones_like(latents), timestep, latents) - none).mean()
        self.rewind(before)
        self.first_order()
        return self.solve((wanted - none) / slope, timestep, latents)
