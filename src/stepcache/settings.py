"""The arguments of `accelerate`, checked and frozen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .errors import InvalidSetting, NotCompiled
from .files.reading import path_of
from .graphs.settings import GraphSettings
from .packages.manifest import Unreadable
from .packages.store import Packages, open_packages
from .plans.plan import Plan, plan_of
from .plans.presets import preset_of
from .reuse.auto import Auto, Loop
from .reuse.predict import HOLD, Predictor, predictor_of
from .reuse.schedule import Schedule
from .values import as_word, auto_or_bool, is_a, is_one_of, positive_int, shown, true_or_false

logger = logging.getLogger("stepcache")


class _Int(int):
    """See `INTERVAL`."""


class _Str(str):
    """See `INTERVAL`."""


INTERVAL, BRANCH, PREDICT, GUIDANCE = _Int(3), _Int(0), _Str("hold"), _Str("both")
"""The defaults of what a preset or a plan decides. They are objects of their own, to be told from equal values that are
given: accelerate(preset="fast", interval=3) is refused, and does not silently run another interval."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `accelerate`, checked as far as possible without a U-Net.

    fit: schedule and predictor of a loop, where they depend on it; None: always `schedule` and `predictor`.
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
    fit: Callable[[Loop], tuple[Schedule, Predictor]] | None = None
    scheduler: str = "scheduler"

    def for_loop(self, loop: Loop) -> tuple[Schedule, Predictor]:
        """Schedule and predictor of a denoising loop."""
        return (self.schedule, self.predictor) if self.fit is None else self.fit(loop)

    def remarks(self, steps: int | None, guidance: object) -> Iterable[str]:
        """The plan's warnings for a run of `steps` at that guidance scale."""
        return () if self.plan is None else self.plan.remarks(steps, guidance)

    @classmethod
    def check(
        cls,
        interval: object = INTERVAL,
        branch: object = BRANCH,
        schedule: object = None,
        compile: object = "auto",
        cuda_graphs: object = "auto",
        kernels: object = "auto",
        max_buckets: object = 4,
        predict: object = PREDICT,
        guidance: object = GUIDANCE,
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
        decided = {
            "interval": (interval, INTERVAL),
            "branch": (branch, BRANCH),
            "schedule": (schedule, None),
            "predict": (predict, PREDICT),
            "guidance": (guidance, GUIDANCE),
        }
        given = {name: value for name, (value, default) in decided.items() if value is not default}
        chosen = _schedule(interval, schedule)
        buckets = positive_int("max_buckets", max_buckets, hint="Each bucket is one image size.")
        if not is_one_of(guidance, ("both", "reuse")):
            raise InvalidSetting(f'guidance must be "both" or "reuse", got {shown(guidance)}.')
        decode = true_or_false("vae", vae)
        layout = auto_or_bool("channels_last", channels_last)
        stretch = true_or_false("adapt", adapt)
        attribute = as_word(scheduler)
        if attribute is None or not attribute.isidentifier():
            raise InvalidSetting(
                "scheduler must be the name of the pipe's attribute that holds its scheduler, such as "
                f'"noise_scheduler", got {shown(scheduler)}. To change the scheduler itself, set that attribute.'
            )
        graphs = GraphSettings(compile, cuda_graphs, kernels, _packages(compiled, compiled_only))
        if plan is not None:
            _check_alone("plan", given if preset is None else {**given, "preset": preset})
            found = plan_of(plan)
            reuse = found.guidance == "reuse"
            fit = functools.partial(_of_plan, found, stretch)
            own = (found.schedule, found.branch, graphs, buckets, found.predictor, reuse)
            return cls(*own, decode, layout, found, stretch, fit, attribute)
        if stretch:
            raise InvalidSetting("adapt=True is for plan=, which is not given.")
        if preset is not None:
            _check_alone("preset", given)
            named = preset_of(preset)
            chosen, branch, predict, guidance = named.schedule, 0, "auto", named.guidance
        predictor = Auto() if as_word(predict) == "auto" else predictor_of(predict)
        reuse = as_word(guidance) == "reuse"
        settled = cls(chosen, branch, graphs, buckets, predictor, reuse, decode, layout, scheduler=attribute)
        if isinstance(predictor, Auto):
            return replace(settled, fit=functools.partial(_of_auto, chosen, predictor))
        return settled


# Functions, not closures: settings are pickled with the pipe.
def _of_plan(plan: Plan, adapt: bool, loop: Loop) -> tuple[Schedule, Predictor]:
    return plan.for_steps(loop.steps, adapt)


def _of_auto(schedule: Schedule, auto: Auto, loop: Loop) -> tuple[Schedule, Predictor]:
    return schedule, auto.of(loop)


def _packages(compiled: object, only: object) -> Packages | None:
    """The packages in the folder `compiled`; None, with a warning, if none can be used."""
    wanted = true_or_false("compiled_only", only)
    if compiled is None:
        if wanted:
            raise InvalidSetting("compiled_only=True is for compiled=, the folder of packages, which is not given.")
        return None
    try:
        path = path_of(compiled, "compiled")
    except InvalidSetting:
        raise InvalidSetting(f"compiled must be the path of a folder of packages, got {shown(compiled)}.") from None
    try:
        return open_packages(path, wanted)
    except (Unreadable, OSError) as error:  # a name that is too long, for one
        unusable(error, wanted)
        return None


def unusable(reason: object, only: bool) -> None:
    """Warn that packages are not used, or raise NotCompiled if only they may be."""
    if only:
        raise NotCompiled(
            f"compiled_only=True, and the packages cannot be used: {reason}. Make them with `stepcache compile` or "
            "save_compiled, or leave compiled_only out."
        )
    logger.warning("Packages are not used, and everything runs as without them: %s.", reason)


def _schedule(interval: Any, schedule: Any) -> Schedule:
    if schedule is None:
        return Schedule.uniform(interval)
    if not is_a(schedule, Schedule):
        raise InvalidSetting(
            f"schedule must be a stepcache.Schedule, got {shown(schedule)}. "
            "Build one with Schedule.uniform, Schedule.nonuniform or Schedule.explicit."
        )
    if interval is not INTERVAL:
        raise InvalidSetting(
            f"schedule= and interval={shown(interval)}: both say which steps are full. Give one or the other."
        )
    return schedule


def _check_alone(what: str, given: dict[str, object]) -> None:
    """Refuse arguments that a plan or a preset decides, also those that are given with their default."""
    if given:
        others = ", ".join(f"{name}={shown(value)}" for name, value in given.items())
        raise InvalidSetting(
            f"{what}= and {others}: a {what} has its own full steps, branch, prediction and guidance. Give one or the "
            "other."
        )
