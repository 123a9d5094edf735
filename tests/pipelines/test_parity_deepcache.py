"""The same final latents as DeepCache 0.1.1, which runs beside it."""

import pytest
import torch
from DeepCache import DeepCacheSDHelper as Original
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from support.small import BETAS, LoopPipe, make_unet

from stepcache import DeepCacheSDHelper, Schedule, accelerate, last_run

SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**BETAS),
    "euler": lambda: EulerDiscreteScheduler(**BETAS),
    "dpm++ 2m": lambda: DPMSolverMultistepScheduler(**BETAS),
}


def original(pipe, steps, interval, branch):
    """Latents of a stock pipe with DeepCache, which is taken off it again."""
    helper = Original(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    latents = pipe(steps)
    helper.disable()
    return latents


# Every branch of each U-Net; each scheduler and each interval with each U-Net.
QUICK = [("sd", "ddim", 3, range(12)), ("sdxl", "euler", 2, range(9)), ("sdxl", "dpm++ 2m", 5, (0, 4, 8))]
SLOW = [("sd", "euler", 5, (0, 6, 11)), ("sd", "dpm++ 2m", 2, (0, 6, 11)), ("sdxl", "ddim", 3, (0, 4, 8))]
CELLS = [*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW)]


@pytest.mark.parametrize("unet_name, scheduler, interval, branches", CELLS)
def test_same_latents(unet_name, scheduler, interval, branches):
    steps = interval + 2  # the last one reuses the second full one's features
    pipe, stock = (LoopPipe(make_unet(unet_name), SCHEDULERS[scheduler]()) for _ in range(2))
    plain = pipe(steps)
    for branch in branches:
        accelerate(pipe, interval, branch)
        ours, theirs = pipe(steps), original(stock, steps, interval, branch)
        assert last_run(pipe).kinds == Schedule.uniform(interval).kinds(steps)
        assert (ours - theirs).abs().max() <= 1e-5, f"branch {branch}"
        assert not torch.equal(ours, plain)


def test_the_helper_is_a_drop_in():
    pipe, stock = (LoopPipe(make_unet("sd"), SCHEDULERS["ddim"]()) for _ in range(2))
    plain = pipe(5)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=1)
    helper.enable()
    assert (pipe(5) - original(stock, 5, 3, 1)).abs().max() <= 1e-5
    helper.disable()
    assert torch.equal(pipe(5), plain)
