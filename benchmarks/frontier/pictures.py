"""The pictures that methods are compared on: prompts that the demo knows, and the call that makes them.

CALIBRATION is never measured on, and HELD_OUT is never calibrated or fitted on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

CALIBRATION = (
    "fox face", "cherry blossom", "hamburger", "red apple", "grinning face", "pineapple", "panda face", "maple leaf",
    "dog face", "raccoon", "hot dog", "peanuts", "ice cream", "grapes", "penguin", "lemon",
)  # fmt: skip
HELD_OUT = (
    "tiger face", "avocado", "frog face", "mushroom", "cat face", "horse face", "cow face", "bear face", "octopus",
    "tomato", "rose", "banana",
)  # fmt: skip
SEEDS = (101, 102, 103)


def images(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> np.ndarray:
    """All images, [seeds * prompts, H, W, 3] in 0..1, a pipeline call for each seed. Each call is inside a `mode()`.

    The noise of an image depends on its seed and its place among the prompts, not on the method or the steps.
    """
    made = []
    for seed in seeds:
        generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))]
        with mode():
            output = pipe(
                list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="np",
            )
        made.append(output.images)
    return np.concatenate(made)
