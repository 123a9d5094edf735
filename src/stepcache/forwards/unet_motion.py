"""Full and partial forward of `UNetMotionModel` (AnimateDiff on SD 1.x and SDXL, PIA): ResNets with motion modules.

Both follow diffusers' own forward operation by operation, as unet_2d_condition.py does, with the differences listed
there and one more: `bind` turns inputs that have one entry per frame, [B*F, ...], into [B, F, ...], so that the first
dimension of every input is the batch.

Shapes: sample [B, in_channels, F, H, W], timestep [1] or [B], encoder_hidden_states [B, F, L, D], feature
[B*F, C, H', W'] with the frames of one video next to each other, output [B, out_channels, F, H, W].
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.unets import unet_motion_model
from diffusers.models.unets.unet_motion_model import UNetMotionModel, UNetMotionOutput
from torch import Tensor, nn

from ..reuse.cut import Cut
from . import video
from .blend import Blend, value_of
from .calls import Call, attention_bias, given, is_uneven, timestep_of, without_scale, wrapper
from .freeu import freeu
from .join import JoinFunction, reference_join

DOWN_BLOCKS = (unet_motion_model.CrossAttnDownBlockMotion, unet_motion_model.DownBlockMotion)
UP_BLOCKS = (unet_motion_model.CrossAttnUpBlockMotion, unet_motion_model.UpBlockMotion)
PARTS = ("resnets", "attentions", "motion_modules")

layout, wrap = video.layout, wrapper(UNetMotionOutput)


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, naming the U-Net or block, if its forward is not the one this file follows."""
    video.check_blocks(unet, UNetMotionModel, DOWN_BLOCKS, UP_BLOCKS)


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step skips."""
    return video.deep_modules(unet, cut, PARTS)


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    encoder_hidden_states: Tensor,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Any] | None = None,
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
        encoder_hidden_states=video.by_video(encoder_hidden_states, sample),
        timestep_cond=timestep_cond,
        attention_mask=video.by_video(attention_mask, sample),
        cross_attention_kwargs=cross_attention_kwargs,
        added_cond_kwargs=added_cond_kwargs,
        control_down=None if control is None else tuple(video.by_video(residual, sample) for residual in control),
        control_mid=video.by_video(mid_block_additional_residual, sample),
    )
    return Call(inputs, scale, return_dict)


def example_inputs(unet: nn.Module, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of `full` and `partial`, zeros in float32 on the U-Net's device, for latents of `height` x `width`.

    16 frames, the pipelines' default, or as many as the motion modules take. SDXL's added conditions where the config
    has them.
    """
    config = unet.config
    frames = min(16, config.motion_max_seq_length)
    zeros = functools.partial(torch.zeros, device=unet.conv_in.weight.device)
    widths = config.cross_attention_dim
    inputs: dict[str, Any] = {
        "sample": zeros(batch, config.in_channels, frames, height, width),
        "timestep": zeros(1),
        "encoder_hidden_states": zeros(batch, frames, 77, widths if isinstance(widths, int) else widths[0]),
    }
    if config.time_cond_proj_dim is not None:
        inputs["timestep_cond"] = zeros(batch, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        text = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(batch, text), "time_ids": zeros(batch, 6)}
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
    frames: int
    attention: dict[str, Any]  # keyword arguments of every spatial attention
    control_down: tuple[Tensor, ...]
    control_mid: Tensor | None
    sized: bool


def _prepare(
    unet: nn.Module,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Any] | None = None,
    control_down: tuple[Tensor, ...] = (),
    control_mid: Tensor | None = None,
) -> _Prepared:
    batch, _, frames = sample.shape[:3]
    temb = unet.time_embedding(unet.time_proj(timestep.expand(batch)).to(unet.dtype), timestep_cond)
    if unet.config.addition_embed_type == "text_time":
        text = _added(added_cond_kwargs, "text_embeds", "addition_embed_type='text_time'")
        ids = _added(added_cond_kwargs, "time_ids", "addition_embed_type='text_time'")
        times = unet.add_time_proj(ids.flatten()).reshape(text.shape[0], -1)
        temb = temb + unet.add_embedding(torch.cat([text, times], dim=-1).to(temb.dtype))

    text_states: Any = video.by_frame(encoder_hidden_states, 3)
    if unet.encoder_hid_proj is not None and unet.config.encoder_hid_dim_type == "ip_image_proj":
        embeds = _added(added_cond_kwargs, "image_embeds", "an IP-Adapter")
        text_states = text_states, [video.each_frame(embed, frames) for embed in unet.encoder_hid_proj(embeds)]
    mask = None if attention_mask is None else video.by_frame(attention_mask, 2)
    attention = {
        "encoder_hidden_states": text_states,
        "cross_attention_kwargs": cross_attention_kwargs,
        "attention_mask": attention_bias(mask, sample.dtype),
    }
    return _Prepared(
        video.frames_of(sample),
        video.each_frame(temb, frames),
        frames,
        attention,
        control_down,
        None if control_mid is None else video.by_frame(control_mid, 4),
        is_uneven(unet, sample),
    )


def _added(conditions: dict[str, Any] | None, name: str, why: str) -> Any:
    """One of `added_cond_kwargs`; ValueError, as in the stock forward, where it is missing."""
    if conditions is None or name not in conditions:
        raise ValueError(f"This U-Net has {why} and needs {name!r} in added_cond_kwargs.")
    return conditions[name]


def _walk(unet: nn.Module, join: JoinFunction, call: _Prepared) -> video.Walk:
    def down(block: nn.Module, i: int, hidden: Tensor) -> Tensor:
        return _after_resnet(block, i, call, block.resnets[i](input_tensor=hidden, temb=call.temb))

    def mid(hidden: Tensor) -> Tensor:
        if unet.mid_block is not None:
            # Some motion adapters leave the mid block as it is in the 2D U-Net.
            moves = {"num_frames": call.frames} if hasattr(unet.mid_block, "motion_modules") else {}
            hidden = unet.mid_block(hidden, call.temb, **call.attention, **moves)
        return hidden if call.control_mid is None else hidden + call.control_mid

    def up(block: nn.Module, i: int, hidden: Tensor | Blend, skip: Tensor) -> Tensor:
        joined = _join(join, block.resnets[i], *freeu(block, hidden, skip), call.temb)
        return _after_resnet(block, i, call, joined)

    def out(hidden: Tensor) -> Tensor:
        return video.output_of(unet, hidden).unflatten(0, (-1, call.frames)).transpose(1, 2)

    return video.Walk(unet, unet.conv_in(call.sample), down, mid, up, out, call.sized, call.control_down)


def _after_resnet(block: nn.Module, i: int, call: _Prepared, hidden: Tensor) -> Tensor:
    # By keyword, as in diffusers: FreeNoise's split inference wraps layers, and splits arguments by their names.
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[i](hidden_states=hidden, **call.attention, return_dict=False)[0]
    return block.motion_modules[i](hidden, num_frames=call.frames)


def _join(join: JoinFunction, resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor, temb: Tensor) -> Tensor:
    if type(resnet).__name__ == "SplitInferenceModule":  # FreeNoise's, see _after_resnet
        return resnet(input_tensor=torch.cat([value_of(hidden), skip], dim=1), temb=temb)
    return join(resnet, hidden, skip, temb)
