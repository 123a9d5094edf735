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
STEPS = 7


def original(unet_name, scheduler, interval, branch):
    pipe = LoopPipe(make_unet(unet_name), SCHEDULERS[scheduler]())
    helper = Original(pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return pipe(STEPS)


BRANCHES = {"sd": 12, "sdxl": 9}
# Each scheduler and each interval with each U-Net.
QUICK = [("sd", "ddim", 3), ("sdxl", "euler", 2), ("sdxl", "dpm++ 2m", 5)]
SLOW = [("sd", "euler", 5), ("sd", "dpm++ 2m", 2), ("sdxl", "ddim", 3)]
CELLS = [*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in SLOW)]


@pytest.mark.parametrize("unet_name, scheduler, interval", CELLS)
def test_same_latents_for_every_branch(unet_name, scheduler, interval):
    pipe = LoopPipe(make_unet(unet_name), SCHEDULERS[scheduler]())
    plain = pipe(STEPS)
    for branch in range(BRANCHES[unet_name]):
        accelerate(pipe, interval, branch)
        ours, theirs = pipe(STEPS), original(unet_name, scheduler, interval, branch)
        assert last_run(pipe).kinds == Schedule.uniform(interval).kinds(STEPS)
        assert (ours - theirs).abs().max() <= 1e-5, f"branch {branch}"
        assert not torch.equal(ours, plain)


def test_the_helper_is_a_drop_in():
    pipe = LoopPipe(make_unet("sd"), SCHEDULERS["ddim"]())
    plain = pipe(STEPS)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=3, cache_branch_id=1)
    helper.enable()
    assert (pipe(STEPS) - original("sd", "ddim", 3, 1)).abs().max() <= 1e-5
    helper.disable()
    assert torch.equal(pipe(STEPS), plain)
