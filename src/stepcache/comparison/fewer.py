"""The rival that every user has: the original pipeline with fewer steps, at the cost of an accelerated run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from ..forwards.macs import branch_macs, meta_unet
from .results import Fewer, Variant

PIXELS = 8
"""Of a latent, each way, where a pipeline does not tell."""


def fewer_steps(
    pipe: Any, variants: Iterable[Variant], steps: int, size: tuple[int | None, int | None], batch: int = 2
) -> dict[Variant, Fewer | None]:
    """For each variant, the run of the original with the most steps that costs no more; None if there is none.

    Variants that reuse nothing are left out. Cost is that of the U-Net in MACs, and counted in U-Net calls: Heun's
    scheduler, for one, has two a step. size: height and width in pixels; None: the pipeline's own. batch: of a U-Net
    call.
    """
    variants, calls = list(variants), len(_timesteps(pipe, steps))
    shares = _shares(pipe, {variant.branch for variant in variants}, size, batch)
    counts = {number: len(_timesteps(pipe, number)) for number in range(1, steps)}
    found: dict[Variant, Fewer | None] = {}
    for variant in variants:
        kinds = variant.schedule.kinds(calls)
        if "P" not in kinds:
            continue
        cost = kinds.count("F") + shares[variant.branch] * kinds.count("P")
        fits = [number for number, count in counts.items() if 0 < count <= cost]
        found[variant] = Fewer(max(fits), steps) if fits else None
    return found


def _timesteps(pipe: Any, steps: int) -> Sequence[Any]:
    """The timesteps of a loop of so many steps; none if the scheduler cannot do them."""
    scheduler = copy.deepcopy(pipe.scheduler)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError):
        return ()
    return scheduler.timesteps


def _shares(pipe: Any, branches: set[int], size: tuple[int | None, int | None], batch: int) -> dict[int, float]:
    """The MACs of a partial step over those of a full one, by branch."""
    config, factor = pipe.unet.config, getattr(pipe, "vae_scale_factor", PIXELS)
    own = config.sample_size
    defaults = own if isinstance(own, (list, tuple)) else (own, own)
    height, width = (side // factor if side else default for side, default in zip(size, defaults, strict=True))
    return {each.branch: each.share for each in branch_macs(meta_unet(config), height, width, batch, sorted(branches))}
