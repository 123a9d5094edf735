"""A comparison without a pipeline's runs."""

from types import SimpleNamespace

import numpy as np

from stepcache.comparison.results import Comparison, Variant
from stepcache.images.make import Made


def comparison_of(*variants):
    """Of these (interval, branch) pairs, without results."""
    return Comparison("m", "s", [Variant(*variant) for variant in variants])


def fake_make(*levels, censored=()):
    """In place of Request.make: grey images of those levels in turn; a KeyboardInterrupt for None.

    The U-Net's hooks are called once a step, with latents of 8x8.
    """
    made = iter(range(len(levels)))

    def make(self, pipe, steps=None, each_step=None):
        i = next(made)
        if levels[i] is None:
            raise KeyboardInterrupt
        for _ in range(steps or self.steps):
            for hook in tuple(pipe.unet._forward_pre_hooks.values()):
                hook(pipe.unet, (SimpleNamespace(shape=(2, 4, 8, 8)),), {})
        return Made(np.full((1, 16, 16, 3), levels[i]), 1.0 + i, (i in censored,))

    return make
