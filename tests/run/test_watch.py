"""Interceptions in a run: copies of intercepted objects, replaced schedulers, several loops in a run."""

import copy
import inspect
import pickle

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from support.small import BETAS, loop_pipe, make_inputs

from stepcache import accelerate, denoising, last_run


def test_watched_methods_keep_their_signature():
    pipe = accelerate(loop_pipe("least"))
    names = ("step", "set_timesteps")
    want = [inspect.signature(getattr(pipe.scheduler, name)) for name in names]
    with denoising(pipe):
        assert [inspect.signature(getattr(pipe.scheduler, name)) for name in names] == want
        assert inspect.signature(pipe.unet.forward) == inspect.signature(type(pipe.unet).forward.__get__(pipe.unet))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_made_in_a_run_are_on_their_own(copied):
    pipe = accelerate(loop_pipe("least"), interval=2)
    pipe.scheduler.set_timesteps(4)
    inputs = make_inputs(pipe.unet)
    with torch.no_grad(), denoising(pipe):
        scheduler, unet = copied(pipe.scheduler), copied(pipe.unet)
        assert scheduler.step.__self__ is scheduler and unet.forward.__self__ is unet
        assert torch.equal(unet(**inputs).sample, pipe.unet(**inputs).sample)
        scheduler.step(inputs["sample"], scheduler.timesteps[0], inputs["sample"])
    assert last_run(pipe).kinds == "F" and last_run(pipe).steps == 0


def test_attributes_saved_and_put_back_are_still_watched():
    """Panorama pipelines do this with the state of their scheduler."""
    pipe = accelerate(loop_pipe("least", scheduler=DPMSolverMultistepScheduler(**BETAS)), interval=2)
    pipe.scheduler.set_timesteps(4)
    inputs = make_inputs(pipe.unet)
    before = set(vars(pipe.scheduler))
    with torch.no_grad(), denoising(pipe):
        latents, state = inputs["sample"], copy.deepcopy(vars(pipe.scheduler))
        for t in pipe.scheduler.timesteps:
            vars(pipe.scheduler).update(state)
            latents = pipe.scheduler.step(pipe.unet(**{**inputs, "sample": latents}).sample, t, latents).prev_sample
            state = copy.deepcopy(vars(pipe.scheduler))
    assert last_run(pipe).kinds == "FPFP" and pipe.scheduler.step_index == 4
    assert set(vars(pipe.scheduler)) == before


def loop(pipe, steps=4):
    inputs = make_inputs(pipe.unet)
    pipe.scheduler.set_timesteps(steps)
    latents = inputs["sample"]
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            noise = pipe.unet(**{**inputs, "sample": latents, "timestep": t}).sample
            latents = pipe.scheduler.step(noise, t, latents).prev_sample
    return latents


@pytest.mark.parametrize("predict", ["hold", "linear"])
def test_each_loop_of_a_run_is_on_its_own(predict):
    pipe = accelerate(loop_pipe("least"), interval=3, predict=predict)
    with denoising(pipe):
        want = loop(pipe)
    with denoising(pipe):
        results = [loop(pipe), loop(pipe)]
    assert last_run(pipe).kinds == "FPPF" * 2 and last_run(pipe).steps == 8
    assert all(torch.equal(result, want) for result in results)


def test_another_scheduler_mid_run():
    """Text2Video-Zero continues with a copy of its scheduler."""
    pipe = accelerate(loop_pipe("least"), interval=3)
    first = pipe.scheduler
    with denoising(pipe):
        want = loop(pipe)
        pipe.scheduler = second = copy.deepcopy(first)
        assert torch.equal(loop(pipe), want)
        pipe.scheduler = third = DDIMScheduler(**BETAS)
        loop(pipe, 5)
    assert last_run(pipe).kinds == "FPPF" * 2 + "FPPFP" and last_run(pipe).steps == 13
    for scheduler in (first, second, third):
        assert not {"step", "set_timesteps"} & set(vars(scheduler))
