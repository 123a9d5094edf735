"""Which steps are full: a pure function of step index and step count.

A step is one iteration of the denoising loop, counted from 0 at the start of each run. `F` is a full step, `P` a
partial one. Nothing here depends on timesteps, schedulers or U-Nets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from itertools import islice

from ..errors import InvalidSetting
from ..values import as_number, as_word, is_a, positive_int, shown

MOST_STEPS = 10_000
"""The longest mask: models are trained on 1,000 timesteps, and no sampler needs ten steps for each of them."""

STEEPEST = 5.0
"""The largest power of `nonuniform`, which takes 200 tries from there to 1. The paper's are up to 1.6."""


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
        if type(self.full) is not tuple or any(type(value) is not bool for value in self.full):
            raise InvalidSetting(
                f"full must be a tuple of True and False, got {shown(self.full)}. Schedule.explicit('FPP') makes one."
            )
        if (self.interval is None) != bool(self.full) or (self.full and not self.full[0]):
            raise InvalidSetting(
                "A schedule has an interval or a mask that starts with a full step: Schedule.uniform(3), "
                f"Schedule.explicit('FPP'). Got interval={shown(self.interval)} and full={shown(self.full)}."
            )
        if self.interval is not None:
            object.__setattr__(self, "interval", positive_int("interval", self.interval))
        _check_length(self.full)
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
        InvalidSetting for what is no mask, and for one of more than 10,000 steps.
        """
        word = as_word(mask)
        full = _letters(word) if word is not None else _flags(mask)
        if not full or not full[0]:
            raise InvalidSetting(
                f"An explicit schedule must start with a full step, got {shown(mask)}: there is no feature before the "
                "first."
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
        0, 5, 9, 13, 17, 21, 26, 31, 37, 43. `center` may lie outside of the run. Raises InvalidSetting if no power from
        `power` (at most 5) down to 1 gives ceil(total/n) steps.
        """
        total, n = positive_int("total", total, at_most=MOST_STEPS), positive_int("n", n)
        place, exponent = as_number(center), as_number(power)
        if place is None or exponent is None or not abs(place) <= MOST_STEPS or not exponent <= STEEPEST:
            raise InvalidSetting(
                f"center and power must be numbers, center of at most {MOST_STEPS} either way and power of at most "
                f"{STEEPEST:g}, got {shown(center)} and {shown(power)}."
            )
        count = -(-total // n)
        while exponent > 1:
            steps = _power_spaced(total, count, place, exponent)
            if len(steps) == count and all(0 <= step < total for step in steps):
                return cls(full=tuple(step in steps for step in range(total)), first=first, last=last)
            exponent -= 0.02
        raise InvalidSetting(
            f"No schedule of {count} full steps in {total} with center={place:g} and power={shown(power)}: the power "
            "was lowered to 1 without reaching it. Take a larger power, a center nearer the middle, or a uniform one."
        )

    def is_full(self, step: int, steps: int | None = None) -> bool:
        """Whether `step` (from 0) of a run of `steps` is full. `steps` is only needed where `last` is not 0."""
        step = positive_int("step", step, at_least=0)
        if step < self.first:
            return True
        if self.last:
            if steps is None:
                raise InvalidSetting(
                    f"last={self.last} needs the number of steps of the run, which is not known here. "
                    "Pass it: denoising(pipe, steps=...)."
                )
            if step >= positive_int("steps", steps, at_least=0) - self.last:
                return True
        if self.interval is not None:
            return step % self.interval == 0
        return step >= len(self.full) or self.full[step]

    def mask(self, steps: int) -> tuple[bool, ...]:
        """Whether each of `steps` steps (at most 10,000) is full."""
        count = positive_int("steps", steps, at_least=0, at_most=MOST_STEPS)
        return tuple(self.is_full(step, count) for step in range(count))

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


def _letters(mask: str) -> tuple[bool, ...]:
    """The mask of a string of F and P."""
    _check_length(mask)
    unknown = sorted(set(mask) - set("FP"))
    if unknown:
        raise InvalidSetting(
            f"A schedule string holds F (full) and P (partial) only, got {shown(unknown)} in {shown(mask)}."
        )
    return tuple(letter == "F" for letter in mask)


def _flags(mask: object) -> tuple[bool, ...]:
    """The mask of a sequence of booleans, zeros and ones."""
    try:
        if is_a(mask, bytes, bytearray, memoryview, Mapping, Set):
            raise TypeError("in no order, or of bytes")
        values = tuple(islice(mask, MOST_STEPS + 1))  # type: ignore[call-overload]  # a generator may have no end
    except Exception as error:  # of an object of someone else's
        raise InvalidSetting(f"A schedule mask is a string or a sequence, got {shown(mask)}.") from error
    _check_length(values)
    full = []
    for step, value in enumerate(values):
        flag = _flag(value)
        if flag is None:
            raise InvalidSetting(
                f"A schedule mask holds True (full) and False (partial) only, got {shown(value)} at step {step}."
            )
        full.append(flag)
    return tuple(full)


def _flag(value: object) -> bool | None:
    """True or 1 of any kind as True, False or 0 as False, all else as None."""
    if type(value) is bool:
        return value
    try:  # float() also takes words, and what has a single entry
        number = None if is_a(value, str, bytes, bytearray) or getattr(value, "shape", ()) != () else float(value)  # type: ignore[arg-type]
    except Exception:  # of an object of someone else's
        return None
    return bool(number) if number in (0, 1) else None


def _check_length(mask: str | tuple[object, ...]) -> None:
    if len(mask) > MOST_STEPS:
        raise InvalidSetting(f"A schedule mask has at most {MOST_STEPS} steps, got {shown(mask)}.")


def _power_spaced(total: int, count: int, center: float, power: float) -> list[int]:
    """Steps whose 1/power-th powers, relative to the center, are evenly spaced (complex below it, as published)."""
    import numpy as np  # part of the definition: its rounding decides borderline steps

    start, stop = complex(-center) ** (1 / power), complex(total - center) ** (1 / power)
    points = np.linspace(start, stop, count + 1) ** power
    # int32 rounds towards zero. The published code drops the two ends and adds step 0.
    return [0, *(int(value) + int(center) for value in np.unique(np.int32(points.real))[1:-1])]
