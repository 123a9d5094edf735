"""Guidance reuse: partial steps run only the conditional half of the batch.

With classifier-free guidance a pipeline's batch is [unconditional, conditional]. The difference of the two outputs
changes as slowly as the feature, so a full step keeps it too. A partial step runs the conditional half alone and
subtracts the difference to get the other half, so the pipeline sees an output of the whole batch.

`full` and `partial` here call a family's own. What a full step keeps is a tuple: (feature,), or (feature of the
conditional half, difference of the outputs [B/2, C, H, W]).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..reuse.cut import Cut
from .blend import Blend, value_of
from .join import JoinFunction

Values = tuple[Tensor, ...]


def full(
    family: ModuleType, unet: nn.Module, cut: Cut, join: JoinFunction, reuse: bool, inputs: dict[str, Any]
) -> tuple[Tensor, Values]:
    """The whole U-Net: (output, values to keep). reuse: whether partial steps will run only half of the batch."""
    output, feature = family.full(unet, cut, join, **inputs)
    if not reuse:
        return output, (feature,)
    unconditional, conditional = output.chunk(2)
    return output, (feature.chunk(2)[1], conditional - unconditional)


def partial(
    family: ModuleType,
    unet: nn.Module,
    cut: Cut,
    join: JoinFunction,
    kept: tuple[Tensor | Blend, ...],
    inputs: dict[str, Any],
) -> Tensor:
    """The shallow part on the kept values. Returns the output of the whole batch."""
    if len(kept) == 1:
        return family.partial(unet, cut, kept[0], join, **inputs)
    feature, difference = kept
    conditional = family.partial(unet, cut, feature, join, **conditional_half(inputs))
    return torch.cat([conditional - value_of(difference), conditional])


def conditional_half(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs for the second half of the batch: the second half of each tensor whose first dimension is the batch.

    Other tensors ([1] timesteps, IP-Adapter masks) hold for the whole batch and stay as they are.
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
