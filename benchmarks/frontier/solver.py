"""Runs that can change the solver's step too, besides what skipped steps take (weighted.py).

The pipeline's own loop calls the U-Net and `scheduler.step`. A `Run` stands in for both during one call of the
pipeline, and counts what it computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from benchmarks.frontier.weighted import Method, WeightedUNet

HISTORY = ("model_outputs", "lower_order_nums", "_step_index")
"""What a step changes in the schedulers measured here: Euler's has only the last one."""


class Run(WeightedUNet):
    """A weighted run with guidance; subclasses change `advance`, which makes the next latents.

    share: MACs of a partial step over those of a full one. spent: what was computed so far, in full steps.
    """

    shallow = True
    """Whether skipped steps need the shallow part, and so cost `share`."""

    def __init__(self, pipe: Any, method: Method, steps: int, guidance: float, share: float) -> None:
        super().__init__(pipe.unet, method, 0, steps)
        self.scheduler, self.guidance, self.share, self.spent = pipe.scheduler, guidance, share, 0.0
        self.inputs: dict[str, Any] = {}
        self._solve = pipe.scheduler.step

    @property
    def at(self) -> int:
        """The step whose U-Net call was the last, from 0."""
        return self._step - 1

    def is_full(self, step: int) -> bool:
        """Whether the whole U-Net runs in this step."""
        return self.letters[step] == "F"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.inputs = self.family.bind(*args, **kwargs).inputs
        self.spent += 1.0 if self.is_full(self._step) else self.share * self.shallow
        return super().__call__(*args, **kwargs)

    def guided(self, output: Tensor) -> Tensor:
        """What guidance makes of a U-Net's output [unconditional, conditional]."""
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

    def solve(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        """The scheduler's own step: the next latents."""
        return self._solve(output, timestep, latents, return_dict=False)[0]

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        """The next latents from a guided output; here the scheduler's own step."""
        return self.solve(output, timestep, latents)

    def step(self, output: Tensor, timestep: Any, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """In place of the scheduler's `step`."""
        return (self.advance(output, timestep, latents),)

    def history(self) -> dict[str, Any]:
        """A copy of what steps change in the scheduler, for `rewind`."""
        found = {name: getattr(self.scheduler, name) for name in HISTORY if hasattr(self.scheduler, name)}
        return {name: list(value) if isinstance(value, list) else value for name, value in found.items()}

    def rewind(self, history: dict[str, Any]) -> None:
        """Let the scheduler be as it was when `history` was taken."""
        for name, value in history.items():
            setattr(self.scheduler, name, list(value) if isinstance(value, list) else value)

    def first_order(self) -> None:
        """Let the scheduler's next step be of first order. Without effect on schedulers that have no other."""
        if hasattr(self.scheduler, "lower_order_nums"):
            self.scheduler.lower_order_nums = 0

    def data_of(self, noise: Tensor, latents: Tensor, step: int) -> Tensor:
        """The data prediction (x0) of a noise prediction at a step, with latents as the scheduler has them."""
        sigma = self.sigma(step)
        return latents * self._scale(sigma) - sigma * noise

    def noise_of(self, data: Tensor, latents: Tensor, step: int) -> Tensor:
        """The noise prediction of a data prediction."""
        sigma = self.sigma(step)
        return (latents * self._scale(sigma) - data) / sigma

    def sigma(self, step: int) -> float:
        """Noise over signal at the start of a step."""
        return float(self.scheduler.sigmas[step])

    def _scale(self, sigma: float) -> float:
        # Euler's latents are x0 + sigma * noise. DPM++ has them times 1 / sqrt(1 + sigma^2).
        return math.sqrt(1 + sigma * sigma) if hasattr(self.scheduler, "model_outputs") else 1.0


@contextmanager
def running(pipe: Any, run: Run) -> Iterator[Run]:
    """Inside, one call of `pipe` is this run. Afterwards its U-Net and its scheduler are as they were."""
    scheduler = pipe.scheduler
    pipe.unet.forward, scheduler.step = run, run.step
    try:
        yield run
    finally:
        del pipe.unet.forward, scheduler.step
