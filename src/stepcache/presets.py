"""Presets: combinations by name, for who does not want to measure first.

Chosen from benchmarks/results/frontier.csv (the bundled demo; nothing is known of other models until they are measured,
which `stepcache compare` and `stepcache calibrate` do). Extrapolation pays where full steps are near each other and
harms where they are far apart: whole lines at 50 steps, none at 20, and between them a straight rule that nobody
measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidSetting
from .predict import Line
from .schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """One combination: branch 0, a full step every `interval` steps, and the line damped by the length of the run."""

    interval: int
    guidance: str

    @property
    def schedule(self) -> Schedule:
        """Its full steps."""
        return Schedule.uniform(self.interval)

    def for_steps(self, steps: int | None) -> tuple[Schedule, Line]:
        """What a run of `steps` goes by; where nobody knows their number, the last feature is held."""
        return self.schedule, Line(0.0 if steps is None else min(max((steps - 20) / 30, 0.0), 1.0))


PRESETS = {
    "faithful": Preset(2, "both"),
    "balanced": Preset(3, "both"),
    "fast": Preset(5, "reuse"),
}


def preset_of(name: object) -> Preset:
    """The preset of that name. InvalidSetting for others."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InvalidSetting(f"preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    return PRESETS[name]
