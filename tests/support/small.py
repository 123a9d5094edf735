"""Small models and pipelines for the tests: the bundled demo pipeline, and random U-Nets of each layout."""

from __future__ import annotations

import copy
import functools
from importlib.resources import files
from types import SimpleNamespace

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from stepcache import accelerate
from stepcache.graphs.standin import StandInBackend
from stepcache.run.attach import attachment_of

DEMO = str(files("stepcache") / "assets" / "demo")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
C, D, CU, U = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
SMALL = {"sample_size": 16, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}
SDXL_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "use_linear_projection": True,
}

# name -> config of a UNet2DConditionModel of that layout, small.
UNETS = {
    "sd": {
        **SMALL,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (C, C, C, D),
        "up_block_types": (U, CU, CU, CU),
    },
    "sd2": {
        **SMALL,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (C, C, C, D),
        "up_block_types": (U, CU, CU, CU),
        "attention_head_dim": (1, 2, 2, 2),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        **SMALL,
        **SDXL_TIME,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (D, C, C),
        "up_block_types": (CU, CU, U),
        "transformer_layers_per_block": (1, 2, 3),
        "projection_class_embeddings_input_dim": 6 * 8 + 8,
    },
    "refiner": {
        **SMALL,
        **SDXL_TIME,
        "block_out_channels": (8, 16, 16, 16),
        "down_block_types": (D, C, C, D),
        "up_block_types": (U, CU, CU, U),
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 5 * 8 + 8,
    },
    "inpaint": {
        **SMALL,
        "in_channels": 9,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": (C, D),
        "up_block_types": (U, CU),
    },
    # Distilled ones: one layer a block (BK-SDM), no mid block (BK-SDM-Small), a different number in each block.
    "one layer": {
        **SMALL,
        "layers_per_block": 1,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (C, C, D),
        "up_block_types": (U, CU, CU),
    },
    "no mid block": {
        **SMALL,
        "layers_per_block": 1,
        "mid_block_type": None,
        "block_out_channels": (8, 16, 16),
        "down_block_types": (C, C, C),
        "up_block_types": (CU, CU, CU),
    },
    "uneven": {
        **SMALL,
        "layers_per_block": (1, 3, 2),
        "block_out_channels": (8, 16, 24),
        "down_block_types": (C, C, D),
        "up_block_types": (U, CU, CU),
    },
    "class labels": {
        **SMALL,
        "num_class_embeds": 5,
        "block_out_channels": (8, 16),
        "down_block_types": (C, D),
        "up_block_types": (U, CU),
    },
    "class concat": {
        **SMALL,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": True,
        "block_out_channels": (8, 16),
        "down_block_types": (C, D),
        "up_block_types": (U, CU),
    },
    "lcm": {
        **SMALL,
        "time_cond_proj_dim": 12,
        "block_out_channels": (8, 16),
        "down_block_types": (C, D),
        "up_block_types": (U, CU),
    },
    "scale shift": {
        **SMALL,
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": False,
        "center_input_sample": True,
        "block_out_channels": (8, 16),
        "down_block_types": (C, D),
        "up_block_types": (U, CU),
    },
}


def make_unet(name: str = "sd", **changes: object) -> UNet2DConditionModel:
    """A random U-Net of that layout, the same at every call."""
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**UNETS[name], **changes}).eval().requires_grad_(False)


def make_inputs(unet: UNet2DConditionModel, batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 1) -> dict:
    """Arguments of one call of that U-Net, timestep included, by keyword."""
    g = torch.Generator().manual_seed(seed)
    randn = functools.partial(torch.randn, generator=g)
    config = unet.config
    inputs = {
        "sample": randn(batch, config.in_channels, *size),
        "timestep": torch.tensor(501),
        "encoder_hidden_states": randn(batch, 5, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        ids = (config.projection_class_embeddings_input_dim - 8) // config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": randn(batch, 8), "time_ids": torch.ones(batch, ids) * 16}
    if config.num_class_embeds:
        inputs["class_labels"] = torch.arange(batch)
    if config.class_embed_type == "simple_projection":
        inputs["class_labels"] = randn(batch, 6)
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = randn(batch, config.time_cond_proj_dim)
    return inputs


class LoopPipe:
    """The smallest thing that `accelerate` takes: a U-Net, a scheduler, and a call that denoises."""

    def __init__(self, unet: torch.nn.Module, scheduler: object) -> None:
        self.unet, self.scheduler = unet, scheduler

    @torch.no_grad()
    def __call__(self, steps: int = 8, start: int = 0, batch: int = 2, on_step: object = None) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        inputs = make_inputs(self.unet, batch)
        latents, text = inputs["sample"][:, :4] * self.scheduler.init_noise_sigma, inputs["encoder_hidden_states"]
        rest = {k: v for k, v in inputs.items() if k not in ("sample", "timestep", "encoder_hidden_states")}
        for i, t in enumerate(self.scheduler.timesteps[start:]):
            x = self.scheduler.scale_model_input(latents, t)
            noise = self.unet(x, t, encoder_hidden_states=text, **rest).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
            if on_step is not None:
                on_step(self, i)
        return latents


# Two levels, one of them with attention: the least that compiles in a few seconds.
UNETS["least"] = {**UNETS["inpaint"], "in_channels": 4, "layers_per_block": 1}
# Changes of "least" that compile sooner still. Four joins, two of them at half the size:
NO_ATTENTION = {"down_block_types": (D, D), "up_block_types": (U, U), "mid_block_type": None}
# Two joins:
ONE_LEVEL = {"block_out_channels": (8,), "down_block_types": (D,), "up_block_types": (U,), "mid_block_type": None}
# Two joins, with attention behind each:
ATTENDED = {**ONE_LEVEL, "up_block_types": (CU,)}


def loop_pipe(name: str = "sd", scheduler: object = None, **changes: object) -> LoopPipe:
    return LoopPipe(make_unet(name, **changes), scheduler or DDIMScheduler(**BETAS))


@functools.cache
def _demo() -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(DEMO, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def demo_pipe(cls: type = StableDiffusionPipeline, **changes: object):
    """A pipeline of `cls` with the demo's components (shared between calls; the scheduler is fresh)."""
    components = {**_demo().components, **changes}
    components.setdefault("scheduler", None)
    if "scheduler" not in changes:
        components["scheduler"] = DDIMScheduler.from_config(_demo().scheduler.config)
    pipe = cls(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own_demo(**changes: object):
    """The demo with a U-Net and a VAE that a test may change."""
    parts = {name: copy.deepcopy(_demo().components[name]) for name in ("unet", "vae")}
    return demo_pipe(**parts, **changes)


def tiny_pipe(cls: type = StableDiffusionPipeline, *, unet: dict | None = None, **changes: object):
    """The demo's text encoder and VAE around a U-Net of its own: "least", with the changes `unet` to its config."""
    return demo_pipe(cls, unet=make_unet("least", cross_attention_dim=96, **(unet or {})), **changes)


@functools.cache
def _sdxl_parts() -> dict:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(f"{DEMO}/tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=4, intermediate_size=8, num_attention_heads=2, num_hidden_layers=2,
        max_position_embeddings=16, projection_dim=8, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return {
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(text).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(text).eval(),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
    }


def sdxl_pipe(cls: type = StableDiffusionXLPipeline, scheduler: object = None):
    """A random, small SDXL pipeline; 32x32 pixels are 16x16 latents."""
    pipe = cls(**_sdxl_parts(), unet=make_unet("sdxl"), scheduler=scheduler or DDIMScheduler(**BETAS))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, steps: int = 6, seed: int = 0, sized: bool = True, **kwargs) -> torch.Tensor:
    """Latents [1, 4, 16, 16] of one prompt with guidance. sized=False: the pipeline takes its size from an image."""
    options = {"prompt": "tiger face", "guidance_scale": 3.0, "output_type": "latent"}
    if sized:
        pixels = 16 * pipe.vae_scale_factor
        options.update(height=pixels, width=pixels)
    generator = torch.Generator().manual_seed(seed)
    return pipe(**{**options, **kwargs}, num_inference_steps=steps, generator=generator).images


def picture(pixels: int) -> Image.Image:
    return Image.radial_gradient("L").resize((pixels, pixels)).convert("RGB")


def mask(pixels: int) -> Image.Image:
    """White below, black above."""
    return Image.linear_gradient("L").resize((pixels, pixels)).point(lambda value: 255 * (value > 127))


def generate_any(pipe, steps: int = 8, **options) -> torch.Tensor:
    """`generate` from text, from an image or by inpainting, as the pipeline's class asks."""
    kind, pixels = type(pipe).__name__, 16 * pipe.vae_scale_factor
    if "Img2Img" in kind:
        return generate(pipe, steps, sized=False, image=picture(pixels), strength=0.6, **options)
    if "Inpaint" in kind:
        options = {"image": picture(pixels), "mask_image": mask(pixels), "strength": 0.8, **options}
    return generate(pipe, steps, **options)


def engine_of(pipe):
    """Graphs and buffers that the pipe holds between runs."""
    (engine,) = attachment_of(pipe).pool._idle
    return engine


def graphs_of(pipe):
    """The captured graphs of all buckets, oldest first."""
    return [bucket.capture for bucket in engine_of(pipe).unet_graphs.buckets.held.values()]


def captured(pipe, *args, **options):
    return accelerate(pipe, *args, cuda_graphs=StandInBackend, **options)


def state_of(pipe) -> SimpleNamespace:
    """Everything that a restore must give back: class and `vars` of the pipe, its scheduler and every module."""
    unet = pipe.unet
    return SimpleNamespace(
        cls=type(pipe),
        pipe=dict(vars(pipe)),
        scheduler={k: v.tolist() if torch.is_tensor(v) else v for k, v in vars(pipe.scheduler).items()},
        modules={name: dict(vars(module)) for name, module in unet.named_modules()},
        classes={name: type(module) for name, module in unet.named_modules()},
    )
