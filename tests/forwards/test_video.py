"""The three families for video: full is stock bit for bit, and so is partial on a feature of the same step."""

import inspect

import pytest
import torch
from support.forward_checks import check_all_branches, skip_shapes, stock
from support.video_unets import FRAMES, MODELSCOPE, ONE_EACH, UNETS, make_inputs, make_unet

from stepcache.errors import UnsupportedUNet
from stepcache.forwards import family_of, lora_scaled
from stepcache.forwards.macs import branch_macs, feature_shapes, meta_unet


@pytest.mark.parametrize("name", UNETS)
def test_every_layout(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet))


# All layouts are above. Below there is one layer in each of two blocks, where that is enough.


@pytest.mark.parametrize("name", ONE_EACH)
def test_odd_latents_one_frame_and_one_video(name):
    unet = make_unet(name, layers_per_block=1)
    check_all_branches(unet, make_inputs(unet, batch=1, frames=2, size=(9, 7)))
    check_all_branches(unet, make_inputs(unet, batch=2, frames=1, size=(8, 6)))


@pytest.mark.parametrize("name", ONE_EACH)
def test_every_kind_of_timestep(name):
    unet = make_unet(name, layers_per_block=1)
    inputs = make_inputs(unet)
    for timestep in (500.25, torch.tensor([501, 17]), torch.tensor(0.7, dtype=torch.float64)):
        check_all_branches(unet, {**inputs, "timestep": timestep}, branches=[1])


@pytest.mark.parametrize("name", ONE_EACH)
def test_low_precision_is_bit_identical_too(name):
    unet = make_unet(name, layers_per_block=1).to(torch.bfloat16)
    inputs = make_inputs(unet, batch=1, frames=2)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    check_all_branches(unet, inputs)


@pytest.mark.parametrize("name", ["motion", "3d"])
def test_controlnet_residuals(name):
    unet = make_unet(name, layers_per_block=1)
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
    unet = make_unet(name, layers_per_block=1)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_ip_adapter_image_embeds():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = make_unet("motion", layers_per_block=1)
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
    unet = make_unet("3d", layers_per_block=1)
    inputs = make_inputs(unet)
    more = {**inputs, "class_labels": torch.arange(2), "attention_mask": torch.zeros(2, 64)}
    assert torch.equal(stock(unet, more), stock(unet, inputs))
    check_all_branches(unet, more)


def test_lora_scale():
    from peft import LoraConfig

    unet = make_unet("motion", layers_per_block=1)
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
    check_all_branches(unet, inputs, branches=[2])  # unscaled again


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


@pytest.mark.parametrize("name", ["svd", "motion sdxl", "3d lcm"])
def test_costs_are_counted_without_weights(name):
    """On the family's own example inputs, with the shapes that features have."""
    cls, config = UNETS[name]
    twin, unet = meta_unet({"_class_name": cls.__name__, **config}), make_unet(name)
    family = family_of(unet)
    inputs, layout = family.example_inputs(unet, 8, 8, batch=2), family.layout(unet)
    shallow, deep = branch_macs(twin, 8, 8, batch=2, branches=(0, len(layout.joins) - 1))
    assert 0 < shallow.share < deep.share < 1
    with torch.no_grad():
        first, *_, last = feature_shapes(unet, inputs)
    assert (shallow.feature_shape, deep.feature_shape) == (first, last)


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
