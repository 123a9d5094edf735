"""Guidance reuse: partial steps run only the conditional half of the batch.

With classifier-free guidance a pipeline's batch is [unconditional, conditional]. The difference of the two outputs
changes as slowly as the feature, so a full step keeps it too. A partial step runs the conditional half alone and
subtracts the difference to get the other half, so the pipeline sees an output of the whole batch.

What a full step keeps is a tuple: (feature,), or (feature of the conditional half, difference of the outputs
[B/2, C, H, W]).
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..reuse.cut import Cut
from .blend import Blend, value_of
from .join import JoinFunction
from .nested import map_tensors

Values = tuple[Tensor, ...]
KeptValues = tuple[Tensor | Blend, ...]

# (module, kept values, inputs) -> (output, values to keep)
Compute = Callable[[nn.Module, KeptValues, dict[str, Any]], tuple[Tensor, Values]]


def steps_of(family: ModuleType, cut: Cut, join: JoinFunction, reuse: bool) -> tuple[Compute, Compute]:
    """A full and a partial step of a U-Net, as functions. reuse: whether partial steps run only half of the batch."""

    def full(unet: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        output, feature = family.full(unet, cut, join, **inputs)
        if not reuse:
            return output, (feature,)
        unconditional, conditional = output.chunk(2)
        return output, (feature.chunk(2)[1], conditional - unconditional)

    def partial(unet: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        if not reuse:
            return family.partial(unet, cut, kept[0], join, **inputs), ()
        feature, difference = kept
        conditional = family.partial(unet, cut, feature, join, **conditional_half(inputs))
        return torch.cat([conditional - value_of(difference), conditional]), ()

    return full, partial


def conditional_half(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs for the second half of the batch: the second half of each tensor whose first dimension is the batch.

    Other tensors ([1] timesteps, IP-Adapter masks) hold for the whole batch and stay as they are.
    """
    batch = inputs["sample"].shape[0]

    def half(tensor: Tensor) -> Tensor:
        return tensor[batch // 2 :] if tensor.dim() and tensor.shape[0] == batch else tensor

    return map_tensors(half, inputs)
