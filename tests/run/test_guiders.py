"""Modular SDXL pipelines: a U-Net call per guidance branch, and guiders that put hooks onto layers."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from support.modular import DEEP, SHALLOW, denoised, modular_pipe, perturbed, skip_layer
from support.small import captured, make_inputs

from stepcache import accelerate, denoising, last_run, restore
from stepcache.forwards import family_of
from stepcache.forwards.join import reference_join
from stepcache.graphs.fallback import hooks_on

HOOKING = {
    "skip-layer, deep": functools.partial(skip_layer, DEEP),
    "skip-layer, shallow": functools.partial(skip_layer, SHALLOW),
    "perturbed, deep": functools.partial(perturbed, DEEP),
    "perturbed, shallow": functools.partial(perturbed, SHALLOW),
}
# Guidance stops at step 2 of 6, a partial one: the call of the skipped branch is then the second of its step.
DROPPING = {"skip-layer, no guidance from step 2 on": functools.partial(skip_layer, SHALLOW, stop=0.4)}
GUIDERS = {"guidance": lambda: None, **HOOKING, **DROPPING}
OFTEN = "guidance", "skip-layer, deep", "perturbed, shallow", *DROPPING
"""In each run of the tests; the others are slow."""


def cells(guiders):
    marks = {name: () if name in OFTEN else pytest.mark.slow for name in guiders}
    return [pytest.param(guider, id=name, marks=marks[name]) for name, guider in guiders.items()]


def expected(pipe, interval):
    """Latents where each U-Net call reads its own branch's feature, of this interval's full step or newer."""
    unet, guider, family = pipe.unet, pipe.guider, family_of(pipe.unet)
    cut, inputs_of, features, branches = family.layout(unet).cut(0), guider.prepare_inputs, {}, []

    def prepare_inputs(data):
        batches = inputs_of(data)
        branches[:] = [getattr(batch, "__guidance_identifier__") for batch in batches]  # noqa: B009
        return batches

    def forward(*args, return_dict, **kwargs):
        inputs = family.bind(*args, **kwargs)[0]
        place = branches.pop(0), guider._step // interval
        if place in features:
            return (family.partial(unet, cut, features[place], reference_join, **inputs),)
        output, features[place] = family.full(unet, cut, reference_join, **inputs)
        return (output,)

    guider.prepare_inputs, unet.forward = prepare_inputs, forward
    try:
        return denoised(pipe)
    finally:
        del guider.prepare_inputs, unet.forward


def warnings_of(caplog, text):
    return [text in r.getMessage() for r in caplog.records if r.name == "stepcache" and r.levelno >= logging.WARNING]


@pytest.mark.parametrize("guider", cells(GUIDERS))
def test_images_with_each_guider(guider):
    pipe = modular_pipe(guider())
    stock = denoised(pipe)
    want = expected(pipe, 3)
    assert not torch.equal(want, stock)
    assert torch.equal(denoised(accelerate(pipe, 1)), stock)
    assert torch.equal(denoised(accelerate(pipe, 3)), want)
    captured(pipe, 3)
    for _ in range(2):
        assert torch.equal(denoised(pipe), want)


@pytest.mark.parametrize("guider", cells(HOOKING))
def test_branches_with_hooks_run_eager_and_the_others_are_captured_once(guider, caplog):
    pipe = captured(modular_pipe(guider()), 3)
    counts = []
    for _ in range(3):
        denoised(pipe)
        counts.append(last_run(pipe).captures)
    assert counts == [4, 0, 0]
    # Steps 1 to 5 have the third branch, which is full where it appears; step 3 is full.
    assert last_run(pipe).kinds == "FF" + "PPF" + "PPP" + "FFF" + "PPP" * 2
    assert warnings_of(caplog, "A guider puts hooks onto layers of the U-Net") == [True]


@pytest.mark.slow
def test_branches_with_hooks_compile_nothing():
    pipe = modular_pipe(perturbed(SHALLOW))
    want = denoised(accelerate(pipe, 3))
    accelerate(pipe, 3, compile={"backend": "eager"}, cuda_graphs=False)
    denoised(pipe)
    assert torch.equal(denoised(pipe), want)
    assert last_run(pipe).compile_seconds == 0


def test_a_branch_keeps_its_slot_where_another_is_dropped():
    (guider,) = DROPPING.values()
    pipe = accelerate(modular_pipe(guider()), 3)
    denoised(pipe)
    # At step 2 the third branch is the second call, and it reads what it kept at step 1.
    assert last_run(pipe).kinds == "FF" + "PPF" + "PP" + "FF" + "PP" * 2


def test_calls_without_the_guider_read_nothing_of_its_branches():
    pipe = accelerate(modular_pipe(), 3)
    pipe.scheduler.set_timesteps(3)
    inputs = make_inputs(pipe.unet, batch=1, size=(8, 8))
    latents, t = inputs["sample"], pipe.scheduler.timesteps
    with torch.no_grad(), denoising(pipe) as session:
        for step, named in enumerate((True, False, True)):
            for _ in pipe.guider.prepare_inputs({}) if named else range(2):
                if named:
                    pipe.guider.prepare_models(pipe.unet)
                noise = pipe.unet(**{**inputs, "timestep": t[step]}).sample
            pipe.scheduler.step(noise, t[step], latents)
    assert session.record.kinds == "FF" + "FF" + "PP"


def test_a_guider_is_followed_by_the_run_of_its_own_pipe():
    one, two = (accelerate(modular_pipe(), 3) for _ in range(2))
    with denoising(one) as outer, denoising(two) as inner:
        one.guider.prepare_models(one.unet)
    assert (outer.slots._at, inner.slots._at) == (0, -1)


def test_nothing_of_it_is_left_on_the_guider():
    pipe = modular_pipe(skip_layer())
    before = dict(vars(pipe.guider))
    accelerate(pipe, 3)
    denoised(pipe)
    assert vars(pipe.guider).keys() == before.keys()
    assert hooks_on(pipe.unet) == ""
    restore(pipe)
