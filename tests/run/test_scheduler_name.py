"""accelerate(..., scheduler=...): pipelines that keep their scheduler in an attribute of another name (CatVTON's)."""

import copy
import pickle

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from support.small import BETAS, loop_pipe, make_inputs, make_unet

from stepcache import Schedule, accelerate, denoising, last_run, restore, warmup
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.plans.fingerprints import sampling
from stepcache.plans.plan import MadeFor, Plan


class NoisePipe:
    def __init__(self):
        self.unet, self.noise_scheduler = make_unet("least"), DDIMScheduler(**BETAS)

    @torch.no_grad()
    def __call__(self, num_inference_steps=8, on_step=lambda pipe, i: None):
        self.noise_scheduler.set_timesteps(num_inference_steps)
        inputs = make_inputs(self.unet)
        latents = inputs["sample"] * self.noise_scheduler.init_noise_sigma
        for i, t in enumerate(self.noise_scheduler.timesteps):
            noise = self.unet(**{**inputs, "sample": latents, "timestep": t}).sample
            latents = self.noise_scheduler.step(noise, t, latents).prev_sample
            on_step(self, i)
        return latents


def named(*args, **options):
    return accelerate(NoisePipe(), *args, scheduler="noise_scheduler", **options)


def kinds(pipe, *args, **options):
    pipe(*args, **options)
    return last_run(pipe).kinds


def test_a_run_counts_the_steps_of_that_scheduler():
    pipe = named(3)
    before = set(vars(pipe.noise_scheduler))
    assert torch.equal(pipe(8), accelerate(loop_pipe("least"), 3)(8))
    assert last_run(pipe).kinds == "FPPFPPFP" and last_run(pipe).steps == 8
    assert set(vars(pipe.noise_scheduler)) == before
    want = NoisePipe()(8)
    assert torch.equal(restore(pipe)(8), want)


def test_last_full_steps_by_its_timesteps():
    assert kinds(named(schedule=Schedule.uniform(4, first=2, last=2)), 9) == "FFPPFPPFF"
    assert kinds(named(preset="balanced"), 5) == "FPPFP"


def test_another_one_put_there_mid_run():
    def swap(pipe, i):
        if i == 1:
            pipe.noise_scheduler = copy.deepcopy(pipe.noise_scheduler)

    assert kinds(named(3), 6, swap) == "FPFPPF"


def test_a_denoising_block():
    pipe = named(2)
    pipe.noise_scheduler.set_timesteps(4)
    inputs = make_inputs(pipe.unet)
    with torch.no_grad(), denoising(pipe):
        for t in pipe.noise_scheduler.timesteps:
            noise = pipe.unet(**{**inputs, "timestep": t}).sample
            pipe.noise_scheduler.step(noise, t, inputs["sample"])
    assert last_run(pipe).kinds == "FPFP"


def test_a_warm_up():
    assert warmup(named(3), 128, 128, progress=False).kinds == "FP"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_keep_the_name(copied):
    assert kinds(copied(named(3)), 4) == "FPPF"


def test_a_plan_is_checked_against_it():
    unet = make_unet("least")
    made_for = MadeFor.of(loop_pipe("least"), 1.0)
    assert made_for.scheduler == sampling(DDIMScheduler(**BETAS))
    plan = Plan(made_for, "FPFP", 0, "both", 1, 0.0, {}, 1.5)
    assert kinds(named(plan=plan), 4) == "FPFP"
    other = NoisePipe()
    other.unet, other.noise_scheduler = unet, EulerDiscreteScheduler(**BETAS)
    with pytest.raises(InvalidSetting, match="EulerDiscreteScheduler"):
        accelerate(other, plan=plan, scheduler="noise_scheduler")


def test_the_refusal_names_what_would_do():
    pipe = NoisePipe()
    with pytest.raises(UnsupportedPipeline, match=r'no \.scheduler.* accelerate\(pipe, scheduler="noise_scheduler"\)'):
        accelerate(pipe)
    pipe.scheduler = "ddim"
    with pytest.raises(UnsupportedPipeline, match=r'a str, which has no step.*scheduler="noise_scheduler"'):
        accelerate(pipe)
    with pytest.raises(UnsupportedPipeline, match=r'no \.noisescheduler.*scheduler="noise_scheduler"'):
        accelerate(pipe, scheduler="noisescheduler")
    pipe.noise_scheduler = None
    with pytest.raises(UnsupportedPipeline, match=r"\.unet and \.noise_scheduler, got NoisePipe"):
        accelerate(pipe, scheduler="noise_scheduler")


@pytest.mark.parametrize("value", ["", "noise scheduler", None, DDIMScheduler()])
def test_what_is_no_name(value):
    with pytest.raises(InvalidSetting, match="scheduler must be the name of the pipe's attribute"):
        accelerate(NoisePipe(), scheduler=value)
