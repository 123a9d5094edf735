"""What tells one model and one way of sampling from another."""

import copy

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from support.small import BETAS, make_unet

from stepcache.plans.fingerprints import (
    SAME,
    TENSORS,
    VALUES,
    config_hash,
    same_weights,
    sampling,
    sampling_differs,
    weight_sample,
)


def test_the_config_without_its_origin():
    unet, other = make_unet("least"), make_unet("least")
    other.register_to_config(_name_or_path="somewhere/else")
    assert config_hash(unet) == config_hash(other) and len(config_hash(unet)) == 16
    assert config_hash(make_unet("least", flip_sin_to_cos=False)) != config_hash(unet)


def test_a_sample_is_a_few_hundred_weights_of_matrices_alone():
    unet = make_unet("least")
    sample = weight_sample(unet)
    assert 0 < len(sample) <= TENSORS * VALUES
    for parameter in unet.parameters():
        if parameter.dim() == 1:
            parameter.add_(1)
    assert weight_sample(unet) == sample
    for parameter in unet.parameters():
        parameter.add_(1)
    assert not same_weights(weight_sample(unet), sample)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_is_the_same_model(dtype):
    unet = make_unet("least")
    sample = weight_sample(unet)
    assert same_weights(sample, weight_sample(unet.to(dtype)))


def test_other_weights_are_another_model():
    torch.manual_seed(0)
    unet = make_unet("least")
    sample, scale = weight_sample(unet), []
    for share in (0.2 * SAME, 5 * SAME):
        tuned = copy.deepcopy(unet)
        for parameter in tuned.parameters():
            parameter.add_(share * parameter.pow(2).mean().sqrt() * torch.randn(parameter.shape))
        scale.append(same_weights(sample, weight_sample(tuned)))
    assert scale == [True, False]
    assert not same_weights(sample, sample[:-1])


def test_a_lora_is_left_out_until_it_is_fused():
    from peft import LoraConfig

    unet = make_unet("least")
    sample = weight_sample(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "conv1"], init_lora_weights=False), "a")
    assert weight_sample(unet) == sample
    unet.fuse_lora(lora_scale=3.0)
    assert not same_weights(sample, weight_sample(unet))


def test_fused_projections_are_left_out():
    unet = make_unet("least")
    sample = weight_sample(unet)
    unet.fuse_qkv_projections()
    assert weight_sample(unet) == sample


def test_weights_that_cannot_be_read_are_taken_for_the_same():
    unet = make_unet("least")
    sample = weight_sample(unet)
    assert weight_sample(unet.to("meta")) == ()
    assert same_weights((), sample) and same_weights(sample, ())


def test_sampling():
    ddim = sampling(DDIMScheduler(**BETAS))
    assert ddim["class"] == "DDIMScheduler" and ddim["beta_end"] == BETAS["beta_end"]
    assert sampling_differs(ddim, sampling(DDIMScheduler(**BETAS))) == []
    assert sampling_differs(ddim, sampling(DDIMScheduler(**BETAS, clip_sample=False))) == ["clip_sample"]
    assert sampling_differs(ddim, sampling(EulerDiscreteScheduler(**BETAS))) == ["class"]
    # A setting that another version of diffusers has is no difference.
    assert sampling_differs({**ddim, "of_the_future": 1}, ddim) == []
    assert sampling_differs(ddim, {**ddim, "of_the_future": 1}) == []
