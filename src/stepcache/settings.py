"""What the user asked for, checked and frozen."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidSetting
from .graphs import GraphSettings
from .schedule import Schedule, positive_int


@dataclass(frozen=True)
class Settings:
    """The arguments of `accelerate`, checked as far as they can be without a U-Net."""

    schedule: Schedule
    branch: object
    graphs: GraphSettings
    max_buckets: int

    @classmethod
    def check(
        cls,
        interval: object,
        branch: object,
        schedule: object = None,
        compile: object = "auto",
        cuda_graphs: object = "auto",
        kernels: object = "auto",
        max_buckets: object = 4,
    ) -> Settings:
        """Settings from `accelerate`'s arguments; InvalidSetting, with the value, for what no pipeline could take."""
        uniform = Schedule.uniform(interval)  # type: ignore[arg-type]  # that it is an int is what is checked
        if schedule is None:
            schedule = uniform
        elif not isinstance(schedule, Schedule):
            raise InvalidSetting(
                f"schedule must be a stepcache.Schedule, got {schedule!r}. "
                "Build one with Schedule.uniform, Schedule.nonuniform or Schedule.explicit."
            )
        buckets = positive_int("max_buckets", max_buckets, hint="Each bucket is one image size.")
        return cls(schedule, branch, GraphSettings(compile, cuda_graphs, kernels), buckets)
