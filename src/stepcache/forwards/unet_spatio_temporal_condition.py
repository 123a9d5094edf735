"""Full and partial forward of `UNetSpatioTemporalConditionModel` (Stable Video Diffusion).

Each ResNet is a spatial ResNet, a temporal one and a mixer of the two; a join is that of the spatial one. Both forwards
follow diffusers' own operation by operation, as unet_2d_condition.py does, and take its inputs, with `timestep` as a
float32 tensor [1] or [B]. This U-Net has no LoRA scale, ControlNet or FreeU.

Shapes: sample [B, F, in_channels, H, W], encoder_hidden_states [B, 1, D], added_time_ids [B, 3], feature
[B*F, C, H', W'] with the frames of one video next to each other, output [B, F, out_channels, H, W].
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.unets import unet_3d_blocks
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
    UNetSpatioTemporalConditionOutput,
)
from torch import Tensor, nn

from ..reuse.cut import Cut
from . import video
from .blend import Blend
from .calls import Call, is_uneven, timestep_of, wrapper
from .join import JoinFunction, reference_join
from .stock import check_stock
from .touched import check_untouched

DOWN_BLOCKS = (unet_3d_blocks.CrossAttnDownBlockSpatioTemporal, unet_3d_blocks.DownBlockSpatioTemporal)
UP_BLOCKS = (unet_3d_blocks.CrossAttnUpBlockSpatioTemporal, unet_3d_blocks.UpBlockSpatioTemporal)
PARTS = ("resnets", "attentions")

layout, wrap = video.layout, wrapper(UNetSpatioTemporalConditionOutput)


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, naming the module, if the forward of the U-Net, a block or a join is not the known one."""
    video.check_blocks(unet, UNetSpatioTemporalConditionModel, DOWN_BLOCKS, UP_BLOCKS)
    for b, block in enumerate(unet.up_blocks):
        for i, resnet in enumerate(block.resnets):
            # `_join` calls its parts.
            check_stock(f"up_blocks.{b}.resnets.{i}", resnet, (SpatioTemporalResBlock,))
            check_untouched(f"up_blocks.{b}.resnets.{i}", resnet)


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step skips."""
    return video.deep_modules(unet, cut, PARTS)


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    encoder_hidden_states: Tensor,
    added_time_ids: Tensor,
    return_dict: bool = True,
) -> Call:
    """Bind the arguments of the stock forward, in its order and with its defaults, for `full` and `partial`."""
    inputs = {
        "sample": sample,
        "timestep": timestep_of(timestep, sample),
        "encoder_hidden_states": encoder_hidden_states,
        "added_time_ids": added_time_ids,
    }
    return Call(inputs, 1.0, return_dict)


def example_inputs(unet: nn.Module, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of `full` and `partial` for latents of `height` x `width` and the model's own number of frames."""
    config = unet.config
    zeros = functools.partial(torch.zeros, device=unet.conv_in.weight.device)
    ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    widths = config.cross_attention_dim
    return {
        "sample": zeros(batch, config.num_frames, config.in_channels, height, width),
        "timestep": zeros(1),
        "encoder_hidden_states": zeros(batch, 1, widths if isinstance(widths, int) else widths[0]),
        "added_time_ids": zeros(batch, ids),
    }


def full(unet: nn.Module, cut: Cut, join: JoinFunction = reference_join, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    return video.full(_walk(unet, join, _prepare(unet, **inputs)), cut)


def partial(
    unet: nn.Module, cut: Cut, feature: Tensor | Blend, join: JoinFunction = reference_join, **inputs: Any
) -> Tensor:
    """The last `cut.branch` + 1 joins, starting from `feature`, and the skips they need. Returns the output."""
    return video.partial(_walk(unet, join, _prepare(unet, **inputs)), cut, feature)


class _Prepared(NamedTuple):
    """What the blocks need, computed once per call."""

    sample: Tensor  # [B*F, in_channels, H, W]
    temb: Tensor  # [B*F, E]
    image: Tensor  # encoder_hidden_states, [B*F, 1, D]
    still: Tensor  # image_only_indicator [B, F], zeros: every frame is one of a video
    sized: bool


def _prepare(
    unet: nn.Module, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, added_time_ids: Tensor
) -> _Prepared:
    batch, frames = sample.shape[:2]
    temb = unet.time_embedding(unet.time_proj(timestep.expand(batch)).to(sample.dtype))
    ids = unet.add_time_proj(added_time_ids.flatten()).reshape(batch, -1)
    temb = temb + unet.add_embedding(ids.to(temb.dtype))
    return _Prepared(
        sample.flatten(0, 1),
        video.each_frame(temb, frames),
        video.each_frame(encoder_hidden_states, frames),
        torch.zeros(batch, frames, dtype=sample.dtype, device=sample.device),
        is_uneven(unet, sample),
    )


def _walk(unet: nn.Module, join: JoinFunction, call: _Prepared) -> video.Walk:
    context = {"encoder_hidden_states": call.image, "image_only_indicator": call.still}

    def attend(block: nn.Module, i: int, hidden: Tensor) -> Tensor:
        if not getattr(block, "has_cross_attention", False):
            return hidden
        return block.attentions[i](hidden, **context, return_dict=False)[0]

    def down(block: nn.Module, i: int, hidden: Tensor) -> Tensor:
        return attend(block, i, block.resnets[i](hidden, call.temb, image_only_indicator=call.still))

    def mid(hidden: Tensor) -> Tensor:
        return hidden if unet.mid_block is None else unet.mid_block(hidden, call.temb, **context)

    def up(block: nn.Module, i: int, hidden: Tensor | Blend, skip: Tensor) -> Tensor:
        return attend(block, i, _join(join, block.resnets[i], hidden, skip, call))

    def out(hidden: Tensor) -> Tensor:
        return video.output_of(unet, hidden).unflatten(0, call.still.shape)

    return video.Walk(unet, unet.conv_in(call.sample), down, mid, up, out, call.sized)


def _join(join: JoinFunction, resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, call: _Prepared) -> Tensor:
    """Join `hidden` and `skip` in the spatial ResNet, then run the rest of SpatioTemporalResBlock."""
    batch, frames = call.still.shape
    spatial = join(resnet.spatial_res_block, hidden, skip, call.temb).unflatten(0, (batch, frames)).transpose(1, 2)
    temporal = resnet.temporal_res_block(spatial, call.temb.unflatten(0, (batch, frames)))
    mixed = resnet.time_mixer(x_spatial=spatial, x_temporal=temporal, image_only_indicator=call.still)
    return mixed.transpose(1, 2).flatten(0, 1)
