"""predict="auto": the damping of the halves' mean and of their difference, by a rule fitted to measurements.

What overshoots at few steps and high guidance is the line of the halves' difference, which guidance multiplies. The
mean's line overshoots only where full steps are very far apart. `Rules` has the two formulas, and FIRST_ORDER and
MULTISTEP their numbers: multistep solvers amplify errors that alternate from step to step (docs/notes.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..values import as_number
from .predict import Apart, Weights

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


class Rules(NamedTuple):
    """The dampings of a solver where the last two full steps are `gap` steps apart, in a schedule of `length` steps.

    mean = 1.75 - 5 * gap / length, from 0.5 to 1.
    difference = offset - slope * guidance / 7.5 * gap / 2 * (20 / length) ** power, from -0.5 to 1.
    So the slope counts once at guidance 7.5 with every second of 20 steps full.
    """

    offset: float
    slope: float
    power: float

    def mean(self, gap: int, length: int) -> float:
        """The damping of the halves' mean."""
        return min(1.0, max(0.5, 1.75 - 5 * gap / length))

    def difference(self, gap: int, length: int, guidance: float) -> float:
        """The damping of the halves' difference."""
        relative = guidance / 7.5 * gap / 2 * (20 / length) ** self.power
        return min(1.0, max(-0.5, self.offset - self.slope * relative))


# What `python -m benchmarks.frontier.fit` makes of benchmarks/results/dampings.csv: the bundled demo, 12 calibration
# prompts, one seed; DDIM and Euler, and DPM++ 2M with and without Karras' sigmas; 20, 30 and 50 steps, guidance 3 to
# 7.5, a full step every 2 to 5 steps. Nothing else was measured. With guidance reuse the same rules gain over holding
# in all that was measured (dampings_reuse.csv), though less.
FIRST_ORDER = Rules(offset=1.8, slope=1.3, power=1.0)
MULTISTEP = Rules(offset=1.4, slope=1.7, power=1.25)


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
        known = as_number(self.loop.guidance)
        scale = UNKNOWN_GUIDANCE if known is None else known
        rules = FIRST_ORDER if self.loop.first_order else MULTISTEP
        return rules.mean(gap, length), rules.difference(gap, length, max(scale, 1.0))

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        if len(full_steps) < 2:
            return (1.0,)
        # The rule was fitted to uniform schedules, where no step is further from the newest full one than the gap.
        # Where one is, its line is damped as for that distance, and ends after one gap.
        newest, gap = full_steps[0], full_steps[0] - full_steps[1]
        pair = Apart(*self.dampings(max(gap, step - newest)))
        return (pair if self.apart else pair.whole).weights(value, min(step, newest + gap), full_steps)
