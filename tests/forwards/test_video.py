"""The three families for video: full is stock bit for bit, and so is partial on a feature of the same step."""

import copy
import functools
import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from small import BETAS

from stepcache import accelerate, last_run, restore
from stepcache.errors import UnsupportedUNet
from stepcache.forwards import family_of, lora_scaled
from stepcache.guidance import conditional_half
from stepcache.join import Blend, fused_join, reference_join
from stepcache.macs import branch_macs, meta_unet

FRAMES = 3

SVD = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": FRAMES,
}
MOTION = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 8,
}
MODELSCOPE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
# name -> class and config of a small U-Net.
UNETS = {
    "svd": (UNetSpatioTemporalConditionModel, SVD),
    "svd uneven": (
        UNetSpatioTemporalConditionModel,
        {**SVD, "layers_per_block": (1, 2), "transformer_layers_per_block": (2, 1)},
    ),
    "motion": (UNetMotionModel, MOTION),
    "motion sdxl": (
        UNetMotionModel,
        {
            **MOTION,
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            "up_block_types": ("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion"),
            "layers_per_block": (1, 2, 1),
            "transformer_layers_per_block": (1, 2, 1),
            "temporal_transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "use_motion_mid_block": False,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 8,
            "time_cond_proj_dim": 12,
        },
    ),
    "pia": (UNetMotionModel, {**MOTION, "in_channels": 9, "layers_per_block": 1}),
    "3d": (UNet3DConditionModel, MODELSCOPE),
    "3d lcm": (UNet3DConditionModel, {**MODELSCOPE, "layers_per_block": 1, "time_cond_proj_dim": 12}),
}
ONE_EACH = ["svd", "motion", "3d"]


def make_unet(name, **changes):
    """A random U-Net, the same at every call. Layers that start as identities (temporal convolutions) do something."""
    cls, config = UNETS[name]
    torch.manual_seed(0)
    unet = cls(**{**config, **changes}).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.2)
    return unet


def make_inputs(unet, batch=2, frames=FRAMES, size=(8, 8), seed=1):
    """Arguments of one call of that U-Net, timestep included, by keyword."""
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    config = unet.config
    inputs = {"timestep": torch.tensor(501)}
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        return {
            **inputs,
            "sample": randn(batch, frames, config.in_channels, *size),
            "encoder_hidden_states": randn(batch, 1, config.cross_attention_dim),
            "added_time_ids": torch.arange(batch * ids).view(batch, ids).float(),
        }
    inputs["sample"] = randn(batch, config.in_channels, frames, *size)
    # AnimateDiff's pipelines give one prompt for each frame, ModelScope's one for each video.
    texts = batch * frames if isinstance(unet, UNetMotionModel) else batch
    inputs["encoder_hidden_states"] = randn(texts, 5, config.cross_attention_dim)
    if getattr(config, "addition_embed_type", None) == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": randn(batch, 8), "time_ids": torch.ones(batch, 6) * 16}
    if getattr(config, "time_cond_proj_dim", None):
        inputs["timestep_cond"] = randn(batch, config.time_cond_proj_dim)
    return inputs


def stock(unet, inputs):
    with torch.no_grad():
        return unet(**copy.deepcopy(inputs)).sample


def skip_shapes(unet, inputs):
    shapes = []
    hooks = [unet.conv_in.register_forward_hook(lambda m, i, o: shapes.append(o.shape))]
    for block in unet.down_blocks:
        hooks.append(block.register_forward_hook(lambda m, i, o: shapes.extend(x.shape for x in o[1])))
    stock(unet, inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def check_all_branches(unet, inputs, join=reference_join, equal=torch.equal):
    """Full and partial of every branch against the stock forward; partial must not touch its feature."""
    want, family = stock(unet, inputs), family_of(unet)
    layout = family.layout(unet)
    with torch.no_grad():
        for branch in range(len(layout.joins)):
            cut = layout.cut(branch)
            call = family.bind(**copy.deepcopy(inputs))
            output, feature = family.full(unet, cut, join, **call.inputs)
            assert equal(output, want), f"full, branch {branch}"
            kept = feature.clone()
            output = family.partial(unet, cut, feature, join, **call.inputs)
            assert equal(output, want), f"partial, branch {branch}"
            assert torch.equal(feature, kept), f"partial of branch {branch} changed the feature"


@pytest.mark.parametrize("name", UNETS)
def test_every_layout(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet))


@pytest.mark.parametrize("name", [*ONE_EACH, "motion sdxl"])
def test_odd_latents_one_frame_and_one_video(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet, batch=1, frames=2, size=(9, 7)))
    check_all_branches(unet, make_inputs(unet, batch=2, frames=1, size=(8, 6)))


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_kind_of_timestep(name):
    unet = make_unet(name, layers_per_block=1)
    inputs = make_inputs(unet)
    for timestep in (500.25, torch.tensor([501, 17]), torch.tensor(0.7, dtype=torch.float64)):
        check_all_branches(unet, {**inputs, "timestep": timestep})


@pytest.mark.parametrize("name", ONE_EACH)
def test_low_precision_is_bit_identical_too(name):
    unet = make_unet(name, layers_per_block=1).to(torch.bfloat16)
    inputs = make_inputs(unet, batch=1, frames=2)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    check_all_branches(unet, inputs)


@pytest.mark.parametrize("name", ["motion", "3d"])
def test_controlnet_residuals(name):
    unet = make_unet(name)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    shapes = skip_shapes(unet, inputs)
    inputs["down_block_additional_residuals"] = tuple(torch.randn(s) for s in shapes)
    check_all_branches(unet, inputs)
    assert not torch.equal(stock(unet, inputs), plain)
    inputs["mid_block_additional_residual"] = torch.randn(shapes[-1])
    check_all_branches(unet, inputs)
    del inputs["down_block_additional_residuals"]
    check_all_branches(unet, inputs)
    assert not torch.equal(stock(unet, inputs), plain)


@pytest.mark.parametrize("name", ["motion", "3d"])
def test_freeu(name):
    unet = make_unet(name)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_ip_adapter_image_embeds():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = make_unet("motion")
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    torch.manual_seed(3)
    processors = dict(unet.attn_processors)
    for name in processors:
        if "attn2" in name and "motion_modules" not in name:
            to_q = unet.get_submodule(name.removesuffix(".processor")).to_q
            processors[name] = IPAdapterAttnProcessor2_0(to_q.in_features, 8, num_tokens=(2,), scale=0.7)
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 8, 2)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.eval().requires_grad_(False)
    with pytest.raises(ValueError, match="an IP-Adapter and needs 'image_embeds'"):
        cut = family_of(unet).layout(unet).cut(0)
        family_of(unet).full(unet, cut, **family_of(unet).bind(**inputs).inputs)
    inputs["added_cond_kwargs"] = {"image_embeds": [torch.randn(2, 1, 6)]}
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_self_attention_mask():
    # One size of spatial attention only, since the mask has one length.
    unet = make_unet(
        "motion", block_out_channels=(8,), down_block_types=("CrossAttnDownBlockMotion",),
        up_block_types=("CrossAttnUpBlockMotion",),
    )  # fmt: skip
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    inputs["attention_mask"] = (torch.arange(64) % 3 > 0)[None].expand(2 * FRAMES, -1)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_3d_ignores_what_the_stock_forward_ignores():
    unet = make_unet("3d")
    inputs = make_inputs(unet)
    more = {**inputs, "class_labels": torch.arange(2), "attention_mask": torch.zeros(2, 64)}
    assert torch.equal(stock(unet, more), stock(unet, inputs))
    check_all_branches(unet, more)


def test_lora_scale():
    from peft import LoraConfig

    unet = make_unet("motion")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "x")
    unet.requires_grad_(False)
    inputs, family = make_inputs(unet), family_of(unet)
    want = stock(unet, {**inputs, "cross_attention_kwargs": {"scale": 0.3}})
    assert not torch.equal(want, stock(unet, inputs))
    call = family.bind(**inputs, cross_attention_kwargs={"scale": 0.3})
    assert call.lora_scale == 0.3 and "cross_attention_kwargs" not in call.inputs
    cut = family.layout(unet).cut(2)
    with torch.no_grad(), lora_scaled(unet, call.lora_scale):
        output, feature = family.full(unet, cut, **call.inputs)
        assert torch.equal(output, want)
        assert torch.equal(family.partial(unet, cut, feature, **call.inputs), want)
    check_all_branches(unet, inputs)  # unscaled again


@pytest.mark.parametrize("name", ONE_EACH)
def test_taken_and_returned_as_the_stock_forward_does(name):
    unet = make_unet(name, layers_per_block=1)
    inputs, family = make_inputs(unet), family_of(unet)
    assert list(inspect.signature(family.bind).parameters) == list(inspect.signature(unet.forward).parameters)
    with torch.no_grad():
        want = unet(**inputs)
        call = family.bind(**inputs, return_dict=False)
        output = family.full(unet, family.layout(unet).cut(0), **call.inputs)[0]
    assert output.shape == want.sample.shape and output.stride() == want.sample.stride()
    assert type(family.wrap(output, True)) is type(want) and family.wrap(output, True).sample is output
    assert call.return_dict is False and family.wrap(output, False) == (output,)


# One level with attention: what compiles soonest. SDXL's conditions are in AnimateDiff's.
LEAST = {"layers_per_block": 1, "num_attention_heads": 2}
SDXL_PARTS = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
LEAST_OF = {
    "svd": {**LEAST, "block_out_channels": (32,), "num_attention_heads": (2,)},
    "motion": {**LEAST, "block_out_channels": (8,), **{k: UNETS["motion sdxl"][1][k] for k in SDXL_PARTS}},
    "3d": {"layers_per_block": 1, "block_out_channels": (8,)},
}


@pytest.mark.parametrize("name", ONE_EACH)
def test_one_graph_without_a_break(name):
    config = UNETS[name][1]
    blocks = {"down_block_types": config["down_block_types"][:1], "up_block_types": config["up_block_types"][1:]}
    unet = make_unet(name, **LEAST_OF[name], **blocks)
    family = family_of(unet)
    inputs, cut = family.bind(**make_inputs(unet)).inputs, family.layout(unet).cut(0)
    compiled = functools.partial(torch.compile, backend="eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    with torch.no_grad():
        output, feature = family.full(unet, cut, **inputs)
        got, tapped = compiled(family.full)(unet, cut, **inputs)
        assert torch.equal(got, output) and torch.equal(tapped, feature)
        assert torch.equal(compiled(family.partial)(unet, cut, feature, **inputs), output)


@pytest.mark.parametrize("name", UNETS)
def test_deep_modules_are_those_that_a_partial_step_does_not_run(name):
    unet = make_unet(name)
    family = family_of(unet)
    inputs, layout = family.bind(**make_inputs(unet)).inputs, family.layout(unet)
    ran = set()
    for module in unet.modules():
        module.register_forward_hook(lambda module, *_: ran.add(module))
    with torch.no_grad():
        for branch in range(len(layout.joins)):
            cut = layout.cut(branch)
            _, feature = family.full(unet, cut, **inputs)
            everything = set(ran)
            ran.clear()
            family.partial(unet, cut, feature, **inputs)
            deep = {module for root in family.deep_modules(unet, cut) for module in root.modules()}
            assert not deep & ran
            assert everything - ran <= deep
            ran.clear()


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
    join = fused_join(lambda dtype, hidden, skip: asked.append((hidden, skip)) or True)
    close = functools.partial(torch.allclose, rtol=1e-3, atol=1e-4)
    check_all_branches(unet, make_inputs(unet), join, close)
    joins = len(family_of(unet).layout(unet).joins)
    assert len(asked) == joins * joins + sum(range(1, joins + 1))


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
    def __call__(self, steps=6, batch=2):
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


@pytest.mark.parametrize("name", UNETS)
def test_a_run_keeps_one_feature(name):
    unet = make_unet(name)
    pipe = VideoLoop(unet)
    want = pipe()
    assert torch.equal(accelerate(pipe, 1)(), want)
    family = family_of(unet)
    for branch in (0, 2):
        by_hand = run_by_hand(unet, branch, "FPPFPP")
        accelerate(pipe, 3, branch=branch)
        for _ in range(2):
            assert torch.equal(pipe(), by_hand)
        run = last_run(pipe)
        assert run.kinds == "FPPFPP" and run.buckets == [tuple(make_inputs(unet)["sample"].shape)]
        inputs = family.bind(**make_inputs(unet)).inputs
        with torch.no_grad():
            _, feature = family.full(unet, family.layout(unet).cut(branch), **inputs)
        assert run.buffer_bytes == feature.numel() * feature.element_size()
    restore(pipe)
    assert torch.equal(pipe(), want) and "forward" not in vars(unet)


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


@pytest.mark.parametrize("name", ["svd uneven", "motion sdxl", "3d lcm"])
def test_costs_are_counted_without_weights(name):
    """On the family's own example inputs, with the shapes that features have."""
    cls, config = UNETS[name]
    twin, unet = meta_unet({"_class_name": cls.__name__, **config}), make_unet(name)
    family = family_of(unet)
    inputs, layout = family.example_inputs(unet, 8, 8, batch=2), family.layout(unet)
    shallow, deep = branch_macs(twin, 8, 8, batch=2, branches=(0, len(layout.joins) - 1))
    assert 0 < shallow.share < deep.share < 1
    with torch.no_grad():
        for macs in (shallow, deep):
            _, feature = family.full(unet, layout.cut(macs.branch), **inputs)
            assert macs.feature == feature.shape


def test_unknown_blocks_and_joins_are_named():
    unet = make_unet("motion")

    class Odd(type(unet.up_blocks[1])):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    unet.up_blocks[1].__class__ = Odd
    with pytest.raises(UnsupportedUNet, match=r"up_blocks\.1 is a Odd.*CrossAttnUpBlockMotion"):
        family_of(unet)
    unet = make_unet("svd")
    unet.up_blocks[0].resnets[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedUNet, match=r"up_blocks\.0\.resnets\.0 has _forward_hooks"):
        family_of(unet)
    unet = make_unet("3d")
    unet.down_blocks[0].register_forward_pre_hook(lambda *_: None)
    with pytest.raises(UnsupportedUNet, match=r"down_blocks\.0 has _forward_pre_hooks"):
        family_of(unet)


def test_i2vgen_is_refused_by_name():
    from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet

    with torch.device("meta"):
        unet = I2VGenXLUNet(
            block_out_channels=(32, 64), norm_num_groups=2, cross_attention_dim=8, num_attention_heads=2,
            down_block_types=MODELSCOPE["down_block_types"], up_block_types=MODELSCOPE["up_block_types"],
        )  # fmt: skip
    with pytest.raises(UnsupportedUNet, match=r"I2VGenXLUNet is not a U-Net.*UNetMotionModel"):
        family_of(unet)
