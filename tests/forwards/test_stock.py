"""Forks and patches of diffusers' forwards, under the same names: refused, with the module that they come from."""

import functools

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel
from diffusers.models.unets import unet_2d_blocks
from support import video_unets
from support.small import loop_pipe, make_unet

from stepcache import accelerate, last_run
from stepcache.errors import UnsupportedUNet
from stepcache.forwards import blocks, family_of


def named(name, base, forward=None, **more):
    """A subclass of that name, whose forward has the __qualname__ that it would have in a file of a fork."""
    members = {} if forward is None else {"forward": forward, **more}
    if forward is not None:
        forward.__qualname__ = f"{name}.forward"
    return type(name, (base,), members)


def scaled(self, *args, **kwargs):
    kwargs["return_dict"] = False
    return (2 * UNet2DConditionModel.forward(self, *args, **kwargs)[0],)


def one_more(self, sample, timestep, encoder_hidden_states, down_block_add_samples=None, **kwargs):
    return UNet2DConditionModel.forward(self, sample, timestep, encoder_hidden_states, **kwargs)


@pytest.mark.parametrize("forward", [scaled, one_more])
def test_a_forks_unet_of_the_same_name(forward):
    pipe = loop_pipe("least")
    pipe.unet.__class__ = named("UNet2DConditionModel", UNet2DConditionModel, forward)
    words = (
        r"the U-Net is a UNet2DConditionModel, whose forward is UNet2DConditionModel\.forward of test_stock.*inherit"
    )
    with pytest.raises(UnsupportedUNet, match=words):
        accelerate(pipe)


def test_a_unet_of_the_same_name_that_inherits_nothing():
    """LatentSync's: its file is a copy of diffusers', changed."""

    class UNet3DConditionModel(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            raise AssertionError

    UNet3DConditionModel.forward.__qualname__ = "UNet3DConditionModel.forward"
    with pytest.raises(UnsupportedUNet, match=r"forward is UNet3DConditionModel\.forward of test_stock"):
        family_of(UNet3DConditionModel())


def test_a_subclass_that_inherits_forward_is_taken():
    pipe = loop_pipe("least")
    want = accelerate(loop_pipe("least"), 2)(4)
    pipe.unet.__class__ = named("UNet2DConditionModel", UNet2DConditionModel)
    for block in pipe.unet.up_blocks:
        block.__class__ = named(type(block).__name__, type(block))
    assert torch.equal(accelerate(pipe, 2)(4), want)
    assert last_run(pipe).kinds == "FPFP"


@pytest.mark.parametrize(
    ("make", "path", "words"),
    [
        (lambda: make_unet("least"), "up_blocks.1", "CrossAttnUpBlock2D"),
        (lambda: make_unet("least"), "down_blocks.0", "CrossAttnDownBlock2D"),
        (lambda: video_unets.make_unet("3d"), "up_blocks.1", "CrossAttnUpBlock3D"),
        (lambda: video_unets.make_unet("motion"), "down_blocks.1", "DownBlockMotion"),
        (lambda: video_unets.make_unet("svd"), "up_blocks.0", "UpBlockSpatioTemporal"),
        (lambda: video_unets.make_unet("svd"), "up_blocks.0.resnets.1", "SpatioTemporalResBlock"),
        (lambda: video_unets.make_unet("3d"), "", "UNet3DConditionModel"),
        (lambda: video_unets.make_unet("motion"), "", "UNetMotionModel"),
        (lambda: video_unets.make_unet("svd"), "", "UNetSpatioTemporalConditionModel"),
    ],
)
def test_a_forked_part_is_named(make, path, words):
    unet = make()
    assert family_of(unet)
    part = unet.get_submodule(path)
    stock = type(part).forward
    part.__class__ = named(words, type(part), lambda self, *args, **kwargs: stock(self, *args, **kwargs))
    where = path.replace(".", r"\.") or "the U-Net"
    with pytest.raises(UnsupportedUNet, match=rf"{where} is a {words}, whose .* {words}\.forward of test_stock"):
        family_of(unet)


def patch(cls, wrapped):
    stock = cls.forward

    def forward(self, *args, **kwargs):
        return stock(self, *args, **kwargs)

    return functools.wraps(stock)(forward) if wrapped else forward


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("cls", [UNet2DConditionModel, unet_2d_blocks.CrossAttnUpBlock2D])
def test_a_patch_on_diffusers_own_class(cls, wrapped, monkeypatch):
    """functools.wraps gives a patch the name and module of diffusers' forward."""
    unet = make_unet("least")
    monkeypatch.setattr(cls, "forward", patch(cls, wrapped))
    with pytest.raises(UnsupportedUNet, match=rf"{cls.__name__} itself by a function of test_stock.*Undo that patch"):
        family_of(unet)


def test_a_decorator_of_torchs_is_no_patch(monkeypatch):
    unet = video_unets.make_unet("3d")
    monkeypatch.setattr(UNet3DConditionModel, "forward", torch.no_grad()(UNet3DConditionModel.forward))
    assert family_of(unet)


def test_a_patch_that_is_undone_after_our_first_import(monkeypatch):
    cls = unet_2d_blocks.CrossAttnUpBlock2D
    table = {forward: kind for forward, kind in blocks._BY_FORWARD.items() if forward is not cls.forward}
    monkeypatch.setattr(blocks, "_BY_FORWARD", {**table, patch(cls, False): blocks.UP[cls.__name__]})
    unet = make_unet("least")
    assert family_of(unet).layout(unet).joins
