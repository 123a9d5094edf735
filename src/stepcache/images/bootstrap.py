"""Confidence intervals of differences between images, by a bootstrap over prompts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .fidelity import signed

RESAMPLES, SEED, CONFIDENCE = 2000, 17, 0.95


class Difference(NamedTuple):
    """How much more faithful one way is than another, in dB: the mean over images, and its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, low, high = map(signed, self)
        return f"{mean} ({low} to {high})"

    @property
    def better(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.low > 0


def bootstrap(differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> Difference:
    """The mean of [prompts, seeds], and the percentile interval of its mean over resampled prompts.

    The seeds of a prompt stay together, because they are not independent of each other. Differences that are not finite
    (of images that are identical to their original) are left out; NaN if none is left. The same numbers always give the
    same interval.
    """
    known = np.isfinite(differences)
    sums, counts = np.where(known, differences, 0.0).sum(axis=1), known.sum(axis=1)
    if not counts.any():
        return Difference(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    with np.errstate(invalid="ignore"):
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(means, [tail, 100 - tail])
    return Difference(float(sums.sum() / counts.sum()), float(low), float(high))
