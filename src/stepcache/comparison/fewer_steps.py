"""Fewer steps: the rival of each variant that every user has, at no higher cost in MACs of the U-Net.

It is the original pipeline with as many steps as cost no more than the variant does. Cost is counted in U-Net calls: a
full one counts 1, a partial one its share of the MACs. Some schedulers do not call the U-Net once a step
(solvers.unet_calls), so calls are what is counted, for the variant, whose schedule goes by them, and for its rival.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..pipes.solvers import most_steps, unet_calls
from .cost import Cost, is_dearer
from .results import Comparison, FewerSteps, Setting, Variant


def with_fewer_steps(
    variants: Sequence[Variant], steps: int, scheduler: Any, cost: Cost
) -> tuple[list[Setting], list[str]]:
    """The variants, each followed by its rival; and a line about each that has none.

    Variants whose rivals have the same number of steps share one, and stand together before it. steps: the original's,
    of that scheduler, which is left as it is.
    """
    calls = unet_calls(scheduler, steps) or steps
    groups: dict[int | Variant, list[Variant]] = {}
    notes = []
    for variant in variants:
        full = sum(map(variant.schedule.is_full, range(calls)))
        macs = cost.of(full, calls - full, variant.branch)
        if macs >= cost.of(calls):
            notes.append(f"Fewer steps are left out for {variant.name}: it costs as much as all {_steps(steps)}.")
            groups[variant] = [variant]
            continue
        fewer = most_steps(scheduler, steps, macs // cost.full)
        if fewer is None:
            kind = type(scheduler).__name__
            notes.append(f"Fewer steps are left out for {variant.name}: {kind} can do none that cost as little.")
        groups.setdefault(fewer or variant, []).append(variant)
    settings: list[Setting] = []
    for key, group in groups.items():
        settings += group
        if isinstance(key, int):
            settings.append(FewerSteps(key, steps, tuple(group)))
    return settings, notes


def announced(settings: Sequence[Setting]) -> list[str]:
    """A line that says what will be run besides the variants, if anything."""
    rivals = [setting for setting in settings if isinstance(setting, FewerSteps)]
    if not rivals:
        return []
    each = [f"{rival.steps} for {' and '.join(variant.name for variant in rival.variants)}" for rival in rivals]
    return [f"Fewer steps at no higher cost, of {rivals[0].of}: {'; '.join(each)}."]


def dearer(comparison: Comparison) -> list[str]:
    """A line about each variant whose rival cost more than it did, by the calls that were made.

    So it is where a run goes full in other steps than its schedule says, or calls the U-Net more often in some steps.
    """
    cost, settings = comparison.cost, comparison.settings
    if cost is None:
        return []
    kinds = {setting: shot.kinds for setting, shot in zip(settings, comparison.results[0].shots, strict=True)}
    lines = []
    for rival in (setting for setting in settings if isinstance(setting, FewerSteps)):
        for variant in rival.variants:
            mine, its = cost.in_calls(kinds[variant], variant.branch), cost.in_calls(kinds[rival])
            if is_dearer(its, mine):
                lines.append(
                    f"{rival.steps} of {rival.of} steps cost more than {variant.name}: {its:.1f} full U-Net calls, "
                    f"against {mine:.1f}. The run did not follow its schedule, so they are no fair rival here."
                )
    return lines


def _steps(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"
