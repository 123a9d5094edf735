"""Small video pipelines, each with the arguments of a call."""

import functools

import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    AnimateDiffVideoToVideoPipeline,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
    VideoToVideoSDPipeline,
)
from PIL import Image
from support.small import BETAS, SDXL_TIME, SMALL, sdxl_pipe
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

FRAMES, PIXELS = 3, 16  # 8 x 8 latents
C, D, CU, U = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
TINY = {
    **SMALL,
    "cross_attention_dim": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": (C, D),
    "up_block_types": (U, CU),
}
PICTURES = [Image.radial_gradient("L").resize((PIXELS, PIXELS)).rotate(90 * i).convert("RGB") for i in range(FRAMES)]


def ready(module):
    """In evaluation, and with layers that start at zero (a ControlNet's outputs) doing something, always the same."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return module.eval().requires_grad_(False)


@functools.cache
def parts(*names):
    components = sdxl_pipe().components
    return {name: components[name] for name in ("vae", "text_encoder", "tokenizer", *names)}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def animatediff(cls=AnimateDiffPipeline, scheduler=None, **more):
    shared = parts()
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**TINY)
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        motion_max_seq_length=8, conv_in_channels=9 if cls is PIAPipeline else None,
    )  # fmt: skip
    models = {name: ready(make(unet)) for name, make in more.items()}
    scheduler = scheduler or DDIMScheduler(**BETAS)
    pipe = cls(**shared, unet=unet, motion_adapter=ready(adapter), scheduler=scheduler, **models)
    ready(pipe.unet)
    return quiet(pipe)


def animatediff_sdxl():
    shared = parts("text_encoder_2", "tokenizer_2")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        **{**TINY, **SDXL_TIME, "cross_attention_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 8}
    )
    adapter = MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4,
        use_motion_mid_block=False,
    )  # fmt: skip
    pipe = AnimateDiffSDXLPipeline(**shared, unet=unet, motion_adapter=adapter, scheduler=DDIMScheduler(**BETAS))
    ready(pipe.unet)
    return quiet(pipe)


def control_net(unet):
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8))


def sparse_control_net(unet):
    return SparseControlNetModel(
        in_channels=4, conditioning_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=4, num_attention_heads=2, motion_num_attention_heads=2, motion_max_seq_length=8,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    )  # fmt: skip


def modelscope(cls=TextToVideoSDPipeline):
    torch.manual_seed(0)
    unet = UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return quiet(cls(**parts(), unet=ready(unet), scheduler=DDIMScheduler(**BETAS)))


@functools.cache
def _svd_parts():
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


def svd(scheduler=None):
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=8, num_attention_heads=(2, 4),
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    scheduler = scheduler or EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")
    return quiet(StableVideoDiffusionPipeline(**_svd_parts(), unet=ready(unet), scheduler=scheduler))


TEXT = {"prompt": "tiger face", "guidance_scale": 3.0}
SIZED = {"height": PIXELS, "width": PIXELS, "num_frames": FRAMES}
VIDEO = {"video": PICTURES, "strength": 0.8}
VIDEO_SIZED = {**VIDEO, "height": PIXELS, "width": PIXELS}
# name -> how to make the pipeline, arguments of its call, and how many of 8 steps it takes.
PIPELINES = {
    "svd": (svd, {"image": PICTURES[0], **SIZED, "max_guidance_scale": 3.0}, 8),
    "svd unguided": (svd, {"image": PICTURES[0], **SIZED, "max_guidance_scale": 1.0}, 8),
    "animatediff": (animatediff, {**TEXT, **SIZED}, 8),
    "animatediff unguided": (animatediff, {**TEXT, **SIZED, "guidance_scale": 1.0}, 8),
    "animatediff sdxl": (animatediff_sdxl, {**TEXT, **SIZED}, 8),
    "animatediff video": (functools.partial(animatediff, AnimateDiffVideoToVideoPipeline), {**TEXT, **VIDEO_SIZED}, 6),
    "animatediff controlnet": (
        functools.partial(animatediff, AnimateDiffControlNetPipeline, controlnet=control_net),
        {**TEXT, **SIZED, "conditioning_frames": PICTURES, "control_guidance_end": 0.6},
        8,
    ),
    "animatediff video controlnet": (
        functools.partial(animatediff, AnimateDiffVideoToVideoControlNetPipeline, controlnet=control_net),
        {**TEXT, **VIDEO_SIZED, "conditioning_frames": PICTURES},
        6,
    ),
    "animatediff sparse controlnet": (
        functools.partial(animatediff, AnimateDiffSparseControlNetPipeline, controlnet=sparse_control_net),
        {**TEXT, **SIZED, "conditioning_frames": PICTURES[:1], "controlnet_frame_indices": [0]},
        8,
    ),
    "pia": (functools.partial(animatediff, PIAPipeline), {**TEXT, **SIZED, "image": PICTURES[0]}, 8),
    "modelscope": (modelscope, {**TEXT, **SIZED}, 8),
    "modelscope video": (functools.partial(modelscope, VideoToVideoSDPipeline), {**TEXT, **VIDEO}, 6),
}

# For the README's support matrix: pipeline, family of its U-Net, and what is tried with it.
SVD, MOTION, MODELSCOPE = "UNetSpatioTemporalConditionModel", "UNetMotionModel", "UNet3DConditionModel"
SHOWN = {
    "svd": ("StableVideoDiffusionPipeline", SVD, "image to video"),
    "svd unguided": ("StableVideoDiffusionPipeline", SVD, "no guidance"),
    "animatediff": ("AnimateDiffPipeline", MOTION, "text to video"),
    "animatediff unguided": ("AnimateDiffPipeline", MOTION, "no guidance"),
    "animatediff sdxl": ("AnimateDiffSDXLPipeline", MOTION, "text to video"),
    "animatediff video": ("AnimateDiffVideoToVideoPipeline", MOTION, "video to video"),
    "animatediff controlnet": ("AnimateDiffControlNetPipeline", MOTION, "ControlNet"),
    "animatediff video controlnet": ("AnimateDiffVideoToVideoControlNetPipeline", MOTION, "ControlNet"),
    "animatediff sparse controlnet": ("AnimateDiffSparseControlNetPipeline", MOTION, "SparseCtrl"),
    "pia": ("PIAPipeline", MOTION, "image to video"),
    "modelscope": ("TextToVideoSDPipeline", MODELSCOPE, "text to video"),
    "modelscope video": ("VideoToVideoSDPipeline", MODELSCOPE, "video to video"),
    "zero": ("TextToVideoZeroPipeline", "UNet2DConditionModel", "text to video"),  # a test of its own: two loops
}


def run(pipe, call, steps=8, **more):
    """Latents of the video."""
    torch.manual_seed(0)  # SparseCtrl draws the latents of its pictures without the generator
    output = pipe(
        **{**call, **more}, num_inference_steps=steps, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return output.frames
