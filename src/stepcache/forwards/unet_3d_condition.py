"""Full and partial forward of `UNet3DConditionModel` (ModelScope and Zeroscope text-to-video).

A temporal convolution follows each ResNet, a temporal attention each spatial one. Both forwards follow diffusers' own
operation by operation, as unet_2d_condition.py does, with the differences listed there and two more: ControlNet
residuals [B*F, ...] come as [B, F, ...], and `class_labels` and `attention_mask` are dropped, because the stock forward
ignores them.

Shapes: sample [B, in_channels, F, H, W], timestep [1] or [B], encoder_hidden_states [B, L, D], feature [B*F, C, H', W']
with the frames of one video next to each other, output [B, out_channels, F, H, W].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.unets import unet_3d_blocks
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel, UNet3DConditionOutput
from torch import Tensor, nn

from ..reuse.cut import Cut
from . import video
from .blend import Blend
from .calls import Call, given, is_uneven, timestep_of, without_scale, wrapper
from .freeu import freeu
from .join import JoinFunction, reference_join

DOWN_BLOCKS = (unet_3d_blocks.CrossAttnDownBlock3D, unet_3d_blocks.DownBlock3D)
UP_BLOCKS = (unet_3d_blocks.CrossAttnUpBlock3D, unet_3d_blocks.UpBlock3D)
PARTS = ("resnets", "temp_convs", "attentions", "temp_attentions")

layout, wrap = video.layout, wrapper(UNet3DConditionOutput)


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, naming the U-Net or block, if its forward is not the one this file follows."""
    video.check_blocks(unet, UNet3DConditionModel, DOWN_BLOCKS, UP_BLOCKS)


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step skips."""
    return video.deep_modules(unet, cut, PARTS)


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    encoder_hidden_states: Tensor,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    down_block_additional_residuals: Sequence[Tensor] | None = None,
    mid_block_additional_residual: Tensor | None = None,
    return_dict: bool = True,
) -> Call:
    """Bind the arguments of the stock forward, in its order and with its defaults, for `full` and `partial`."""
    cross_attention_kwargs, scale = without_scale(cross_attention_kwargs)
    control = down_block_additional_residuals
    inputs = given(
        sample=sample,
        timestep=timestep_of(timestep, sample),
        encoder_hidden_states=encoder_hidden_states,
        timestep_cond=timestep_cond,
        cross_attention_kwargs=cross_attention_kwargs,
        control_down=None if control is None else tuple(video.by_video(residual, sample) for residual in control),
        control_mid=video.by_video(mid_block_additional_residual, sample),
    )
    return Call(inputs, scale, return_dict)


def example_inputs(unet: nn.Module, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of `full` and `partial`, zeros in float32 on the U-Net's device, for latents of `height` x `width`.

    16 frames, the pipeline's default.
    """
    config = unet.config
    zeros = functools.partial(torch.zeros, device=unet.conv_in.weight.device)
    inputs = {
        "sample": zeros(batch, config.in_channels, 16, height, width),
        "timestep": zeros(1),
        "encoder_hidden_states": zeros(batch, 77, config.cross_attention_dim),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = zeros(batch, config.time_cond_proj_dim)
    return inputs


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
    text: Tensor  # [B*F, L, D]
    temporal: dict[str, Any]  # keyword arguments of every temporal attention
    control_down: tuple[Tensor, ...]
    control_mid: Tensor | None
    sized: bool


def _prepare(
    unet: nn.Module,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    timestep_cond: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    control_down: tuple[Tensor, ...] = (),
    control_mid: Tensor | None = None,
) -> _Prepared:
    batch, _, frames = sample.shape[:3]
    temb = unet.time_embedding(unet.time_proj(timestep.expand(batch)).to(unet.dtype), timestep_cond)
    return _Prepared(
        video.frames_of(sample),
        video.each_frame(temb, frames),
        video.each_frame(encoder_hidden_states, frames),
        {"num_frames": frames, "cross_attention_kwargs": cross_attention_kwargs},
        control_down,
        None if control_mid is None else video.by_frame(control_mid, 4),
        is_uneven(unet, sample),
    )


def _walk(unet: nn.Module, join: JoinFunction, call: _Prepared) -> video.Walk:
    def down(block: nn.Module, i: int, hidden: Tensor) -> Tensor:
        return _after_resnet(block, i, call, block.resnets[i](hidden, call.temb))

    def mid(hidden: Tensor) -> Tensor:
        if unet.mid_block is not None:
            hidden = unet.mid_block(hidden, call.temb, encoder_hidden_states=call.text, **call.temporal)
        return hidden if call.control_mid is None else hidden + call.control_mid

    def up(block: nn.Module, i: int, hidden: Tensor | Blend, skip: Tensor) -> Tensor:
        joined = join(block.resnets[i], *freeu(block, hidden, skip), call.temb)
        return _after_resnet(block, i, call, joined)

    def out(hidden: Tensor) -> Tensor:
        return video.output_of(unet, hidden).unflatten(0, (-1, call.temporal["num_frames"])).transpose(1, 2)

    first = unet.transformer_in(unet.conv_in(call.sample), **call.temporal, return_dict=False)[0]
    return video.Walk(unet, first, down, mid, up, out, call.sized, call.control_down)


def _after_resnet(block: nn.Module, i: int, call: _Prepared, hidden: Tensor) -> Tensor:
    hidden = block.temp_convs[i](hidden, num_frames=call.temporal["num_frames"])
    if getattr(block, "has_cross_attention", False):
        kwargs = call.temporal["cross_attention_kwargs"]
        hidden = block.attentions[i](
            hidden, encoder_hidden_states=call.text, cross_attention_kwargs=kwargs, return_dict=False
        )[0]
        hidden = block.temp_attentions[i](hidden, **call.temporal, return_dict=False)[0]
    return hidden
