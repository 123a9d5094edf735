"""A comparison without a pipeline's runs."""

import numpy as np

from stepcache.comparison.results import Comparison, Variant
from stepcache.images.make import Made


def comparison_of(*variants):
    """Of these (interval, branch) pairs, without results."""
    return Comparison("m", "s", [Variant(*variant) for variant in variants])


def fake_make(*levels, censored=()):
    """In place of Request.make: grey images of those levels in turn; a KeyboardInterrupt for None."""
    made = iter(range(len(levels)))

    def make(self, pipe, steps=None, each_step=None):
        i = next(made)
        if levels[i] is None:
            raise KeyboardInterrupt
        return Made(np.full((1, 16, 16, 3), levels[i]), 1.0 + i, (i in censored,))

    return make
