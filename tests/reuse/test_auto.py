"""predict="auto": the rule, and what reaches it from a pipeline's call."""

import functools

import numpy as np
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
)
from support.modular import denoised, modular_pipe
from support.small import engine_of, generate, loop_pipe, make_inputs, picture, tiny_pipe

from stepcache import accelerate, denoising, last_run
from stepcache.reuse.auto import FIRST_ORDER, MULTISTEP, UNKNOWN_GUIDANCE, Auto, Loop
from stepcache.reuse.predict import DIFFERENCE, FEATURE, Line
from stepcache.run.session import Session


def pairs(guidance, first_order=True, length=20, gaps=(1, 2, 3, 5, 10)):
    auto = Auto().of(Loop(length, length, first_order, guidance))
    return [auto.dampings(gap) for gap in gaps]


def test_dampings_fall_with_gap_and_guidance():
    for first_order in (True, False):
        for guidance in (1.0, 3.0, 7.5, 15.0):
            found = pairs(guidance, first_order)
            assert found == sorted(found, reverse=True)
        assert pairs(3.0, first_order) >= pairs(7.5, first_order) >= pairs(15.0, first_order)
    assert pairs(7.5, True) >= pairs(7.5, False)


def test_dampings_stay_in_the_limits_of_accelerate():
    for rules in (FIRST_ORDER, MULTISTEP):
        for gap in (1, 2, 3, 10, 10**6):
            for length in (1, 2, 20, 50, 1000):
                assert 0.5 <= rules.mean(gap, length) <= 1
                assert all(-0.5 <= rules.difference(gap, length, guidance) <= 1 for guidance in (1, 7.5, 1e9))


def test_for_solvers_of_the_first_order_only_the_part_of_the_run_counts():
    auto = Auto().of(Loop(20, 20, True, 6.0))
    assert auto.dampings(2) == pytest.approx(Auto().of(Loop(60, 60, True, 6.0)).dampings(6))
    assert Auto().of(Loop(20, 20, False, 6.0)).dampings(2) < Auto().of(Loop(60, 60, False, 6.0)).dampings(6)


def test_a_loop_of_which_nothing_is_known_is_held():
    assert Auto().dampings(3) == (0.0, 0.0) and Auto().weights(0, 5, (4, 2)) == (1.0, 0.0)
    assert Auto().weights(0, 5, (4,)) == (1.0,)


def test_a_guidance_of_numpy_is_a_number():
    auto = Auto().of(Loop(20, 20, False, np.float32(3.0)))
    assert auto.dampings(2) == Auto().of(Loop(20, 20, False, 3.0)).dampings(2)


def test_no_guidance_is_known_guidance():
    """0 is what distilled models are called with, and no missing number."""
    auto = Auto().of(Loop(20, 20, False, 0.0))
    assert auto.dampings(2) == Auto().of(Loop(20, 20, False, 1.0)).dampings(2)


@pytest.mark.parametrize("guidance", [None, torch.tensor(2.0), "high"])
def test_a_guidance_that_is_no_number_counts_as_the_usual_one(guidance):
    loop = Loop(20, 20, False, UNKNOWN_GUIDANCE)
    assert Auto().of(loop._replace(guidance=guidance)).dampings(2) == Auto().of(loop).dampings(2)


def test_not_apart_is_the_lower_damping_and_not_below_zero():
    whole = Auto().of(Loop(20, 20, False, 5.0)).whole
    for gap in (1, 2, 3, 10):
        lowest = max(0.0, min(whole.dampings(gap)))
        full = (4 + gap, 4)
        assert whole.weights(0, full[0] + 1, full) == pytest.approx((1 + lowest / gap, -lowest / gap))


def test_after_a_short_gap_a_long_stretch_is_damped_as_such_and_its_line_ends():
    auto = Auto().of(Loop(30, 30, False, 7.5))
    for value, which in ((FEATURE, 0), (DIFFERENCE, 1)):
        for step in (5, 6):  # within the gap of 2
            assert auto.weights(value, step, (4, 2)) == Line(auto.dampings(2)[which]).weights(value, step, (4, 2))
        for step in (7, 8):
            assert auto.weights(value, step, (4, 2)) == Line(auto.dampings(step - 4)[which]).weights(value, 6, (4, 2))
    assert auto.dampings(4) != auto.dampings(2)


@pytest.fixture
def loops(monkeypatch):
    """The loops that sessions were told of."""
    found, enter = [], Session._enter_loop

    def entering(self):
        enter(self)
        found.append(self._predictor)

    monkeypatch.setattr(Session, "_enter_loop", entering)
    return found


def test_what_a_call_tells(loops):
    pipe = accelerate(tiny_pipe(), 3, predict="auto")
    generate(pipe, steps=9, guidance_scale=4.0)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    generate(pipe, steps=6, guidance_scale=8.0)
    assert [auto.loop for auto in loops] == [Loop(9, 9, True, 4.0), Loop(6, 6, False, 8.0)]
    assert all(auto.apart for auto in loops)


def test_image_to_image_runs_a_part_of_the_schedule(loops):
    pipe = accelerate(tiny_pipe(StableDiffusionImg2ImgPipeline), 2, predict="auto")
    generate(pipe, steps=20, sized=False, image=picture(64), strength=0.5)
    assert last_run(pipe).steps == 10 and (loops[0].loop.steps, loops[0].loop.length) == (10, 20)


def test_the_steps_of_an_earlier_call_do_not_count(loops):
    """DDPM keeps its `num_inference_steps` where timesteps are given."""
    pipe = tiny_pipe()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    accelerate(pipe, 3, predict="auto")
    generate(pipe, steps=9)
    generate(pipe, timesteps=[900, 600, 400, 300, 100])
    assert [(auto.loop.steps, auto.loop.length) for auto in loops] == [(9, 9), (5, 5)]


def test_timesteps_that_nobody_has_set_do_not_count(loops):
    """A new scheduler has those of training, and a loop may have its own."""
    pipe = accelerate(loop_pipe(), 2, predict="auto")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert len(pipe.scheduler.timesteps) == 1000
    with denoising(pipe, steps=5), torch.no_grad():
        pipe.unet(**make_inputs(pipe.unet))
    assert (loops[0].loop.steps, loops[0].loop.length) == (5, None)


def test_a_modular_pipe_s_guider_tells_the_scale(loops):
    pipe = accelerate(modular_pipe(ClassifierFreeGuidance(guidance_scale=3.5)), 2, predict="auto")
    denoised(pipe, steps=4)
    assert loops[0].loop.guidance == 3.5


def test_other_pipelines_have_a_line(loops):
    pipe = accelerate(loop_pipe("least"), 3, predict="auto")
    pipe(9)
    assert loops[0].loop == Loop(9, 9, True, None) and not loops[0].apart
    assert engine_of(pipe).unet_graphs.predictor == Auto().whole
    generate(accelerate(tiny_pipe(StableDiffusionPAGPipeline), 3, predict="auto"), steps=9)
    assert not loops[-1].apart


def test_a_run_is_the_pair_of_each_gap():
    """One gap only: the images are those of the pair that the rule gives."""
    pipe = tiny_pipe()
    call = functools.partial(generate, pipe, steps=9, guidance_scale=6.0)
    accelerate(pipe, 3, predict=Auto().of(Loop(9, 9, True, 6.0)).dampings(3))
    want = call()
    accelerate(pipe, 3, predict="auto")
    torch.testing.assert_close(call(), want, rtol=1e-5, atol=1e-5)
