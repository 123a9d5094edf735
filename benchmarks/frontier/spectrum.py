"""Spectrum (Han et al., CVPR 2026; hanjq17/Spectrum): skipped steps forecast by Chebyshev ridge regression.

Each value of the feature is a function of the step, fitted by the Chebyshev polynomials T_0 to T_degree at the full
steps so far. Being linear in these values, the forecast is a weighted sum of them: with t = 2i/T - 1 at step i of T,

    phi(t)^T (Phi^T Phi + penalty I)^-1 Phi^T

where the rows of Phi are phi(t) at the full steps. `mix` of it, and 1 - mix of the line through the last two full
steps, is the value. What follows is our own account of the published formula; no code is taken from there.

The published code always maps 50 steps to -1..1; here it is the steps of the run, which is the same at 50. It forecasts
the hidden state that enters the U-Net's last convolution, and runs that; here it is what comes out.

Its schedule starts with full steps, then the gaps grow. In short runs it does worse than full steps that are evenly
spaced, so both are here. So are two sets of values: PUBLISHED, of its script for SDXL, and OF_SDCPP, the defaults
of leejet/stable-diffusion.cpp (docs/caching.md there), which are better where full steps are far apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from stepcache.errors import InvalidSetting
from stepcache.reuse.predict import Line, Weights
from stepcache.reuse.schedule import MOST_STEPS


class Values(NamedTuple):
    """warmup: full steps at the start. window: the first gap between full steps after them."""

    degree: int
    penalty: float
    mix: float
    warmup: int
    window: int


PUBLISHED, OF_SDCPP = Values(4, 0.1, 0.5, 5, 2), Values(3, 1.0, 0.4, 4, 2)


@dataclass(frozen=True)
class Spectrum:
    """A `Method` of weighted.py.

    of: "output": a skipped step runs nothing. "feature": it runs the shallow part.
    budget: the cost that its schedule may have, in full steps. share: that of a skipped step.
    even: full steps are evenly spaced, instead of its own schedule.
    shrinks_constant: whether the penalty is on T_0 too, as published. Then the weights do not sum to one.
    """

    of: str
    budget: float
    share: float
    even: bool = False
    shrinks_constant: bool = True
    values: Values = PUBLISHED
    keeps: int = MOST_STEPS  # all full steps so far

    def mask(self, steps: int) -> str:
        """The schedule whose cost is the nearest not above `budget`.

        Its own: after the warm-up a step is full `window` steps after the last one, and each full step makes the window
        longer by an amount that decides the cost. InvalidSetting if no schedule costs so little.
        """
        return _mask(self, steps)

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        degree, penalty, mix, *_ = self.values
        at, here = _basis(full, steps, degree), _basis([step], steps, degree)[0]
        shrunk = penalty * np.eye(degree + 1)
        if not self.shrinks_constant:
            shrunk[0, 0] = 0.0
        ridge = np.linalg.solve(at.T @ at + shrunk, here) @ at.T
        line = np.array(Line(1.0).weights(0, step, full))
        weights = tuple(float(weight) for weight in mix * ridge + (1 - mix) * line)
        return weights, weights


def _basis(at: Sequence[int], steps: int, degree: int) -> np.ndarray:
    """T_0 to T_degree at these steps, [len(at), degree + 1]."""
    return np.polynomial.chebyshev.chebvander(2 * np.array(at) / steps - 1, degree)


@cache
def _mask(method: Spectrum, steps: int) -> str:
    if method.even:
        masks = (_even(count, steps) for count in range(1, steps + 1))
    else:
        masks = (_growing(method.values, growth / 20, steps) for growth in range(20 * steps))
    costs = {mask: mask.count("F") + method.share * mask.count("P") for mask in masks}
    best = max((mask for mask in costs if costs[mask] <= method.budget), key=lambda mask: costs[mask], default=None)
    if best is None:
        raise InvalidSetting(
            f"Spectrum has no schedule of {steps} steps that costs at most {method.budget:g} full steps, but at least "
            f"{min(costs.values()):g}. Take more steps, or a larger budget."
        )
    return best


def _even(count: int, steps: int) -> str:
    full = {math.ceil(i * steps / count) for i in range(count)}
    return "".join("F" if step in full else "P" for step in range(steps))


def _growing(values: Values, growth: float, steps: int) -> str:
    full, window = set(range(values.warmup)), float(values.window)
    step = values.warmup - 1 + math.floor(window)
    while step < steps:
        full.add(step)
        window += growth
        step += math.floor(window)
    return "".join("F" if step in full else "P" for step in range(steps))
