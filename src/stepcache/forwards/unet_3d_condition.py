"""Full and partial forward of `UNet3DConditionModel` (ModelScope and Zeroscope text-to-video).

After each ResNet comes a temporal convolution, after each spatial attention a temporal one. Both forwards follow
diffusers' own operation by operation, as unet_2d_condition.py does, with the differences told there, and two more:
ControlNet residuals [B*F, ...] are given as [B, F, ...], and `class_labels` and `attention_mask` are dropped, of which
the stock forward makes nothing either.

Shapes: sample [B, in_channels, F, H, W], timestep [1] or [B], encoder_hidden_states [B, L, D], feature [B*F, C, H', W']
with the frames of one video next to each other, output [B, out_channels, F, H, W].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..reuse.cut import Cut, Layout, layout_of
from . import video
from .calls import Call, timestep_of, without_scale
from .join import Blend, Join, freeu, reference_join

DOWN_BLOCKS = ("CrossAttnDownBlock3D", "DownBlock3D")
UP_BLOCKS = ("CrossAttnUpBlock3D", "UpBlock3D")
PARTS = ("resnets", "temp_convs", "attentions", "temp_attentions")


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, with the name, where the U-Net's or one of its blocks' forward is not the known one."""
    video.check_blocks(unet, "UNet3DConditionModel", DOWN_BLOCKS, UP_BLOCKS)


def layout(unet: nn.Module) -> Layout:
    """The U-Net's joins and skips."""
    return layout_of(unet.down_blocks, unet.up_blocks)


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step does not run."""
    return video.deep_modules_of(unet, cut, PARTS)


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
    """The arguments of the stock forward, in its order and with its defaults, ready for `full` and `partial`."""
    batch, frames = sample.shape[0], sample.shape[2]
    cross_attention_kwargs, scale = without_scale(cross_attention_kwargs)
    inputs: dict[str, Any] = {
        "sample": sample,
        "timestep": timestep_of(timestep, sample),
        "encoder_hidden_states": encoder_hidden_states,
    }
    if timestep_cond is not None:
        inputs["timestep_cond"] = timestep_cond
    if cross_attention_kwargs is not None:
        inputs["cross_attention_kwargs"] = cross_attention_kwargs
    if down_block_additional_residuals is not None:
        residuals = down_block_additional_residuals
        inputs["control_down"] = tuple(video.by_video(residual, batch, frames) for residual in residuals)
    if mid_block_additional_residual is not None:
        inputs["control_mid"] = video.by_video(mid_block_additional_residual, batch, frames)
    return Call(inputs, scale, return_dict)


def wrap(output: Tensor, return_dict: bool) -> Any:
    """The output [B, out_channels, F, H, W] as the stock forward returns it."""
    if not return_dict:
        return (output,)
    from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput

    return UNet3DConditionOutput(sample=output)


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


def full(unet: nn.Module, cut: Cut, join: Join = reference_join, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    return video.full(_walk(unet, join, _prepare(unet, **inputs)), cut)


def partial(unet: nn.Module, cut: Cut, feature: Tensor, join: Join = reference_join, **inputs: Any) -> Tensor:
    """The last `cut.branch` + 1 joins, entered with `feature`, and the skips that they take. Returns the output."""
    return video.partial(_walk(unet, join, _prepare(unet, **inputs)), cut, feature)


class _Prepared(NamedTuple):
    """What the blocks need, worked out once a call."""

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
        sample.transpose(1, 2).reshape(batch * frames, -1, *sample.shape[3:]),
        video.each_frame(temb, frames),
        video.each_frame(encoder_hidden_states, frames),
        {"num_frames": frames, "cross_attention_kwargs": cross_attention_kwargs},
        control_down,
        None if control_mid is None else video.by_frame(control_mid, 4),
        video.sized(unet, sample),
    )


def _walk(unet: nn.Module, join: Join, call: _Prepared) -> video.Walk:
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
