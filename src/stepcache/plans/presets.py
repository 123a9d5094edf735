"""Presets: combinations by name, for who does not want to measure first.

Chosen from benchmarks/results/frontier.csv (the bundled demo; nothing is known of other models until they are measured,
which `stepcache compare` and `stepcache calibrate` do). Extrapolation pays where full steps are near each other and
harms where they are far apart. At 50 steps the whole line was better than holding in all six settings at interval 2,
and in five at interval 3 (0.8 dB worse in the sixth, DPM++ 2M with guidance 7.5); at interval 5 with guidance reuse,
half of it was in five. At 20 steps with guidance 7.5 every line lost somewhere, so there the last feature is held.
Between 20 and 50 steps the damping follows a straight rule that nobody measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting
from ..reuse.predict import Line
from ..reuse.schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """One combination: branch 0, a full step every `interval` steps, and a line damped by the length of the run.

    damping: from 50 steps on.
    """

    interval: int
    damping: float
    guidance: str

    @property
    def schedule(self) -> Schedule:
        """Its full steps."""
        return Schedule.uniform(self.interval)

    def for_steps(self, steps: int | None) -> tuple[Schedule, Line]:
        """What a run of `steps` goes by; where nobody knows their number, the last feature is held."""
        length = 0.0 if steps is None else min(max((steps - 20) / 30, 0.0), 1.0)
        return self.schedule, Line(length * self.damping)


PRESETS = {
    "faithful": Preset(2, 1.0, "both"),
    "balanced": Preset(3, 1.0, "both"),
    "fast": Preset(5, 0.5, "reuse"),
}


def preset_of(name: object) -> Preset:
    """The preset of that name. InvalidSetting for others."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidSetting(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name]
