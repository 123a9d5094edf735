"""The families for video in graphs and runs: compiled whole, blends, joins on the ops, a run against a loop by hand."""

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    UNetSpatioTemporalConditionModel,
)
from support.forward_checks import check_all_branches, skip_shapes
from support.small import BETAS
from support.video_unets import ONE_EACH, UNETS, make_inputs, make_unet

from stepcache import accelerate, last_run, restore
from stepcache.forwards import family_of
from stepcache.forwards.blend import Blend
from stepcache.forwards.guidance import conditional_half
from stepcache.forwards.join import fused_join

# One level compiles soonest. SDXL's conditions are in AnimateDiff's.
LEAST = {"layers_per_block": 1, "num_attention_heads": 2}
SDXL_PARTS = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
LEAST_OF = {
    "svd": {**LEAST, "block_out_channels": (32,), "num_attention_heads": (2,)},
    "motion": {**LEAST, "block_out_channels": (8,), **{k: UNETS["motion sdxl"][1][k] for k in SDXL_PARTS}},
    "3d": {"layers_per_block": 1, "block_out_channels": (8,)},
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "svd")) for name in ONE_EACH])
def test_one_graph_without_a_break(name):
    """Full with attention in the mid block, and partial with attention in the up block, which runs it in both."""
    plain_down, (plain_up, up) = UNETS[name][1]["down_block_types"][1:], UNETS[name][1]["up_block_types"]
    make = functools.partial(make_unet, name, **LEAST_OF[name], down_block_types=plain_down)
    compiled = functools.partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    with torch.no_grad():
        unet = make(up_block_types=(plain_up,))
        family = family_of(unet)
        inputs, cut = family.bind(**make_inputs(unet)).inputs, family.layout(unet).cut(0)
        output, feature = family.full(unet, cut, **inputs)
        got, tapped = compiled(family.full)(unet, cut, **inputs)
        assert torch.equal(got, output) and torch.equal(tapped, feature)
        unet = make(up_block_types=(up,))
        output, feature = family.full(unet, cut, **inputs)
        assert torch.equal(compiled(family.partial)(unet, cut, feature, **inputs), output)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_blend_in_the_place_of_the_feature(name):
    unet = make_unet(name, layers_per_block=1)
    family = family_of(unet)
    inputs, layout = family.bind(**make_inputs(unet)).inputs, family.layout(unet)
    with torch.no_grad():
        for branch in range(len(layout.joins)):
            cut = layout.cut(branch)
            _, feature = family.full(unet, cut, **inputs)
            blend = Blend((feature, torch.randn_like(feature)), torch.tensor([1.25, -0.25]))
            want = family.partial(unet, cut, blend.value(), **inputs)
            assert torch.equal(family.partial(unet, cut, blend, **inputs), want)


@pytest.mark.parametrize("name", ONE_EACH)
def test_joins_on_the_ops(name):
    """Every join of these U-Nets is one that the Triton ops take, Stable Video's too."""
    pytest.importorskip("triton")
    unet = make_unet(name, layers_per_block=1)
    asked = []
    join = fused_join(lambda shape: asked.append(shape) or True)
    close = functools.partial(torch.allclose, rtol=1e-3, atol=1e-4)
    check_all_branches(unet, make_inputs(unet), join, close)
    joins = len(family_of(unet).layout(unet).joins)
    assert len(asked) == joins * joins + 2 * sum(range(1, joins + 1))  # each branch: one full, two partial


@pytest.mark.parametrize("name", [*ONE_EACH, "motion sdxl"])
def test_the_conditional_half_is_the_second_half_of_every_input(name):
    """What guidance reuse runs in a partial step: the second video alone, with its frames' prompts and residuals."""
    unet = make_unet(name)
    inputs, family = make_inputs(unet), family_of(unet)
    if name.startswith("motion"):
        sizes = skip_shapes(unet, inputs)
        inputs["down_block_additional_residuals"] = tuple(torch.randn(size) for size in sizes)
        inputs["mid_block_additional_residual"] = torch.randn(sizes[-1])
    cut = family.layout(unet).cut(1)
    bound = family.bind(**inputs).inputs
    with torch.no_grad():
        output, feature = family.full(unet, cut, **bound)
        half = family.partial(unet, cut, feature.chunk(2)[1], **conditional_half(bound))
    torch.testing.assert_close(half, output.chunk(2)[1], rtol=1e-4, atol=1e-5)


class VideoLoop:
    """The smallest video pipeline: a U-Net, a scheduler, and a call that denoises."""

    def __init__(self, unet):
        self.unet, self.scheduler = unet, DDIMScheduler(**BETAS)

    @torch.no_grad()
    def __call__(self, steps=5, batch=2):
        self.scheduler.set_timesteps(steps)
        inputs = make_inputs(self.unet, batch)
        inputs.pop("timestep")
        sample = inputs.pop("sample")
        frames_first = isinstance(self.unet, UNetSpatioTemporalConditionModel)
        latents, rest = sample.split([4, sample.shape[2 if frames_first else 1] - 4], dim=2 if frames_first else 1)
        for t in self.scheduler.timesteps:
            x = torch.cat([latents, rest], dim=2 if frames_first else 1)
            noise = self.unet(x, t, **inputs).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


@pytest.mark.parametrize("name", ["svd", "motion sdxl", "pia", "3d lcm"])
def test_a_run_keeps_one_feature(name):
    """Every class, and every input that a pipeline gives beside latents and text."""
    unet = make_unet(name)
    pipe = VideoLoop(unet)
    want = pipe(2)
    assert torch.equal(accelerate(pipe, 1)(2), want)
    family = family_of(unet)
    for branch in (0, 2):
        by_hand = run_by_hand(unet, branch, "FPPFP")
        accelerate(pipe, 3, branch=branch)
        for _ in range(2):
            assert torch.equal(pipe(), by_hand)
        run = last_run(pipe)
        assert run.kinds == "FPPFP" and run.buckets == [tuple(make_inputs(unet)["sample"].shape)]
        inputs = family.bind(**make_inputs(unet)).inputs
        with torch.no_grad():
            _, feature = family.full(unet, family.layout(unet).cut(branch), **inputs)
        assert run.buffer_bytes == feature.numel() * feature.element_size()
    restore(pipe)
    assert torch.equal(pipe(2), want) and "forward" not in vars(unet)


def run_by_hand(unet, branch, kinds):
    """The loop with a U-Net that keeps the feature in a variable of its own."""
    family = family_of(unet)
    cut, state = family.layout(unet).cut(branch), SimpleNamespace(step=0, feature=None)

    def forward(*args, **kwargs):
        inputs = family.bind(*args, **kwargs).inputs
        kind, state.step = kinds[state.step], state.step + 1
        if kind == "F":
            output, state.feature = family.full(unet, cut, **inputs)
        else:
            output = family.partial(unet, cut, state.feature, **inputs)
        return family.wrap(output, True)

    twin = copy.copy(unet)
    twin.forward = forward
    return VideoLoop(twin)(len(kinds))
