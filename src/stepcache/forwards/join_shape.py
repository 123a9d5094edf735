"""What the time of a join depends on, and the memory format in which a join runs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blend import Blend


class JoinShape(NamedTuple):
    """Everything about a join that its time depends on.

    dtype: "float16". layout: "channels_last" or "contiguous". hidden, skip, out: channels. height, width: pixels of the
    latent. buffers: how many the hidden state is blended from, 0 if it is a tensor; where the halves of the batch take
    from each other, each buffer counts twice. resnet: kind of ResNet (`shape_of`).
    """

    dtype: str
    layout: str
    batch: int
    hidden: int
    skip: int
    out: int
    groups: int
    height: int
    width: int
    buffers: int
    resnet: str

    def __str__(self) -> str:
        mixed = f" of {self.buffers} buffers" if self.buffers else ""
        return f"{self.batch} x {self.hidden}{mixed} + {self.skip} -> {self.out} at {self.height} x {self.width}"


def shape_of(resnet: nn.Module, hidden: Tensor | Blend, skip: Tensor) -> JoinShape:
    """The shape of a join. `resnet` must be one that `join.fusable` accepts."""
    h = hidden.buffers[0] if isinstance(hidden, Blend) else hidden
    sampler = "up" if resnet.upsample else "down" if resnet.downsample else ""
    shortcut = "no shortcut" if resnet.conv_shortcut is None else f"{type(resnet.conv_shortcut).__name__} shortcut"
    return JoinShape(
        dtype=str(h.dtype).removeprefix("torch."),
        layout="channels_last" if join_format(resnet, h, skip) is torch.channels_last else "contiguous",
        batch=h.shape[0],
        hidden=h.shape[1],
        skip=skip.shape[1],
        out=resnet.out_channels,
        groups=resnet.norm1.num_groups,
        height=h.shape[2],
        width=h.shape[3],
        buffers=hidden.weights.numel() if isinstance(hidden, Blend) else 0,
        resnet=" ".join(filter(None, (resnet.time_embedding_norm, sampler, shortcut))),
    )


def join_format(resnet: nn.Module, *inputs: Tensor) -> torch.memory_format:
    """The memory format in which the ResNet convolves `inputs`: channels_last if they or its weights are."""
    weight = getattr(resnet.conv1, "weight", None)  # a quantised layer's may be of any type
    return memory_format_of(*inputs, *([weight] if isinstance(weight, Tensor) and weight.dim() == 4 else []))


def memory_format_of(*tensors: Tensor) -> torch.memory_format:
    """channels_last if one of the [N, C, H, W] tensors is channels_last and not also contiguous, else contiguous."""
    for x in tensors:
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format
