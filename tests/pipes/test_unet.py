"""Pipes that cannot be accelerated: each error says why and what to do, and leaves the pipe untouched."""

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from support.small import generate, loop_pipe, make_unet, state_of, tiny_pipe

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


@pytest.fixture
def prepare():
    """Accelerate's prepare, then unwrap_model, with a state of its own."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    def through(model, mixed_precision, **options):
        accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
        return accelerator.unwrap_model(accelerator.prepare(model), **options)

    AcceleratorState._reset_state(reset_partial_state=True)
    yield through
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_unet_that_accelerate_prepared(prepare, keep, mixed_precision, hooked):
    pipe = tiny_pipe()
    want = generate(pipe, 3)
    pipe.unet = prepare(pipe.unet, mixed_precision, keep_fp32_wrapper=keep)
    if hooked:
        from accelerate.hooks import ModelHook, add_hook_to_module

        add_hook_to_module(pipe.unet, ModelHook())
    if mixed_precision != "no":
        off = "take the offloading hooks off it, then " if hooked else ""
        words = f"Accelerate's prepare.* Before accelerate\\(pipe\\), {off}call del pipe.unet.forward, "
        with pytest.raises(AlreadyCached, match=words):
            accelerate(pipe)
        if hooked:
            pipe.remove_all_hooks()
        del pipe.unet.forward
    assert torch.equal(generate(accelerate(pipe, 1), 3), want)
    generate(accelerate(pipe, 2), 3)
    assert last_run(pipe).kinds == "FPF"


class MegaPipeline(DiffusionPipeline):
    """As StableDiffusionMegaPipeline of diffusers' community pipelines."""

    _optional_components = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(
        self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder=None
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=safety_checker, feature_extractor=feature_extractor, image_encoder=image_encoder,
        )  # fmt: skip

    def text2img(self, **options):
        return StableDiffusionPipeline(**self.components)(**options)


def test_a_pipeline_whose_methods_make_others():
    mega = MegaPipeline(**tiny_pipe().components)
    words = r"MegaPipeline has no __call__, .* StableDiffusionPipeline\(\*\*mega\.components\); accelerate\(pipe\)"
    with pytest.raises(UnsupportedPipeline, match=words):
        accelerate(mega)
    pipe = StableDiffusionPipeline(**mega.components)
    pipe.set_progress_bar_config(disable=True)
    generate(accelerate(pipe, 2), 3)
    assert last_run(pipe).kinds == "FPF"


def test_a_pipe_that_nobody_can_call():
    class Parts:
        def __init__(self):
            self.unet, self.scheduler = make_unet("least"), DDIMScheduler()

    with pytest.raises(UnsupportedPipeline, match=r"Parts has no __call__.* Give its class a __call__"):
        accelerate(Parts())
