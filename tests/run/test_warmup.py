import inspect

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from support.builders import sdxl
from support.modular import denoised, modular_pipe
from support.small import generate, generate_any, loop_pipe, mask, picture, state_of, tiny_pipe

from stepcache import accelerate, last_run, warmup
from stepcache.errors import InvalidSetting, NotAccelerated
from stepcache.graphs.standin import StandInBackend


@pytest.mark.parametrize(
    "make, cls",
    [
        (tiny_pipe, StableDiffusionPipeline),
        (tiny_pipe, StableDiffusionImg2ImgPipeline),
        (tiny_pipe, StableDiffusionInpaintPipeline),
        (sdxl, StableDiffusionXLPipeline),
        (sdxl, StableDiffusionXLImg2ImgPipeline),
    ],
)
def test_the_first_request_finds_everything_warm(make, cls):
    pipe = accelerate(make(cls), interval=3, cuda_graphs=StandInBackend)
    size = 16 * pipe.vae_scale_factor
    record = warmup(pipe, size, size, progress=False)
    assert record.captures == 2 and record.kinds == "FP"
    generate_any(pipe)
    assert last_run(pipe).captures == 0
    assert last_run(pipe).kinds.startswith("FPPF")  # the pipe's own schedule is back


def test_batches_and_no_guidance_are_other_buckets():
    pipe = accelerate(tiny_pipe(), cuda_graphs=StandInBackend)
    warmup(pipe, 64, 64, batch_size=3, guidance=False, progress=False)
    warmup(pipe, 48, 64, progress=False)
    generate(pipe, prompt=["tiger face"] * 3, guidance_scale=1.0)
    assert last_run(pipe).captures == 0
    generate(pipe, height=48)
    assert last_run(pipe).captures == 0
    generate(pipe)
    assert last_run(pipe).captures == 2


def test_the_pipe_and_the_random_numbers_are_as_before():
    pipe = accelerate(tiny_pipe(), interval=3)
    generate(pipe)
    before, numbers = state_of(pipe), torch.get_rng_state()
    warmup(pipe, 64, 64, progress=False)
    after = state_of(pipe)
    # What the pipeline itself stores about its last call.
    noted = {
        "_num_timesteps",
        "_guidance_scale",
        "_cross_attention_kwargs",
    }
    assert {k: v for k, v in after.pipe.items() if k not in noted} == {
        k: v for k, v in before.pipe.items() if k not in noted
    }
    assert after.modules == before.modules
    assert torch.equal(torch.get_rng_state(), numbers)


def test_the_bar_says_what_it_does(capsys):
    pipe = accelerate(tiny_pipe(), cuda_graphs=StandInBackend)
    warmup(pipe, 64, 64)
    shown = capsys.readouterr().err
    assert "full graph 2x4x16x16: capturing" in shown
    assert "partial graph 2x4x16x16: capturing" in shown
    assert "Loading" not in shown


def test_there_is_no_bar_without_stages(capsys):
    warmup(accelerate(tiny_pipe(), compile=False, cuda_graphs=False), 64, 64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((63, 64), "height=63: this pipeline only makes multiples of 4"),
        ((64, 0), "width must be .* got 0"),
        ((64, 64.0), "got 64.0"),
        ((64, 64, 0), "batch_size must be .* got 0"),
    ],
)
def test_sizes_that_cannot_be_made(arguments, message):
    pipe = accelerate(tiny_pipe())
    with pytest.raises(InvalidSetting, match=message):
        warmup(pipe, *arguments, progress=False)
    assert last_run(pipe) is None


def test_arguments_that_the_pipeline_does_not_take():
    pipe = accelerate(tiny_pipe())
    with pytest.raises(InvalidSetting, match="StableDiffusionPipeline takes no control_image; it takes prompt"):
        warmup(pipe, 64, 64, progress=False, control_image=None)


def test_needs_an_accelerated_pipe():
    with pytest.raises(NotAccelerated, match="warmup"):
        warmup(loop_pipe("least"), 64, 64)
    assert inspect.signature(warmup).parameters["guidance"].default is True


def modular_workflow(name):
    return modular_pipe(blocks=StableDiffusionXLAutoBlocks().get_workflow(name))


@pytest.mark.parametrize(
    "make, request_of",
    [
        (modular_pipe, {}),
        (lambda: modular_workflow("image2image"), {"image": picture(16), "strength": 1.0}),
        (lambda: modular_workflow("inpainting"), {"image": picture(16), "mask_image": mask(16), "strength": 1.0}),
    ],
    ids=["text", "image", "inpainting"],
)
def test_modular_pipelines(make, request_of):
    pipe = accelerate(make(), interval=3, cuda_graphs=StandInBackend)
    record = warmup(pipe, 16, 16, progress=False)
    assert record.captures == 4 and record.kinds == "FFPP"
    denoised(pipe, **request_of)
    assert last_run(pipe).captures == 0 and last_run(pipe).kinds.startswith("FFPPPPFF")


def test_a_modular_pipe_that_chooses_its_blocks_starts_from_no_image(monkeypatch):
    pipe = accelerate(modular_pipe())
    monkeypatch.setattr(pipe.vae, "encode", None)
    assert warmup(pipe, 16, 16, progress=False).kinds == "FFPP"


def test_the_guider_of_a_modular_pipe_is_as_before():
    pipe = accelerate(modular_pipe(ClassifierFreeGuidance(3.0, stop=0.5)))
    before = dict(vars(pipe.guider))
    assert warmup(pipe, 16, 16, progress=False).kinds == "FFP"
    assert vars(pipe.guider) == before
    assert "_progress_bar_config" not in vars(pipe)


def test_inputs_that_the_blocks_of_a_modular_pipe_need():
    pipe = accelerate(modular_workflow("controlnet_union_text2image"))
    with pytest.raises(InvalidSetting, match=r"need control_image, control_mode: .*\(pipe, 16, 16, control_image="):
        warmup(pipe, 16, 16, progress=False)
    with pytest.raises(InvalidSetting, match="StableDiffusionXLModularPipeline takes no eggs; it takes prompt"):
        warmup(pipe, 16, 16, progress=False, eggs=2)
    assert last_run(pipe) is None
