"""The table of a plan's fitted weights: what it may hold."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import InvalidSetting
from ..reuse.predict import Weights
from ..values import shown
from .reading import integer, number, pairs, sequence

Table = Mapping[tuple[int, int, tuple[int, ...]], Weights]

HEAVIEST = 1000.0
"""The largest weight, of either sign, that a plan may have.

A fit cannot give more. Its weights solve (G + r I) w = g with r = 1e-6 of the features' mean square norm s^2
(calibration's RIDGE), so |w| <= |f| / (2 sqrt(r)) = 500 |f| / s, and the feature f at the step is about as large as s.
Nor does a useful line: (steps from the last full one) / (steps between the last two), in a run of up to 1,000 steps.
Larger weights turn the rounding errors of fp16 (5e-4 of a value) into errors as large as the feature itself.
"""


def checked_table(table: object, steps: int, order: int) -> Table:
    """A table for a mask of `steps`, as plain numbers.

    Raises InvalidSetting, with the entry's place and the value, if weights are not finite or over `HEAVIEST`, if a step
    is outside of the mask, if full steps are not before it or not newest first, or if the numbers of both differ.
    """
    return dict(_checked(f"table[{i}]", *item, steps, order) for i, item in enumerate(pairs(table, "table")))


def _checked(
    key: str, at: object, weights: object, steps: int, order: int
) -> tuple[tuple[int, int, tuple[int, ...]], Weights]:
    where = sequence(at, key)
    if len(where) != 3:
        raise InvalidSetting(f"{key} must be for (value, step, full steps), got {shown(at)}.")
    value = integer(where[0], f"{key}.value", highest=1)
    step = integer(where[1], f"{key}.step", highest=steps - 1)
    full, before = [], step
    for j, each in enumerate(sequence(where[2], f"{key}.full")):
        if before == 0:
            raise InvalidSetting(f"{key}.full must be steps before {step}, newest first, got {shown(where[2])}.")
        before = integer(each, f"{key}.full[{j}] (steps before {step}, newest first)", highest=before - 1)
        full.append(before)
    given = sequence(weights, f"{key}.weights")
    if len(given) != len(full) or not 1 <= len(full) <= order:
        raise InvalidSetting(
            f"{key}.weights: a plan's weights at step {step} do not fit: {shown(given)} of steps {shown(full)}."
        )
    found = (number(each, f"{key}.weights[{j}]", -HEAVIEST, HEAVIEST) for j, each in enumerate(given))
    return (value, step, tuple(full)), tuple(found)
