"""Full and partial forward of `UNet2DConditionModel` (SD 1.x, 2.x, SDXL, refiner, inpaint, distilled ones).

Both follow diffusers' own forward operation by operation, through the U-Net's own methods and modules, so that in
fp32 `full` gives the stock output bit for bit, and so does `partial` on a feature of the same step. They take what
that forward takes, with three differences: `timestep` is a float32 tensor [1] or [B] on the U-Net's device (exact for
integers, and `Timesteps` casts to float32 anyway), the LoRA scale is not in `cross_attention_kwargs`, and lists of
T2I-Adapter residuals are not consumed.

Shapes: sample [B, in_channels, H, W], encoder_hidden_states [B, L, D], time embedding [B, E], feature [B, C, H', W'],
output [B, out_channels, H, W]. Dtypes as in the stock forward; the feature has that of the hidden state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..cut import Cut, Layout, layout_of
from ..errors import UnsupportedUNet
from ..join import Join, freeu, reference_join
from . import Call

# Blocks whose forward is followed below; others are refused by name.
DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, with the name, where the U-Net's or one of its blocks' forward is not the known one."""
    _check_forward("the U-Net", unet, ("UNet2DConditionModel",))
    for path, known in (("down_blocks", DOWN_BLOCKS), ("up_blocks", UP_BLOCKS)):
        for i, block in enumerate(getattr(unet, path)):
            _check_forward(f"{path}.{i}", block, known)
            _check_untouched(f"{path}.{i}", block)


def _check_forward(where: str, module: nn.Module, known: tuple[str, ...]) -> None:
    # By the class that defines forward: a subclass that keeps it is fine, one that overrides it is not.
    name = type(module).forward.__qualname__.removesuffix(".forward")
    if name not in known:
        raise UnsupportedUNet(
            f"{where} is a {type(module).__name__}, whose forward ({name}.forward) stepcache does not know. "
            f"Known there: {', '.join(known)}. Run this pipeline without stepcache."
        )


def _check_untouched(where: str, block: nn.Module) -> None:
    # A block is not called as a module below, its layers are: what sits on its forward would be left out.
    touched = [name for name in ("_forward_hooks", "_forward_pre_hooks", "_compiled_call_impl") if getattr(block, name)]
    if "forward" in vars(block) and getattr(block.forward, "__func__", None) is not type(block).forward:
        touched.append("forward")
    if touched:
        raise UnsupportedUNet(
            f"{where} has {', '.join(touched)} of its own. stepcache calls the layers of a block and not the block, so "
            "that would have no effect; take it off, or run this pipeline without stepcache."
        )


def layout(unet: nn.Module) -> Layout:
    """The U-Net's joins and skips."""
    return layout_of(unet.down_blocks, unet.up_blocks)


def deep_modules(unet: nn.Module, cut: Cut) -> list[nn.Module]:
    """The modules that a partial step does not run."""
    entry = unet.up_blocks[cut.block]
    up = [*unet.up_blocks[: cut.block], *entry.resnets[: cut.layer], *getattr(entry, "attentions", [])[: cut.layer]]
    down: list[nn.Module] = []
    skips = 1  # conv_in's
    for block in unet.down_blocks:
        for layer in zip(block.resnets, getattr(block, "attentions", None) or block.resnets, strict=True):
            down += layer if skips >= cut.skips else ()
            skips += 1
        if block.downsamplers is not None:
            down += block.downsamplers if skips >= cut.skips else ()
            skips += 1
    return [module for module in (*up, *down, unet.mid_block) if module is not None]


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    encoder_hidden_states: Tensor,
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
    """The arguments of the stock forward, in its order and with its defaults, ready for `full` and `partial`."""
    scale = 1.0
    if cross_attention_kwargs is not None and "scale" in cross_attention_kwargs:
        cross_attention_kwargs = dict(cross_attention_kwargs)
        scale = cross_attention_kwargs.pop("scale")
    if isinstance(timestep, Tensor):
        timestep = timestep.reshape(-1).to(device=sample.device, dtype=torch.float32)
    else:
        timestep = torch.full((1,), timestep, dtype=torch.float32, device=sample.device)
    # Without mid-block residual, down-block residuals are T2I-Adapter's under their old name, as in the stock forward.
    if mid_block_additional_residual is None and down_intrablock_additional_residuals is None:
        down_intrablock_additional_residuals, down_block_additional_residuals = down_block_additional_residuals, None
    inputs: dict[str, Any] = {
        "sample": sample,
        "timestep": timestep,
        "encoder_hidden_states": encoder_hidden_states,
    }
    optional = {
        "class_labels": class_labels,
        "timestep_cond": timestep_cond,
        "attention_mask": attention_mask,
        "cross_attention_kwargs": cross_attention_kwargs or None,
        "added_cond_kwargs": added_cond_kwargs,
        "control_down": down_block_additional_residuals,
        "control_mid": mid_block_additional_residual,
        "adapter": down_intrablock_additional_residuals,
        "encoder_attention_mask": encoder_attention_mask,
    }
    inputs.update((name, value) for name, value in optional.items() if value is not None)
    return Call(inputs, scale, return_dict)


def wrap(output: Tensor, return_dict: bool) -> Any:
    """The output [B, out_channels, H, W] as the stock forward returns it."""
    if not return_dict:
        return (output,)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    return UNet2DConditionOutput(sample=output)


def full(unet: nn.Module, cut: Cut, join: Join = reference_join, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    call = _prepare(unet, **inputs)
    hidden, skips, rest = _down(unet, call, limit=None)
    hidden = _mid(unet, call, hidden, rest)
    return _up(unet, call, hidden, skips, join, start=(0, 0), tap=(cut.block, cut.layer))


def partial(unet: nn.Module, cut: Cut, feature: Tensor, join: Join = reference_join, **inputs: Any) -> Tensor:
    """The last `cut.branch` + 1 joins, entered with `feature`, and the skips that they take. Returns the output."""
    call = _prepare(unet, **inputs)
    _, skips, _ = _down(unet, call, limit=cut.skips)
    output, _ = _up(unet, call, feature, skips, join, start=(cut.block, cut.layer), tap=(cut.block, cut.layer))
    return output


class _Prepared(NamedTuple):
    """What the blocks need, worked out once a call."""

    sample: Tensor
    temb: Tensor
    attention: dict[str, Any]  # keyword arguments of every attention
    control_down: tuple[Tensor, ...]
    control_mid: Tensor | None
    adapter: list[Tensor]
    sized: bool  # H or W is no multiple of the U-Net's factor: upsamplers are told their output size


def _prepare(
    unet: nn.Module,
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
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
    sized = any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])
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
        "attention_mask": _bias(attention_mask, sample),
        "encoder_attention_mask": _bias(encoder_attention_mask, sample),
    }
    # ControlNet sends both kinds of residual; one without the other is ignored, as in the stock forward.
    if control_down is None or control_mid is None:
        control_down, control_mid = (), None
    return _Prepared(sample, temb, attention, tuple(control_down), control_mid, list(adapter or ()), sized)


def _bias(mask: Tensor | None, sample: Tensor) -> Tensor | None:
    """A mask [B, keys] (1 keeps, 0 drops) as a bias [B, 1, keys] on attention scores, in the sample's dtype."""
    return None if mask is None else ((1 - mask.to(sample.dtype)) * -10000.0).unsqueeze(1)


def _down(unet: nn.Module, call: _Prepared, limit: int | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The down path, until `limit` skips are there (None: all). Returns (hidden, skips, adapter residuals left)."""
    hidden = unet.conv_in(call.sample)
    skips, rest = [hidden], call.adapter
    for block in unet.down_blocks:
        if len(skips) == limit:
            break
        residual, rest = (rest[0], rest[1:]) if rest else (None, rest)
        hidden = _down_block(block, call, hidden, residual, skips, limit)
    # zip: a ControlNet may send fewer residuals than there are skips, a partial step takes fewer than are sent.
    for i, (skip, residual) in enumerate(zip(skips, call.control_down, strict=False)):
        skips[i] = skip + residual
    return hidden, skips, rest


def _down_block(
    block: nn.Module, call: _Prepared, hidden: Tensor, residual: Tensor | None, skips: list[Tensor], limit: int | None
) -> Tensor:
    """One down block; its outputs are appended to `skips`. `residual` is T2I-Adapter's for this block."""
    attends = getattr(block, "has_cross_attention", False)
    last = len(block.resnets) - 1
    for i, resnet in enumerate(block.resnets):
        if len(skips) == limit:
            return hidden
        hidden = resnet(hidden, call.temb)
        if attends:
            hidden = block.attentions[i](hidden, **call.attention, return_dict=False)[0]
            if i == last and residual is not None:
                hidden = hidden + residual
        skips.append(hidden)
    if block.downsamplers is not None:
        if len(skips) == limit:
            return hidden
        for downsampler in block.downsamplers:
            hidden = downsampler(hidden)
        skips.append(hidden)
    # A block with attention takes the residual before its downsampler, one without takes it at its end, skip included.
    if not attends and residual is not None:
        hidden += residual
    return hidden


def _mid(unet: nn.Module, call: _Prepared, hidden: Tensor, rest: list[Tensor]) -> Tensor:
    if unet.mid_block is not None:
        if getattr(unet.mid_block, "has_cross_attention", False):
            hidden = unet.mid_block(hidden, call.temb, **call.attention)
        else:
            hidden = unet.mid_block(hidden, call.temb)
        # T2I-Adapter-XL sends one residual more, for the mid block.
        if rest and hidden.shape == rest[0].shape:
            hidden += rest[0]
    return hidden if call.control_mid is None else hidden + call.control_mid


def _up(
    unet: nn.Module,
    call: _Prepared,
    hidden: Tensor,
    skips: list[Tensor],
    join: Join,
    start: tuple[int, int],
    tap: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The up path from ResNet `start` (block, layer) on, popping `skips`. Returns (output, hidden at `tap`)."""
    feature = hidden
    for b, block in enumerate(unet.up_blocks):
        if b < start[0]:
            continue
        attends = getattr(block, "has_cross_attention", False)
        for i, resnet in enumerate(block.resnets):
            if b == start[0] and i < start[1]:
                continue
            if (b, i) == tap:
                feature = hidden
            hidden = join(resnet, *freeu(block, hidden, skips.pop()), call.temb)
            if attends:
                hidden = block.attentions[i](hidden, **call.attention, return_dict=False)[0]
        if block.upsamplers is not None:
            size = skips[-1].shape[2:] if call.sized and skips else None
            for upsampler in block.upsamplers:
                hidden = upsampler(hidden, size)
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden), feature
