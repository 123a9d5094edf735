"""Ideas about what a multistep solver does with partial steps: its order, its variable, and its past."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.frontier.solver import Run


class FirstOrder(Run):
    """DPM++ 2M whose update is of first order in partial steps ("P"), in full steps after them ("A"), or in both."""

    def __init__(self, *args: Any, where: str) -> None:
        super().__init__(*args)
        self.where = where

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        step = self.at
        after = step > 0 and self.is_full(step) and not self.is_full(step - 1)
        if ("P" in self.where and not self.is_full(step)) or ("A" in self.where and after):
            self.first_order()
        return self.solve(output, timestep, latents)


class DataLine(Run):
    """Partial steps whose data prediction (x0) is a weighted sum of full steps', by the method's weights.

    mix: its share. The rest is the data prediction of the shallow part with the method's feature. With 1 nothing of the
    U-Net needs to run in skipped steps; it does run here, but is not counted.
    """

    def __init__(self, *args: Any, mix: float) -> None:
        super().__init__(*args)
        self.mix, self.shallow = mix, mix < 1
        self._data: list[tuple[int, Tensor]] = []  # newest first

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        (output, *_) = super().__call__(*args, **kwargs)
        step, sigma = self.at, self.sigma(self.at)
        # The U-Net's own input is scaled as DPM++'s latents are, whatever the scheduler.
        scaled = self.inputs["sample"] * math.sqrt(1 + sigma * sigma)
        if self.is_full(step):
            self._data = [(step, scaled - sigma * output), *self._data][: self.method.keeps]
        else:
            kept, self._kept = self._kept, self._data
            line = (scaled - self._value(step)) / sigma
            self._kept = kept
            output = (1 - self.mix) * output + self.mix * line
        return (output,)


class Revised(Run):
    """At each full step the partial steps before it are done again, without the U-Net, with better outputs.

    Once a full step's data prediction is known, those of the partial steps before it can be interpolated instead of
    extrapolated. The solver goes back to the full step before, and comes here again with outputs of which a share
    `weight` is interpolated: between both full steps, or with a third one before them (`parabola`).
    """

    def __init__(self, *args: Any, weight: float, parabola: bool) -> None:
        super().__init__(*args)
        self.weight, self.parabola = weight, parabola
        self._full: list[tuple[int, Tensor]] = []  # data predictions, oldest first
        self._partial: list[tuple[int, Any, Tensor]] = []  # those of partial steps since the last full one
        self._from: tuple[dict[str, Any], Tensor] | None = (
            None  # the scheduler and the latents after the last full step
        )

    def advance(self, output: Tensor, timestep: Any, latents: Tensor) -> Tensor:
        step = self.at
        data = self.data_of(output, latents, step)
        if not self.is_full(step):
            self._partial.append((step, timestep, data))
            return self.solve(output, timestep, latents)
        points = [*self._full, (step, data)][-3 if self.parabola else -2 :]
        if self._partial and self._from is not None:
            history, latents = self._from
            self.rewind(history)
            for at, its_timestep, found in self._partial:
                better = found + self.weight * (interpolated(points, at) - found)
                latents = self.solve(self.noise_of(better, latents, at), its_timestep, latents)
            output = self.noise_of(data, latents, step)
        self._full, self._partial = points, []
        latents = self.solve(output, timestep, latents)
        self._from = self.history(), latents
        return latents


def interpolated(points: list[tuple[int, Tensor]], at: int) -> Tensor:
    """The polynomial through the points (step, value), at a step."""
    value = torch.zeros_like(points[0][1])
    for step, known in points:
        others = [other for other, _ in points if other != step]
        value = value + known * math.prod((at - other) / (step - other) for other in others)
    return value
