"""Random, tiny pipelines of each kind, built from configs: 8 x 8 latents, 16 x 16 pixels, two levels of 8 and 16
channels. U-Nets and control models are new at each call; VAE, text encoders and tokenizer are shared.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    PriorTransformer,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from support.small import BETAS as _BETAS
from support.small import SDXL_TIME, SMALL, mask, picture, sdxl_pipe
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

PIXELS = 16
BETAS = {**_BETAS, "steps_offset": 1}
C, D, CU, U = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
TINY = {
    **SMALL,
    "cross_attention_dim": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": (C, D),
    "up_block_types": (U, CU),
}
TINY_XL = {
    **TINY,
    **SDXL_TIME,
    "cross_attention_dim": 8,
    "down_block_types": (D, C),
    "up_block_types": (CU, U),
    "projection_class_embeddings_input_dim": 6 * 8 + 8,
}
# With attention in one block alone, for rows that are not about attention: in LEAN it is in what a partial step of
# branch 1 runs, in LEAN_XL in what that leaves out.
ONCE = {"up_block_types": (U, U), "mid_block_type": "UNetMidBlock2D"}
LEAN, LEAN_XL = {**TINY, **ONCE}, {**TINY_XL, **ONCE}

PICTURE = picture(PIXELS)
OTHER_PICTURE = PICTURE.rotate(90).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
MASK = mask(PIXELS)
# For pipelines that take pictures of a multiple of 32 pixels only.
LARGE_PICTURE, LARGE_MASK = picture(32), mask(32)


def random(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ready(model: torch.nn.Module) -> Any:
    """In evaluation mode; layers that start at zero (a ControlNet's outputs) get weights, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval().requires_grad_(False)


def unet_of(config: Mapping[str, Any], cls: type = UNet2DConditionModel) -> Any:
    torch.manual_seed(0)
    return ready(cls(**config))


@functools.cache
def shared() -> dict[str, Any]:
    """VAE, text encoders and tokenizers; text is 4 channels wide, 8 for SDXL."""
    components = sdxl_pipe().components
    return {name: components[name] for name in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}


def parts(*names: str) -> dict[str, Any]:
    return {name: shared()[name] for name in names}


@functools.cache
def image_encoder(width: int = 8) -> Any:
    """A CLIP image encoder with embeddings of `width` channels."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, projection_dim=width,
        image_size=PIXELS, patch_size=16,
    )  # fmt: skip
    return ready(CLIPVisionModelWithProjection(config))


def feature_extractor() -> CLIPImageProcessor:
    size = {"height": PIXELS, "width": PIXELS}
    return CLIPImageProcessor(crop_size=size, size=size)


@functools.cache
def vae_of(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    config = {
        "block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2, **changes,
    }  # fmt: skip
    return ready(AutoencoderKL(**config))


@functools.cache
def movq(channels: int = 4) -> VQModel:
    """The VQ model of Kandinsky and LDM: half the size in pixels."""
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels, vq_embed_dim=channels,
        num_vq_embeddings=16, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return ready(model)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ddim(**changes: Any) -> DDIMScheduler:
    return DDIMScheduler(**{**BETAS, "clip_sample": False, **changes})


def fitted(cls: type, **components: Any) -> Any:
    """A pipeline of those of the components that its constructor takes."""
    takes = inspect.signature(cls.__init__).parameters
    return quiet(cls(**{name: part for name, part in components.items() if name in takes}))


def sd(cls: type, config: Mapping[str, Any] = LEAN, **components: Any) -> Any:
    """A pipeline with SD's parts; `components` come in their place."""
    everything = {
        **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder")),
        **parts("vae", "text_encoder", "tokenizer"),
        "requires_safety_checker": False,
        **components,
    }
    everything.setdefault("scheduler", ddim())
    if "unet" not in everything:
        everything["unet"] = unet_of(config)
    return fitted(cls, **everything)


def sdxl(cls: type, config: Mapping[str, Any] = LEAN_XL, **components: Any) -> Any:
    return sd(cls, config, **{**parts("text_encoder_2", "tokenizer_2"), **components})


def prior(hidden: int = 8) -> Any:
    config = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "num_embeddings": 16}
    return ready(PriorTransformer(**config, embedding_dim=hidden))


@functools.cache
def prior_text_encoder() -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(**{**shared()["text_encoder_2"].config.to_dict(), "hidden_size": 8, "projection_dim": 8})
    return ready(CLIPTextModelWithProjection(config))
