"""Sentences about a comparison: whether reuse or fewer steps come closer to the original, at the same cost."""

from __future__ import annotations

import numpy as np

from ..images.bootstrap import bootstrap
from .results import Comparison, Fewer, Variant

LEAST = 4
"""Prompts for a sentence that says which is better."""

EXPLAINED = (
    "Both cost the U-Net about the same. Above 0 dB, reuse is closer to the original: mean difference of PSNR, and its "
    "95% interval over prompts."
)


def verdicts(comparison: Comparison) -> list[str]:
    """A sentence for each variant that stands beside fewer steps of the same cost, and one that explains them."""
    columns = {variant: i for i, variant in enumerate(comparison.variants)}
    found = [
        _verdict(comparison, variant, fewer, columns)
        for variant, fewer in comparison.rivals.items()
        if fewer is not None and fewer in columns
    ]
    return [*found, EXPLAINED] if found else []


def _verdict(comparison: Comparison, variant: Variant, fewer: Fewer, columns: dict[Variant | Fewer, int]) -> str:
    pairs = [
        (result.reused[columns[variant]].psnr, result.reused[columns[fewer]].psnr) for result in comparison.results
    ]
    known = np.array([ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None])
    known = known[np.isfinite(known)]
    begin = f"{variant.name[0].upper()}{variant.name[1:]}, against {fewer.name}"
    if len(known) < LEAST:
        return f"{begin}: {len(known)} image{'' if len(known) == 1 else 's'} to compare, too few to tell."
    found = bootstrap(known[:, None])
    if found.better:
        said = "reuse is closer to the original"
    elif found.worse:
        said = "fewer steps are closer to the original"
    else:
        said = "no clear difference"
    return f"{begin}: {said}, {found} dB."
