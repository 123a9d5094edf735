"""Pipelines that edit pictures, or read something out of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMInverseScheduler,
    DPMSolverMultistepScheduler,
)
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import PaintByExampleImageEncoder
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from support.builders import (
    BETAS,
    LARGE_PICTURE,
    LEAN,
    LEAN_XL,
    MASK,
    OTHER_PICTURE,
    PICTURE,
    C,
    D,
    U,
    ddim,
    feature_extractor,
    image_encoder,
    random,
    ready,
    sd,
    sdxl,
    shared,
)
from support.cases.case import IMAGE, PLAIN, SHORT, SIZED, STEPS, TEXT, partial, works


def ledits(cls: type, make: Any, config: Mapping[str, Any]) -> Any:
    return make(cls, config, scheduler=DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"))


def diffedit(cls: type) -> Any:
    return sd(cls, inverse_scheduler=DDIMInverseScheduler(**BETAS, clip_sample=False))


def pix2pix_zero(cls: type) -> Any:
    return sd(cls, inverse_scheduler=DDIMInverseScheduler(**BETAS), caption_generator=None, caption_processor=None)


def paint_by_example(cls: type) -> Any:
    torch.manual_seed(0)
    encoder = ready(PaintByExampleImageEncoder(image_encoder(8).config, proj_size=4))
    return sd(cls, {**LEAN, "in_channels": 9}, image_encoder=encoder, feature_extractor=feature_extractor())


def ldm_text(cls: type) -> Any:
    torch.manual_seed(0)
    config = LDMBertConfig(
        vocab_size=len(shared()["tokenizer"]), encoder_layers=1, encoder_ffn_dim=8, encoder_attention_heads=2,
        head_dim=4, d_model=4, max_position_embeddings=77,
    )  # fmt: skip
    return sd(cls, vqvae=shared()["vae"], bert=ready(LDMBertModel(config)))


def marigold(cls: type, targets: int = 1) -> Any:
    config = {**LEAN, "in_channels": 4 + 4 * targets, "out_channels": 4 * targets}
    kinds = {"target_properties": {"target_names": [f"target {i}" for i in range(targets)]}} if targets > 1 else {}
    return sd(cls, config, prediction_type="depth" if targets == 1 else "intrinsics", **kinds)


def inverted(pipe: Any, call: dict[str, Any]) -> Any:
    """LEdits++: the noise of a picture first, outside of the pipeline's own call."""
    generator = torch.Generator().manual_seed(0)
    pipe.invert(image=LARGE_PICTURE, source_prompt="tiger face", num_inversion_steps=5, skip=0.2, generator=generator)
    return pipe(**call)


def masked(pipe: Any, call: dict[str, Any]) -> Any:
    """DiffEdit: mask and inverted latents first."""
    options = {"num_inference_steps": 5, "generator": call["generator"]}
    mask = pipe.generate_mask(
        PICTURE, target_prompt="rose", source_prompt="tiger face", num_maps_per_mask=2, **options
    )  # fmt: skip
    latents = pipe.invert("tiger face", PICTURE, **options).latents
    return pipe(mask_image=mask, image_latents=latents, **call)


LEDITS = {"editing_prompt": ["rose"], "edit_guidance_scale": 3.0, "edit_threshold": 0.5, "output_type": "latent"}

# Masks come from attention maps of 4 x 4 latents (a quarter), so there is a third level, which has attention.
QUARTER = {"block_out_channels": (8, 16, 16), "down_block_types": (D, D, C), "up_block_types": (U, U, U)}

NO_MASK = {**LEDITS, "use_intersect_mask": False, "use_cross_attn_mask": False}

MARIGOLD = {"image": PICTURE, "num_inference_steps": 5, "processing_resolution": 0}

CASES = [
    works(
        "StableDiffusionAttendAndExcitePipeline",
        "gradients of attention maps",
        sd,
        {**SIZED, "token_indices": [1, 2], "thresholds": {}, "attn_res": (8, 8)},
        "SF" + "SP" * 2 + "SF" + "SP",
    ),
    works("LEditsPPPipelineStableDiffusion", "no mask", partial(ledits, sd, LEAN), NO_MASK, run=inverted),
    works(
        "LEditsPPPipelineStableDiffusion",
        "mask from attention maps",
        partial(ledits, sd, {**LEAN, **QUARTER}),
        {**LEDITS, "use_cross_attn_mask": True},
        "SSSSS",
        run=inverted,
    ),
    works("LEditsPPPipelineStableDiffusionXL", "no mask", partial(ledits, sdxl, LEAN_XL), NO_MASK, run=inverted),
    works(
        "LEditsPPPipelineStableDiffusionXL",
        "mask from attention maps",
        partial(ledits, sdxl, {**LEAN_XL, **QUARTER}),
        {**LEDITS, "use_cross_attn_mask": True},
        "SSSSS",
        run=inverted,
    ),
    works(
        "SemanticStableDiffusionPipeline",
        "semantic guidance",
        sd,
        {**SIZED, "editing_prompt": ["rose"], "edit_warmup_steps": 1, "edit_guidance_scale": 3.0},
    ),
    works(
        "StableDiffusionDiffEditPipeline",
        "mask and inversion",
        diffedit,
        {**TEXT, "prompt": "rose"},
        SHORT,
        run=masked,
    ),
    works(
        "StableDiffusionPix2PixZeroPipeline",
        "gradients of attention maps",
        pix2pix_zero,
        {**SIZED, "source_embeds": random(2, 16, 4), "target_embeds": random(2, 16, 4, seed=6)},
        "S" * 15,
    ),
    works(
        "CycleDiffusionPipeline",
        "editing",
        partial(sd, scheduler=ddim(set_alpha_to_one=False)),
        {**IMAGE, "source_prompt": "rose"},
        SHORT,
    ),
    works(
        "PaintByExamplePipeline",
        "inpainting",
        paint_by_example,
        {**STEPS, "image": PICTURE, "mask_image": MASK, "example_image": OTHER_PICTURE, "guidance_scale": 3.0},
    ),
    works("StableDiffusionPipelineSafe", "safety guidance", sd, {**SIZED, "sld_warmup_steps": 1}),
    # edit_model() does nothing but fail in today's diffusers, which has no class CrossAttention any more.
    works("StableDiffusionModelEditingPipeline", "text to image", sd, SIZED),
    works("StableDiffusionInpaintPipelineLegacy", "inpainting", sd, {**IMAGE, "mask_image": MASK}, SHORT),
    works(
        "StableDiffusionParadigmsPipeline",
        "steps in parallel",
        partial(sd, scheduler=diffusers.DDIMParallelScheduler(**BETAS, clip_sample=False)),
        {**SIZED, "parallel": 3},
        "FFFFF",
    ),
    works("LDMTextToImagePipeline", "text to image", ldm_text, {**SIZED, "output_type": "np"}),
    works(
        "MarigoldDepthPipeline",
        "depth",
        marigold,
        MARIGOLD,
    ),
    works(
        "MarigoldDepthPipeline",
        "several pictures, one by one",
        marigold,
        {**MARIGOLD, "image": [PICTURE, OTHER_PICTURE]},
        PLAIN * 2,
    ),
    works(
        "MarigoldNormalsPipeline",
        "normals",
        marigold,
        MARIGOLD,
    ),
    works(
        "MarigoldIntrinsicsPipeline",
        "intrinsics",
        partial(marigold, targets=2),
        MARIGOLD,
    ),
]
