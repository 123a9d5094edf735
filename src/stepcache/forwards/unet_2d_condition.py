"""Full and partial forward of `UNet2DConditionModel` (SD 1.x, 2.x, SDXL, refiner, inpaint, distilled ones; Kandinsky
2.x, DeepFloyd IF, the latent upscaler).

Both follow diffusers' own forward operation by operation, through the U-Net's own methods and modules. In fp32 `full`
gives the stock output bit for bit, and so does `partial` on a feature of the same step. They take the inputs of that
forward, with three differences: `timestep` is a float32 tensor [1] or [B] on the U-Net's device (exact for integers,
and `Timesteps` casts to float32 anyway), `cross_attention_kwargs` has no LoRA scale, and lists of T2I-Adapter residuals
are not consumed.

Shapes: sample [B, in_channels, H, W], encoder_hidden_states [B, L, D] or None, time embedding [B, E], feature
[B, C, H', W'], output [B, out_channels, H, W]. Dtypes as in the stock forward; the feature has that of the hidden
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from torch import Tensor, nn

from ..errors import InvalidSetting
from ..reuse.cut import Cut
from . import blocks
from .blend import Blend
from .calls import Call, attention_bias, given, is_uneven, timestep_of, without_scale, wrapper
from .join import JoinFunction, reference_join

_SKIP = "It carries an image beside the hidden state, which diffusers' UNet2DConditionModel does not support either."
REFUSED = {**blocks.REFUSED, **dict.fromkeys([name for name, kind in blocks.KINDS.items() if kind.image], _SKIP)}

layout, deep_modules, wrap = blocks.layout, blocks.deep_modules, wrapper(UNet2DConditionOutput)


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, naming the U-Net or block, if its forward is not the one this file follows."""
    blocks.check(unet, UNet2DConditionModel, REFUSED)


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    encoder_hidden_states: Tensor | None,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Any] | None = None,
    down_block_additional_residuals: Sequence[Tensor] | None = None,
    mid_block_additional_residual: Tensor | None = None,
    down_intrablock_additional_residuals: Sequence[Tensor] | None = None,
    encoder_attention_mask: Tensor | None = None,
    return_dict: bool = True,
) -> Call:
    """Bind the arguments of the stock forward, in its order and with its defaults, for `full` and `partial`."""
    cross_attention_kwargs, scale = without_scale(cross_attention_kwargs)
    # As in the stock forward: without a mid-block residual, down-block residuals are T2I-Adapter's, by their old name.
    if mid_block_additional_residual is None and down_intrablock_additional_residuals is None:
        down_intrablock_additional_residuals, down_block_additional_residuals = down_block_additional_residuals, None
    inputs = given(
        sample=sample,
        timestep=timestep_of(timestep, sample),
        encoder_hidden_states=encoder_hidden_states,
        class_labels=class_labels,
        timestep_cond=timestep_cond,
        attention_mask=attention_mask,
        cross_attention_kwargs=cross_attention_kwargs,
        added_cond_kwargs=added_cond_kwargs,
        control_down=down_block_additional_residuals,
        control_mid=mid_block_additional_residual,
        adapter=down_intrablock_additional_residuals,
        encoder_attention_mask=encoder_attention_mask,
    )
    return Call(inputs, scale, return_dict)


def full(unet: nn.Module, cut: Cut, join: JoinFunction = reference_join, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    call = _prepare(unet, **inputs)
    hidden, skips, rest = _down(unet, call, cut, limit=None)
    hidden = _mid(unet, call, hidden, rest)
    entry = cut.block, cut.layer
    feature = _up(unet, call, hidden, skips, join, start=(0, 0), stop=entry)
    return _out(unet, _up(unet, call, feature, skips, join, start=entry)), feature


def partial(
    unet: nn.Module, cut: Cut, feature: Tensor | Blend, join: JoinFunction = reference_join, **inputs: Any
) -> Tensor:
    """The last `cut.branch` + 1 joins, starting from `feature`, and the skips they need. Returns the output."""
    call = _prepare(unet, **inputs)
    _, skips, _ = _down(unet, call, cut, limit=cut.skips)
    return _out(unet, _up(unet, call, feature, skips, join, start=(cut.block, cut.layer)))


class _Prepared(NamedTuple):
    """What the blocks need, computed once per call."""

    sample: Tensor
    temb: Tensor
    attention: dict[str, Any]  # keyword arguments of every attention
    control_down: tuple[Tensor, ...]
    control_mid: Tensor | None
    adapter: list[Tensor]
    sized: bool  # `is_uneven`: upsamplers are told their output size


def _prepare(
    unet: nn.Module,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor | None = None,
    class_labels: Tensor | None = None,
    timestep_cond: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    added_cond_kwargs: dict[str, Any] | None = None,
    control_down: tuple[Tensor, ...] | None = None,
    control_mid: Tensor | None = None,
    adapter: list[Tensor] | None = None,
    encoder_attention_mask: Tensor | None = None,
) -> _Prepared:
    sized = is_uneven(unet, sample)
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0

    temb = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), timestep_cond)
    class_emb = unet.get_class_embed(sample=sample, class_labels=class_labels)
    if class_emb is not None:
        temb = torch.cat([temb, class_emb], dim=-1) if unet.config.class_embeddings_concat else temb + class_emb
    aug_emb = unet.get_aug_embed(
        emb=temb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
    )
    if unet.config.addition_embed_type == "image_hint":
        aug_emb, hint = aug_emb
        sample = torch.cat([sample, hint], dim=1)
    if aug_emb is not None:
        temb = temb + aug_emb
    if unet.time_embed_act is not None:
        temb = unet.time_embed_act(temb)

    if cross_attention_kwargs is not None and cross_attention_kwargs.get("gligen") is not None:
        objects = {"objs": unet.position_net(**cross_attention_kwargs["gligen"])}
        cross_attention_kwargs = {**cross_attention_kwargs, "gligen": objects}
    attention = {
        "encoder_hidden_states": unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added_cond_kwargs
        ),
        "cross_attention_kwargs": cross_attention_kwargs,
        "attention_mask": attention_bias(attention_mask, sample.dtype),
        "encoder_attention_mask": attention_bias(encoder_attention_mask, sample.dtype),
    }
    # ControlNet sends both kinds of residuals. As in the stock forward, one kind alone is ignored.
    if control_down is None or control_mid is None:
        control_down, control_mid = (), None
    return _Prepared(sample, temb, attention, tuple(control_down), control_mid, list(adapter or ()), sized)


def _down(unet: nn.Module, call: _Prepared, cut: Cut, limit: int | None) -> tuple[Tensor, list[Any], list[Tensor]]:
    """The down path, up to `limit` skips (None: all of it). Returns (hidden, skips, adapter residuals left)."""
    hidden = unet.conv_in(call.sample)
    skips: list[Any] = [] if cut.by_block else [hidden]
    rest = call.adapter
    for block in unet.down_blocks:
        if len(skips) == limit:
            break
        residual, rest = (rest[0], rest[1:]) if rest else (None, rest)
        hidden = _down_block(block, call, hidden, residual, skips, limit)
    if call.control_down and cut.by_block:
        raise InvalidSetting("A U-Net of K blocks takes no ControlNet residuals: it has one skip per block.")
    # Not strict: a ControlNet may send fewer residuals than there are skips, and a partial step has fewer skips.
    for i, (skip, residual) in enumerate(zip(skips, call.control_down, strict=False)):
        skips[i] = skip + residual
    return hidden, skips, rest


def _down_block(
    block: nn.Module, call: _Prepared, hidden: Tensor, residual: Tensor | None, skips: list[Any], limit: int | None
) -> Tensor:
    """One down block; appends its outputs to `skips`. residual: T2I-Adapter's for this block."""
    kind = blocks.kind_of(block)
    if residual is not None and kind.attend in (blocks.added_text, blocks.k_attention):
        raise InvalidSetting(f"A {type(block).__name__} takes no T2I-Adapter residuals, in diffusers either.")
    # A block with transformers adds the residual before its downsampler. Others add it after, to the skip too.
    early = kind.attend is blocks.transformer or block.downsamplers is None
    added = residual if early else None
    hidden = blocks.down_layers(block, kind, hidden, call.temb, call.attention, skips, limit, added)
    if block.downsamplers is not None and len(skips) != limit:
        hidden = blocks.resampled(block.downsamplers, hidden, call.temb)
        if residual is not None and not early:
            hidden = hidden + residual
        if not kind.by_block:
            skips.append(hidden)
    return hidden


def _mid(unet: nn.Module, call: _Prepared, hidden: Tensor, rest: list[Tensor]) -> Tensor:
    if unet.mid_block is not None:
        if getattr(unet.mid_block, "has_cross_attention", False):
            hidden = unet.mid_block(hidden, call.temb, **call.attention)
        else:
            hidden = unet.mid_block(hidden, call.temb)
        # T2I-Adapter-XL sends one more residual, for the mid block.
        if rest and hidden.shape == rest[0].shape:
            hidden += rest[0]
    return hidden if call.control_mid is None else hidden + call.control_mid


def _up(
    unet: nn.Module,
    call: _Prepared,
    hidden: Any,
    skips: list[Any],
    join: JoinFunction,
    start: tuple[int, int],
    stop: tuple[int, int] | None = None,
) -> Any:
    """The up path from layer `start` (block, layer) up to but not including `stop` (None: to the end)."""
    for b, block in enumerate(unet.up_blocks):
        if b < start[0]:
            continue
        kind = blocks.kind_of(block)
        first = start[1] if b == start[0] else 0
        last = stop[1] if stop is not None and b == stop[0] else None
        is_skip = b == 0 and unet.mid_block is None and call.control_mid is None
        hidden = blocks.up_layers(block, kind, hidden, call.temb, call.attention, skips, join, first, last, is_skip)
        if last is not None:
            break
        if block.upsamplers is not None:
            size = (skips[-1].shape[2:],) if call.sized and kind.sized and skips else ()
            hidden = blocks.resampled(block.upsamplers, hidden, call.temb, *size)
    return hidden


def _out(unet: nn.Module, hidden: Tensor) -> Tensor:
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)
