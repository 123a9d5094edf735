"""Guidance reuse: in partial steps only the conditional half of the batch runs.

With classifier-free guidance a pipeline's batch is [unconditional, conditional]. The difference of the two outputs
changes as slowly as the feature does, so a full step keeps it beside the feature, and a partial step runs the
conditional half alone and takes the difference off again: the pipeline sees an output of the whole batch.

Between graphs and forwards: `full` and `partial` here are a family's own, with what a run keeps as a tuple, (feature,)
or (feature of the conditional half, difference of the outputs [B/2, C, H, W]).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..reuse.cut import Cut
from .join import Blend, Join, value_of

Values = tuple[Tensor, ...]


def full(
    family: ModuleType, unet: nn.Module, cut: Cut, join: Join, reuse: bool, inputs: dict[str, Any]
) -> tuple[Tensor, Values]:
    """The whole U-Net: (output, what is kept of it). reuse: whether the batch is two halves, one of which suffices."""
    output, feature = family.full(unet, cut, join, **inputs)
    if not reuse:
        return output, (feature,)
    unconditional, conditional = output.chunk(2)
    return output, (feature.chunk(2)[1], conditional - unconditional)


def partial(
    family: ModuleType, unet: nn.Module, cut: Cut, join: Join, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]
) -> Tensor:
    """The shallow part on what was kept. Returns the output of the whole batch."""
    if len(kept) == 1:
        return family.partial(unet, cut, kept[0], join, **inputs)
    feature, difference = kept
    conditional = family.partial(unet, cut, feature, join, **conditional_half(inputs))
    return torch.cat([conditional - value_of(difference), conditional])


def conditional_half(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the second half of the batch: of each tensor whose first dimension is the batch, the second half.

    Others ([1] timesteps, masks of IP-Adapter) are for the whole batch and stay as they are.
    """
    batch = inputs["sample"].shape[0]

    def half(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[batch // 2 :] if value.dim() and value.shape[0] == batch else value
        if isinstance(value, dict):
            return {key: half(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(half(item) for item in value)
        return value

    return half(inputs)
