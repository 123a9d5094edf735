"""What the video U-Nets share: the walk along their blocks, and tensors with one entry per frame.

Their convolutions and spatial attentions work on single frames, so inside the U-Net a batch is [B*F, C, H, W], with the
frames of one video next to each other. So half of the videos is half of the frames, too. What a layer consists of
(motion modules, temporal convolutions, temporal ResNets) is up to the family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..reuse.cut import Cut, Layout, layout_of
from .blend import Blend
from .stock import check_stock
from .touched import check_untouched

Classes = tuple[type[nn.Module], ...]

# (block, i, hidden) -> hidden: ResNet i of a down block and everything after it, up to the next skip.
DownLayer = Callable[[nn.Module, int, Tensor], Tensor]
# (block, i, hidden, skip) -> hidden: the join at ResNet i of an up block and everything after it, up to the next join.
UpLayer = Callable[[nn.Module, int, Tensor | Blend, Tensor], Tensor]


def check_blocks(unet: nn.Module, own: type[nn.Module], down: Classes, up: Classes) -> None:
    """Raise UnsupportedUNet if the U-Net's forward is not that of `own`, or a block's not of `down` or `up`.

    All are classes of diffusers.
    """
    check_stock("the U-Net", unet, (own,))
    for path, known in (("down_blocks", down), ("up_blocks", up)):
        for i, block in enumerate(getattr(unet, path)):
            check_stock(f"{path}.{i}", block, known)
            check_untouched(f"{path}.{i}", block)


def layout(unet: nn.Module) -> Layout:
    """The U-Net's joins and skips."""
    return layout_of(unet.down_blocks, unet.up_blocks)


def deep_modules(unet: nn.Module, cut: Cut, parts: tuple[str, ...]) -> list[nn.Module]:
    """The modules that a partial step skips. parts: names of a block's lists of layers, such as "resnets"."""

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


def by_video(tensor: Tensor | None, sample: Tensor) -> Tensor | None:
    """View a tensor [B*F, ...] as [B, F, ...], for `sample` [B, C, F, H, W]. Any other tensor, and None, stay."""
    batch, frames = sample.shape[0], sample.shape[2]
    return tensor if tensor is None or tensor.shape[0] != batch * frames else tensor.unflatten(0, (batch, frames))


def by_frame(tensor: Tensor, dims: int) -> Tensor:
    """Undo `by_video`: [B, F, ...] as [B*F, ...] of `dims` dimensions. Any other tensor stays."""
    return tensor.flatten(0, 1) if tensor.dim() > dims else tensor


def frames_of(sample: Tensor) -> Tensor:
    """A sample [B, C, F, H, W] as [B*F, C, H, W]."""
    return sample.transpose(1, 2).reshape(sample.shape[0] * sample.shape[2], -1, *sample.shape[3:])


def each_frame(tensor: Tensor, frames: int) -> Tensor:
    """Repeat each entry of [B, ...] for every frame: [B*F, ...]."""
    return tensor.repeat_interleave(frames, dim=0, output_size=tensor.shape[0] * frames)


class Walk(NamedTuple):
    """One call of a U-Net: its layers as functions. mid: what is between the down and the up path.

    first: skip 0, [B*F, C, H, W]. out: the output layers, on the last hidden state. control: a ControlNet's residuals
    for the skips. sized: whether upsamplers are told their output size.
    """

    unet: nn.Module
    first: Tensor
    down: DownLayer
    mid: Callable[[Tensor], Tensor]
    up: UpLayer
    out: Callable[[Tensor], Tensor]
    sized: bool
    control: Sequence[Tensor] = ()


def full(walk: Walk, cut: Cut) -> tuple[Tensor, Tensor]:
    """The whole U-Net. Returns (output, feature): feature is the hidden state entering join `cut.branch`."""
    hidden, skips = _down(walk, limit=None)
    entry = cut.block, cut.layer
    feature = _up(walk, walk.mid(hidden), skips, stop=entry)
    return walk.out(_up(walk, feature, skips, start=entry)), feature


def partial(walk: Walk, cut: Cut, feature: Tensor | Blend) -> Tensor:
    """The last `cut.branch` + 1 joins, starting from `feature`, and the skips they need. Returns the output."""
    _, skips = _down(walk, limit=cut.skips)
    return walk.out(_up(walk, feature, skips, start=(cut.block, cut.layer)))


def _down(walk: Walk, limit: int | None) -> tuple[Tensor, list[Tensor]]:
    """The down path, up to `limit` skips (None: all of it). Returns (hidden, skips)."""
    hidden, skips = _down_blocks(walk, limit)
    residuals = walk.control  # more than the skips of a partial step
    return hidden, [
        skip + by_frame(residuals[i], skip.dim()) if i < len(residuals) else skip for i, skip in enumerate(skips)
    ]


def _down_blocks(walk: Walk, limit: int | None) -> tuple[Tensor, list[Tensor]]:
    hidden, skips = walk.first, [walk.first]
    for block in walk.unet.down_blocks:
        for i in range(len(block.resnets)):
            if len(skips) == limit:
                return hidden, skips
            hidden = walk.down(block, i, hidden)
            skips.append(hidden)
        if block.downsamplers is not None:
            if len(skips) == limit:
                return hidden, skips
            for downsampler in block.downsamplers:
                hidden = downsampler(hidden_states=hidden)
            skips.append(hidden)
    return hidden, skips


def _up(
    walk: Walk,
    hidden: Tensor | Blend,
    skips: list[Tensor],
    start: tuple[int, int] = (0, 0),
    stop: tuple[int, int] | None = None,
) -> Any:
    """The up path from ResNet `start` (block, layer) up to but not including `stop` (None: to the end)."""
    current: Any = hidden
    for b, block in enumerate(walk.unet.up_blocks):
        if b < start[0]:
            continue
        for i in range(len(block.resnets)):
            if (b, i) == stop:
                return current
            if (b, i) >= start:
                current = walk.up(block, i, current, skips.pop())
        if block.upsamplers is not None:
            size = skips[-1].shape[2:] if walk.sized and skips else None
            for upsampler in block.upsamplers:
                current = upsampler(hidden_states=current, output_size=size)
    return current


def output_of(unet: nn.Module, hidden: Tensor) -> Tensor:
    """The output layers on the last hidden state: [B*F, out_channels, H, W]."""
    if unet.conv_norm_out is not None:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden)
