"""Why does DPM++ 2M bear less of the line at high guidance than a first-order solver? A model, and a measurement.

    python -m benchmarks.frontier.stability

The model is a solver with constant steps whose U-Net answers a small error of the latents with -k times that error, k
growing with guidance. `limit` is the largest k at which errors die out. docs/notes.md derives it.

The measurement is of the demo and of one solver twice, DPM++ of order 1 (DDIM's step) and of order 2, on the same
timesteps. A part of the error that holding the last step's feature makes is added to one guided output, in a run of
full steps and in runs that skip some. A row has the size of what that does to the final latents.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.console import parser
from benchmarks.frontier.dampings import Apart
from benchmarks.frontier.pictures import CALIBRATION
from benchmarks.frontier.solver import Run, running
from stepcache.bench.rows import write
from stepcache.images.pipelines import load_demo
from stepcache.images.schedulers import swap_scheduler
from stepcache.progress import progress
from stepcache.reuse.predict import Line

PROMPTS, SEED, STEPS = CALIBRATION[:4], 7, 20
STEP, PART = 5, 0.02
"""Where the error is added, a partial step at intervals 2 and 3, and how much of it."""

ORDERS, GUIDANCE = (1, 2), (3.0, 7.5)
SKIPPING = (
    (1, 0.0, 0.0),
    *((interval, *pair) for interval in (2, 3) for pair in ((0.0, 0.0), (1.0, 1.0), (1.0, -0.25))),
)
"""Interval, and dampings of the halves' mean and of their difference. At interval 1 nothing is skipped."""


@dataclass(frozen=True)
class Row:
    """A run of one order of the solver.

    limit: of the model, with the difference's damping. growth: RMS change of the final latents over the RMS of the
    error in the guided output, the geometric mean over the images.
    """

    order: int
    guidance_scale: float
    interval: int
    mean: float
    difference: float
    limit: float
    growth: float
    images: int


@functools.cache
def limit(order: int, interval: int, damping: float) -> float:
    """The largest k, to 0.001, up to which errors die out in the model.

    An error y of the latents becomes y - k D. D is the U-Net's answer m at first order and 1.5 m - 0.5 m_before at
    second order, with steps of equal length. A full step has m = y. A partial step has the value at y of the line
    through the last two full steps, damped, as if the shallow part answered nothing.
    """
    decaying = itertools.takewhile(lambda k: _radius(order, interval, damping, k) <= 1, np.arange(1, 3000) / 1000)
    return float(max(decaying))


def _radius(order: int, interval: int, damping: float, k: float) -> float:
    """How errors grow from one full step to the next: the largest eigenvalue of the map of a whole segment."""
    y, before, newest, earlier = np.eye(4)  # rows: how each depends on what they were at the segment's start
    for place in range(interval):
        if place == 0:
            newest, earlier = y, newest
        mean, slope = (*Line(damping).weights(0, interval + place, (interval, 0)), 0.0)[:2]
        answer = mean * newest + slope * earlier
        moved = answer if order == 1 else 1.5 * answer - 0.5 * before
        y, before = y - k * moved, answer
    return float(np.abs(np.linalg.eigvals(np.stack([y, before, newest, earlier]))).max()) - 1e-9


class Noting(Run):
    """A run of full steps that notes, by step, the error of the guided output with the last step's feature."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.errors: dict[int, Tensor] = {}
        self._feature: Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (output, *_) = super().__call__(*args, **kwargs)
        if self._feature is not None:
            held = self.family.partial(self.unet, self.cut, self._feature, **self.inputs)
            self.errors[self.at] = self.guided(held) - self.guided(output)
        self._feature = self._kept[0][1]
        return (output,)


class Disturbed(Run):
    """A run with something added to the guided output of one step."""

    def __init__(self, *args: Any, at_step: int, error: Tensor) -> None:
        super().__init__(*args)
        self.at_step, self.error = at_step, error

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        return self.solve(output + self.error if self.at == self.at_step else output, timestep, latents)


def measure(
    pipe: Any, order: int, guidance: float, *, prompts: Sequence[str] = PROMPTS, steps: int = STEPS, at_step: int = STEP
) -> Iterator[Row]:
    """All rows of one order and guidance scale. The scheduler of `pipe` is replaced."""
    swap_scheduler(pipe, "dpm++", steps)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=order)

    def final(run: Run) -> Tensor:
        noise = [torch.Generator().manual_seed(1000 * SEED + i) for i in range(len(prompts))]
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": noise}
        with running(pipe, run):
            latents: Tensor = pipe(list(prompts), output_type="latent", **options).images
            return latents

    noting = Noting(pipe, Apart(1, 0.0, 0.0), steps, guidance, 0.0)
    original = final(noting)
    error = PART * noting.errors[at_step]
    for interval, mean, difference in SKIPPING:
        run = pipe, Apart(interval, mean, difference), steps, guidance, 0.0
        plain = original if interval == 1 else final(Run(*run))
        change = final(Disturbed(*run, at_step=at_step, error=error)) - plain
        growth = float((_rms(change).log() - _rms(error).log()).mean().exp())
        yield Row(order, guidance, interval, mean, difference, limit(order, interval, difference), growth, len(prompts))


def _rms(each: Tensor) -> Tensor:
    return each.square().flatten(1).mean(1).sqrt()


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both orders at each guidance scale; write rows as they come."""
    args = parser(__doc__, "stability.csv").parse_args(argv)
    torch.set_flush_denormal(True)
    pipe, append = load_demo("cpu"), False
    settings = list(itertools.product(ORDERS, GUIDANCE))
    for order, guidance in progress("orders and guidance scales", unit="settings", over=settings):
        write(args.out, measure(pipe, order, guidance), append=append)
        append = True


if __name__ == "__main__":
    main()
