"""What the user asked for, checked and frozen."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidSetting
from .schedule import Schedule, positive_int


@dataclass(frozen=True)
class Settings:
    """The arguments of `accelerate`, checked as far as they can be without a U-Net."""

    schedule: Schedule
    branch: object
    max_buckets: int

    @classmethod
    def check(cls, interval: object, branch: object, schedule: object, max_buckets: object) -> Settings:
        """Settings from `accelerate`'s arguments; InvalidSetting, with the value, for what no pipeline could take."""
        uniform = Schedule.uniform(interval)  # type: ignore[arg-type]  # that it is an int is what is checked
        if schedule is None:
            schedule = uniform
        elif not isinstance(schedule, Schedule):
            raise InvalidSetting(
                f"schedule must be a stepcache.Schedule, got {schedule!r}. "
                "Build one with Schedule.uniform, Schedule.nonuniform or Schedule.explicit."
            )
        return cls(schedule, branch, positive_int("max_buckets", max_buckets, hint="Each bucket is one image size."))
