"""The arguments of `accelerate`, checked and frozen."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from .errors import InvalidSetting, NotCompiled
from .graphs.settings import GraphSettings
from .packages.manifest import Unreadable
from .packages.store import Packages, open_packages
from .plans.plan import Plan, plan_of
from .plans.presets import preset_of
from .reuse.predict import HOLD, Line, Predictor, predictor_of
from .reuse.schedule import Schedule
from .values import positive_int

logger = logging.getLogger("stepcache")


@dataclass(frozen=True)
class Settings:
    """The arguments of `accelerate`, checked as far as possible without a U-Net.

    fit: schedule and predictor for a number of steps, from a plan or preset; None: always `schedule` and `predictor`.
    scheduler: the name of the pipe's attribute that holds its scheduler.
    """

    schedule: Schedule
    branch: object
    graphs: GraphSettings
    max_buckets: int
    predictor: Predictor = HOLD
    reuse_guidance: bool = False
    vae: bool = False
    channels_last: bool | str = "auto"
    plan: Plan | None = None
    adapt: bool = False
    fit: Callable[[int | None], tuple[Schedule, Predictor]] | None = None
    scheduler: str = "scheduler"

    def for_steps(self, steps: int | None) -> tuple[Schedule, Predictor]:
        """Schedule and predictor of a run of `steps` (None: unknown)."""
        return (self.schedule, self.predictor) if self.fit is None else self.fit(steps)

    def remarks(self, steps: int | None, guidance: object) -> Iterable[str]:
        """The plan's warnings for a run of `steps` at that guidance scale."""
        return () if self.plan is None else self.plan.remarks(steps, guidance)

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
        predict: object = "hold",
        guidance: object = "both",
        vae: object = False,
        plan: object = None,
        adapt: object = False,
        preset: object = None,
        channels_last: object = "auto",
        scheduler: object = "scheduler",
        compiled: object = None,
        compiled_only: object = False,
    ) -> Settings:
        """Settings from `accelerate`'s arguments. Raises InvalidSetting with the value if no pipeline could use it."""
        asked = schedule
        uniform = Schedule.uniform(interval)  # type: ignore[arg-type]  # it checks that this is an int
        if schedule is None:
            schedule = uniform
        elif not isinstance(schedule, Schedule):
            raise InvalidSetting(
                f"schedule must be a stepcache.Schedule, got {schedule!r}. "
                "Build one with Schedule.uniform, Schedule.nonuniform or Schedule.explicit."
            )
        buckets = positive_int("max_buckets", max_buckets, hint="Each bucket is one image size.")
        if guidance not in ("both", "reuse"):
            raise InvalidSetting(f'guidance must be "both" or "reuse", got {guidance!r}.')
        if not isinstance(vae, bool):
            raise InvalidSetting(f"vae must be True or False, got {vae!r}.")
        if not isinstance(channels_last, (bool, str)) or channels_last not in (True, False, "auto"):
            raise InvalidSetting(f'channels_last must be "auto", True or False, got {channels_last!r}.')
        if not isinstance(adapt, bool):
            raise InvalidSetting(f"adapt must be True or False, got {adapt!r}.")
        if not isinstance(scheduler, str) or not scheduler.isidentifier():
            raise InvalidSetting(
                "scheduler must be the name of the pipe's attribute that holds its scheduler, such as "
                f'"noise_scheduler", got {scheduler!r:.80}. To change the scheduler itself, set that attribute.'
            )
        graphs = GraphSettings(compile, cuda_graphs, kernels, _packages(compiled, compiled_only))
        given = {"interval": interval, "branch": branch, "schedule": asked, "predict": predict, "guidance": guidance}
        if plan is not None:
            _check_defaults("plan", **given, preset=preset)
            found = plan_of(plan)
            reuse = found.guidance == "reuse"
            fit = functools.partial(found.for_steps, adapt=adapt)
            own = (found.schedule, found.branch, graphs, buckets, found.predictor, reuse)
            return cls(*own, vae, channels_last, found, adapt, fit, scheduler)
        if adapt:
            raise InvalidSetting("adapt=True is for plan=, which is not given.")
        if preset is not None:
            _check_defaults("preset", **given)
            named = preset_of(preset)
            settled = cls(named.schedule, 0, graphs, buckets, Line(1.0), named.guidance == "reuse", vae, channels_last)
            return replace(settled, fit=named.for_steps, scheduler=scheduler)
        settled = cls(schedule, branch, graphs, buckets, predictor_of(predict), guidance == "reuse", vae, channels_last)
        return replace(settled, scheduler=scheduler)


def _packages(compiled: object, only: object) -> Packages | None:
    """The packages in the folder `compiled`; None, with a warning, if none can be used."""
    if not isinstance(only, bool):
        raise InvalidSetting(f"compiled_only must be True or False, got {only!r}.")
    if compiled is None:
        if only:
            raise InvalidSetting("compiled_only=True is for compiled=, the folder of packages, which is not given.")
        return None
    if not isinstance(compiled, (str, os.PathLike)) or not str(compiled):
        raise InvalidSetting(f"compiled must be the path of a folder of packages, got {compiled!r}.")
    try:
        return open_packages(compiled, only)
    except Unreadable as error:
        unusable(error, only)
        return None


def unusable(reason: object, only: bool) -> None:
    """Warn that packages are not used, or raise NotCompiled if only they may be."""
    if only:
        raise NotCompiled(
            f"compiled_only=True, and the packages cannot be used: {reason}. Make them with `stepcache compile` or "
            "save_compiled, or leave compiled_only out."
        )
    logger.warning("Packages are not used, and everything runs as without them: %s.", reason)


# The arguments that a plan or a preset decides, with the defaults of `accelerate`, which mean "not given".
_SETTLED = {"interval": 3, "branch": 0, "schedule": None, "predict": "hold", "guidance": "both", "preset": None}


def _check_defaults(what: str, **given: object) -> None:
    others = [f"{name}={value!r}" for name, value in given.items() if value != _SETTLED[name]]
    if others:
        raise InvalidSetting(
            f"{what}= and {', '.join(others)}: a {what} has its own full steps, branch, prediction and guidance. "
            "Give one or the other."
        )
