"""Presets: combinations of settings by name, for users who do not want to measure first.

Where the numbers come from: rows of benchmarks/results/frontier.csv, branch 0, of the bundled demo pipeline. Nothing is
known of other models until someone measures them with `stepcache compare` or `stepcache calibrate`.

Measured range: 20 and 50 steps, DDIM, Euler and DPM++ 2M, guidance 3 and 7.5 (`GAINS`). A line through the last two
full steps helps where full steps are close together and harms where they are far apart. At 50 steps each preset's line
beats holding the feature in at least five of the six settings; DPM++ 2M with guidance 7.5 is the exception. At 20 steps
each loses in at least one setting with guidance 7.5, so presets hold there. From 20 to 50 steps the damping rises
linearly. That is an assumption: nobody has measured it, nor fewer than 20 or more than 50 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidSetting
from ..reuse.predict import Line
from ..reuse.schedule import Schedule
from ..values import as_word, shown


@dataclass(frozen=True)
class Preset:
    """One combination: branch 0, a full step every `interval` steps, and a line whose damping grows with the run.

    damping: the one from 50 steps on.
    """

    interval: int
    damping: float
    guidance: str

    @property
    def schedule(self) -> Schedule:
        """Which steps are full."""
        return Schedule.uniform(self.interval)

    def for_steps(self, steps: int | None) -> tuple[Schedule, Line]:
        """Schedule and predictor for a run of `steps`. If the number is not known, the last feature is held."""
        length = 0.0 if steps is None else min(max((steps - 20) / 30, 0.0), 1.0)
        return self.schedule, Line(length * self.damping)


PRESETS = {
    "faithful": Preset(2, 1.0, "both"),
    "balanced": Preset(3, 1.0, "both"),
    "fast": Preset(5, 0.5, "reuse"),
}

# The evidence: mean PSNR of a preset's interval, guidance and full damping, minus that of the same with the feature
# held, in dB. A column for each of SETTINGS (scheduler, guidance scale), a row for each preset and number of steps.
SETTINGS = (("ddim", 3.0), ("ddim", 7.5), ("euler", 3.0), ("euler", 7.5), ("dpm++", 3.0), ("dpm++", 7.5))
GAINS = {
    ("faithful", 50): (12.8, 9.4, 9.3, 6.3, 6.4, 4.2),
    ("balanced", 50): (10.9, 6.3, 9.3, 4.8, 7.1, -0.8),
    ("fast", 50): (2.5, 2.2, 2.3, 1.9, 3.2, -0.6),
    ("faithful", 20): (6.4, 1.0, 5.4, 0.8, 4.4, -7.6),
    ("balanced", 20): (3.5, -2.4, 3.0, -2.6, 0.2, -5.5),
    ("fast", 20): (0.4, -1.3, 0.3, -1.5, -0.2, -1.9),
}


def preset_of(name: object) -> Preset:
    """The preset of that name. Raises InvalidSetting for others."""
    word = as_word(name)
    if word is None or word not in PRESETS:
        raise InvalidSetting(f"preset must be one of {', '.join(PRESETS)}, got {shown(name)}.")
    return PRESETS[word]
