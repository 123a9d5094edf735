"""Which is closer to the original on these prompts, reuse or fewer steps: in words, with how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ..images.fidelity import interval_of
from .results import Comparison, FewerSteps, Variant

FEWEST = 4
"""Prompts. From fewer of them no interval means anything."""


def closer(comparison: Comparison) -> list[str]:
    """A sentence for each variant that has a rival of fewer steps, by the mean difference of their PSNR.

    Prompts whose image was not compared, or is identical with the original, are left out, and counted in the sentence.
    """
    lines = []
    for j, rival in enumerate(comparison.settings):
        if not isinstance(rival, FewerSteps):
            continue
        for i, variant in enumerate(comparison.settings):
            if isinstance(variant, Variant) and variant in rival.variants:
                pairs = [(result.shots[i].psnr, result.shots[j].psnr) for result in comparison.results]
                known = [(mine, its) for mine, its in pairs if mine is not None and its is not None]
                finite = [mine - its for mine, its in known if math.isfinite(mine) and math.isfinite(its)]
                lines.append(_sentence(variant, rival, finite) + _left_out(len(pairs) - len(finite)))
    return lines


def _sentence(variant: Variant, rival: FewerSteps, differences: Sequence[float]) -> str:
    """differences: PSNR of the variant less that of its rival in dB, for each prompt."""
    name, count = variant.name, len(differences)
    fewer = f"{rival.steps} of {rival.of} steps"
    if count < FEWEST:
        few = f"{count} prompt{' is' if count == 1 else 's are'} too few" if count else "There is no prompt"
        return f"{few} to tell whether {name} or {fewer} at the same cost come closer to the original."
    mean, (low, high) = statistics.fmean(differences), interval_of(differences)
    figures = "PSNR {:.1f} dB higher on average over " + f"{count} prompts (95% interval {{:.1f}} to {{:.1f}} dB)."
    if low > 0:
        return (
            f"{_capital(name)} comes closer to the original than {fewer} at the same cost: "
            f"{figures.format(mean, low, high)}"
        )
    if high < 0:
        return (
            f"{_capital(fewer)} come closer to the original than {name} at the same cost: "
            f"{figures.format(-mean, -high, -low)}"
        )
    return (
        f"No clear difference between {name} and {fewer} at the same cost: PSNR {abs(mean):.1f} dB "
        f"{'higher' if mean >= 0 else 'lower'} with reuse on average over {count} prompts (95% interval {low:.1f} to "
        f"{high:.1f} dB)."
    )


def _left_out(number: int) -> str:
    if not number:
        return ""
    which = "1 prompt is" if number == 1 else f"{number} prompts are"
    return f" {which} left out: an image was identical with the original's, or not compared."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
