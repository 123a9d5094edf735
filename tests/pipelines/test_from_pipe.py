"""Pipelines that are made from one another and share their parts: each is accelerated for itself."""

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from support.small import captured, generate, picture
from support.ways import make_pipe

from stepcache import accelerate, last_run, restore
from stepcache.run.attach import attachment_of

PICTURE = picture(32)


def derived(cls, pipe):
    made = cls.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    assert type(made) is cls and made.unet is pipe.unet and attachment_of(made) is None
    return made


def from_image(pipe):
    return generate(pipe, 8, sized=False, image=PICTURE, strength=0.5)


def test_another_kind_of_pipeline_and_back():
    plain = make_pipe()
    components = dict(plain.components)
    want, want_image = generate(plain, 4), from_image(derived(StableDiffusionImg2ImgPipeline, plain))
    words = captured(plain, interval=3)
    cached = generate(words, 4)
    assert words.components == components

    image = derived(StableDiffusionImg2ImgPipeline, words)
    assert torch.equal(from_image(image), want_image)
    captured(image, interval=2, branch=1)
    cached_image = from_image(image)
    assert (last_run(words).kinds, last_run(image).kinds) == ("FPPF", "FPFP")
    assert not torch.equal(cached, want) and not torch.equal(cached_image, want_image)
    for _ in range(2):  # in turn, each with its own graphs and features
        assert torch.equal(generate(words, 4), cached) and last_run(words).captures == 0
        assert torch.equal(from_image(image), cached_image) and last_run(image).captures == 0

    assert torch.equal(generate(derived(StableDiffusionPipeline, image), 4), want)
    restore(words)
    assert torch.equal(generate(words, 4), want)
    assert torch.equal(from_image(image), cached_image)
    restore(image)
    assert torch.equal(from_image(image), want_image)


def test_from_the_class_of_an_accelerated_pipe():
    pipe = accelerate(make_pipe(), interval=3)
    cached = generate(pipe, 4)
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert attachment_of(other) is None
    want = generate(other, 4)
    assert not torch.equal(want, cached)
    assert torch.equal(generate(accelerate(other, interval=3), 4), cached)
    assert type(restore(other)) is StableDiffusionPipeline
    assert torch.equal(generate(restore(pipe), 4), want)
