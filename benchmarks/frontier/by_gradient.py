"""Dampings for each partial step, fitted by gradient descent through the whole run.

The loss is the distance of the final latents from the original run's. This is no method for users. It is a bound: how
much could any choice of dampings, by step, by time or by place between full steps, give on the prompts that it was
fitted on, and what is left of that on others?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.dampings import Apart
from benchmarks.frontier.solver import Run, running
from benchmarks.frontier.weighted import Method
from stepcache.reuse.predict import Weights
from stepcache.reuse.schedule import Schedule

RATE, DECAY = 0.15, 0.95
BETAS = 0.8, 0.95  # the loss has no noise, so little needs to be averaged


class EachStep:
    """Lines through the last two full steps with dampings of their own at each partial step.

    dampings: [steps, 2], for the halves' mean and for their difference.
    """

    of, keeps = "feature", 2

    def __init__(self, interval: int, dampings: Tensor) -> None:
        self.interval, self.dampings = interval, dampings

    def mask(self, steps: int) -> str:
        return Schedule.uniform(self.interval).kinds(steps)

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        if len(full) < 2:
            return (1.0,), (1.0,)
        newest, before = full
        mean, difference = (step - newest) / (newest - before) * self.dampings[step]
        return (1 + mean, -mean), (1 + difference, -difference)  # type: ignore[return-value]


def decibel(latents: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error in dB, the mean over images; a scalar."""
    return 10 * (latents - wanted).square().flatten(1).mean(1).log10().mean()


def fitted(
    pipe: Any, make: Callable[[], Tensor], start: Apart, steps: int, guidance: float, iterations: int
) -> tuple[Method, float]:
    """The best dampings found from `start`, and by how many dB the final latents are nearer with them.

    make: calls the pipeline without its `no_grad`, and returns final latents.
    """
    pipe.unet.requires_grad_(False)
    with torch.no_grad():
        wanted = make()
    dampings = torch.tensor([[start.mean, start.difference]]).repeat(steps, 1).requires_grad_()
    descent = torch.optim.Adam([dampings], lr=RATE, betas=BETAS)
    slower = torch.optim.lr_scheduler.ExponentialLR(descent, DECAY)
    losses, tried = [], []
    for _ in range(iterations):
        with running(pipe, Run(pipe, EachStep(start.interval, dampings), steps, guidance, 0.0)):
            loss = decibel(make(), wanted)
        losses.append(loss.item())
        tried.append(dampings.detach().clone())
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        descent.step()
        slower.step()
    best = min(range(iterations), key=losses.__getitem__)
    return EachStep(start.interval, tried[best]), losses[0] - losses[best]
