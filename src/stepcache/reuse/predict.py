"""Prediction of a cached value at a later step: weights on its values at the last full steps.

This is host arithmetic on step indices. The weighted sum itself is in the graphs (forwards.blend). Extrapolation runs
along the step index, because along log-SNR, or with a parabola, images were worse (docs/notes.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import InvalidSetting
from ..values import as_number, as_word, is_a, is_one_of, shown

Weights = tuple[float, ...]


class Predictor(Protocol):
    """How a value at one step follows from its values at earlier full steps."""

    @property
    def order(self) -> int:
        """How many of the last full steps it uses, 1 to 3. That many buffers are held."""

    @property
    def holds(self) -> bool:
        """Whether it always takes the last full step's value, so that no weights are needed."""

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        """One weight for each of `full_steps`, the indices of at most `order` full steps, newest first.

        value: index among the kept values; 0 is the feature, 1 the guidance difference.
        """


@dataclass(frozen=True)
class Line:
    """The line through the last two full steps a < b: f_b + damping * (i - b) / (b - a) * (f_b - f_a) at step i.

    damping 0 holds f_b, as DeepCache does, and needs only one buffer. While there is only one full step, it is held.
    """

    damping: float = 0.0

    @property
    def order(self) -> int:
        return 2 if self.damping else 1

    @property
    def holds(self) -> bool:
        return not self.damping

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        if len(full_steps) < 2 or not self.damping:
            return (1.0,) + (0.0,) * (len(full_steps) - 1)
        newest, before = full_steps[0], full_steps[1]
        slope = self.damping * (step - newest) / (newest - before)
        return (1.0 + slope, -slope) + (0.0,) * (len(full_steps) - 2)


HOLD = Line()


@dataclass(frozen=True)
class Fitted:
    """Weights from a calibration for exactly the steps that they were fitted for, and `otherwise` for all others.

    table: (value, step, the full steps used, newest first) -> weights.
    """

    table: Mapping[tuple[int, int, tuple[int, ...]], Weights] = field(repr=False)
    order: int
    otherwise: Line = HOLD
    holds: bool = field(default=False, init=False)

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        found = self.table.get((value, step, tuple(full_steps)))
        return self.otherwise.weights(value, step, full_steps) if found is None else found


def predictor_of(predict: object) -> Line:
    """The predictor for `accelerate(predict=...)`: "hold", "linear" or a damping from 0 to 1. Else InvalidSetting."""
    if is_one_of(predict, ("hold", "linear")):
        return Line(float(as_word(predict) == "linear"))
    damping = as_number(predict)
    if damping is not None and 0 <= damping <= 1:
        return Line(damping)
    hint = " (a NaN)" if is_a(predict, float) and damping is None else ""
    raise InvalidSetting(
        f'predict must be "hold", "linear" or a damping from 0 (hold) to 1 (linear), got {shown(predict)}{hint}.'
    )
