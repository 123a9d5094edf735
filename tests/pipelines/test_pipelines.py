"""Whole pipelines, stock against interval=1 (bit-identical) and interval=3 (as planned), with every scheduler."""

import functools
import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from support.builders import sd, sdxl
from support.small import BETAS, demo_pipe, generate, generate_any, tiny_pipe

from stepcache import Schedule, accelerate, last_run, restore

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": functools.partial(PNDMScheduler, skip_prk_steps=True),
    "euler": EulerDiscreteScheduler,
    "euler ancestral": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "kdpm2": KDPM2DiscreteScheduler,
    "dpm++ 2m": DPMSolverMultistepScheduler,
    "dpm++ 2m karras": functools.partial(DPMSolverMultistepScheduler, use_karras_sigmas=True),
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "ddpm": DDPMScheduler,
}
PIPELINES = {
    "sd": (sd, StableDiffusionPipeline),
    "sd img2img": (sd, StableDiffusionImg2ImgPipeline),
    "sd inpaint": (sd, StableDiffusionInpaintPipeline),
    "sdxl": (sdxl, StableDiffusionXLPipeline),
    "sdxl img2img": (sdxl, StableDiffusionXLImg2ImgPipeline),
    "sdxl inpaint": (sdxl, StableDiffusionXLInpaintPipeline),
}


# With a strength below 1, too, at least four of them are run.
STEPS = {"sd": 5, "sdxl": 5}
# Every scheduler with one pipeline; with the others one of each kind: stochastic, two calls a step, with a history.
CELLS = [
    *(("sd", scheduler) for scheduler in SCHEDULERS),
    *itertools.product(list(PIPELINES)[1:], ("euler ancestral", "heun", "dpm++ 2m karras")),
]


@pytest.mark.parametrize("name, scheduler", CELLS)
def test_pipeline_with_scheduler(name, scheduler):
    make, cls = PIPELINES[name]
    pipe = make(cls, scheduler=SCHEDULERS[scheduler](**BETAS))
    steps, iterations = STEPS.get(name, 7), []
    want = generate_any(pipe, steps, callback_on_step_end=lambda pipe, i, t, kw: iterations.append(i) or {})
    assert len(iterations) >= 4
    # The same bits also show that eta and generator still reach the ancestral, DDPM and LCM samplers.
    assert torch.equal(generate_any(accelerate(pipe, interval=1), steps), want)
    assert last_run(pipe).kinds == "F" * len(iterations)
    accelerate(pipe, interval=3, branch=1)
    seen = []
    cached = generate_any(pipe, steps, callback_on_step_end=lambda pipe, i, t, kw: seen.append(i) or {})
    assert seen == iterations
    assert last_run(pipe).kinds == Schedule.uniform(3).kinds(len(iterations))
    assert cached.isfinite().all() and not torch.equal(cached, want)
    restore(pipe)
    assert torch.equal(generate_any(pipe, steps), want)


def test_inpaint_with_nine_channels():
    pipe = tiny_pipe(StableDiffusionInpaintPipeline, unet={"in_channels": 9, "out_channels": 4})
    want = generate_any(pipe)
    assert torch.equal(generate_any(accelerate(pipe, interval=1)), want)
    generate_any(accelerate(pipe, interval=3))
    assert last_run(pipe).kinds == "FPPFPP"
    assert last_run(pipe).buckets == [(2, 9, 16, 16)]


def test_the_demo():
    """Trained weights."""
    pipe = demo_pipe()
    want = generate(pipe)
    assert torch.equal(generate(accelerate(pipe, interval=1)), want)
    cached = generate(accelerate(pipe, interval=3))
    assert cached.isfinite().all() and not torch.equal(cached, want)
    assert torch.equal(generate(restore(pipe)), want)


def test_sdxl_base_and_refiner_style_split():
    """denoising_end ends the first part early; the second enters late: each is a run of its own."""
    base, second = sdxl(StableDiffusionXLPipeline), sdxl(StableDiffusionXLImg2ImgPipeline)
    accelerate(base, interval=3), accelerate(second, interval=3)
    latents = generate(base, steps=10, denoising_end=0.6)
    assert last_run(base).kinds == "FPPFPP"
    options = {"prompt": "x", "num_inference_steps": 10, "output_type": "latent", "generator": torch.manual_seed(0)}
    second(image=latents, denoising_start=0.6, **options)
    assert last_run(second).kinds == "FPPF"


def test_a_callback_that_changes_the_prompt_and_drops_guidance():
    def drop(pipe, i, t, tensors):
        if i == 3:
            pipe._guidance_scale = 1.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
        return {}

    pipe = tiny_pipe()
    options = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    want = generate(pipe, steps=8, **options)
    assert torch.equal(generate(accelerate(pipe, interval=1), steps=8, **options), want)
    generate(accelerate(pipe, interval=3), steps=8, **options)
    assert last_run(pipe).kinds == "FPPFFPFP"
    assert last_run(pipe).buckets == [(2, 4, 16, 16), (1, 4, 16, 16)]


def test_interrupted_by_the_pipelines_own_flag():
    pipe = accelerate(tiny_pipe(), interval=3)
    want = generate(pipe)

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return {}

    generate(pipe, callback_on_step_end=stop)
    assert last_run(pipe).kinds == "FP"
    assert torch.equal(generate(pipe), want)


def test_images_per_prompt_and_batches():
    pipe = tiny_pipe()
    options = {"prompt": ["tiger face", "red apple"], "num_images_per_prompt": 2}
    want = generate(pipe, **options)
    assert want.shape == (4, 4, 16, 16)
    assert torch.equal(generate(accelerate(pipe, interval=1), **options), want)
    generate(accelerate(pipe, interval=2), **options)
    assert last_run(pipe).buckets == [(8, 4, 16, 16)]


def test_other_sizes():
    pipe = tiny_pipe()
    for height, width in ((64, 48), (48, 80), (72, 64)):
        want = generate(pipe, height=height, width=width)
        assert torch.equal(generate(accelerate(pipe, interval=1), height=height, width=width), want)
    accelerate(pipe, interval=3)
    for height, width in ((64, 48), (72, 64)):
        generate(pipe, height=height, width=width)
        assert last_run(pipe).kinds == "FPPFPP"


def test_freeu_through_the_pipeline():
    pipe = tiny_pipe()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    want = generate(pipe)
    assert torch.equal(generate(accelerate(pipe, interval=1, branch=3)), want)
    # Branch 3 enters the first up block, where FreeU scales the hidden state in place in stock diffusers.
    first = generate(accelerate(pipe, interval=3, branch=3))
    assert torch.equal(generate(pipe), first) and not torch.equal(first, want)
