"""predict="auto": the damping of the halves' mean and of their difference, by a rule fitted to measurements.

What overshoots at few steps and high guidance is the line of the halves' difference, which guidance multiplies. Its
best damping falls along one number, whatever the guidance, the steps and the interval:

    strain = guidance scale * steps between the last two full steps / steps of the whole schedule
    damping = offset - SLOPE * strain, within the limits of each

Multistep solvers amplify errors that alternate from step to step (docs/notes.md), and so have lower offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .predict import DIFFERENCE, Line, Weights

UNKNOWN_GUIDANCE = 7.5
"""The guidance scale of a loop that does not tell one."""


class Loop(NamedTuple):
    """What is known of a denoising loop when it begins.

    steps: its iterations; None: unknown. length: those of the whole schedule, of which image to image runs a part.
    first_order: whether the solver is of the first order. guidance: the scale; None: unknown.
    """

    steps: int | None
    length: int | None = None
    first_order: bool = False
    guidance: float | None = None


NO_LOOP = Loop(None)


class Rule(NamedTuple):
    """One damping: min(highest, max(lowest, offset - slope * strain))."""

    offset: float
    slope: float
    lowest: float
    highest: float = 1.0

    def __call__(self, strain: float) -> float:
        return min(self.highest, max(self.lowest, self.offset - self.slope * strain))


class Rules(NamedTuple):
    """Those of the halves' mean, and of their difference."""

    mean: Rule
    difference: Rule


# Fitted to benchmarks/results/dampings.csv.
FIRST_ORDER = Rules(Rule(2.0, 0.5, 0.5), Rule(1.9, 1.75, -0.5))
MULTISTEP = Rules(Rule(1.5, 0.75, 0.5), Rule(1.15, 1.75, -0.5))


@dataclass(frozen=True)
class Auto:
    """Lines through the last two full steps, damped by the rule of the module. Without a number of steps, it holds.

    apart: whether the halves are damped apart. If not, the line takes the lower damping, and not less than 0.
    """

    loop: Loop = NO_LOOP
    apart: bool = True
    order: int = field(default=2, init=False, repr=False)
    holds: bool = field(default=False, init=False, repr=False)

    @property
    def whole(self) -> Auto:
        return replace(self, apart=False)

    def of(self, loop: Loop) -> Auto:
        """The predictor for a loop."""
        return replace(self, loop=loop)

    def dampings(self, gap: int) -> tuple[float, float]:
        """Of the mean and of the difference, where the last two full steps are `gap` steps apart."""
        length = self.loop.length or self.loop.steps
        if not length:
            return 0.0, 0.0
        guidance = self.loop.guidance
        scale = guidance if isinstance(guidance, (int, float)) else UNKNOWN_GUIDANCE
        rules = FIRST_ORDER if self.loop.first_order else MULTISTEP
        strain = max(scale, 1.0) * gap / length
        return rules.mean(strain), rules.difference(strain)

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        if len(full_steps) < 2:
            return (1.0,)
        mean, difference = self.dampings(full_steps[0] - full_steps[1])
        if not self.apart:
            return Line(max(0.0, min(mean, difference))).weights(value, step, full_steps)
        return Line(difference if value == DIFFERENCE else mean).weights(value, step, full_steps)
