"""Stable Diffusion and SDXL: from text and pictures, few steps, Kolors, unCLIP, GLIGEN."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionGLIGENPipeline,
    UnCLIPScheduler,
)
from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from support.builders import (
    BETAS,
    LEAN,
    LEAN_XL,
    OTHER_PICTURE,
    PICTURE,
    PIXELS,
    TINY,
    TINY_XL,
    feature_extractor,
    image_encoder,
    prior,
    prior_text_encoder,
    random,
    ready,
    sd,
    sdxl,
    shared,
    vae_of,
)
from support.cases.case import IMAGE, INPAINT, SHORT, SIZED, STEPS, TEXT, partial, works


def upscaler(cls: type) -> Any:
    """The noise level of the low-resolution picture is a class label."""
    config = {**LEAN, "in_channels": 7, "out_channels": 4, "num_class_embeds": 400}
    return sd(cls, config, low_res_scheduler=DDPMScheduler())


def latent_upscaler(cls: type) -> Any:
    """K blocks: groups of 32 channels, and as many in the first up block as in the time embedding."""
    config = {
        "sample_size": 16, "in_channels": 8, "out_channels": 5,
        "layers_per_block": 2, "block_out_channels": (32, 64, 64),
        "act_fn": "gelu", "attention_head_dim": 8, "norm_num_groups": None, "cross_attention_dim": 4,
        "conv_in_kernel": 1, "conv_out_kernel": 1, "mid_block_type": None, "resnet_time_scale_shift": "scale_shift",
        "time_embedding_type": "fourier", "time_cond_proj_dim": 132, "timestep_post_act": "gelu",
        "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
        "up_block_types": ("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
    }  # fmt: skip
    return sd(cls, config, scheduler=EulerDiscreteScheduler(prediction_type="sample"))


def lcm(cls: type) -> Any:
    return sd(cls, {**LEAN, "time_cond_proj_dim": 12}, scheduler=LCMScheduler(**BETAS))


def turbo(cls: type, make: Any) -> Any:
    return make(cls, scheduler=EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"))


def freeu(cls: type, make: Any, config: Mapping[str, Any]) -> Any:
    pipe = make(cls, config)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    return pipe


def ldm3d(cls: type) -> Any:
    return sd(cls, vae=vae_of(in_channels=6, out_channels=6))


def gligen(cls: type) -> Any:
    kind = "gated" if cls is StableDiffusionGLIGENPipeline else "gated-text-image"
    torch.manual_seed(1)
    return sd(
        cls, {**TINY, "attention_type": kind}, processor=feature_extractor(), image_encoder=image_encoder(4),
        image_project=ready(CLIPImageProjection(4)),
    )  # fmt: skip


def stable_unclip(cls: type) -> Any:
    torch.manual_seed(1)
    config = {**LEAN, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    return sd(
        cls, config, prior_tokenizer=shared()["tokenizer"], prior_text_encoder=prior_text_encoder(), prior=prior(),
        prior_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=8), image_encoder=image_encoder(8),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"), feature_extractor=feature_extractor(),
    )  # fmt: skip


def image_variation(cls: type) -> Any:
    return sd(
        cls, {**LEAN, "cross_attention_dim": 8}, image_encoder=image_encoder(8), feature_extractor=feature_extractor()
    )


def kolors(cls: type, **components: Any) -> Any:
    """Its text encoder (ChatGLM) stays out: prompts come embedded.

    Without sentencepiece, which only its tokenizer needs, diffusers itself does not hand the class out.
    """
    from diffusers.pipelines.kolors import pipeline_kolors, pipeline_kolors_img2img
    from diffusers.pipelines.pag import pipeline_pag_kolors

    modules = pipeline_pag_kolors, pipeline_kolors_img2img, pipeline_kolors
    cls = next(getattr(module, cls.__name__) for module in modules if hasattr(module, cls.__name__))
    config = {**LEAN_XL, "encoder_hid_dim": 6, "encoder_hid_dim_type": "text_proj"}
    pipe = sd(cls, config, text_encoder=None, tokenizer=None, **components)
    pooled = random(1, 8), random(1, 8, seed=6)
    # That of image to image loses pooled embeddings that it is given.
    pipe.encode_prompt = lambda **given: (given["prompt_embeds"], given["negative_prompt_embeds"], *pooled)
    return pipe


def refiner(cls: type) -> Any:
    """One text encoder, and a score in the place of the second size."""
    config = {**LEAN_XL, "cross_attention_dim": 4, "projection_class_embeddings_input_dim": 5 * 8 + 8}
    return sdxl(cls, config, text_encoder=None, tokenizer=None, requires_aesthetics_score=True)


KOLORS = {
    **STEPS, "height": PIXELS, "width": PIXELS, "guidance_scale": 3.0,
    "prompt_embeds": random(1, 5, 6), "negative_prompt_embeds": random(1, 5, 6, seed=6),
    "pooled_prompt_embeds": random(1, 8), "negative_pooled_prompt_embeds": random(1, 8, seed=6),
}  # fmt: skip

XL_IMAGE = {**SIZED, "image": PICTURE}

BOXES = {"gligen_phrases": ["tiger", "rose"], "gligen_boxes": [[0.1, 0.1, 0.5, 0.5], [0.4, 0.4, 0.9, 0.9]]}

CASES = [
    works("StableDiffusionPipeline", "text to image", sd, SIZED),
    works("StableDiffusionPipeline", "no guidance", sd, {**SIZED, "guidance_scale": 1.0}),
    works("StableDiffusionPipeline", "FreeU", partial(freeu, sd, TINY), SIZED),
    works("StableDiffusionImg2ImgPipeline", "image to image", sd, IMAGE, SHORT),
    works("StableDiffusionInpaintPipeline", "inpainting", sd, INPAINT),
    works("StableDiffusionInpaintPipeline", "inpainting, 9 channels", partial(sd, {**LEAN, "in_channels": 9}), INPAINT),
    works(
        "StableDiffusionDepth2ImgPipeline",
        "depth",
        partial(sd, {**LEAN, "in_channels": 5}, depth_estimator=None),
        {**IMAGE, "depth_map": random(1, PIXELS, PIXELS)},
        SHORT,
    ),
    works("StableDiffusionInstructPix2PixPipeline", "editing", partial(sd, {**LEAN, "in_channels": 8}), IMAGE),
    works("StableDiffusionUpscalePipeline", "upscaling", upscaler, {**TEXT, "image": PICTURE.resize((8, 8))}),
    works(
        "StableDiffusionLatentUpscalePipeline",
        "upscaling",
        latent_upscaler,
        {**TEXT, "image": PICTURE.resize((8, 8))},
    ),
    works("StableDiffusionImageVariationPipeline", "variations", image_variation, {**STEPS, "image": PICTURE}),
    works("StableDiffusionLDM3DPipeline", "text to image and depth", ldm3d, {**SIZED, "output_type": "np"}),
    works("StableDiffusionXLPipeline", "text to image", sdxl, SIZED),
    works("StableDiffusionXLPipeline", "FreeU", partial(freeu, sdxl, TINY_XL), SIZED),
    works("StableDiffusionXLImg2ImgPipeline", "image to image", sdxl, {**IMAGE, "strength": 0.8}, SHORT),
    works("StableDiffusionXLInpaintPipeline", "inpainting", sdxl, INPAINT, SHORT),
    works(
        "StableDiffusionXLInstructPix2PixPipeline", "editing", partial(sdxl, {**LEAN_XL, "in_channels": 8}), XL_IMAGE
    ),
    works("KolorsPipeline", "text to image", kolors, KOLORS),
    works("KolorsImg2ImgPipeline", "image to image", kolors, {**KOLORS, "image": PICTURE, "strength": 0.8}, SHORT),
    works("LatentConsistencyModelPipeline", "few steps", lcm, {**SIZED, "num_inference_steps": 4}, "FPPF"),
    works("LatentConsistencyModelImg2ImgPipeline", "few steps", lcm, {**IMAGE, "num_inference_steps": 4}, "FPPF"),
    works(
        "StableDiffusionPipeline",
        "Turbo",
        partial(turbo, sd),
        {**SIZED, "num_inference_steps": 4, "guidance_scale": 0.0},
        "FPPF",
    ),
    works(
        "StableDiffusionXLPipeline",
        "Turbo",
        partial(turbo, sdxl),
        {**SIZED, "num_inference_steps": 4, "guidance_scale": 0.0},
        "FPPF",
    ),
    works(
        "StableDiffusionXLPipeline",
        "Turbo, one step",
        partial(turbo, sdxl),
        {**SIZED, "num_inference_steps": 1, "guidance_scale": 0.0},
        "F",
    ),
    works("StableDiffusionGLIGENPipeline", "boxes", gligen, {**SIZED, **BOXES, "gligen_scheduled_sampling_beta": 0.4}),
    works("StableUnCLIPPipeline", "text to image", stable_unclip, {**SIZED, "prior_num_inference_steps": 2}),
    works("StableUnCLIPImg2ImgPipeline", "variations", stable_unclip, {**SIZED, "image_embeds": random(1, 8)}),
    works(
        "StableDiffusionGLIGENTextImagePipeline",
        "boxes with words and pictures",
        gligen,
        {**SIZED, **BOXES, "gligen_images": [PICTURE, OTHER_PICTURE]},
        "FFPPPPFFPP",
    ),
    works("AltDiffusionPipeline", "text to image", sd, SIZED),
    works("AltDiffusionImg2ImgPipeline", "image to image", sd, IMAGE, SHORT),
    works("KolorsPAGPipeline", "perturbed attention", partial(kolors, pag_applied_layers=["down"]), KOLORS),
    works(
        "StableDiffusionXLPipeline",
        "a base that leaves the end to a refiner",
        sdxl,
        {**SIZED, "denoising_end": 0.6},
        "FPP",
    ),
    works(
        "StableDiffusionXLImg2ImgPipeline",
        "a refiner, with aesthetic scores",
        refiner,
        {**TEXT, "image": random(1, 4, 8, 8), "denoising_start": 0.4, "aesthetic_score": 7.0},
        "FPP",
    ),
    works(
        "TextToVideoZeroSDXLPipeline",
        "video, in three loops",
        sdxl,
        {**SIZED, "num_inference_steps": 8, "t0": 2, "t1": 4, "video_length": 2},
        "FPPFP" + "FPPFP",
    ),
]
