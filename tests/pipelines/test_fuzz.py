"""Random U-Nets, sizes, branches and schedules: what must hold for any of them.

`make test` runs 50 examples, the same ones each time; `make fuzz` runs 3,000 others. A fault that they find gets a
test of its own beside the code that it was in.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from support.small import BETAS, state_of

from stepcache import Schedule, accelerate, last_run, restore
from stepcache.forwards import family_of

# Down block -> the up block that is its mirror image; any of a family goes with any other of it.
CONDITION = {
    "DownBlock2D": "UpBlock2D",
    "CrossAttnDownBlock2D": "CrossAttnUpBlock2D",
    "AttnDownBlock2D": "AttnUpBlock2D",
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SimpleCrossAttnDownBlock2D": "SimpleCrossAttnUpBlock2D",
}
PLAIN = {name: up for name, up in CONDITION.items() if "Cross" not in name}
WIDTHS = (4, 8, 12, 16)
TEXT = 6  # width of the text embeddings


def levels(blocks):
    """Down and up blocks of a U-Net, chosen one by one, with the channels of each level."""
    level = st.tuples(st.sampled_from(sorted(blocks)), st.sampled_from(sorted(blocks)), st.sampled_from(WIDTHS))
    return st.lists(level, min_size=1, max_size=4)


@st.composite
def condition_configs(draw):
    chosen = draw(levels(CONDITION))
    heads = draw(st.sampled_from((1, 2, 4)))
    layers = draw(st.one_of(st.integers(1, 2), st.tuples(*[st.integers(1, 2)] * len(chosen))))
    config = {
        "down_block_types": tuple(down for down, _, _ in chosen),
        "up_block_types": tuple(CONDITION[up] for _, up, _ in reversed(chosen)),
        "block_out_channels": tuple(width for *_, width in chosen),
        "layers_per_block": layers,
        "mid_block_type": draw(
            st.sampled_from(("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None))
        ),
        "attention_head_dim": heads,
        "cross_attention_dim": TEXT,
        "use_linear_projection": draw(st.booleans()),
        "resnet_time_scale_shift": draw(st.sampled_from(("default", "scale_shift"))),
        "transformer_layers_per_block": draw(st.integers(1, 2)),
        "time_cond_proj_dim": draw(st.sampled_from((None, 5))),
        "num_class_embeds": draw(st.sampled_from((None, 3))),
        "flip_sin_to_cos": draw(st.booleans()),
        "center_input_sample": draw(st.booleans()),
    }
    return UNet2DConditionModel, config


@st.composite
def plain_configs(draw):
    chosen = draw(levels(PLAIN))
    config = {
        "down_block_types": tuple(down for down, _, _ in chosen),
        "up_block_types": tuple(PLAIN[up] for _, up, _ in reversed(chosen)),
        "block_out_channels": tuple(width for *_, width in chosen),
        "layers_per_block": draw(st.integers(1, 2)),
        "attention_head_dim": draw(st.sampled_from((1, 2, 4))),
        "add_attention": draw(st.booleans()),
        "time_embedding_type": draw(st.sampled_from(("positional", "fourier"))),
        "downsample_type": draw(st.sampled_from(("conv", "resnet"))),
        "upsample_type": draw(st.sampled_from(("conv", "resnet"))),
        "num_class_embeds": draw(st.sampled_from((None, 3))),
        "center_input_sample": draw(st.booleans()),
    }
    return UNet2DModel, config


@st.composite
def cases(draw):
    """A U-Net, its inputs, a branch and a schedule."""
    cls, config = draw(st.one_of(condition_configs(), plain_configs()))
    groups = draw(st.sampled_from((1, 2, 4)))
    batch, height, width = draw(st.integers(1, 2)), draw(st.integers(3, 12)), draw(st.integers(3, 12))
    torch.manual_seed(draw(st.integers(0, 99)))
    try:
        unet = cls(**config, in_channels=4, out_channels=4, norm_num_groups=groups, sample_size=8)
    except (ValueError, TypeError, NotImplementedError, ZeroDivisionError):
        reject()  # diffusers does not build it
    unet.eval().requires_grad_(False)
    inputs = {"sample": torch.randn(batch, 4, height, width), "timestep": torch.tensor(draw(st.integers(0, 999)))}
    if cls is UNet2DConditionModel:
        inputs["encoder_hidden_states"] = torch.randn(batch, 3, TEXT)
        if config["time_cond_proj_dim"]:
            inputs["timestep_cond"] = torch.randn(batch, config["time_cond_proj_dim"])
    if config["num_class_embeds"]:
        inputs["class_labels"] = torch.randint(3, (batch,))
    joins = len(family_of(unet).layout(unet).joins)
    mask = "F" + "".join(draw(st.lists(st.sampled_from("FP"), min_size=1, max_size=4)))
    predict = draw(st.sampled_from(("hold", "linear", 0.5)))
    return SimpleNamespace(
        unet=unet, inputs=inputs, branch=draw(st.integers(0, joins - 1)), mask=mask, predict=predict, config=config
    )


class Pipe:
    """A loop around a U-Net of any kind; its latents are the sample of `inputs`."""

    def __init__(self, unet, inputs):
        self.unet, self.scheduler = unet, DDIMScheduler(**BETAS)
        self._inputs = inputs

    @torch.no_grad()
    def __call__(self, steps):
        rest = {name: value for name, value in self._inputs.items() if name not in ("sample", "timestep")}
        x = self._inputs["sample"]
        self.scheduler.set_timesteps(steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, **rest).sample, t, x).prev_sample
        return x


def check(case):
    unet, inputs = case.unet, case.inputs
    try:
        with torch.no_grad():
            want = unet(**inputs).sample
    except (RuntimeError, ValueError):
        reject()  # the stock forward does not take this size
    family = family_of(unet)
    cut = family.layout(unet).cut(case.branch)
    bound = family.bind(**inputs).inputs
    with torch.no_grad():
        output, feature = family.full(unet, cut, **bound)
        again = family.partial(unet, cut, feature, **bound)
    torch.testing.assert_close(output, want, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(again, want, rtol=0, atol=0, equal_nan=True)

    pipe, few = Pipe(unet, inputs), 2
    before, original = state_of(pipe), pipe(few)
    accelerate(pipe, 1, case.branch)
    torch.testing.assert_close(pipe(few), original, rtol=0, atol=0, equal_nan=True)
    accelerate(pipe, branch=case.branch, schedule=Schedule.explicit(case.mask), predict=case.predict)
    for _ in range(2):
        pipe(len(case.mask))
        assert last_run(pipe).kinds == case.mask
        held = math.prod(feature.shape) * 4 * (1 if case.predict == "hold" else 2)
        assert last_run(pipe).buffer_bytes == held
    restore(pipe)
    after = state_of(pipe)
    before.scheduler = after.scheduler  # its timesteps were set by the runs themselves
    assert after == before
    torch.testing.assert_close(pipe(few), original, rtol=0, atol=0, equal_nan=True)


COMMON = {
    "deadline": None,
    "database": None,
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
}


@settings(max_examples=50, derandomize=True, **COMMON)
@given(case=cases())
def test_any_unet(case):
    check(case)


@pytest.mark.fuzz
@settings(max_examples=3000, **COMMON)
@given(case=cases())
def test_any_other_unet(case):
    check(case)
