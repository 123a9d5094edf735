"""What a cached value is taken to be at a later step: weights of the values of the last full steps.

Host arithmetic on step indices; the weighted sum itself is in the graphs (join.Blend). Extrapolation is along the step
index: along log-SNR it was worse (DESIGN's evidence: 44.7 against 46.3 dB), and so was a parabola (44.2 dB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import InvalidSetting

Weights = tuple[float, ...]


class Predictor(Protocol):
    """How a value at `step` follows from the values at earlier full steps."""

    @property
    def order(self) -> int:
        """How many of the last full steps it looks at, 1 to 3; as many buffers are held."""

    @property
    def holds(self) -> bool:
        """Whether it is the last full step's value as it is, always: then no weights are needed."""

    def weights(self, value: int, step: int, full: Sequence[int]) -> Weights:
        """One weight for each of `full`, the steps of at most `order` full steps, newest first.

        value: which of the kept ones, 0 the feature, 1 the guidance difference.
        """


@dataclass(frozen=True)
class Line:
    """The line through the last two full steps a < b: f_b + damping * (i - b) / (b - a) * (f_b - f_a) at step i.

    damping 0 holds f_b, as DeepCache does, and needs one buffer only. Held as well while there is one full step only.
    """

    damping: float = 0.0

    @property
    def order(self) -> int:
        """Buffers of each value."""
        return 2 if self.damping else 1

    @property
    def holds(self) -> bool:
        """See `Predictor`."""
        return not self.damping

    def weights(self, value: int, step: int, full: Sequence[int]) -> Weights:
        """See `Predictor`."""
        if len(full) < 2 or not self.damping:
            return (1.0,) + (0.0,) * (len(full) - 1)
        newest, before = full[0], full[1]
        slope = self.damping * (step - newest) / (newest - before)
        return (1.0 + slope, -slope) + (0.0,) * (len(full) - 2)


HOLD = Line()


@dataclass(frozen=True)
class Fitted:
    """Weights from a calibration, for the very steps that they were fitted for, and `otherwise` for all others.

    table: (value, step, the full steps looked at, newest first) -> weights.
    """

    table: Mapping[tuple[int, int, tuple[int, ...]], Weights] = field(repr=False)
    order: int
    otherwise: Line = HOLD
    holds: bool = field(default=False, init=False)

    def weights(self, value: int, step: int, full: Sequence[int]) -> Weights:
        """See `Predictor`."""
        found = self.table.get((value, step, tuple(full)))
        return self.otherwise.weights(value, step, full) if found is None else found


def predictor_of(predict: object) -> Line:
    """The predictor for `accelerate(predict=...)`: "hold", "linear" or a damping from 0 to 1. InvalidSetting else."""
    if isinstance(predict, str) and predict in ("hold", "linear"):
        return Line(float(predict == "linear"))
    if isinstance(predict, (int, float)) and not isinstance(predict, bool) and 0 <= predict <= 1:
        return Line(float(predict))
    hint = " (a NaN)" if isinstance(predict, float) and math.isnan(predict) else ""
    raise InvalidSetting(
        f'predict must be "hold", "linear" or a damping from 0 (hold) to 1 (linear), got {predict!r}{hint}.'
    )
