"""Where a denoising loop begins, if nobody sets the scheduler's timesteps anew."""

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler
from support.small import BETAS, ONE_LEVEL, LoopPipe, loop_pipe, make_inputs, make_unet

from stepcache import accelerate, denoising, last_run
from stepcache.run import passes


@pytest.fixture
def pipe():
    pipe = accelerate(loop_pipe("least", **ONE_LEVEL), interval=3)
    pipe.scheduler.set_timesteps(7)
    return pipe


def denoise(pipe, timesteps, latents=None, step=None):
    """One pass over `timesteps`; returns the latents. step: called with each timestep instead of the scheduler's."""
    inputs = make_inputs(pipe.unet)
    latents = inputs["sample"] if latents is None else latents
    with torch.no_grad():
        for t in timesteps:
            noise = pipe.unet(latents, t, inputs["encoder_hidden_states"]).sample
            pipe.scheduler.step(noise, t, latents) if step is None else step(t)
            latents = latents - 0.1 * noise
    return latents


def kinds(pipe, *passes, by_hand=False):
    with denoising(pipe) as session:
        for timesteps in passes:
            denoise(pipe, timesteps, step=session.advance if by_hand else None)
    return last_run(pipe).kinds


def test_a_second_pass_begins_with_a_full_step(pipe):
    """DemoFusion, and SDEdit by hand."""
    timesteps = pipe.scheduler.timesteps
    assert kinds(pipe, timesteps, timesteps) == "FPPFPPF" * 2
    assert last_run(pipe).steps == 14
    assert kinds(pipe, timesteps[:5], timesteps[4:], timesteps) == "FPPFP" + "PFP" + "FPPFPPF"  # a pause is no pass


def test_a_loop_that_goes_through_the_timesteps_from_their_end(pipe):
    """DDIM and null-text inversion index them so."""
    timesteps = pipe.scheduler.timesteps
    backwards = [timesteps[len(timesteps) - i - 1] for i in range(7)]
    assert kinds(pipe, backwards, backwards, by_hand=True) == "FPPFPPF" * 2
    assert kinds(pipe, backwards, timesteps[1:], by_hand=True) == "FPPFPPF" + "FPPFPP"


def test_a_second_pass_from_the_middle_reads_nothing_of_the_first(pipe):
    timesteps = pipe.scheduler.timesteps
    with denoising(pipe):
        latents = denoise(pipe, timesteps)
        both = denoise(pipe, timesteps[3:], latents)
    assert last_run(pipe).kinds == "FPPFPPF" + "FPPF"
    with denoising(pipe):
        alone = denoise(pipe, timesteps[3:], latents)
    assert torch.equal(both, alone)


@pytest.mark.parametrize(
    "like",
    [
        lambda ts: ts.tolist(),
        lambda ts: [float(t) for t in ts],
        lambda ts: list(ts.numpy()),
        lambda ts: [t.clone() for t in ts],
        lambda ts: [t.expand(2) for t in ts],
    ],
    ids=["int", "float", "numpy", "tensors of their own", "expanded"],
)
def test_in_whatever_form_a_loop_has_its_timesteps(pipe, like):
    timesteps = pipe.scheduler.timesteps
    assert kinds(pipe, like(timesteps), like(timesteps), by_hand=True) == "FPPFPPF" * 2
    assert kinds(pipe, like(timesteps), like(timesteps[2:]), by_hand=True) == "FPPFPPF" + "FPPFP"
    # An inversion, whose timesteps rise, and the way back.
    assert kinds(pipe, like(timesteps.flip(0)), like(timesteps[1:]), by_hand=True) == "FPPFPPF" + "FPPFPP"


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [(HeunDiscreteScheduler, {}), (PNDMScheduler, {}), (PNDMScheduler, {"skip_prk_steps": True})],
    ids=["heun", "prk", "plms"],
)
def test_timesteps_that_repeat_or_jump_are_one_pass(scheduler, options):
    pipe = accelerate(LoopPipe(make_unet("least", **ONE_LEVEL), scheduler(**BETAS, **options)), interval=2)
    pipe(8)
    count = len(pipe.scheduler.timesteps)
    assert count > 8
    assert last_run(pipe).kinds == ("FP" * count)[:count]


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler])
def test_one_timestep_tensor_that_is_written_in_place(scheduler):
    pipe = accelerate(LoopPipe(make_unet("least", **ONE_LEVEL), scheduler(**BETAS)), interval=3)
    pipe.scheduler.set_timesteps(6)
    inputs, t = make_inputs(pipe.unet), torch.zeros((), dtype=pipe.scheduler.timesteps.dtype)
    with torch.no_grad(), denoising(pipe):
        for value in pipe.scheduler.timesteps.clone():
            t.copy_(value)
            noise = pipe.unet(inputs["sample"], t, inputs["encoder_hidden_states"]).sample
            pipe.scheduler.step(noise, t, inputs["sample"])
    count = len(pipe.scheduler.timesteps)
    assert last_run(pipe).kinds == ("FPP" * count)[:count]
    assert last_run(pipe).steps == count


def test_on_a_gpu_the_place_in_the_tensor_tells(pipe, monkeypatch):
    """There the host reads no values."""
    monkeypatch.setattr(passes, "_value_of", lambda timestep: None)
    timesteps = pipe.scheduler.timesteps
    assert kinds(pipe, timesteps, timesteps[2:]) == "FPPFPPF" + "FPPFP"
    separate = [t.clone() for t in timesteps]
    assert kinds(pipe, separate, separate) == ("FPP" * 5)[:14]  # nothing tells that the second pass begins


def test_values_that_fall_and_rise_in_one_tensor_are_one_pass():
    walk, jumps = passes.Pass(), torch.tensor([9, 8, 9, 8, 7, 8, 1])
    assert not any(map(walk.goes_back, jumps))
    assert walk.goes_back(jumps[3])
