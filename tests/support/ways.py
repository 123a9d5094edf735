"""The table of ways to run a pipeline that stepcache accelerates: what test_ways.py runs, and what docs/support.md is
made from.
"""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate as hf_accelerate
import torch
from diffusers import (
    AutoPipelineForText2Image,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from support.builders import TINY
from support.small import BETAS, demo_pipe, sdxl_pipe

from stepcache.errors import AlreadyCached, UnsupportedUNet

# How the graphs run. A way in which the two graphs are not run as asked says so in a warning, once.
ENGINES = "eager", "compiled", "captured"
WORKS, NOT_CAPTURED, RUNS_EAGER, REFUSED = "works", "works, not captured", "works, runs eager", "refused"


@dataclass(frozen=True, eq=False)
class Way:
    """One row: something that people do to a pipeline or around its calls, and what comes of it in each engine.

    apply: does it to a pipe; returns another pipe where that is what it makes. within: what the pipe's calls run in.
    options: further arguments of `accelerate`; images: compare images instead of latents. changes: whether it changes
    the pipeline's output by more than rounding. carries: of what makes another pipe: whether that is accelerated where
    the first one is. warning: what is said where graphs do not run as asked. error, pattern: of the exception where it
    is refused. needs: a package without which it is skipped.
    """

    feature: str
    apply: Callable[[Any], Any]
    eager: str = WORKS
    compiled: str = WORKS
    captured: str = WORKS
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: dict[str, Any] = field(default_factory=dict)
    images: bool = False
    changes: bool = False
    carries: bool = True
    warning: str = ""
    error: type[Exception] | None = None
    pattern: str = ""
    needs: str = ""

    def status(self, engine: str) -> str:
        """What comes of it in `engine`: one of the four words above."""
        return REFUSED if self.error is not None else getattr(self, engine)


# One level, with attention in what a partial step of branch 0 runs alone: the least that compiles.
LEAST = {
    **TINY,
    "block_out_channels": (8,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "reverse_transformer_layers_per_block": [[0, 1]],
    "mid_block_type": None,
}


def make_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(**LEAST).eval().requires_grad_(False)


@functools.cache
def _parts() -> dict[str, Any]:
    components = sdxl_pipe().components
    # Built anew: a call of that pipeline leaves hooks of transformers' on its text encoder, which cannot be pickled.
    used = components["text_encoder"]
    encoder = type(used)(used.config).eval().requires_grad_(False)
    encoder.load_state_dict(used.state_dict())
    return {"vae": components["vae"], "text_encoder": encoder, "tokenizer": components["tokenizer"]}


def make_pipe() -> StableDiffusionPipeline:
    """A random, tiny pipeline of its own, the same at every call; 32 x 32 pixels are 16 x 16 latents."""
    return demo_pipe(unet=make_unet(), **copy.deepcopy(_parts()))


def _model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def _sequential_offload(pipe: Any) -> None:
    # The pipeline's own method wants an accelerator. This is what it does to each model: between calls of a layer its
    # weights are on the meta device, so that a layer that runs without its hook fails.
    for model in (pipe.unet, pipe.vae):
        hf_accelerate.cpu_offload(model, torch.device("cpu"))


def _leaf_level(pipe: Any) -> None:
    # To disk, where a layer that runs without its hook has whatever was in memory for weights.
    folder = tempfile.TemporaryDirectory()
    weakref.finalize(pipe.unet, folder.cleanup)
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=folder.name
    )


def _block_level(pipe: Any) -> None:
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    )


def _device_map(pipe: Any) -> None:
    """What a pipeline does to each of its models that it loads with a device_map."""
    hf_accelerate.dispatch_model(pipe.unet, {"": "cpu"}, force_hooks=True)


def _split(pipe: Any) -> None:
    devices = {name: "cpu" for name, _ in pipe.unet.named_children()}
    hf_accelerate.dispatch_model(pipe.unet, {**devices, "up_blocks": "meta"}, main_device="cpu", force_hooks=True)


def _casting(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def _tiling(pipe: Any) -> None:
    pipe.vae.enable_tiling()
    # Four tiles of one size: of several sizes, each is compiled.
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size, pipe.vae.tile_overlap_factor = 8, 16, 0


def _chunking(pipe: Any) -> None:
    for module in pipe.unet.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(64, 1)


def _unfused(pipe: Any) -> None:
    pipe.fuse_qkv_projections()
    pipe.unfuse_qkv_projections()


class SoftmaxProcessor:
    """An attention of the user's own, as xFormers' and others are put in."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **kwargs: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (attn.head_to_batch_dim(tensor) for tensor in (q, k, v))
        weights = (q @ k.transpose(1, 2) * attn.scale).softmax(-1)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(weights @ v)))


def _quantized(config: str) -> Callable[[Any], None]:
    def apply(pipe: Any) -> None:
        from torchao import quantization

        quantization.quantize_(pipe.unet, getattr(quantization, config)())

    return apply


def _set(name: str, make: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda pipe: setattr(pipe, name, make())


def _layer_hook(pipe: Any) -> None:
    def louder(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 1.5

    pipe.unet.up_blocks[0].resnets[1].register_forward_hook(louder)


def _saved_and_loaded(pipe: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        assert (Path(folder) / "model_index.json").exists()
        loaded = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def _from_pipe(pipe: Any) -> Any:
    made = AutoPipelineForText2Image.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    return made


OFFLOADED = {
    "compiled": RUNS_EAGER,
    "captured": RUNS_EAGER,
    "warning": "Hooks on the layers of the U-Net offload, cast or align devices",
}

OFFLOADING = [
    Way("model CPU offload", _model_offload, captured=NOT_CAPTURED, warning="Offloading hooks move the U-Net"),
    Way("sequential CPU offload", _sequential_offload, **OFFLOADED),
    Way("group offloading, leaf level", _leaf_level, **OFFLOADED),
    Way("group offloading, block level", _block_level, error=UnsupportedUNet, pattern="down_blocks.0 .*leaf_level"),
    Way("device_map of the pipeline", _device_map, **OFFLOADED),
    Way(
        "device_map that splits the U-Net",
        _split,
        error=UnsupportedUNet,
        pattern="U-Net over the devices cpu, meta",
    ),
    Way("layerwise casting, fp8 storage", _casting, changes=True, **OFFLOADED),
]

MEMORY = [
    Way(
        "VAE slicing, with vae=True",
        lambda pipe: pipe.vae.enable_slicing(),
        options={"vae": True},
        images=True,
    ),
    Way("VAE tiling, with vae=True", _tiling, options={"vae": True}, images=True, changes=True),
    Way("attention slicing", lambda pipe: pipe.enable_attention_slicing(2)),
    Way("feed-forward chunking", _chunking),
    Way("gradient checkpointing", lambda pipe: pipe.unet.enable_gradient_checkpointing()),
    Way("channels_last", lambda pipe: pipe.unet.to(memory_format=torch.channels_last)),
]

ATTENTION = [
    Way("fused QKV projections", lambda pipe: pipe.fuse_qkv_projections()),
    Way("QKV projections fused and unfused", _unfused),
    Way("custom attention processors", lambda pipe: pipe.unet.set_attn_processor(SoftmaxProcessor())),
]

PRECISION = [
    Way("torch.autocast", lambda pipe: None, within=functools.partial(torch.autocast, "cpu"), changes=True),
    Way("torch.inference_mode", lambda pipe: None, within=torch.inference_mode),
    Way("pipe.to another dtype", lambda pipe: pipe.to(torch.float64), changes=True),
    Way("torchao int8 weights", _quantized("Int8WeightOnlyConfig"), changes=True, needs="torchao"),
    Way(
        "torchao int8 weights and activations",
        _quantized("Int8DynamicActivationInt8WeightConfig"),
        changes=True,
        needs="torchao",
    ),
    Way("torchao float8 weights", _quantized("Float8WeightOnlyConfig"), changes=True, needs="torchao"),
]

PARTS = [
    Way("pipe.unet = another", _set("unet", functools.partial(make_unet, 1)), changes=True),
    Way("pipe.scheduler = another", _set("scheduler", lambda: EulerDiscreteScheduler(**BETAS)), changes=True),
    Way("copy.deepcopy", copy.deepcopy),
    Way("pickle", lambda pipe: pickle.loads(pickle.dumps(pipe))),
    Way("save_pretrained, and loaded again", _saved_and_loaded, carries=False),
    Way("from_pipe", _from_pipe, carries=False),
]

WRAPPED = [
    Way("regional compilation by diffusers", lambda pipe: pipe.unet.compile_repeated_blocks(backend="eager")),
    Way(
        "torch.compile(pipe.unet)",
        lambda pipe: setattr(pipe, "unet", torch.compile(pipe.unet, backend="eager")),
        error=AlreadyCached,
        pattern="compiled already.*_orig_mod",
    ),
    Way(
        "pipe.unet.compile()",
        lambda pipe: pipe.unet.compile(backend="eager"),
        error=AlreadyCached,
        pattern="compiled already.*_compiled_call_impl = None",
    ),
    Way(
        "DataParallel",
        lambda pipe: setattr(pipe, "unet", torch.nn.DataParallel(pipe.unet)),
        error=UnsupportedUNet,
        pattern=r"DataParallel is not a U-Net.*pipe\.unet = pipe\.unet\.module",
    ),
    Way(
        "forward hooks on layers",
        _layer_hook,
        compiled=RUNS_EAGER,
        captured=RUNS_EAGER,
        changes=True,
        warning="The layers of the U-Net have forward hooks",
    ),
    Way(
        "forward hooks on blocks",
        lambda pipe: pipe.unet.up_blocks[0].register_forward_hook(lambda *args: None) and None,
        error=UnsupportedUNet,
        pattern="up_blocks.0 has _forward_hooks of its own",
    ),
    Way(
        "training mode",
        lambda pipe: pipe.unet.train() and None,
        compiled=RUNS_EAGER,
        captured=RUNS_EAGER,
        warning="training mode",
    ),
]

WAYS = [*OFFLOADING, *MEMORY, *ATTENTION, *PRECISION, *PARTS, *WRAPPED]
