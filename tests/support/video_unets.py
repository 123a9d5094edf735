"""Small random U-Nets for video, and arguments of their calls."""

import functools

import torch
from diffusers import (
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)

FRAMES = 3

SVD = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "num_attention_heads": (2, 4),
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": FRAMES,
}
MOTION = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 8,
}
MODELSCOPE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
# name -> class and config of a small U-Net.
UNETS = {
    "svd": (UNetSpatioTemporalConditionModel, SVD),
    "svd uneven": (
        UNetSpatioTemporalConditionModel,
        {**SVD, "layers_per_block": (1, 2), "transformer_layers_per_block": (2, 1)},
    ),
    "motion": (UNetMotionModel, MOTION),
    "motion sdxl": (
        UNetMotionModel,
        {
            **MOTION,
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownBlockMotion", "CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion"),
            "up_block_types": ("CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion", "UpBlockMotion"),
            "layers_per_block": (1, 2, 1),
            "transformer_layers_per_block": (1, 2, 1),
            "temporal_transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "use_motion_mid_block": False,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 8,
            "time_cond_proj_dim": 12,
        },
    ),
    "pia": (UNetMotionModel, {**MOTION, "in_channels": 9, "layers_per_block": 1}),
    "3d": (UNet3DConditionModel, MODELSCOPE),
    "3d lcm": (UNet3DConditionModel, {**MODELSCOPE, "layers_per_block": 1, "time_cond_proj_dim": 12}),
}
ONE_EACH = ["svd", "motion", "3d"]


def make_unet(name, **changes):
    """A random U-Net, the same at every call. Layers that start as identities (temporal convolutions) do something."""
    cls, config = UNETS[name]
    torch.manual_seed(0)
    unet = cls(**{**config, **changes}).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            parameter.normal_(std=0.2)
    return unet


def make_inputs(unet, batch=2, frames=FRAMES, size=(8, 8), seed=1):
    """Arguments of one call of that U-Net, timestep included, by keyword."""
    randn = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    config = unet.config
    inputs = {"timestep": torch.tensor(501)}
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        return {
            **inputs,
            "sample": randn(batch, frames, config.in_channels, *size),
            "encoder_hidden_states": randn(batch, 1, config.cross_attention_dim),
            "added_time_ids": torch.arange(batch * ids).view(batch, ids).float(),
        }
    inputs["sample"] = randn(batch, config.in_channels, frames, *size)
    # AnimateDiff's pipelines give one prompt for each frame, ModelScope's one for each video.
    texts = batch * frames if isinstance(unet, UNetMotionModel) else batch
    inputs["encoder_hidden_states"] = randn(texts, 5, config.cross_attention_dim)
    if getattr(config, "addition_embed_type", None) == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": randn(batch, 8), "time_ids": torch.ones(batch, 6) * 16}
    if getattr(config, "time_cond_proj_dim", None):
        inputs["timestep_cond"] = randn(batch, config.time_cond_proj_dim)
    return inputs
