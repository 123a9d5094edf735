"""Full is the stock forward bit for bit; so is partial on a feature of the same step, for every branch and layout."""

import pytest
import torch
from support.forward_checks import check_all_branches, skip_shapes, stock
from support.small import UNETS, make_inputs, make_unet

from stepcache.errors import UnsupportedUNet
from stepcache.forwards import family_of
from stepcache.forwards import unet_2d_condition as family


@pytest.mark.parametrize("name", UNETS)
def test_every_layout(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet))


# All layouts are above. The tests below need no more than one layer a block, or two levels ("least").


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("size", [(17, 16), (18, 22), (9, 13)])
def test_odd_latents(name, size):
    unet = make_unet(name, layers_per_block=1)
    check_all_branches(unet, make_inputs(unet, size=size))


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_channels_last(name):
    unet = make_unet(name, layers_per_block=1).to(memory_format=torch.channels_last)
    inputs = make_inputs(unet)
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    check_all_branches(unet, inputs)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_controlnet_residuals(name):
    unet = make_unet(name, layers_per_block=1)
    inputs = make_inputs(unet)
    shapes = skip_shapes(unet, inputs)
    plain = stock(unet, inputs)
    inputs["down_block_additional_residuals"] = tuple(torch.randn(s) for s in shapes)
    inputs["mid_block_additional_residual"] = torch.randn(shapes[-1])
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)
    # One kind without the other is ignored, and fewer residuals than skips are allowed, as in the stock forward.
    check_all_branches(unet, {**inputs, "down_block_additional_residuals": None})
    few = inputs["down_block_additional_residuals"][:3]
    with torch.no_grad():
        cut, call = family.layout(unet).cut(1), family.bind(**{**inputs, "down_block_additional_residuals": few})
        _, feature = family.full(unet, cut, **family.bind(**inputs).inputs)
        all_ = family.partial(unet, cut, feature, **family.bind(**inputs).inputs)
        assert torch.equal(family.partial(unet, cut, feature, **call.inputs), all_)


def adapter_residuals(unet, inputs):
    """One residual a down block, of the shape that the block adds it to."""
    shapes = []
    for block in unet.down_blocks:
        module = block.resnets[-1] if getattr(block, "has_cross_attention", False) else block
        module.register_forward_hook(
            lambda m, i, o: shapes.append((o[0] if isinstance(o, tuple) else o).shape), always_call=True
        )
    stock(unet, inputs)
    for block in unet.down_blocks:
        for module in (block, block.resnets[-1]):
            module._forward_hooks.clear()
            module._forward_hooks_always_called.clear()
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_t2i_adapter_residuals(name):
    unet = make_unet(name, layers_per_block=1)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    residuals = adapter_residuals(unet, inputs)
    inputs["down_intrablock_additional_residuals"] = residuals
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_t2i_adapter_residuals_under_their_old_name():
    unet = make_unet("least")
    inputs = make_inputs(unet)
    residuals = adapter_residuals(unet, inputs)
    inputs["down_block_additional_residuals"] = residuals
    check_all_branches(unet, inputs)


def test_t2i_adapter_xl_sends_one_for_the_mid_block():
    unet = make_unet("sdxl", layers_per_block=1)
    inputs = make_inputs(unet)
    residuals = adapter_residuals(unet, inputs)
    without = stock(unet, {**inputs, "down_intrablock_additional_residuals": residuals})
    mid = torch.randn(skip_shapes(unet, inputs)[-1])
    inputs["down_intrablock_additional_residuals"] = [*residuals, mid]
    assert not torch.equal(stock(unet, inputs), without)
    check_all_branches(unet, inputs)


# Without a mid block, the hidden state at the first join is the skip itself: diffusers scales both at once.
@pytest.mark.parametrize("name", ["one layer", "sdxl", "no mid block"])
def test_freeu(name):
    unet = make_unet(name)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_attention_masks():
    unet = make_unet("least")
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    inputs["encoder_attention_mask"] = torch.tensor([[True, True, False, False, True]] * 2)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_self_attention_mask():
    # One size of self-attention only, since the mask has one length: a U-Net whose blocks all attend at 16 x 16.
    unet = make_unet(
        "sd", block_out_channels=(8,), mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    inputs["attention_mask"] = (torch.arange(256) % 3 > 0)[None].expand(2, -1)
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_ip_adapter_image_embeds():
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    unet = make_unet("least")
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    torch.manual_seed(3)
    processors = {}
    for name, processor in unet.attn_processors.items():
        if "attn2" in name:
            to_q = unet.get_submodule(name.removesuffix(".processor")).to_q
            processors[name] = IPAdapterAttnProcessor2_0(to_q.in_features, 8, num_tokens=(2,), scale=0.7)
        else:
            processors[name] = processor
    unet.set_attn_processor(processors)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(6, 8, 2)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.eval().requires_grad_(False)
    inputs["added_cond_kwargs"] = {"image_embeds": [torch.randn(2, 1, 6)]}
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)
    inputs["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.ones(1, 1, 16, 16)]}
    check_all_branches(unet, inputs)


def test_gligen_objects():
    unet = make_unet("least", attention_type="gated", cross_attention_dim=8)
    for name, parameter in unet.named_parameters():
        if "fuser" in name and "alpha" in name:
            parameter.data.fill_(0.5)  # gates start closed
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    boxes = {
        "boxes": torch.rand(2, 3, 4),
        "positive_embeddings": torch.randn(2, 3, 8),
        "masks": torch.ones(2, 3),
    }
    inputs["cross_attention_kwargs"] = {"gligen": boxes}
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


@pytest.mark.parametrize(
    "timestep",
    [
        501,
        500.25,
        torch.tensor(501),
        torch.tensor([501]),
        torch.tensor([501, 17]),
        torch.tensor(500.25, dtype=torch.float64),
    ],
    ids=["int", "float", "0-d", "one", "batched", "float64"],
)
def test_every_kind_of_timestep(timestep):
    unet = make_unet("least")
    check_all_branches(unet, {**make_inputs(unet), "timestep": timestep}, branches=[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_bit_identical_too(dtype):
    unet = make_unet("least").to(dtype)
    inputs = make_inputs(unet, size=(8, 8))
    inputs = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    check_all_branches(unet, inputs)


def test_a_block_whose_forward_is_overridden_is_refused():
    unet = make_unet("least")
    block = unet.up_blocks[1]

    class Odd(type(block)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    block.__class__ = Odd
    with pytest.raises(UnsupportedUNet, match=r"up_blocks.1 is a Odd"):
        family_of(unet)


def test_other_models_are_refused_by_name():
    with pytest.raises(UnsupportedUNet, match="Linear is not a U-Net"):
        family_of(torch.nn.Linear(2, 2))
