"""Full and partial forward of `UNet2DModel` (DDPM, latent diffusion without text, class-conditional ones, NCSN++).

Both follow diffusers' own forward operation by operation, as unet_2d_condition.py does. They take the same inputs, but
`timestep` is always a tensor [1] or [B] on the U-Net's device. It keeps its dtype, because the stock forward computes
in it: "fourier" U-Nets divide the output by it, "learned" ones look it up.

NCSN++ carries an image beside the hidden state. On the down path it is the downsampled sample, and each step computes
it again. On the up path each block adds to it, so a partial step needs the image that the deep blocks made. There the
feature is [B, C + out_channels, H', W']: the hidden state, followed by the image at the same size.

Shapes: sample [B, in_channels, H, W], class_labels [B] or [B, E], feature [B, C, H', W'], output
[B, out_channels, H, W]. Dtypes as in the stock forward; the feature has that of the hidden state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from torch import Tensor, nn

from ..reuse.cut import Cut
from . import blocks
from .blend import Blend, value_of
from .calls import Call, given, timestep_of, wrapper
from .join import JoinFunction, reference_join

layout, deep_modules, wrap = blocks.layout, blocks.deep_modules, wrapper(UNet2DOutput)

# This U-Net has no text.
ARGUMENTS = dict.fromkeys(
    ("encoder_hidden_states", "attention_mask", "encoder_attention_mask", "cross_attention_kwargs")
)


def check(unet: nn.Module) -> None:
    """Raise UnsupportedUNet, naming the U-Net or block, if its forward is not the one this file follows."""
    blocks.check(unet, UNet2DModel)


def bind(
    sample: Tensor,
    timestep: Any,  # a tensor, float or int
    class_labels: Tensor | None = None,
    return_dict: bool = True,
) -> Call:
    """Bind the arguments of the stock forward, in its order and with its defaults, for `full` and `partial`."""
    if not isinstance(timestep, Tensor):
        timestep = torch.tensor(int(timestep))
    inputs = {"sample": sample, "timestep": timestep_of(timestep, sample, timestep.dtype)}
    return Call({**inputs, **given(class_labels=class_labels)}, 1.0, return_dict)


def example_inputs(unet: nn.Module, height: int, width: int, batch: int = 1) -> dict[str, Any]:
    """Inputs of `full` and `partial` on the U-Net's device: timestep 1, and zeros for the sample [B, in_channels, H, W]
    and class labels. float32, except for indices.
    """
    config, device = unet.config, unet.conv_in.weight.device
    inputs = {
        "sample": torch.zeros(batch, config.in_channels, height, width, device=device),
        "timestep": torch.ones(1, dtype=torch.long, device=device),
    }
    if config.class_embed_type == "identity":
        inputs["class_labels"] = torch.zeros(batch, unet.time_embedding.linear_2.out_features, device=device)
    elif unet.class_embedding is not None:
        inputs["class_labels"] = torch.zeros(batch, dtype=torch.long, device=device)
    return inputs


def image_channels(unet: nn.Module, cut: Cut) -> int:
    """How many channels of the feature are the image, the last ones. 0 except for NCSN++."""
    made = any(blocks.kind_of(block).image for block in unet.up_blocks[: cut.block])
    return unet.conv_out.out_channels if made else 0


def full(unet: nn.Module, cut: Cut, join: JoinFunction = reference_join, **inputs: Any) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    call = _prepare(unet, **inputs)
    hidden, skips = _down(unet, call, cut, limit=None)
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, call.temb)
    entry = cut.block, cut.layer
    hidden, image = _up(unet, call, hidden, None, skips, join, start=(0, 0), stop=entry)
    feature = hidden if image is None else torch.cat([hidden, image], dim=1)
    hidden, image = _up(unet, call, hidden, image, skips, join, start=entry)
    return _out(unet, call, hidden, image), feature


def partial(
    unet: nn.Module, cut: Cut, feature: Tensor | Blend, join: JoinFunction = reference_join, **inputs: Any
) -> Tensor:
    """The last `cut.branch` + 1 joins, starting from `feature`, and the skips they need. Returns the output."""
    call = _prepare(unet, **inputs)
    _, skips = _down(unet, call, cut, limit=cut.skips)
    hidden, image = feature, None
    if channels := image_channels(unet, cut):
        both = value_of(feature)
        hidden, image = both[:, :-channels], both[:, -channels:]
    hidden, image = _up(unet, call, hidden, image, skips, join, start=(cut.block, cut.layer))
    return _out(unet, call, hidden, image)


class _Prepared(NamedTuple):
    """What the blocks need, computed once per call."""

    sample: Tensor
    temb: Tensor
    timesteps: Tensor  # [B]


def _prepare(unet: nn.Module, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> _Prepared:
    if unet.config.center_input_sample:
        sample = 2 * sample - 1.0
    dtype = unet.dtype
    timesteps = timestep.expand(sample.shape[0])
    temb = unet.time_embedding(unet.time_proj(timesteps).to(dtype))
    if unet.class_embedding is not None:
        if class_labels is None:
            raise ValueError("This U-Net is conditioned on classes and needs class_labels.")
        if unet.config.class_embed_type == "timestep":
            class_labels = unet.time_proj(class_labels)
        temb = temb + unet.class_embedding(class_labels).to(dtype)
    elif class_labels is not None:
        raise ValueError("class_labels were given to a U-Net that is not conditioned on classes.")
    return _Prepared(sample, temb, timesteps)


def _down(unet: nn.Module, call: _Prepared, cut: Cut, limit: int | None) -> tuple[Tensor, list[Any]]:
    """The down path, up to `limit` skips (None: all of it). Returns (hidden, skips)."""
    hidden, image = unet.conv_in(call.sample), call.sample
    skips: list[Any] = [] if cut.by_block else [hidden]
    for block in unet.down_blocks:
        if len(skips) == limit:
            break
        kind = blocks.kind_of(block)
        hidden = blocks.down_layers(block, kind, hidden, call.temb, ARGUMENTS, skips, limit)
        if block.downsamplers is None or len(skips) == limit:
            continue
        if kind.image:
            image = blocks.resampled(block.downsamplers, image, call.temb)
            hidden = block.skip_conv(image) + block.resnet_down(hidden, call.temb)
        else:
            hidden = blocks.resampled(block.downsamplers, hidden, call.temb)
        if not kind.by_block:
            skips.append(hidden)
    return hidden, skips


def _up(
    unet: nn.Module,
    call: _Prepared,
    hidden: Any,
    image: Tensor | None,
    skips: list[Any],
    join: JoinFunction,
    start: tuple[int, int],
    stop: tuple[int, int] | None = None,
) -> tuple[Any, Tensor | None]:
    """The up path from layer `start` (block, layer) up to but not including `stop` (None: to the end).

    image: NCSN++'s, None before its first block; at `start` and `stop` it has the size of the hidden state there.
    Returns (hidden, image).
    """
    for b, block in enumerate(unet.up_blocks):
        if b < start[0]:
            continue
        kind = blocks.kind_of(block)
        if kind.image and image is not None and b > start[0]:
            image = block.upsampler(image)
        first = start[1] if b == start[0] else 0
        last = stop[1] if stop is not None and b == stop[0] else None
        hidden = blocks.up_layers(block, kind, hidden, call.temb, ARGUMENTS, skips, join, first, last)
        if last is not None:
            break
        if kind.image:
            hidden, image = _after_layers(block, call, hidden, image)
        elif block.upsamplers is not None:
            hidden = blocks.resampled(block.upsamplers, hidden, call.temb)
    return hidden, image


def _after_layers(block: nn.Module, call: _Prepared, hidden: Tensor, image: Tensor | None) -> tuple[Tensor, Any]:
    """The rest of an NCSN++ up block, which adds to the image and upsamples the hidden state."""
    for attention in getattr(block, "attentions", ()):
        hidden = attention(hidden)
    if block.resnet_up is not None:
        addition = block.skip_conv(block.act(block.skip_norm(hidden)))
        image = addition if image is None else image + addition
        hidden = block.resnet_up(hidden, call.temb)
    return hidden, image


def _out(unet: nn.Module, call: _Prepared, hidden: Tensor, image: Tensor | None) -> Tensor:
    output = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    if image is not None:
        output = output + image
    if unet.config.time_embedding_type == "fourier":
        output = output / call.timesteps.reshape(-1, 1, 1, 1)
    return output
