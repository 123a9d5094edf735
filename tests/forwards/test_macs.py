import json
from importlib.resources import files

import pytest
import torch
from diffusers import UNet2DConditionModel
from support.small import UNETS, make_unet

from stepcache.errors import BranchOutOfRange, InvalidSetting, UnsupportedUNet
from stepcache.forwards import family_of
from stepcache.forwards.macs import BranchMacs, branch_macs, example_inputs, feature_shapes, meta_unet

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "layers_per_block": 1,
}


def bundled(name):
    return json.loads((files("stepcache") / "assets" / "unets" / f"{name}.json").read_text())


def giga(macs):
    return round(macs / 1e9, 1)


def test_stable_diffusion_15_at_512():
    zero, one = branch_macs(meta_unet(bundled("sd15")), 64, 64, branches=(0, 1))
    assert (giga(zero.full_macs), giga(one.full_macs)) == (401.6, 401.6)
    assert (giga(zero.partial_macs), giga(one.partial_macs)) == (31.6, 90.1)
    assert (round(100 * zero.share, 1), round(100 * one.share, 1)) == (7.9, 22.4)
    assert round(zero.bound(3), 2) == 2.59
    assert zero.feature_shape == (1, 320, 64, 64)


def test_sdxl_at_1024():
    (zero,) = branch_macs(meta_unet(bundled("sdxl")), 128, 128, branches=(0,))
    assert (giga(zero.full_macs), giga(zero.partial_macs), round(zero.bound(3), 2)) == (3380.6, 49.0, 2.92)


def test_the_bound_is_that_of_the_work_that_is_left():
    row = BranchMacs(branch=0, full_macs=1000, partial_macs=100, feature_shape=(2, 3, 4, 5))
    assert row.share == pytest.approx(0.1)
    assert row.bound(1) == 1.0
    assert row.bound(5) == pytest.approx(5000 / (1000 + 4 * 100))
    assert row.feature_bytes() == 240
    assert row.feature_bytes(4) == 480


def test_a_count_by_hand():
    """One level, no attention: conv_in, four ResNets, conv_out, the mid block and the time embedding, all by hand."""
    unet = meta_unet(
        {
            **TINY,
            "block_out_channels": (8,),
            "down_block_types": ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",),
            "mid_block_type": None,
        }
    )
    deep, shallow = 1, 0
    rows = list(branch_macs(unet, 4, 4, branches=(shallow, deep)))
    pixels = 4 * 4
    ends = 2 * 9 * 4 * 8 * pixels  # conv_in and conv_out
    time = 8 * 32 + 32 * 32
    down = 2 * 9 * 8 * 8 * pixels + 32 * 8  # two 3x3 convolutions and the time projection
    up = (9 * 16 * 8 + 9 * 8 * 8 + 16 * 8) * pixels + 32 * 8  # its first one takes the concat, and so does the shortcut
    assert [row.full_macs for row in rows] == [ends + time + down + 2 * up] * 2
    assert [row.partial_macs for row in rows] == [ends + time + up, ends + time + down + 2 * up]


def test_the_batch_multiplies_the_work_and_the_feature():
    unet = meta_unet(TINY)
    (one,), (four,) = (list(branch_macs(unet, 8, 8, batch=batch, branches=(0,))) for batch in (1, 4))
    assert (four.full_macs, four.partial_macs) == (4 * one.full_macs, 4 * one.partial_macs)
    assert four.feature_shape == (4, *one.feature_shape[1:])


@pytest.mark.parametrize("name", UNETS)
def test_features_have_the_shapes_of_a_real_run(name):
    """On the CPU, with weights and the example inputs. Odd sizes are rounded up at each level.

    That the shapes of a real run are those of every branch's feature is in forward_checks.py.
    """
    unet = make_unet(name)
    meta = meta_unet({**unet.config, "_class_name": "UNet2DConditionModel"})
    shapes = feature_shapes(meta, example_inputs(meta, 9, 13, batch=2))
    assert len(shapes) == len(family_of(unet).layout(unet).joins)
    with torch.no_grad():
        assert shapes == feature_shapes(unet, example_inputs(unet, 9, 13, batch=2))


@pytest.mark.parametrize("height", [10, 11])
def test_downsamplers_that_pad_on_one_side_only_round_down(height):
    unet = meta_unet({**TINY, "downsample_padding": 0})
    (row,) = branch_macs(unet, height, 8, branches=(3,))
    assert row.feature_shape == (1, 16, 5, 4)


def test_all_branches_are_counted_and_a_deeper_one_costs_more():
    rows = list(branch_macs(meta_unet(TINY), 8, 8))
    assert [row.branch for row in rows] == [0, 1, 2, 3]
    partial = [row.partial_macs for row in rows]
    assert partial == sorted(set(partial))
    assert partial[-1] < rows[0].full_macs


@pytest.mark.parametrize(
    ("settings", "name", "shape"),
    [
        ({"num_class_embeds": 10}, "class_labels", (2,)),
        ({"class_embed_type": "timestep"}, "class_labels", (2,)),
        ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20}, "class_labels", (2, 20)),
        (
            {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 20},
            "class_labels",
            (2, 20),
        ),
        ({"time_cond_proj_dim": 24}, "timestep_cond", (2, 24)),
        ({"encoder_hid_dim": 20}, "encoder_hidden_states", (2, 77, 20)),
        ({"cross_attention_dim": (12, 12)}, "encoder_hidden_states", (2, 77, 12)),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, "sample", (2, 4, 8, 8)),
        ({"in_channels": 9}, "sample", (2, 9, 8, 8)),
        ({"class_embed_type": "identity"}, "class_labels", (2, 32)),
        ({"cross_attention_dim": (8, 16)}, "sample", (2, 4, 8, 8)),
        ({"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_image_proj"}, "encoder_hidden_states", (2, 77, 20)),
    ],
)
def test_conditionings_that_the_config_asks_for(settings, name, shape):
    unet = meta_unet({**TINY, **settings})
    assert example_inputs(unet, 8, 8, batch=2)[name].shape == shape
    assert list(branch_macs(unet, 8, 8, batch=2, branches=(0,)))


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        ({"addition_embed_type": "image"}, {"image_embeds": (2, 20)}),
        ({"addition_embed_type": "image_hint", "in_channels": 8}, {"image_embeds": (2, 20), "hint": (2, 3, 64, 64)}),
        ({"addition_embed_type": "text_image"}, {"text_embeds": (2, 12), "image_embeds": (2, 12)}),
        ({"encoder_hid_dim_type": "text_image_proj"}, {"image_embeds": (2, 12)}),
        ({"encoder_hid_dim_type": "image_proj"}, {"image_embeds": (2, 20)}),
        ({"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}, {"image_embeds": (2, 20)}),
    ],
)
def test_image_embeddings_of_kandinsky(settings, shapes):
    unet = meta_unet({**TINY, "encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 20, **settings})
    inputs = example_inputs(unet, 8, 8, batch=2)
    assert {name: tuple(value.shape) for name, value in inputs["added_cond_kwargs"].items()} == shapes
    assert ("encoder_hidden_states" in inputs) == (settings.get("encoder_hid_dim_type") != "image_proj")
    assert inputs["sample"].shape == (2, 4, 8, 8)
    assert list(branch_macs(unet, 8, 8, batch=2, branches=(0,)))


@pytest.mark.parametrize(("width", "ids", "text"), [(2816, 6, 1280), (2560, 6, 1024), (600, 2, 88)])
def test_text_time_fills_the_width_that_the_config_gives(width, ids, text):
    settings = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": width,
    }
    unet = meta_unet({**TINY, **settings})
    added = example_inputs(unet, 8, 8, batch=2)["added_cond_kwargs"]
    assert added["time_ids"].shape == (2, ids)
    assert added["text_embeds"].shape == (2, text)
    assert list(branch_macs(unet, 8, 8, batch=2, branches=(0,)))


@pytest.mark.parametrize(
    ("settings", "later", "words"),
    [
        ({"cross_attention_dim": (12, 16)}, {}, "cross_attention_dim=[12, 16]"),
        ({}, {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type='ip_image_proj'"),
        ({}, {"addition_embed_type": "new"}, "addition_embed_type='new'"),
        ({}, {"class_embed_type": "new"}, "class_embed_type='new'"),
    ],
)
def test_a_conditioning_without_example_inputs_is_named(settings, later, words):
    unet = meta_unet({**TINY, **settings})
    unet.register_to_config(**later)  # as loading an IP-Adapter does; from_config would not take the others
    with pytest.raises(UnsupportedUNet) as error:
        branch_macs(unet, 8, 8)
    assert words in str(error.value)


def test_a_unet_with_weights_is_refused_before_it_runs():
    with pytest.raises(InvalidSetting, match=r"meta_unet\(unet.config\)"):
        branch_macs(UNet2DConditionModel(**TINY), 8, 8)


def test_a_branch_that_there_is_not():
    with pytest.raises(BranchOutOfRange, match="branch=4"):
        branch_macs(meta_unet(TINY), 8, 8, branches=(4,))


def test_latents_that_the_unet_cannot_take():
    with pytest.raises(UnsupportedUNet, match="latents of 1x1"):
        list(branch_macs(meta_unet({**TINY, "downsample_padding": 0}), 1, 1))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel is not a U-Net"),
        ({**TINY, "down_block_types": ("NoSuchBlock", "DownBlock2D")}, "NoSuchBlock"),
        ({**TINY, "block_out_channels": (8,)}, "block_out_channels"),
    ],
)
def test_a_config_that_no_unet_can_be_built_from(config, words):
    with pytest.raises(UnsupportedUNet, match=words):
        meta_unet(config)


def test_a_block_that_stepcache_does_not_know():
    unet = meta_unet({**TINY, "down_block_types": ("CrossAttnDownBlock2D", "DownEncoderBlock2D")})
    with pytest.raises(UnsupportedUNet, match=r"down_blocks\.1 is a DownEncoderBlock2D"):
        branch_macs(unet, 8, 8)
