"""What people do to a model between runs, and what makes its graphs stale."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import AttnProcessor


def replace_weight(layer: torch.nn.Module) -> None:
    layer.weight = torch.nn.Parameter(layer.weight * 1.5, requires_grad=False)


def move_the_data(model: torch.nn.Module) -> None:
    """What `to()` does."""
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.01


def other_processor(model: torch.nn.Module) -> None:
    model.set_attn_processor(AttnProcessor())
