"""What the U-Nets for video share: the walk along their blocks, and tensors that come once a frame.

Their convolutions and spatial attentions work on single frames, so inside of the U-Net a batch is [B*F, C, H, W], with
the frames of one video next to each other: two halves of the videos are two halves of the frames, too. What each layer
is made of (motion modules, temporal convolutions, temporal ResNets) is the family's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..cut import Cut
from ..join import Blend
from . import blocks

# (block, i, hidden) -> hidden: ResNet i of a down block and all that follows it, up to the next skip.
DownLayer = Callable[[nn.Module, int, Tensor], Tensor]
# (block, i, hidden, skip) -> hidden: the same of an up block, after its join.
UpLayer = Callable[[nn.Module, int, Any, Tensor], Tensor]


def check_blocks(unet: nn.Module, name: str, down: tuple[str, ...], up: tuple[str, ...]) -> None:
    """UnsupportedUNet where the forward of the U-Net is not that of class `name`, or a block's not one of the known."""
    blocks.check_forward("the U-Net", unet, (name,))
    for path, known in (("down_blocks", down), ("up_blocks", up)):
        for i, block in enumerate(getattr(unet, path)):
            blocks.check_forward(f"{path}.{i}", block, known)
            blocks.check_untouched(f"{path}.{i}", block)


def deep_modules_of(unet: nn.Module, cut: Cut, parts: tuple[str, ...]) -> list[nn.Module]:
    """The modules that a partial step does not run. parts: names of a block's lists of layers, such as "resnets"."""

    def layer(block: Any, i: int) -> list[nn.Module]:
        return [getattr(block, part)[i] for part in parts if hasattr(block, part)]

    entry: Any = unet.up_blocks[cut.block]
    deep = [*unet.up_blocks[: cut.block]]
    for i in range(cut.layer):
        deep += layer(entry, i)
    skips = 1  # conv_in's
    for block in unet.down_blocks:
        for i in range(len(block.resnets)):
            deep += layer(block, i) if skips >= cut.skips else ()
            skips += 1
        if block.downsamplers is not None:
            deep += block.downsamplers if skips >= cut.skips else ()
            skips += 1
    return [module for module in (*deep, unet.mid_block) if module is not None]


def timestep_of(timestep: Any, sample: Tensor) -> Tensor:
    """A timestep (tensor, float or int) as float32 [1] or [B] on the sample's device."""
    if isinstance(timestep, Tensor):
        return timestep.reshape(-1).to(device=sample.device, dtype=torch.float32)
    return torch.full((1,), timestep, dtype=torch.float32, device=sample.device)


def without_scale(cross_attention_kwargs: dict[str, Any] | None) -> tuple[dict[str, Any] | None, float]:
    """`cross_attention_kwargs` without the LoRA scale, None where nothing is left, and that scale (1.0: none given)."""
    if cross_attention_kwargs is None:
        return None, 1.0
    rest = {name: value for name, value in cross_attention_kwargs.items() if name != "scale"}
    return rest or None, cross_attention_kwargs.get("scale", 1.0)


def by_video(tensor: Tensor, batch: int, frames: int) -> Tensor:
    """A tensor [B*F, ...] as [B, F, ...], a view, so that its first dimension is the batch; others as they are."""
    return tensor.unflatten(0, (batch, frames)) if tensor.shape[0] == batch * frames else tensor


def by_frame(tensor: Tensor, dims: int) -> Tensor:
    """What `by_video` made, as [B*F, ...] of `dims` dimensions again; others as they are."""
    return tensor.flatten(0, 1) if tensor.dim() > dims else tensor


def each_frame(tensor: Tensor, frames: int) -> Tensor:
    """[B, ...] as [B*F, ...]: once for each frame."""
    return tensor.repeat_interleave(frames, dim=0, output_size=tensor.shape[0] * frames)


def down(unet: nn.Module, hidden: Tensor, layer: DownLayer, limit: int | None) -> tuple[Tensor, list[Tensor]]:
    """The down path from its first skip on, until `limit` skips are there (None: all). Returns (hidden, skips)."""
    skips = [hidden]
    for block in unet.down_blocks:
        for i in range(len(block.resnets)):
            if len(skips) == limit:
                return hidden, skips
            hidden = layer(block, i, hidden)
            skips.append(hidden)
        if block.downsamplers is not None:
            if len(skips) == limit:
                return hidden, skips
            for downsampler in block.downsamplers:
                hidden = downsampler(hidden_states=hidden)
            skips.append(hidden)
    return hidden, skips


def controlled(skips: list[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """Skips with a ControlNet's residuals added; a partial step has fewer skips than there are residuals."""
    return [skip + by_frame(residuals[i], skip.dim()) if i < len(residuals) else skip for i, skip in enumerate(skips)]


def up(
    unet: nn.Module,
    hidden: Tensor | Blend,
    skips: list[Tensor],
    layer: UpLayer,
    sized: bool,
    start: tuple[int, int] = (0, 0),
    stop: tuple[int, int] | None = None,
) -> Any:
    """The up path from ResNet `start` (block, layer) on, up to but without `stop` (None: all), popping `skips`.

    sized: upsamplers are told their output size. Returns the hidden state.
    """
    current: Any = hidden
    for b, block in enumerate(unet.up_blocks):
        if b < start[0]:
            continue
        for i in range(len(block.resnets)):
            if (b, i) == stop:
                return current
            if (b, i) >= start:
                current = layer(block, i, current, skips.pop())
        if block.upsamplers is not None:
            size = skips[-1].shape[2:] if sized and skips else None
            for upsampler in block.upsamplers:
                current = upsampler(hidden_states=current, output_size=size)
    return current


def output_of(unet: nn.Module, hidden: Tensor) -> Tensor:
    """The output layers on the last hidden state: [B*F, out_channels, H, W]."""
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)


def sized(unet: nn.Module, sample: Tensor) -> bool:
    """Whether H or W is no multiple of the U-Net's factor: then upsamplers are told their output size."""
    return any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])
