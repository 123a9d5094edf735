from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.small import demo_pipe, loop_pipe, tiny_pipe

from stepcache.errors import StepCacheError, UnsupportedPipeline
from stepcache.images.make import Request, check_text_to_image

GREY = np.full((2, 8, 8, 3), 0.5)


class FakePipe:
    """Remembers the arguments of its calls, and returns these images."""

    dtype = torch.float16

    def __init__(self, images=GREY, **output):
        self.calls, self.output = [], SimpleNamespace(images=images, **output)

    def __call__(self, **arguments):
        self.calls.append(arguments)
        return self.output


def seeds_of(generators):
    return [generator.initial_seed() for generator in generators]


def test_several_images_have_a_generator_each():
    pipe = FakePipe()
    made = Request(("a", "b"), range(7, 9), 4, {"height": 64, "negative_prompt": None}).make(pipe)
    (call,) = pipe.calls
    assert seeds_of(call.pop("generator")) == [7, 8]
    assert call == {
        "prompt": ["a", "b"], "num_inference_steps": 4, "output_type": "np", "height": 64, "negative_prompt": None
    }  # fmt: skip
    assert made.images is pipe.output.images and made.censored == (False, False) and made.seconds >= 0


def test_one_image_is_a_prompt_and_a_generator():
    pipe, request = FakePipe(GREY[:1]), Request("a", 7, 4)
    request.make(pipe, steps=2)
    (call,) = pipe.calls
    assert (call["prompt"], call["generator"].initial_seed(), call["num_inference_steps"]) == ("a", 7, 2)
    assert request.text == Request(("a", "b"), (1, 2), 4).text == "a"


def test_an_image_depends_on_its_own_prompt_and_seed_only():
    pipe, call = tiny_pipe(), {"guidance_scale": 3.0}
    together = Request(["rose", "tulip"], [5, 6], 2, call).make(pipe).images
    alone = Request("tulip", 6, 2, call).make(pipe).images
    assert together.shape == (2, 64, 64, 3) and np.abs(together[1:] - alone).max() < 1e-3
    stock = pipe("tulip", generator=torch.Generator().manual_seed(6), num_inference_steps=2, output_type="np", **call)
    assert np.array_equal(stock.images, alone)


def test_each_step_is_told():
    steps = []
    made = Request("rose", 5, 3).make(tiny_pipe(), each_step=lambda: steps.append(len(steps)))
    assert steps == [0, 1, 2] and np.array_equal(made.images, Request("rose", 5, 3).make(tiny_pipe()).images)


def test_images_that_the_safety_checker_blackened_are_marked():
    request = Request(["a", "b"], [0, 1], 2)
    assert request.make(FakePipe(nsfw_content_detected=[False, True])).censored == (False, True)
    assert request.make(FakePipe(nsfw_content_detected=None)).censored == (False, False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_with_nan_or_infinite_values_are_refused_unless_allowed(value):
    broken = GREY.copy()
    broken[1, 2, 3] = value
    request = Request(["rose", "tulip"], [0, 1], 2)
    with pytest.raises(StepCacheError, match=r"'rose' have NaN or infinite values, in torch.float16"):
        request.make(FakePipe(broken))
    assert request.make(FakePipe(broken), allow_nan=True).images is broken


def test_pipelines_that_need_an_image_or_lack_an_argument_are_refused():
    from diffusers import StableDiffusionImg2ImgPipeline

    check_text_to_image(tiny_pipe(), {"prompt", "generator"}, "this")
    with pytest.raises(UnsupportedPipeline, match="takes image: this is for text-to-image pipelines"):
        check_text_to_image(demo_pipe(StableDiffusionImg2ImgPipeline), {"prompt"}, "this")
    with pytest.raises(UnsupportedPipeline, match="LoopPipe takes no generator, prompt: this is"):
        check_text_to_image(loop_pipe(), {"prompt", "generator", "batch"}, "this")
