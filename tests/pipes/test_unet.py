"""Pipes that cannot be accelerated: each error says why and what to do, and leaves the pipe untouched."""

import pytest
import torch
from diffusers import DDIMScheduler
from support.small import loop_pipe, make_unet, state_of

from stepcache import accelerate, last_run
from stepcache.errors import AlreadyCached, UnsupportedPipeline


class TransformerPipe:
    def __init__(self):
        self.transformer, self.scheduler = torch.nn.Linear(1, 1), DDIMScheduler()

    def __call__(self):
        raise AssertionError


class NoUNet(TransformerPipe):
    def __init__(self):
        self.scheduler = DDIMScheduler()


@pytest.mark.parametrize(
    "pipe, message",
    [
        (lambda: 3, "got int: 3"),
        (lambda: None, "got NoneType"),
        (lambda: make_unet("inpaint"), "pass the pipeline that holds it"),
        (TransformerPipe, r"transformer \(Linear\).*stepcache is for U-Nets"),
        (NoUNet, "got NoUNet"),
    ],
)
def test_not_a_pipeline(pipe, message):
    pipe = pipe()
    kind = type(pipe)
    with pytest.raises(UnsupportedPipeline, match=message):
        accelerate(pipe)
    assert type(pipe) is kind


def test_deepcaches_own_helper_is_on():
    from DeepCache import DeepCacheSDHelper

    pipe = loop_pipe("least")
    helper = DeepCacheSDHelper(pipe)
    helper.set_params(cache_interval=3)
    helper.enable()
    before = state_of(pipe)
    with pytest.raises(AlreadyCached, match=r"DeepCacheSDHelper.*helper.disable\(\)"):
        accelerate(pipe)
    assert state_of(pipe) == before
    helper.disable()  # leaves bound methods in vars(), which do no harm
    accelerate(pipe, interval=2)(4)
    assert last_run(pipe).kinds == "FPFP"
    helper.enable()
    with pytest.raises(AlreadyCached, match="DeepCacheSDHelper"):
        pipe(4)


def test_diffusers_own_cache_is_on():
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    pipe = loop_pipe("least")
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    with pytest.raises(AlreadyCached, match="pyramid_attention_broadcast"):
        accelerate(pipe)


def test_a_compiled_unet_is_refused():
    pipe = loop_pipe("least")
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    with pytest.raises(AlreadyCached, match="_orig_mod"):
        accelerate(pipe)
    pipe.unet = plain
    plain.compile(backend="eager")
    with pytest.raises(AlreadyCached, match="compiled already"):
        accelerate(pipe)
