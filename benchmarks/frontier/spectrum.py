"""Spectrum (Han et al., CVPR 2026; hanjq17/Spectrum): skipped steps forecast by Chebyshev ridge regression.

Each value of the feature is a function of the step, fitted by the Chebyshev polynomials T_0 to T_degree at the full
steps so far. Being linear in these values, the forecast is a weighted sum of them: with t = 2i/T - 1 at step i of T,

    phi(t)^T (Phi^T Phi + penalty I)^-1 Phi^T

where the rows of Phi are phi(t) at the full steps. `mix` of it, and 1 - mix of the line through the last two full
steps, is the value. What follows is our own account of the published formula; no code is taken from there.

The published code always maps 50 steps to -1..1; here it is the steps of the run, which is the same at 50.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from stepcache.errors import InvalidSetting
from stepcache.reuse.predict import Line, Weights
from stepcache.reuse.schedule import MOST_STEPS


@dataclass(frozen=True)
class Spectrum:
    """A `Method` of weighted.py.

    of: "output": a skipped step runs nothing. "feature": it runs the shallow part. (The published code forecasts the
    hidden state that enters the U-Net's last convolution, and runs that.)
    budget: the cost that its schedule may have, in full steps. share: that of a skipped step.
    shrinks_constant: whether the penalty is on T_0 too, as published. Then the weights do not sum to one.
    degree, penalty, mix, warmup, last: `warmup` steps are full at the start, and `last` at the end.
    """

    of: str
    budget: float
    share: float
    shrinks_constant: bool = True
    degree: int = 4
    penalty: float = 0.1
    mix: float = 0.5
    warmup: int = 5
    last: int = 0
    window: int = 2
    keeps: int = MOST_STEPS  # all full steps so far

    def mask(self, steps: int) -> str:
        """Spectrum's own schedule, with the growth of its window for which the cost is the nearest not above `budget`.

        After the warm-up a step is full `window` steps after the last one, and each full step makes the window longer
        by the growth. InvalidSetting if warm-up and last steps alone cost more.
        """
        return _mask(self, steps)

    def weights(self, step: int, full: Sequence[int], steps: int) -> tuple[Weights, Weights]:
        at, here = self._basis(full, steps), self._basis([step], steps)[0]
        penalty = self.penalty * np.eye(self.degree + 1)
        if not self.shrinks_constant:
            penalty[0, 0] = 0.0
        ridge = np.linalg.solve(at.T @ at + penalty, here) @ at.T
        line = Line(1.0).weights(0, step, full)
        weights = tuple(float(w) for w in self.mix * ridge + (1 - self.mix) * np.array(line))
        return weights, weights

    def _basis(self, at: Sequence[int], steps: int) -> np.ndarray:
        """T_0 to T_degree, [len(at), degree + 1]."""
        return np.polynomial.chebyshev.chebvander(2 * np.array(at) / steps - 1, self.degree)


@cache
def _mask(method: Spectrum, steps: int) -> str:
    best, best_cost = "", -math.inf
    for growth in np.arange(0, steps, 0.05):
        mask = _grown(method, float(growth), steps)
        cost = mask.count("F") + method.share * mask.count("P")
        if best_cost < cost <= method.budget:
            best, best_cost = mask, cost
    if not best:
        raise InvalidSetting(
            f"Spectrum has no schedule of {steps} steps that costs at most {method.budget:g} full steps: "
            f"{method.warmup} are full at the start and {method.last} at the end. Take more steps, or a larger budget."
        )
    return best


def _grown(method: Spectrum, growth: float, steps: int) -> str:
    letters = ["P"] * steps
    for i in (*range(min(method.warmup, steps)), *range(max(0, steps - method.last), steps)):
        letters[i] = "F"
    window = float(method.window)
    step = method.warmup - 1 + math.floor(window)
    while step < steps:
        letters[step] = "F"
        window += growth
        step += math.floor(window)
    return "".join(letters)
