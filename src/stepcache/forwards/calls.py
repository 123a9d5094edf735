"""A U-Net call: its arguments, as `full` and `partial` take them, and what is settled outside of these."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """One U-Net call. `inputs` go to full and partial; the rest is settled outside of them."""

    inputs: dict[str, Any]
    lora_scale: float
    return_dict: bool


def timestep_of(timestep: Any, sample: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A timestep (tensor, float or int) as `dtype` [1] or [B] on the sample's device. Of the host, it costs no wait."""
    if not isinstance(timestep, Tensor):
        return torch.full((1,), timestep, dtype=dtype, device=sample.device)
    if not timestep.is_cpu or timestep.device == sample.device:
        return timestep.reshape(-1).to(device=sample.device, dtype=dtype)
    # A copy from pageable memory makes the host wait until the device is done with all before it; a fill does not.
    values = timestep.reshape(-1).tolist()
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], dtype=dtype, device=sample.device)
    return torch.cat([torch.full((1,), value, dtype=dtype, device=sample.device) for value in values])


def without_scale(cross_attention_kwargs: dict[str, Any] | None) -> tuple[dict[str, Any] | None, float]:
    """`cross_attention_kwargs` without the LoRA scale, None where nothing is left, and that scale (1.0: none given)."""
    if cross_attention_kwargs is None:
        return None, 1.0
    rest = {name: value for name, value in cross_attention_kwargs.items() if name != "scale"}
    return rest or None, cross_attention_kwargs.get("scale", 1.0)
