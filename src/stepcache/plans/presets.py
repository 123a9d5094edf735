"""Presets: combinations of settings by name, for users who do not want to measure first.

Each predicts as predict="auto" does (reuse/auto.py says where its rule comes from, and docs/fidelity.md what it gains).
Nothing is known of other models than the demo until someone measures them with `stepcache compare` or `stepcache
calibrate`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting
from ..reuse.schedule import Schedule
from ..values import as_word, shown


@dataclass(frozen=True)
class Preset:
    """One combination: branch 0, predict="auto", a full step every `interval` steps, and `guidance`."""

    interval: int
    guidance: str

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.uniform(self.interval)


PRESETS = {
    "faithful": Preset(2, "both"),
    "balanced": Preset(3, "both"),
    "fast": Preset(5, "reuse"),
}


def preset_of(name: object) -> Preset:
    """The preset of that name. Raises InvalidSetting for others."""
    word = as_word(name)
    if word is None or word not in PRESETS:
        raise InvalidSetting(f"preset must be one of {', '.join(PRESETS)}, got {shown(name)}.")
    return PRESETS[word]
