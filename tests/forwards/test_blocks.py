"""Every block type of unet_2d_blocks.py that `UNet2DConditionModel` takes: full and partial are the stock forward."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets import unet_2d_blocks
from support.forward_checks import check_all_branches, check_compiles, stock

from stepcache.errors import InvalidSetting, UnsupportedUNet
from stepcache.forwards import blocks, family_of
from stepcache.forwards import unet_2d_condition as family
from stepcache.forwards.join import fusable

BASE = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "cross_attention_dim": 6,
    "attention_head_dim": 4,
    "layers_per_block": 2,
}
SIMPLE = {
    **BASE,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
}
# K blocks count on groups of 32 channels; the first up block has as many channels as the time embedding.
K = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    "cross_attention_dim": 6,
    "attention_head_dim": 32,
    "norm_num_groups": None,
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 7,
    "in_channels": 4,
    "out_channels": 5,
}

# name -> config of a UNet2DConditionModel.
UNETS = {
    "resnet samplers": {
        **BASE,
        "down_block_types": ("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
    },
    "self-attention": {
        **BASE,
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    },
    "all of them": {
        **BASE,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
    "deepfloyd": {
        **SIMPLE,
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "text_proj",
        "resnet_out_scale_factor": 1.5,
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": "gelu",
        "cross_attention_dim": 8,
        "layers_per_block": (1, 2),
    },
    "deepfloyd upscaler": {
        **SIMPLE,
        "in_channels": 6,
        "class_embed_type": "timestep",
        "only_cross_attention": (False, True),
    },
    "unclip decoder": {**SIMPLE, "class_embed_type": "identity", "resnet_time_scale_shift": "default"},
    "kandinsky 2.1": {
        **SIMPLE,
        "addition_embed_type": "text_image",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "text_image_proj",
    },
    "kandinsky 2.2": {
        **SIMPLE,
        "addition_embed_type": "image",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "image_proj",
    },
    "kandinsky 2.2 hint": {
        **SIMPLE,
        "in_channels": 8,
        "out_channels": 4,
        "addition_embed_type": "image_hint",
        "encoder_hid_dim": 8,
        "encoder_hid_dim_type": "image_proj",
    },
    "audioldm": {
        **BASE,
        "cross_attention_dim": (8, 16),
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 5,
        "class_embeddings_concat": True,
        "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        "mid_block_type": None,
        "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "k": K,
    "k, a skip at the bottom": {
        **K,
        "block_out_channels": (32, 64),
        "down_block_types": ("KCrossAttnDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KCrossAttnUpBlock2D"),
        "layers_per_block": 1,
    },
}


def make_unet(name, **changes):
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**UNETS[name], **changes}).eval().requires_grad_(False)


def make_inputs(unet, batch=2, size=(8, 8)):
    config, g = unet.config, torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=g)

    hint = config.addition_embed_type == "image_hint"
    inputs = {
        "sample": randn(batch, config.in_channels - 4 * hint, *size),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": None,
    }
    if isinstance(config.cross_attention_dim, int) and config.encoder_hid_dim_type != "image_proj":
        inputs["encoder_hidden_states"] = randn(batch, 5, config.encoder_hid_dim or config.cross_attention_dim)
    if config.class_embed_type:
        width = {"identity": 32, "simple_projection": 5}.get(config.class_embed_type)
        inputs["class_labels"] = randn(batch, width) if width else torch.tensor([3.0, 7.0])
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = randn(batch, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_image":
        embeds = {"text_embeds": randn(batch, 6), "image_embeds": randn(batch, 6)}
        inputs["added_cond_kwargs"] = embeds
    elif config.encoder_hid_dim_type == "image_proj":
        embeds = {"image_embeds": randn(batch, 8)}
        inputs["added_cond_kwargs"] = {**embeds, "hint": randn(batch, 3, 8 * size[0], 8 * size[1])} if hint else embeds
    return inputs


@pytest.mark.parametrize("name", UNETS)
def test_every_branch(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet))


@pytest.mark.parametrize("name", ["all of them", "resnet samplers", "k, a skip at the bottom"])
def test_no_graph_breaks(name):
    unet = make_unet(name, layers_per_block=1)
    check_compiles(unet, make_inputs(unet), branch=1)


def test_no_graph_breaks_in_kandinsky():
    unet = make_unet(
        "kandinsky 2.1", layers_per_block=1, block_out_channels=(8,), down_block_types=("ResnetDownsampleBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",),
    )  # fmt: skip
    check_compiles(unet, make_inputs(unet))


@pytest.mark.parametrize("size", [(9, 8), (7, 11)])
def test_odd_sizes(size):
    """Where the upsamplers of the blocks heed a size; ResNets and K samplers double it, in the stock forward too."""
    unet = make_unet(
        "audioldm", down_block_types=("AttnDownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=6,
        up_block_types=("CrossAttnUpBlock2D", "AttnUpBlock2D"),
    )  # fmt: skip
    check_all_branches(unet, make_inputs(unet, size=size))


@pytest.mark.parametrize("mask", ["attention_mask", "encoder_attention_mask"])
def test_masks_of_attentions_with_added_text(mask):
    unet = make_unet("unclip decoder")
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    # Over the keys of the text; the processor adds those of the image.
    inputs[mask] = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 1, 0]])
    assert not torch.equal(stock(unet, inputs), plain)
    check_all_branches(unet, inputs)


def test_freeu_is_for_the_blocks_that_heed_it():
    unet = make_unet("all of them")
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    assert not torch.equal(stock(unet, inputs), plain)  # its second up block has cross-attention
    check_all_branches(unet, inputs)


def residuals_after(unet, inputs, places):
    """A random tensor in the shape of the output of each of these modules."""
    shapes = {}
    hooks = [
        unet.get_submodule(place).register_forward_hook(lambda m, i, o, place=place: shapes.update({place: o.shape}))
        for place in places
    ]
    stock(unet, inputs)
    for hook in hooks:
        hook.remove()
    return [torch.randn(shapes[place]) for place in places]


def test_t2i_adapter_and_controlnet_residuals():
    """A block without transformers takes the adapter's residual after its downsampler, as its last skip."""
    blocks_of = {
        "down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    }
    unet = make_unet("self-attention", block_out_channels=(8, 8, 16), **blocks_of)
    inputs = make_inputs(unet)
    plain = stock(unet, inputs)
    places = ["down_blocks.0.downsamplers.0", "down_blocks.1.resnets.1", "down_blocks.2.resnets.1"]
    inputs["down_intrablock_additional_residuals"] = residuals_after(unet, inputs, places)
    with_adapter = stock(unet, inputs)
    assert not torch.equal(with_adapter, plain)
    check_all_branches(unet, inputs)
    skips = residuals_after(unet, inputs, family.layout(unet).skips)
    inputs["down_block_additional_residuals"] = skips
    inputs["mid_block_additional_residual"] = torch.randn_like(skips[-1])
    assert not torch.equal(stock(unet, inputs), with_adapter)
    check_all_branches(unet, inputs)


def test_residuals_that_blocks_have_no_place_for():
    unet = make_unet("unclip decoder")
    inputs = family.bind(**make_inputs(unet)).inputs
    cut = family.layout(unet).cut(0)
    with pytest.raises(InvalidSetting, match="SimpleCrossAttnDownBlock2D takes no T2I-Adapter residuals"):
        family.full(unet, cut, **inputs, adapter=[torch.zeros(1), torch.zeros(1)])
    unet = make_unet("k")
    inputs = family.bind(**make_inputs(unet)).inputs
    cut = family.layout(unet).cut(0)
    with pytest.raises(InvalidSetting, match="K blocks takes no ControlNet residuals"):
        family.full(unet, cut, **inputs, control_down=(torch.zeros(1),), control_mid=torch.zeros(1))


def test_k_blocks_keep_a_skip_each_but_for_the_deepest():
    layout = family.layout(make_unet("k"))
    assert layout.skips == ("down_blocks.0.resnets.1", "down_blocks.1.resnets.1")
    assert [(join.block, join.layer) for join in layout.joins] == [(2, 0), (1, 0)]
    assert layout.cached(1) == "output of up_blocks.0"
    assert len(family.layout(make_unet("k, a skip at the bottom")).joins) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"down_block_types": ("DownEncoderBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")},
            r"down_blocks.0 is a DownEncoderBlock2D, .* of a VAE, which keeps no skips. Known there: DownBlock2D,",
        ),
        (
            {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D", "UpDecoderBlock2D")},
            r"up_blocks.1 is a UpDecoderBlock2D, .* a block of a VAE",
        ),
        (
            {
                "block_out_channels": (32, 32),
                "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
            },
            r"down_blocks.0 is a SkipDownBlock2D, .* It carries an image beside the hidden state",
        ),
        (
            {
                "block_out_channels": (32, 32),
                "down_block_types": ("KDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D"),
            },
            r"mixes K blocks \(KDownBlock2D\), .* \(DownBlock2D, UpBlock2D\)",
        ),
    ],
)
def test_what_is_refused_says_why(changes, words):
    unet = make_unet("resnet samplers", **changes)
    with pytest.raises(UnsupportedUNet, match=words):
        family_of(unet)


def test_a_foreign_block_of_the_same_name_is_refused():
    unet = make_unet("self-attention")
    block = unet.down_blocks[0]

    class AttnDownBlock2D(type(block)):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    AttnDownBlock2D.forward.__qualname__ = "AttnDownBlock2D.forward"
    block.__class__ = AttnDownBlock2D
    with pytest.raises(UnsupportedUNet, match=r"down_blocks.0 is a AttnDownBlock2D, whose .* of test_blocks"):
        family_of(unet)


@pytest.mark.parametrize(
    ("name", "fused"), [("deepfloyd", False), ("unclip decoder", True), ("kandinsky 2.1", True), ("k", False)]
)
def test_which_joins_the_kernels_can_take(name, fused):
    """Plain ResNets with SiLU, scale_shift among them; not those with GELU or an adaptive norm."""
    unet = make_unet(name)
    x = torch.zeros(1, 8, 4, 4)
    assert {fusable(resnet, x, x) for block in unet.up_blocks for resnet in block.resnets} == {fused}


def test_all_blocks_of_diffusers_are_known_or_refused_with_a_reason():
    there = {
        name
        for name, cls in vars(unet_2d_blocks).items()
        if isinstance(cls, type) and cls.__module__ == unet_2d_blocks.__name__
    }
    helpers = {"UNetMidBlock2D", "UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "KAttentionBlock"}
    assert there - helpers == blocks.KINDS.keys() | blocks.REFUSED.keys()
    tested = {t for config in UNETS.values() for t in (*config["down_block_types"], *config["up_block_types"])}
    stock_ones = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    of_unet_2d = {name for name, kind in blocks.KINDS.items() if kind.image}
    assert tested | stock_ones | of_unet_2d == blocks.KINDS.keys()
