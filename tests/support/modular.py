"""A small modular SDXL pipeline, and guiders for it."""

from __future__ import annotations

import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    LayerSkipConfig,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    StableDiffusionXLAutoBlocks,
)
from support.builders import TINY_XL, unet_of
from support.small import BETAS, _sdxl_parts

UNET = {**TINY_XL, "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
# Layers that a guider may skip: in the mid block, which only full steps run, and in the last block of the up path.
DEEP, SHALLOW = "mid_block.attentions.0.transformer_blocks", "up_blocks.1.attentions.1.transformer_blocks"


def modular_pipe(guider: object = None, blocks: object = None):
    """A random, tiny modular SDXL pipeline; 16x16 pixels are 8x8 latents."""
    pipe = (blocks or StableDiffusionXLAutoBlocks()).init_pipeline()
    parts = {**_sdxl_parts(), "unet": unet_of(UNET), "scheduler": DDIMScheduler(**BETAS, clip_sample=False)}
    parts["guider"] = guider or ClassifierFreeGuidance(guidance_scale=3.0)
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.component_names})
    return pipe


def skip_layer(where: str = DEEP, **options: object) -> SkipLayerGuidance:
    config = LayerSkipConfig(indices=[0], fqn=where)
    return SkipLayerGuidance(3.0, 2.0, 0.0, options.pop("until", 1.0), skip_layer_config=config, **options)


def perturbed(where: str = DEEP, **options: object) -> PerturbedAttentionGuidance:
    config = LayerSkipConfig(indices=[0], fqn=where, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    return PerturbedAttentionGuidance(
        3.0, 2.0, 0.0, options.pop("until", 1.0), perturbed_guidance_config=config, **options
    )


def denoised(pipe, steps: int = 6, prompt: str = "tiger face", **options: object) -> torch.Tensor:
    """Latents [1, 4, 8, 8]."""
    # diffusers 0.42: the text encoder's block asks the guider, which still stands at the last step of the run before.
    # A second run of a stock pipe fails if guidance had stopped there.
    pipe.guider.set_state(step=None, num_inference_steps=None, timestep=None)
    generator = torch.Generator().manual_seed(0)
    call = {"prompt": prompt, "height": 16, "width": 16, "num_inference_steps": steps, "output_type": "latent"}
    return pipe(**{**call, **options}, generator=generator, output="latents")
