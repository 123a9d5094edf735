"""Bad input, each with an error that names the value and the way out, and leaves the pipe untouched."""

import pytest
import torch
from diffusers import DDIMScheduler
from support.small import loop_pipe, make_unet, state_of

from stepcache import StepCacheError, accelerate, denoising, last_run
from stepcache.errors import (
    AlreadyCached,
    BranchOutOfRange,
    InvalidSetting,
    NotAccelerated,
    UnsupportedPipeline,
    UnsupportedUNet,
)

BAD_SETTINGS = [
    ({"interval": 0}, InvalidSetting, "interval.* got 0"),
    ({"interval": -1}, InvalidSetting, "got -1"),
    ({"interval": 2.5}, InvalidSetting, "got 2.5"),
    ({"interval": True}, InvalidSetting, "got True"),
    ({"interval": torch.tensor(2.5)}, InvalidSetting, "got tensor"),
    ({"interval": torch.tensor(True)}, InvalidSetting, "got tensor"),
    ({"branch": 12}, BranchOutOfRange, r"branch=12 is out of range.* 0 to 11"),
    ({"branch": -1}, BranchOutOfRange, r"branch=-1.*"),
    ({"branch": 1.0}, InvalidSetting, "got 1.0"),
    ({"branch": "0"}, InvalidSetting, "got '0'"),
    ({"schedule": "FPP"}, InvalidSetting, "schedule must be a stepcache.Schedule, got 'FPP'"),
    ({"max_buckets": 0}, InvalidSetting, "max_buckets .*got 0"),
]


@pytest.mark.parametrize("settings, error, message", BAD_SETTINGS, ids=lambda v: str(v) if isinstance(v, dict) else "")
@pytest.mark.parametrize("accelerated", [False, True])
def test_bad_settings_leave_the_pipe_untouched(settings, error, message, accelerated):
    pipe = loop_pipe()
    if accelerated:
        accelerate(pipe, interval=2)
    before = state_of(pipe)
    with pytest.raises(error, match=message) as caught:
        accelerate(pipe, **settings)
    assert isinstance(caught.value, StepCacheError)
    assert state_of(pipe) == before
    if accelerated:
        pipe(4)
        assert last_run(pipe).kinds == "FPFP"


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

    pipe = loop_pipe()
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

    pipe = loop_pipe()
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2,
        cross_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    with pytest.raises(AlreadyCached, match="pyramid_attention_broadcast"):
        accelerate(pipe)


def test_a_compiled_unet_is_refused():
    pipe = loop_pipe()
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    with pytest.raises(AlreadyCached, match="_orig_mod"):
        accelerate(pipe)
    pipe.unet = plain
    plain.compile(backend="eager")
    with pytest.raises(AlreadyCached, match="compiled already"):
        accelerate(pipe)


def test_calls_that_need_an_accelerated_pipe():
    pipe = loop_pipe()
    with pytest.raises(NotAccelerated, match=r"last_run.*LoopPipe"):
        last_run(pipe)
    with pytest.raises(NotAccelerated, match="denoising"), denoising(pipe):
        pass
    accelerate(pipe)
    assert last_run(pipe) is None
    with pytest.raises(InvalidSetting, match="got 0"), denoising(pipe, steps=0):
        pass


def hook_a_block(unet):
    unet.up_blocks[1].register_forward_hook(lambda *args: None)


def patch_a_block(unet):
    unet.down_blocks[0].forward = lambda *args, **kwargs: None


def compile_a_block(unet):
    unet.down_blocks[1].compile(backend="eager")


@pytest.mark.parametrize(
    "touch, name",
    [(hook_a_block, "up_blocks.1"), (patch_a_block, "down_blocks.0"), (compile_a_block, "down_blocks.1")],
)
def test_what_sits_on_a_block_would_have_no_effect_and_is_refused(touch, name):
    pipe = loop_pipe()
    touch(pipe.unet)
    with pytest.raises(UnsupportedUNet, match=f"{name} has .* of its own"):
        accelerate(pipe)
    pipe = accelerate(loop_pipe())
    touch(pipe.unet)
    with pytest.raises(UnsupportedUNet, match=name):
        pipe(2)
