"""`UNet2DModel` of every block type and embedding: full and partial are the stock forward, bit for bit."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from support.forward_checks import check_all_branches, check_compiles, stock

from stepcache import accelerate, last_run, restore
from stepcache.errors import UnsupportedUNet
from stepcache.forwards import FAMILIES, family_of
from stepcache.forwards import unet_2d as family
from stepcache.forwards.blend import Blend
from stepcache.forwards.guidance import steps_of
from stepcache.forwards.join import reference_join
from stepcache.forwards.macs import branch_macs, example_inputs, feature_shapes, meta_unet

BASE = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
# The attentions of these blocks have 32 groups.
NCSNPP = {
    **BASE,
    "block_out_channels": (32, 32, 32),
    "layers_per_block": 1,
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": 2**0.5,
    "norm_num_groups": None,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
}

# name -> config of a UNet2DModel.
UNETS = {
    "ddpm": BASE,
    "ldm classes": {**BASE, "num_class_embeds": 5, "center_input_sample": True, "attention_head_dim": None},
    "class timesteps": {**BASE, "class_embed_type": "timestep"},
    "class identity": {**BASE, "class_embed_type": "identity"},
    "learned": {**BASE, "time_embedding_type": "learned", "num_train_timesteps": 1000},
    "fourier": {**BASE, "time_embedding_type": "fourier"},
    "resnet samplers": {
        **BASE,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "downsample_padding": 0,
    },
    "unclip super resolution": {
        **BASE,
        "in_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "resnet_time_scale_shift": "scale_shift",
        "add_attention": False,
        "layers_per_block": 1,
    },
    "no mid block": {**BASE, "mid_block_type": None, "layers_per_block": 1},
    "k": {
        **BASE,
        "block_out_channels": (32, 64),
        "norm_num_groups": 4,
        "down_block_types": ("KDownBlock2D", "KDownBlock2D"),
        "up_block_types": ("KUpBlock2D", "KUpBlock2D"),
    },
    "ncsn++": NCSNPP,
    # Stock takes other blocks at the bottom, where there is no image yet.
    "ncsn++, plain at the bottom": {
        **NCSNPP,
        "norm_num_groups": 4,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    },
    "one block of ncsn++": {
        **NCSNPP,
        "block_out_channels": (32,),
        "down_block_types": ("SkipDownBlock2D",),
        "up_block_types": ("AttnSkipUpBlock2D",),
    },
}


def make_unet(name, **changes):
    torch.manual_seed(0)
    return UNet2DModel(**{**UNETS[name], **changes}).eval().requires_grad_(False)


def make_inputs(unet, batch=2, size=(8, 8)):
    g = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(batch, unet.config.in_channels, *size, generator=g),
        "timestep": torch.tensor(501),
    }
    if unet.config.class_embed_type == "identity":
        inputs["class_labels"] = torch.randn(batch, 4 * unet.config.block_out_channels[0], generator=g)
    elif unet.class_embedding is not None:
        inputs["class_labels"] = torch.arange(batch)
    return inputs


@pytest.mark.parametrize("name", UNETS)
def test_every_branch(name):
    unet = make_unet(name)
    check_all_branches(unet, make_inputs(unet))


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        ("class timesteps", ["AttnDownBlock2D"], ["AttnUpBlock2D"]),
        ("ncsn++", ["SkipDownBlock2D", "AttnSkipDownBlock2D"], ["AttnSkipUpBlock2D", "SkipUpBlock2D"]),
    ],
)
def test_no_graph_breaks(name, down, up):
    """Of the fewest blocks with all that this family has of its own; test_blocks.py compiles the blocks it shares."""
    channels = UNETS[name]["block_out_channels"][: len(down)]
    unet = make_unet(name, layers_per_block=1, block_out_channels=channels, down_block_types=down, up_block_types=up)
    check_compiles(unet, make_inputs(unet), branch=1)


def test_odd_sizes_that_the_stock_forward_takes():
    unet = make_unet("unclip super resolution")
    check_all_branches(unet, make_inputs(unet, size=(6, 14)))
    unet = make_unet("no mid block", block_out_channels=(8,), down_block_types=("AttnDownBlock2D",),
                     up_block_types=("UpBlock2D",))  # fmt: skip
    check_all_branches(unet, make_inputs(unet, size=(7, 9)))


@pytest.mark.parametrize("name", ["ddpm", "fourier", "ncsn++"])
@pytest.mark.parametrize(
    "timestep",
    [501, 500.75, torch.tensor(501), torch.tensor([501]), torch.tensor([501, 17]), torch.tensor([3.5, 0.01])],
    ids=["int", "float", "0-d", "one", "batched", "sigmas"],
)
def test_every_kind_of_timestep(name, timestep):
    unet = make_unet(name, layers_per_block=1)
    inputs = {**make_inputs(unet), "timestep": timestep}
    want = stock(unet, inputs)
    call = family.bind(**inputs)
    cut = family.layout(unet).cut(1)
    with torch.no_grad():
        output, feature = family.full(unet, cut, **call.inputs)
        assert torch.equal(output, want)
        assert torch.equal(family.partial(unet, cut, feature, **call.inputs), want)


def test_half_precision_keeps_its_dtype():
    """A fourier U-Net divides by the timestep: a whole one leaves float16, sigmas in float32 do not."""
    unet = make_unet("fourier", layers_per_block=1).to(torch.float16)
    cut = family.layout(unet).cut(0)
    for timestep in (torch.tensor(501), torch.tensor(3.5)):
        inputs = {"sample": make_inputs(unet)["sample"].half(), "timestep": timestep}
        want = stock(unet, inputs)
        with torch.no_grad():
            output, feature = family.full(unet, cut, **family.bind(**inputs).inputs)
        assert output.dtype == want.dtype and torch.equal(output, want)
        assert feature.dtype == torch.float16


def test_the_feature_of_ncsnpp_has_the_image_behind_the_hidden_state():
    unet = make_unet("ncsn++")
    layout = family.layout(unet)
    assert [family.image_channels(unet, layout.cut(branch)) for branch in range(6)] == [3, 3, 3, 3, 0, 0]
    inputs = family.bind(**make_inputs(unet)).inputs
    with torch.no_grad():
        _, feature = family.full(unet, layout.cut(0), **inputs)
        assert feature.shape == (2, 32 + 3, 8, 8)
        want = family.partial(unet, layout.cut(0), feature, **inputs)
        # The last block adds nothing to the image: what is added to it is added to the output, over the timestep.
        feature[:, -3:] += 1.0
        difference = family.partial(unet, layout.cut(0), feature, **inputs) - want
        torch.testing.assert_close(difference, torch.full_like(want, 1 / 501), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "ncsn++"])
def test_blended_features_and_the_conditional_half(name):
    """A predictor's Blend is summed, and half of a batch is half of a feature."""
    unet = make_unet(name)
    inputs = family.bind(**make_inputs(unet, batch=4)).inputs
    cut = family.layout(unet).cut(1)
    with torch.no_grad():
        want, feature = family.full(unet, cut, **inputs)
        blend = Blend((feature, torch.ones_like(feature)), torch.tensor([1.0, 0.0]))
        assert torch.equal(family.partial(unet, cut, blend, **inputs), want)
        full, partial = steps_of(family, cut, reference_join, reuse=True)
        output, kept = full(unet, (), inputs)
        again, _ = partial(unet, kept, inputs)
        torch.testing.assert_close(again, output, rtol=1e-4, atol=1e-5)


def test_class_labels_and_none():
    unet, without = make_unet("ldm classes"), make_unet("ddpm")
    inputs = family.bind(**make_inputs(without)).inputs
    cut = family.layout(unet).cut(0)
    with pytest.raises(ValueError, match="needs class_labels"):
        family.full(unet, cut, **inputs)
    with pytest.raises(ValueError, match="not conditioned on classes"):
        family.full(without, cut, **inputs, class_labels=torch.zeros(2))


def test_the_arguments_and_the_output_of_the_stock_forward():
    unet = make_unet("ldm classes")
    sample, labels = torch.zeros(2, 3, 8, 8), torch.arange(2)
    call = family.bind(sample, 7, labels, False)
    assert call.inputs["timestep"].tolist() == [7] and call.inputs["timestep"].dtype == torch.long
    assert (call.inputs["class_labels"] is labels, call.lora_scale, call.return_dict) == (True, 1.0, False)
    assert "class_labels" not in family.bind(sample, 7).inputs
    assert type(family.wrap(sample, True)) is type(unet(sample, 7, labels))
    assert family.wrap(sample, False) == (sample,)


@pytest.mark.parametrize("name", UNETS)
def test_macs_are_counted_on_example_inputs(name):
    unet = make_unet(name)
    meta = meta_unet({**unet.config, "_class_name": "UNet2DModel"})
    layout, inputs = family.layout(unet), example_inputs(unet, 8, 8, batch=2)
    shallow, deep = branch_macs(meta, 8, 8, batch=2, branches=(0, len(layout.joins) - 1))
    assert 0 < shallow.partial_macs < deep.partial_macs <= deep.full_macs
    with torch.no_grad():
        first, *_, last = feature_shapes(unet, inputs)
        assert torch.equal(family.full(unet, layout.cut(0), **inputs)[0], stock(unet, inputs))
    assert (shallow.feature_shape, deep.feature_shape) == (first, last)


@pytest.mark.parametrize("name", ["ddpm", "ncsn++"])
def test_a_pipeline(name):
    # A fourier U-Net divides by the timestep, and DDIM's last one is 0.
    pipe = DDIMPipeline(make_unet(name, time_embedding_type="positional"), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def images():
        g = torch.Generator().manual_seed(0)
        return torch.from_numpy(pipe(batch_size=2, num_inference_steps=5, generator=g, output_type="np").images)

    want = images()
    accelerate(pipe, 1)
    assert torch.equal(images(), want)
    accelerate(pipe, 3)
    got = images()
    assert last_run(pipe).kinds == "FPPFP"
    assert torch.isfinite(got).all() and not torch.equal(got, want)
    restore(pipe)
    assert torch.equal(images(), want)


def test_a_unet_whose_forward_is_overridden_is_refused():
    unet = make_unet("ddpm")
    unet.__class__ = type("Odd", (UNet2DModel,), {"forward": lambda self, *args: None})
    with pytest.raises(UnsupportedUNet, match="the U-Net is a Odd, whose forward"):
        family_of(unet)


@pytest.mark.parametrize(
    "name", ["UVit2DModel", "Kandinsky3UNet", "StableCascadeUNet", "UNetControlNetXSModel", "I2VGenXLUNet",
             "AudioLDM2UNet2DConditionModel", "UNet1DModel"],
)  # fmt: skip
def test_other_models_are_refused_by_name_with_what_is_supported(name):
    import diffusers

    model = object.__new__(getattr(diffusers, name))
    with pytest.raises(UnsupportedUNet) as error:
        family_of(model)
    text = str(error.value)
    assert text.startswith(f"{name} is not a U-Net that stepcache knows")
    assert all(family in text for family in FAMILIES)
    with pytest.raises(UnsupportedUNet, match=f"{name} is not a U-Net"):
        meta_unet({"_class_name": name})
