"""Guidance reuse where the halves come in separate calls, against the same pipeline with both in one batch."""

import pytest
import torch
from diffusers import ClassifierFreeGuidance, StableDiffusionXLModularPipeline, StableDiffusionXLPipeline
from support.builders import random
from support.modular import denoised, modular_pipe, skip_layer
from support.small import _sdxl_parts, captured

from stepcache import accelerate, last_run, restore, warmup
from stepcache.errors import UnsupportedPipeline
from stepcache.reuse.predict import HOLD, Fitted, Line
from stepcache.run.halves import Halves

COND, UNCOND = ("pred_cond", 0), ("pred_uncond", 0)


def one(value):
    return torch.full((1, 1, 1, 1), float(value))


def full_step(halves, step, conditional, unconditional, order=1, call=0):
    halves.begin_step()
    halves.ran(("pred_cond", call), one(conditional), step, True, order)
    halves.ran(("pred_uncond", call), one(unconditional), step, True, order)


def guessed(halves, step, conditional, predictor=HOLD, call=0):
    halves.begin_step()
    halves.ran(("pred_cond", call), one(conditional), step, False, predictor.order)
    output = halves.output(("pred_uncond", call), step, predictor)
    return None if output is None else output.item()


def test_the_difference_is_held_or_on_the_line():
    halves, line = Halves(), Line(1.0)
    full_step(halves, 0, 10, 4, order=2)
    assert guessed(halves, 1, 20) == 14 and guessed(halves, 1, 20, line) == 14
    full_step(halves, 3, 10, 1, order=2)
    assert guessed(halves, 4, 20) == 11 and guessed(halves, 4, 20, line) == 10


def test_only_the_unconditional_half_is_answered_and_only_after_the_conditional_one():
    halves = Halves()
    full_step(halves, 0, 10, 4)
    halves.begin_step()
    assert halves.output(UNCOND, 1, HOLD) is None
    halves.ran(COND, one(20), 1, False, 1)
    assert halves.output(COND, 1, HOLD) is None and halves.output(("pred_cond_skip", 0), 1, HOLD) is None
    assert halves.output(UNCOND, 1, HOLD) is not None


def test_nothing_is_taken_from_another_loop_or_another_call_of_the_branch():
    halves = Halves()
    full_step(halves, 0, 10, 4)
    full_step(halves, 0, 10, 9, call=1)
    assert guessed(halves, 1, 20) == 14 and guessed(halves, 1, 20, call=1) == 19
    assert guessed(halves, 1, 20, call=2) is None
    halves.begin_loop()
    assert guessed(halves, 1, 20) is None


def test_fitted_weights_are_those_of_the_difference():
    halves, table = Halves(), {(value, 4, (3, 0)): (1.0 + value, -1.0 * value) for value in (0, 1)}
    full_step(halves, 0, 10, 4, order=2)
    full_step(halves, 3, 10, 1, order=2)
    assert guessed(halves, 4, 20, Fitted(table, 2)) == 20 - (2 * 9 - 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_line_keeps_the_dtype(dtype):
    halves = Halves()
    for step in (0, 3):
        halves.begin_step()
        halves.ran(COND, one(step).to(dtype), step, True, 2)
        halves.ran(UNCOND, one(1).to(dtype), step, True, 2)
    halves.begin_step()
    halves.ran(COND, one(4).to(dtype), 4, False, 2)
    output = halves.output(UNCOND, 4, Line(1.0))
    assert output.dtype == dtype and output.item() == 1


@pytest.mark.parametrize("predict", ["hold", "linear"])
def test_as_with_both_halves_in_one_batch(predict):
    pipe = modular_pipe()
    both = denoised(accelerate(pipe, 3, predict=predict), 8)
    plain = StableDiffusionXLPipeline(**_sdxl_parts(), unet=pipe.unet, scheduler=pipe.scheduler)
    call = {"prompt": "tiger face", "guidance_scale": 3.0, "height": 16, "width": 16, "output_type": "latent"}
    accelerate(plain, 3, predict=predict, guidance="reuse")
    want = plain(**call, num_inference_steps=8, generator=torch.Generator().manual_seed(0)).images
    captured(pipe, 3, predict=predict, guidance="reuse")
    for _ in range(2):
        torch.testing.assert_close(denoised(pipe, 8), want, rtol=0, atol=1e-4)
    assert last_run(pipe).kinds == "FFPRPRFFPRPRFFPR" and last_run(pipe).captures == 0
    assert (both - want).abs().max() > 0.1


def test_where_guidance_stops_and_where_a_branch_is_skipped_layers():
    pipe = accelerate(modular_pipe(ClassifierFreeGuidance(3.0, stop=0.4)), 3, guidance="reuse")
    denoised(pipe)
    assert last_run(pipe).kinds == "FF" + "PR" + "P" + "FPP"
    pipe = accelerate(modular_pipe(skip_layer()), 3, guidance="reuse")
    denoised(pipe)
    assert last_run(pipe).kinds == "FF" + "PRF" + "PRP" + "FFF" + "PRP" * 2


def test_where_guidance_starts_in_a_partial_step():
    pipe = accelerate(modular_pipe(ClassifierFreeGuidance(3.0, start=0.2)), 3, guidance="reuse")
    denoised(pipe)
    assert last_run(pipe).kinds == "F" + "PF" + "PR" + "FF" + "PR" * 2


class Backwards(ClassifierFreeGuidance):
    def prepare_inputs(self, data):
        return super().prepare_inputs(data)[::-1]


def test_where_the_unconditional_half_comes_first_both_run():
    pipe = modular_pipe(Backwards(3.0))
    want = denoised(accelerate(pipe, 3))
    assert torch.equal(denoised(accelerate(pipe, 3, guidance="reuse")), want)
    assert last_run(pipe).kinds == "FFPPPP" * 2


class Twice(StableDiffusionXLModularPipeline):
    def __call__(self, **call):
        super().__call__(**call)
        return super().__call__(**call)


def test_a_second_loop_of_a_call_reads_nothing_of_the_first():
    pipe, latents = modular_pipe(), random(1, 4, 8, 8)
    want = denoised(accelerate(pipe, 3, predict="linear", guidance="reuse"), latents=latents)
    restore(pipe).__class__ = Twice
    got = denoised(accelerate(pipe, 3, predict="linear", guidance="reuse"), latents=latents)
    assert last_run(pipe).kinds == "FFPRPRFFPRPR" * 2
    assert torch.equal(got, want)


def test_warm_up():
    pipe = captured(modular_pipe(), 3, guidance="reuse")
    record = warmup(pipe, 16, 16, progress=False)
    assert record.kinds == "FFPR" and record.captures == 3
    denoised(pipe)
    assert last_run(pipe).captures == 0


def test_a_modular_pipe_without_a_guider_is_refused():
    pipe = modular_pipe()
    pipe.guider = None
    with pytest.raises(UnsupportedPipeline, match=r'ModularPipeline has no guider .*Use guidance="both"'):
        accelerate(pipe, guidance="reuse")
