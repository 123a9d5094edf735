"""Arguments of a U-Net call that stepcache does not know."""

import pytest
from support.small import loop_pipe, make_inputs, make_unet

from stepcache import accelerate, denoising, last_run
from stepcache.errors import UnsupportedUNet
from stepcache.forwards import unet_2d_condition as family
from stepcache.forwards.calls import bound

INPUTS = make_inputs(make_unet("least"))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {**INPUTS, "add_samples": 1}),
        ((INPUTS["sample"],), {"encoder_hidden_states": None}),
        ((*INPUTS.values(), *[None] * 11), {}),
    ],
    ids=["one more", "no timestep", "too many"],
)
def test_what_the_unet_does_not_take_is_its_own_error(args, kwargs):
    pipe = accelerate(loop_pipe("least"))
    with pytest.raises(TypeError) as want:
        pipe.unet(*args, **kwargs)
    with pytest.raises(TypeError) as got, denoising(pipe):
        pipe.unet(*args, **kwargs)
    assert str(got.value) == str(want.value) and "UNet2DConditionModel.forward()" in str(want.value)
    assert got.value.__context__ is None
    assert last_run(pipe).kinds == ""


def newer(sample, timestep, encoder_hidden_states=None, *rest, position_ids=None, **more):
    raise AssertionError


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({**INPUTS, "position_ids": 1}, r"called with position_ids\. Its own.* arguments sample, timestep,.*restore"),
        ({**INPUTS, "frames": 1, "fps": 2}, "called with frames, fps"),
        ({"sample": 1, "timestep": 1}, "called with no encoder_hidden_states"),
    ],
)
def test_what_the_unet_takes_and_stepcache_does_not_is_named(kwargs, words):
    with pytest.raises(UnsupportedUNet, match=words):
        bound(family.bind, newer, (), kwargs)


def test_a_type_error_of_another_kind_is_passed_on():
    with pytest.raises(TypeError, match="full"):
        bound(family.bind, newer, (), {**INPUTS, "timestep": "501"})
