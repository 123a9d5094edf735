"""Kandinsky, DeepFloyd IF, pipelines of pixels without text, sound."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    DDPMScheduler,
    UnCLIPScheduler,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from support.builders import (
    LARGE_MASK,
    LARGE_PICTURE,
    LEAN,
    MASK,
    OTHER_PICTURE,
    PICTURE,
    PIXELS,
    ddim,
    feature_extractor,
    fitted,
    image_encoder,
    movq,
    prior,
    prior_text_encoder,
    random,
    ready,
    sd,
    shared,
    unet_of,
    vae_of,
)
from support.cases.case import SHORT, SIZED, STEPS, partial, works
from support.cases.control import with_control
from transformers import (
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)


def unconditional(cls: type, scheduler: Any, **changes: Any) -> Any:
    vq = movq(3)
    return fitted(cls, unet=unet_of({**UNCONDITIONAL_UNET, **changes}, UNet2DModel), scheduler=scheduler, vqvae=vq)


UNCONDITIONAL_UNET = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}

KANDINSKY_UNET = {
    **LEAN,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "addition_embed_type": "image",
    "encoder_hid_dim": 8,
    "encoder_hid_dim_type": "image_proj",
    "resnet_time_scale_shift": "scale_shift",
}


def kandinsky22(cls: type, **changes: Any) -> Any:
    return fitted(cls, unet=unet_of({**KANDINSKY_UNET, **changes}), scheduler=ddim(), movq=movq())


def combined(cls: type, make: Any, decoder: type, **changes: Any) -> Any:
    """Prior and decoder of Kandinsky in one."""
    torch.manual_seed(1)
    return fitted(
        cls, **make(decoder, **changes).components, prior_prior=prior(),
        prior_image_encoder=image_encoder(8), prior_text_encoder=prior_text_encoder(),
        prior_tokenizer=shared()["tokenizer"], prior_image_processor=feature_extractor(),
        prior_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample"),
    )  # fmt: skip


@functools.cache
def multilingual() -> Any:
    torch.manual_seed(0)
    config = MCLIPConfig(
        numDims=8, transformerDimensions=8, hidden_size=8, intermediate_size=8, num_attention_heads=2,
        num_hidden_layers=1, vocab_size=len(shared()["tokenizer"]), max_position_embeddings=90,
    )  # fmt: skip
    return ready(MultilingualCLIP(config))


def kandinsky21(cls: type, **changes: Any) -> Any:
    config = {
        **KANDINSKY_UNET, "addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj",
        "encoder_hid_dim": 8, "cross_attention_dim": 8, **changes,
    }  # fmt: skip
    return fitted(
        cls, unet=unet_of(config), scheduler=ddim(), movq=movq(), text_encoder=multilingual(),
        tokenizer=shared()["tokenizer"],
    )  # fmt: skip


DEEPFLOYD_UNET = {
    **LEAN,
    "in_channels": 3,
    "out_channels": 6,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "encoder_hid_dim": 8,
    "cross_attention_dim": 32,  # groups of its norm
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
}


def deepfloyd(cls: type, stage: int = 1) -> Any:
    second = {"in_channels": 6, "class_embed_type": "timestep", "time_embedding_act_fn": "gelu"}
    scheduler = functools.partial(DDPMScheduler, variance_type="learned_range", thresholding=True)
    return fitted(
        cls, unet=unet_of({**DEEPFLOYD_UNET, **(second if stage == 2 else {})}), scheduler=scheduler(),
        image_noising_scheduler=DDPMScheduler(), requires_safety_checker=False,
        **dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker")),
    )  # fmt: skip


def audio(cls: type, **changes: Any) -> Any:
    """Prompts come embedded: a CLAP of its own would make them."""
    torch.manual_seed(0)
    config = SpeechT5HifiGanConfig(
        model_in_dim=32, upsample_initial_channel=8, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]], normalize_before=False,
    )  # fmt: skip
    unet = {
        **LEAN, "cross_attention_dim": (8, 16), "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 8, "class_embeddings_concat": True,
    }  # fmt: skip
    vocoder = ready(SpeechT5HifiGan(config))
    return sd(cls, unet, vae=vae_of(in_channels=1, out_channels=1), vocoder=vocoder, **changes)


def music(cls: type) -> Any:
    """Its text encoder needs a `text_model`."""
    return audio(cls, text_encoder=shared()["text_encoder_2"])


KANDINSKY_HINT = {"addition_embed_type": "image_hint", "in_channels": 8}

HINT = {"hint": random(1, 3, 64, 64)}

KANDINSKY = {
    **STEPS, "output_type": "pt", "height": PIXELS, "width": PIXELS, "guidance_scale": 3.0,
    "image_embeds": random(1, 8), "negative_image_embeds": random(1, 8, seed=6),
}  # fmt: skip

EDIT = {**KANDINSKY, "image": PICTURE, "strength": 0.8}

WORDS = {**KANDINSKY, "prompt": "tiger face"}

COMBINED = {**SIZED, "output_type": "pt", "prior_num_inference_steps": 2}

EMBEDDED = {
    **STEPS, "output_type": "pt", "guidance_scale": 3.0,
    "prompt_embeds": random(1, 5, 8), "negative_prompt_embeds": random(1, 5, 8, seed=6),
}  # fmt: skip

SMALL_PICTURE = PICTURE.resize((8, 8))

UNCONDITIONAL = {"num_inference_steps": 5, "output_type": "np"}

UNET2D = {"family": "UNet2DModel"}


def blip(cls: type, config: Mapping[str, Any] = LEAN, **components: Any) -> Any:
    """What a Q-Former makes of picture and words comes ready."""
    pipe = sd(cls, config, qformer=None, text_encoder=None, image_processor=BlipImageProcessor(), **components)
    pipe.get_query_embeddings = lambda *given: None
    pipe.encode_prompt = lambda *given: random(1, 16, 4)
    return pipe


BLIP = {
    "prompt": ["tiger"], "source_subject_category": ["face"], "target_subject_category": ["face"], "output_type": "pt",
    "guidance_scale": 1.0, "num_inference_steps": 5, "height": PIXELS, "width": PIXELS,
}  # fmt: skip
AUDIO = {
    "num_inference_steps": 5, "guidance_scale": 3.0, "audio_length_in_s": 0.008,
    "prompt_embeds": random(1, 8), "negative_prompt_embeds": random(1, 8, seed=6),
}  # fmt: skip

CASES = [
    works("KandinskyV22Pipeline", "text to image", kandinsky22, KANDINSKY),
    works("KandinskyV22Img2ImgPipeline", "image to image", kandinsky22, EDIT, SHORT),
    works(
        "KandinskyV22InpaintPipeline",
        "inpainting",
        partial(kandinsky22, in_channels=9),
        {**KANDINSKY, "image": PICTURE, "mask_image": MASK},
    ),
    works("KandinskyV22ControlnetPipeline", "hint", partial(kandinsky22, **KANDINSKY_HINT), {**KANDINSKY, **HINT}),
    works(
        "KandinskyV22ControlnetImg2ImgPipeline", "hint", partial(kandinsky22, **KANDINSKY_HINT), {**EDIT, **HINT}, SHORT
    ),
    works(
        "KandinskyV22CombinedPipeline",
        "text to image",
        partial(combined, kandinsky22, diffusers.KandinskyV22Pipeline),
        COMBINED,
    ),
    works(
        "KandinskyV22Img2ImgCombinedPipeline",
        "image to image",
        partial(combined, kandinsky22, diffusers.KandinskyV22Img2ImgPipeline),
        {**COMBINED, "image": PICTURE, "strength": 0.8},
        SHORT,
    ),
    works(
        "KandinskyV22InpaintCombinedPipeline",
        "inpainting",
        partial(combined, kandinsky22, diffusers.KandinskyV22InpaintPipeline, in_channels=9),
        {**COMBINED, "image": PICTURE, "mask_image": MASK},
    ),
    works(
        "KandinskyCombinedPipeline",
        "text to image",
        partial(combined, kandinsky21, diffusers.KandinskyPipeline),
        COMBINED,
    ),
    works(
        "KandinskyImg2ImgCombinedPipeline",
        "image to image",
        partial(combined, kandinsky21, diffusers.KandinskyImg2ImgPipeline),
        {**COMBINED, "image": PICTURE, "strength": 0.8},
        SHORT,
    ),
    works(
        "KandinskyInpaintCombinedPipeline",
        "inpainting",
        partial(combined, kandinsky21, diffusers.KandinskyInpaintPipeline, in_channels=9),
        {**COMBINED, "image": PICTURE, "mask_image": MASK},
    ),
    works("KandinskyPipeline", "text to image", kandinsky21, WORDS),
    works("KandinskyImg2ImgPipeline", "image to image", kandinsky21, {**EDIT, **WORDS}, SHORT),
    works(
        "KandinskyInpaintPipeline",
        "inpainting",
        partial(kandinsky21, in_channels=9),
        {**WORDS, "image": PICTURE, "mask_image": MASK},
    ),
    works("IFPipeline", "text to image", deepfloyd, {**EMBEDDED, "height": 16, "width": 16}),
    works("IFImg2ImgPipeline", "image to image", deepfloyd, {**EMBEDDED, "image": PICTURE, "strength": 0.8}, SHORT),
    works("IFInpaintingPipeline", "inpainting", deepfloyd, {**EMBEDDED, "image": PICTURE, "mask_image": MASK}),
    works(
        "IFSuperResolutionPipeline",
        "upscaling",
        partial(deepfloyd, stage=2),
        {**EMBEDDED, "image": SMALL_PICTURE, "height": PIXELS, "width": PIXELS},
    ),
    works(
        "IFImg2ImgSuperResolutionPipeline",
        "upscaling",
        partial(deepfloyd, stage=2),
        {**EMBEDDED, "image": SMALL_PICTURE, "original_image": PICTURE, "strength": 0.8},
        SHORT,
    ),
    works(
        "IFInpaintingSuperResolutionPipeline",
        "upscaling",
        partial(deepfloyd, stage=2),
        {**EMBEDDED, "image": SMALL_PICTURE, "original_image": PICTURE, "mask_image": MASK, "strength": 0.8},
        SHORT,
    ),
    works(
        "PNDMPipeline",
        "images",  # three steps of four Runge-Kutta evaluations each come first
        partial(unconditional, diffusers.PNDMScheduler()),
        UNCONDITIONAL,
        "FPPFPPFPPFPPFP",
        **UNET2D,
    ),
    works(
        "KarrasVePipeline",
        "images",  # the second-order correction comes after scheduler.step: the first call of the next step
        partial(unconditional, diffusers.KarrasVeScheduler(sigma_max=1.0)),
        UNCONDITIONAL,
        "FPFPPFFPP",
        **UNET2D,
    ),
    works("DDPMPipeline", "images", partial(unconditional, diffusers.DDPMScheduler()), UNCONDITIONAL, **UNET2D),
    works("DDIMPipeline", "images", partial(unconditional, diffusers.DDIMScheduler()), UNCONDITIONAL, **UNET2D),
    works("LDMPipeline", "images", partial(unconditional, ddim()), UNCONDITIONAL, **UNET2D),
    works(
        "LDMSuperResolutionPipeline",
        "upscaling",
        partial(unconditional, ddim(), in_channels=6),
        {**UNCONDITIONAL, "image": LARGE_PICTURE},
        **UNET2D,
    ),
    works(
        "RePaintPipeline",
        "inpainting",
        partial(unconditional, diffusers.RePaintScheduler()),
        {**UNCONDITIONAL, "image": LARGE_PICTURE, "mask_image": LARGE_MASK, "jump_length": 2, "jump_n_sample": 2},
        # The noise at the start has other strides than the picture that is worked in, so it is a bucket of its own.
        "FFPFPPFPP",
        **UNET2D,
    ),
    works(
        "ConsistencyModelPipeline",
        "few steps",
        partial(unconditional, diffusers.CMStochasticIterativeScheduler(), num_class_embeds=3),
        {**UNCONDITIONAL, "class_labels": 1},
        **UNET2D,
    ),
    works("AudioLDMPipeline", "sound", audio, AUDIO),
    works("MusicLDMPipeline", "music", music, AUDIO),
    works(
        "BlipDiffusionPipeline",
        "subjects",
        blip,
        {**BLIP, "reference_image": PICTURE},
    ),
    works(
        "BlipDiffusionControlNetPipeline",
        "subjects",
        partial(with_control, blip),
        {**BLIP, "reference_image": PICTURE, "condtioning_image": OTHER_PICTURE},
    ),
]
