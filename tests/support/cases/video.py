"""Video: AnimateDiff, Stable Video Diffusion, ModelScope, Text2Video-Zero. Three frames of 16 x 16 pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    EulerDiscreteScheduler,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from support.builders import PICTURE, TINY, TINY_XL, U, ddim, parts, quiet, ready, sd, unet_of
from support.cases.case import SHORT, STEPS, Case, works
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

FRAMES, PIXELS = 3, 16  # 8 x 8 latents
# Motion modules are put around a mid block with attention; of the others, one has it.
MOVING = {**TINY, "up_block_types": (U, U)}
PICTURES = [PICTURE.resize((PIXELS, PIXELS)).rotate(90 * i) for i in range(FRAMES)]


def motion_adapter(**options: Any) -> Any:
    config = {"motion_layers_per_block": 1, "motion_num_attention_heads": 2, "motion_norm_num_groups": 4, **options}
    return ready(MotionAdapter(block_out_channels=(8, 16), **config))


def animatediff(cls: type, scheduler: Any = None, **models: Callable[[Any], Any]) -> Any:
    """`models` are made from the U-Net before it gets its motion modules."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**MOVING)
    adapter = motion_adapter(motion_max_seq_length=8, conv_in_channels=9 if cls is PIAPipeline else None)
    made = {name: ready(make(unet)) for name, make in models.items()}
    pipe = sd(cls, unet=unet, motion_adapter=adapter, scheduler=scheduler or ddim(), **made)
    ready(pipe.unet)
    return pipe


def animatediff_sdxl(cls: type) -> Any:
    torch.manual_seed(0)
    # The block with attention is the outer one, as in TINY.
    blocks = {name: MOVING[name] for name in ("down_block_types", "up_block_types")}
    more = {**parts("text_encoder_2", "tokenizer_2"), "motion_adapter": motion_adapter(use_motion_mid_block=False)}
    pipe = sd(cls, unet=UNet2DConditionModel(**{**TINY_XL, **blocks}), **more)
    ready(pipe.unet)
    return pipe


def control_net(unet: Any) -> Any:
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))


def sparse_control_net(unet: Any) -> Any:
    return SparseControlNetModel(
        in_channels=4, conditioning_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=4, num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    )  # fmt: skip


MODELSCOPE_UNET = {
    **{name: TINY[name] for name in ("block_out_channels", "layers_per_block", "norm_num_groups")},
    "cross_attention_dim": 4,
    "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "UpBlock3D"),
}
SVD_UNET = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
}


def modelscope(cls: type) -> Any:
    return sd(cls, unet=unet_of(MODELSCOPE_UNET, UNet3DConditionModel))


@functools.cache
def svd_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, projection_dim=8, patch_size=112
    )
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    size = {"height": 224, "width": 224}
    return {
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "vae": vae.eval(),
        "feature_extractor": CLIPImageProcessor(crop_size=size, size=size),
    }


def svd(cls: type = StableVideoDiffusionPipeline, scheduler: Any = None) -> Any:
    scheduler = scheduler or EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")
    return quiet(cls(**svd_parts(), unet=unet_of(SVD_UNET, UNetSpatioTemporalConditionModel), scheduler=scheduler))


SIZED = {**STEPS, "height": PIXELS, "width": PIXELS}
IMAGE = {**SIZED, "num_frames": FRAMES, "image": PICTURES[0]}
TEXT = {**SIZED, "num_frames": FRAMES, "prompt": "tiger face", "guidance_scale": 3.0}
VIDEO = {**STEPS, "prompt": "tiger face", "guidance_scale": 3.0, "video": PICTURES, "strength": 0.8}
ZERO = {**SIZED, "prompt": "tiger face", "guidance_scale": 3.0, "num_inference_steps": 10}

SVD = {"family": "UNetSpatioTemporalConditionModel"}
MOTION = {"family": "UNetMotionModel"}
MODELSCOPE = {"family": "UNet3DConditionModel"}


def animated(pipeline: str, feature: str, call: dict[str, Any], kinds: str = "FPPFP", **models: Any) -> Case:
    build = functools.partial(animatediff, **models) if models else animatediff
    return works(pipeline, feature, build, call, kinds, **MOTION)


CASES = [
    works("StableVideoDiffusionPipeline", "image to video", svd, {**IMAGE, "max_guidance_scale": 3.0}, **SVD),
    works("StableVideoDiffusionPipeline", "no guidance", svd, {**IMAGE, "max_guidance_scale": 1.0}, **SVD),
    animated("AnimateDiffPipeline", "text to video", TEXT),
    animated("AnimateDiffPipeline", "no guidance", {**TEXT, "guidance_scale": 1.0}),
    works("AnimateDiffSDXLPipeline", "text to video", animatediff_sdxl, TEXT, **MOTION),
    animated("AnimateDiffVideoToVideoPipeline", "video to video", {**SIZED, **VIDEO}, SHORT),
    animated(
        "AnimateDiffControlNetPipeline",
        "ControlNet",
        {**TEXT, "conditioning_frames": PICTURES, "control_guidance_end": 0.6},
        controlnet=control_net,
    ),
    animated(
        "AnimateDiffVideoToVideoControlNetPipeline",
        "ControlNet",
        {**SIZED, **VIDEO, "conditioning_frames": PICTURES},
        SHORT,
        controlnet=control_net,
    ),
    animated(
        "AnimateDiffSparseControlNetPipeline",
        "SparseCtrl",
        {**TEXT, "conditioning_frames": PICTURES[:1], "controlnet_frame_indices": [0]},
        controlnet=sparse_control_net,
    ),
    animated("PIAPipeline", "image to video", {**TEXT, "image": PICTURES[0]}),
    works("TextToVideoSDPipeline", "text to video", modelscope, TEXT, **MODELSCOPE),
    works("VideoToVideoSDPipeline", "video to video", modelscope, VIDEO, SHORT, **MODELSCOPE),
    works(
        "TextToVideoZeroPipeline",
        "text to video",  # two loops of the first frame; then one of all frames, with a copy of the scheduler
        sd,
        {**ZERO, "video_length": FRAMES, "t0": 2, "t1": 4},
        "FPPFPPF" + "FPPFP",
    ),
]
