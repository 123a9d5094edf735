"""Which steps are full: a pure function of step index and step count.

A step is one iteration of the denoising loop, counted from 0 at the start of each run. `F` is a full step, `P` a
partial one. Nothing here depends on timesteps, schedulers or U-Nets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidSetting
from ..values import positive_int


@dataclass(frozen=True)
class Schedule:
    """The full steps of a run. Build one with `uniform`, `nonuniform` or `explicit`.

    Step 0 is always full. `first` and `last` (default 0) make that many steps at the start and at the end full too,
    without shifting the others. Full steps near the start keep the composition, near the end the detail
    (horseee/DeepCache#12). Each costs a full forward.
    """

    interval: int | None = None
    full: tuple[bool, ...] = ()
    first: int = 0
    last: int = 0

    def __post_init__(self) -> None:
        if self.interval is None and not (self.full and self.full[0]):
            raise InvalidSetting("A schedule has an interval or a mask: Schedule.uniform(3), Schedule.explicit('FPP').")
        if self.interval is not None:
            positive_int("interval", self.interval)
        object.__setattr__(self, "first", positive_int("first", self.first, at_least=0))
        object.__setattr__(self, "last", positive_int("last", self.last, at_least=0))

    @classmethod
    def uniform(cls, n: int, *, first: int = 0, last: int = 0) -> Schedule:
        """Full at steps 0, n, 2n, ... With n=1 every step is full, as in the original pipeline."""
        hint = "Take 1 for every step, 3 for DeepCache's usual setting."
        return cls(interval=positive_int("interval", n, hint=hint), first=first, last=last)

    @classmethod
    def explicit(cls, mask: str | Iterable[object], *, first: int = 0, last: int = 0) -> Schedule:
        """Full where `mask` says so: booleans, 0 and 1, or a string such as "FPPFPP".

        The mask must start with a full step, because a partial one would have no feature. Steps past its end are full.
        """
        if isinstance(mask, str):
            unknown = sorted(set(mask) - set("FP"))
            if unknown:
                raise InvalidSetting(
                    f"A schedule string holds F (full) and P (partial) only, got {unknown} in {mask!r}."
                )
            full = tuple(letter == "F" for letter in mask)
        else:
            try:
                values = tuple(mask)
            except TypeError:
                raise InvalidSetting(f"A schedule mask is a string or a sequence, got {mask!r}.") from None
            for step, value in enumerate(values):
                if value not in (0, 1):
                    raise InvalidSetting(
                        f"A schedule mask holds True (full) and False (partial) only, got {value!r} at step {step}."
                    )
            full = tuple(bool(value) for value in values)
        if not full or not full[0]:
            raise InvalidSetting(
                f"An explicit schedule must start with a full step, got {mask!r}: there is no feature before the first."
            )
        return cls(full=full, first=first, last=last)

    @classmethod
    def nonuniform(
        cls, total: int, n: int, center: float = 15, power: float = 1.4, *, first: int = 0, last: int = 0
    ) -> Schedule:
        """The paper's 1:N schedule (DeepCache, section 4.3): about total/n full steps, densest around step `center`.

        `total` is the number of steps; `power` > 1 is how strongly the density falls off. The published code takes a
        fractional power of a negative number, which is complex, and drops the imaginary part; a real signed power
        gives other steps. This reproduces the published steps: total=50, n=5, center=15, power=1.4 gives
        0, 5, 9, 13, 17, 21, 26, 31, 37, 43. Raises InvalidSetting if no power over 1 gives ceil(total/n) steps.
        """
        total, n = positive_int("total", total), positive_int("n", n)
        try:
            count, center, exponent = math.ceil(total / n), float(center), float(power)
        except (TypeError, ValueError):
            raise InvalidSetting(f"center and power must be numbers, got {center!r} and {power!r}.") from None
        while exponent > 1:
            steps = _power_spaced(total, count, center, exponent)
            if len(steps) == count:
                return cls(full=tuple(step in steps for step in range(total)), first=first, last=last)
            exponent -= 0.02
        raise InvalidSetting(
            f"No schedule of {count} full steps in {total} with center={center} and power={power}: the power was "
            "lowered to 1 without reaching it. Take a larger power, a center nearer the middle, or a uniform one."
        )

    def is_full(self, step: int, steps: int | None = None) -> bool:
        """Whether `step` (from 0) of a run of `steps` is full. `steps` is only needed where `last` is not 0."""
        if step < self.first:
            return True
        if self.last:
            if steps is None:
                raise InvalidSetting(
                    f"last={self.last} needs the number of steps of the run, which is not known here. "
                    "Pass it: denoising(pipe, steps=...)."
                )
            if step >= steps - self.last:
                return True
        if self.interval is not None:
            return step % self.interval == 0
        return step >= len(self.full) or self.full[step]

    def mask(self, steps: int) -> tuple[bool, ...]:
        """Whether each of `steps` steps is full."""
        return tuple(self.is_full(step, steps) for step in range(positive_int("steps", steps, at_least=0)))

    def kinds(self, steps: int) -> str:
        """The mask as a string, "FPPFPP" for uniform(3) and 6 steps."""
        return "".join("F" if full else "P" for full in self.mask(steps))

    def __str__(self) -> str:
        if self.interval is not None:
            text = f"uniform({self.interval})"
        else:
            text = "explicit(" + "".join("F" if full else "P" for full in self.full) + ")"
        ends = "".join(f", {name}={value}" for name in ("first", "last") if (value := getattr(self, name)))
        return text[:-1] + ends + ")"


def _power_spaced(total: int, count: int, center: float, power: float) -> list[int]:
    """Steps whose 1/power-th powers, relative to the center, are evenly spaced (complex below it, as published)."""
    import numpy as np  # part of the definition: its rounding decides borderline steps

    start, stop = complex(-center) ** (1 / power), complex(total - center) ** (1 / power)
    points = np.linspace(start, stop, count + 1) ** power
    # int32 rounds towards zero. The published code drops the two ends and adds step 0.
    return [0, *(int(value) + int(center) for value in np.unique(np.int32(points.real))[1:-1])]
