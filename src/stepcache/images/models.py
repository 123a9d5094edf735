"""Models by name: the bundled demo, a local pipeline, or the architecture of SD 1.5, SD 2.1 or SDXL.

The architectures have random weights: times are those of the real model, images mean nothing. They use the demo's
tokenizer, whose ids are within every vocabulary. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidSetting
from ..pipes.vae import pixels_per_latent
from .pipelines import DEMO, load_pipeline
from .unet_configs import read_config

EMOJI = ("tiger face", "cherry blossom", "hamburger", "red apple", "fox face", "grinning face")
PROMPTS = (
    "a lighthouse on a cliff, evening light, long shadows",
    "a bowl of ripe plums on a wooden table",
    "a narrow street after rain, lanterns reflected in the puddles",
    "an old sailing ship in a bottle",
    "a snow-covered pine forest under a starry sky",
    "a grey cat asleep on a stack of books",
)

# From the published models' text_encoder/config.json; the last one from text_encoder_2/config.json.
_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
    "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_OPENCLIP_H = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23,
    "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip
_OPENCLIP_BIG_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_TOKENS, _VOCABULARY = 77, 49408


@dataclass(frozen=True)
class _Architecture:
    """A published model except its U-Net, whose config comes with the package."""

    text_encoders: tuple[dict[str, Any], ...]
    image_size: int
    prediction_type: str = "epsilon"
    vae_scale: float = 0.18215


ARCHITECTURES = {
    "sd15": _Architecture((_CLIP_L,), 512),
    "sd21": _Architecture((_OPENCLIP_H,), 768, prediction_type="v_prediction"),
    "sdxl": _Architecture((_CLIP_L, _OPENCLIP_BIG_G), 1024, vae_scale=0.13025),
}


@dataclass(frozen=True)
class Model:
    """A pipeline to measure or to compile. `weights`: "trained" or "random"."""

    name: str
    pipe: Any
    weights: str
    prompts: tuple[str, ...]

    def size(self) -> tuple[int, int]:
        """The U-Net's own (height, width) in pixels. InvalidSetting if its config has none."""
        sample, factor = self.pipe.unet.config.sample_size, self.pixels_per_latent
        if sample is None:
            raise InvalidSetting(f"The U-Net of {self.name} has no sample_size: give the size, --size 512 or 512x768.")
        height, width = sample if isinstance(sample, (list, tuple)) else (sample, sample)
        return height * factor, width * factor

    @property
    def pixels_per_latent(self) -> int:
        """Along a side; 1 where the U-Net works on the pixels themselves."""
        return pixels_per_latent(self.pipe)


def load(name: str, device: str, dtype: torch.dtype, variant: str | None = None) -> Model:
    """The pipeline of this name on `device` in `dtype`: demo, sd15, sd21, sdxl, or a local pipeline's directory.

    variant: of a directory's weight files, as in `load_directory`. StepCacheError for a directory without a pipeline
    with a U-Net, or one that diffusers cannot load.
    """
    if name in ARCHITECTURES:
        return Model(name, _random_pipe(name, device, dtype), "random", PROMPTS)
    pipe = load_pipeline(name, device, dtype, variant)
    if name == DEMO:
        return Model(name, pipe, "trained", EMOJI)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None  # images that it blackens say nothing about fidelity
    return Model(Path(name).resolve().name, pipe, "trained", PROMPTS)


def _random_pipe(name: str, device: str, dtype: torch.dtype) -> Any:
    """The architecture with diffusers' default initialisation, which is the same at every call."""
    import diffusers
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    architecture = ARCHITECTURES[name]
    with as_file(files("stepcache") / "assets" / "demo" / "tokenizer") as path:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, model_max_length=_TOKENS)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel.from_config(read_config(name)).to(dtype)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=architecture.image_size,
            scaling_factor=architecture.vae_scale,
        ).to(dtype)
        # SDXL's pipeline needs the projection of the second one; the first has none in any of the models.
        classes = (CLIPTextModel, CLIPTextModelWithProjection)
        encoders = [
            cls(
                CLIPTextConfig(
                    **config,
                    vocab_size=_VOCABULARY,
                    max_position_embeddings=_TOKENS,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ).to(dtype)
            for cls, config in zip(classes, architecture.text_encoders, strict=False)
        ]
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=architecture.prediction_type,
    )
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "scheduler": scheduler}
    parts |= {"text_encoder": encoders[0], "tokenizer": tokenizer}
    if len(encoders) == 1:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    else:
        parts |= {"text_encoder_2": encoders[1], "tokenizer_2": tokenizer}
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    for part in (unet, vae, *encoders):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
