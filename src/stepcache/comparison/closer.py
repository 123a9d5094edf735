"""Which is closer to the original on these prompts, reuse or fewer steps: in words, with how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..images.bootstrap import bootstrap
from .cost import is_dearer
from .results import Comparison, FewerSteps, Variant
from .summary import summaries

FEWEST = 4
"""Prompts. From fewer of them no interval means anything."""


def closer(comparison: Comparison) -> list[str]:
    """A sentence for each variant that has a rival of fewer steps, by the mean difference of their PSNR.

    Prompts whose image was not compared, or is identical with the original's, are left out, and counted in the
    sentence.
    """
    rows = summaries(comparison)[1:]
    lines = []
    for j, rival in enumerate(comparison.settings):
        if not isinstance(rival, FewerSteps):
            continue
        for i, variant in enumerate(comparison.settings):
            if isinstance(variant, Variant) and variant in rival.variants:
                pairs = [(result.shots[i].psnr, result.shots[j].psnr) for result in comparison.results]
                known = [(mine, its) for mine, its in pairs if mine is not None and its is not None]
                finite = [mine - its for mine, its in known if math.isfinite(mine) and math.isfinite(its)]
                fewer = f"{rival.steps} of {rival.of} steps"
                lines.append(
                    _sentence(variant.name, fewer, _cost(rows[j].cost, rows[i].cost), finite)
                    + _left_out(len(pairs) - len(finite))
                )
    return lines


def _sentence(name: str, fewer: str, cost: str, differences: Sequence[float]) -> str:
    """differences: PSNR of the variant `name` less that of `fewer` steps in dB, for each prompt."""
    count = len(differences)
    if count < FEWEST:
        few = f"{count} prompt{' is' if count == 1 else 's are'} too few" if count else "There is no prompt"
        return (
            f"{few} to tell whether {name} or {fewer}{cost} come closer to the original; at least {FEWEST} are needed."
        )
    mean, low, high = bootstrap(np.array(differences)[:, None])
    if low <= 0 <= high:
        mean, low, high = (round(value, 1) + 0.0 for value in (mean, low, high))  # no "-0.0"
        which = f"{abs(mean):.1f} dB {'higher' if mean >= 0 else 'lower'} with reuse"
        begin = f"There is no clear difference between {name} and {fewer}{cost}"
    elif low > 0:
        which = f"{mean:.1f} dB higher"
        begin = f"{_capital(name)} comes closer to the original than {fewer}{cost}"
    else:
        which, low, high = f"{-mean:.1f} dB higher", -high, -low
        begin = f"{_capital(fewer)} come closer to the original than {name}{cost}"
    return f"{begin}: PSNR is {which}, on average over {count} prompts (95% interval {low:.1f} to {high:.1f} dB)."


def _cost(fewer: float | None, reuse: float | None) -> str:
    """What both cost, the rival first."""
    if fewer is None or reuse is None:
        return " at no higher cost"
    at = "a" if is_dearer(fewer, reuse) else "no"
    return f" at {at} higher cost ({fewer:.1f} full U-Net calls, against {reuse:.1f} with reuse)"


def _left_out(number: int) -> str:
    if not number:
        return ""
    which = "1 prompt is" if number == 1 else f"{number} prompts are"
    return f" {which} left out: an image was identical with the original's, or not compared."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
