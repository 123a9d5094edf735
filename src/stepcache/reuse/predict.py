"""Prediction of a cached value at a later step: weights on its values at the last full steps.

This is host arithmetic on step indices. The weighted sum itself is in the graphs (forwards.blend). Extrapolation runs
along the step index, because along log-SNR, or with a parabola, images were worse (docs/notes.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import InvalidSetting
from ..values import as_entries, as_number, as_word, is_a, is_one_of, shown

Weights = tuple[float, ...]

Predict = str | float | tuple[float, float]
"""As `accelerate(predict=...)` takes it."""


class Predictor(Protocol):
    """How a value at one step follows from its values at earlier full steps."""

    @property
    def order(self) -> int:
        """How many of the last full steps it uses, 1 to 3. That many buffers are held."""

    @property
    def holds(self) -> bool:
        """Whether it always takes the last full step's value, so that no weights are needed."""

    @property
    def apart(self) -> bool:
        """Whether the halves of a batch [unconditional, conditional] are predicted by their mean and difference."""

    @property
    def whole(self) -> Predictor:
        """The predictor for batches that may be halves, but are not known to be. Itself, unless it is `apart`."""

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        """One weight for each of `full_steps`, the indices of at most `order` full steps, newest first.

        value: FEATURE or DIFFERENCE. If `apart`, and the batch is halves, those are the weights of their mean and of
        their difference.
        """


FEATURE, DIFFERENCE = 0, 1  # what is predicted, by its index among the kept values


@dataclass(frozen=True)
class Line:
    """The line through the last two full steps a < b: f_b + damping * (i - b) / (b - a) * (f_b - f_a) at step i.

    damping 0 holds f_b, as DeepCache does, and needs only one buffer; a negative one goes back towards f_a. While there
    is only one full step, it is held.
    """

    damping: float = 0.0
    apart: bool = field(default=False, init=False, repr=False)

    @property
    def order(self) -> int:
        return 2 if self.damping else 1

    @property
    def holds(self) -> bool:
        return not self.damping

    @property
    def whole(self) -> Line:
        return self

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        if len(full_steps) < 2 or not self.damping:
            return (1.0,) + (0.0,) * (len(full_steps) - 1)
        newest, before = full_steps[0], full_steps[1]
        slope = self.damping * (step - newest) / (newest - before)
        return (1.0 + slope, -slope) + (0.0,) * (len(full_steps) - 2)


HOLD = Line()


@dataclass(frozen=True)
class Apart:
    """Lines through the last two full steps, damped apart for the mean of the halves and for their difference.

    The guidance scale multiplies the halves' difference, conditional minus unconditional, and with it the error of its
    prediction: at few steps and high guidance that is what overshoots. With guidance reuse, `mean` damps the feature of
    the conditional half, and `difference` the difference of the outputs.
    """

    mean: float
    difference: float
    order: int = field(default=2, init=False, repr=False)
    holds: bool = field(default=False, init=False, repr=False)
    apart: bool = field(default=True, init=False, repr=False)

    @property
    def whole(self) -> Line:
        """The line damped by the lower of the two, and not below 0."""
        return Line(max(0.0, min(self.mean, self.difference)))

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        return Line(self.difference if value == DIFFERENCE else self.mean).weights(value, step, full_steps)


def of_halves(mean: Weights, difference: Weights) -> tuple[Weights, Weights]:
    """The weights of each half's own values and of the other half's, from those of the halves' mean and difference.

    With the mean (u + c) / 2 and the difference c - u: u' = sum (m + d) / 2 u + (m - d) / 2 c, and c' likewise.
    """
    pairs = list(zip(mean, difference, strict=True))
    return tuple((m + d) / 2 for m, d in pairs), tuple((m - d) / 2 for m, d in pairs)


@dataclass(frozen=True)
class Fitted:
    """Weights from a calibration for exactly the steps that they were fitted for, and `otherwise` for all others.

    table: (value, step, the full steps used, newest first) -> weights.
    """

    table: Mapping[tuple[int, int, tuple[int, ...]], Weights] = field(repr=False)
    order: int
    otherwise: Predictor = HOLD
    apart: bool = False
    holds: bool = field(default=False, init=False)

    @property
    def whole(self) -> Predictor:
        return self.otherwise.whole if self.apart else self

    def weights(self, value: int, step: int, full_steps: Sequence[int]) -> Weights:
        found = self.table.get((value, step, tuple(full_steps)))
        return self.otherwise.weights(value, step, full_steps) if found is None else found


def predictor_of(predict: object) -> Line | Apart:
    """The predictor for `accelerate(predict=...)`: "hold", "linear", a damping, or a pair of them. Else InvalidSetting.

    A damping is a number from -1 to 1.
    """
    if is_one_of(predict, ("hold", "linear")):
        return Line(float(as_word(predict) == "linear"))
    pair = [_damping(entry) for entry in as_entries(predict) or ()]
    if len(pair) == 2 and None not in pair:
        return Apart(*pair)  # type: ignore[arg-type]
    damping = _damping(predict)
    if damping is not None:
        return Line(damping)
    hint = " (a NaN)" if is_a(predict, float) and as_number(predict) is None else ""
    raise InvalidSetting(
        'predict must be "hold", "linear", "auto", a damping from -1 to 1 (0 holds, 1 is linear), or two of them, for '
        f"the mean of the guidance halves and for their difference, got {shown(predict)}{hint}."
    )


def as_option(predict: Predict) -> str:
    """As `--predict` takes it: "auto", "0.5", "1,-0.25"."""
    numbers = predict if isinstance(predict, tuple) else (predict,)
    return ",".join(each if isinstance(each, str) else f"{each:g}" for each in numbers)


def _damping(value: object) -> float | None:
    number = as_number(value)
    return number if number is not None and -1 <= number <= 1 else None
