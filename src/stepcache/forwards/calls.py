"""What all families share about a call: its arguments, bound for `full` and `partial`, and its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """One U-Net call. `inputs` go to `full` and `partial`; the caller handles the rest."""

    inputs: dict[str, Any]
    lora_scale: float
    return_dict: bool


def given(**arguments: Any) -> dict[str, Any]:
    """The arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def wrapper(output_class: Callable[..., Any]) -> Callable[[Tensor, bool], Any]:
    """A family's `wrap`. output_class: diffusers' dataclass of the output."""

    def wrap(output: Tensor, return_dict: bool) -> Any:
        return output_class(sample=output) if return_dict else (output,)

    return wrap


def is_uneven(unet: nn.Module, sample: Tensor) -> bool:
    """Whether H or W is not a multiple of the U-Net's factor. Then upsamplers must be told their output size."""
    return any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])


def attention_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask [B, keys] (1 keeps, 0 drops) as a bias [B, 1, keys] of `dtype` on attention scores; None as None."""
    return None if mask is None else ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def timestep_of(timestep: Any, sample: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A timestep (tensor, float or int) as `dtype` [1] or [B] on the sample's device. One on the host costs no wait."""
    if not isinstance(timestep, Tensor):
        return torch.full((1,), timestep, dtype=dtype, device=sample.device)
    if not timestep.is_cpu or timestep.device == sample.device:
        return timestep.reshape(-1).to(device=sample.device, dtype=dtype)
    # A copy from pageable memory makes the host wait for all earlier work on the device. A fill does not.
    values = timestep.reshape(-1).tolist()
    if len(set(values)) == 1:
        return torch.full((len(values),), values[0], dtype=dtype, device=sample.device)
    return torch.cat([torch.full((1,), value, dtype=dtype, device=sample.device) for value in values])


def without_scale(cross_attention_kwargs: dict[str, Any] | None) -> tuple[dict[str, Any] | None, float]:
    """`cross_attention_kwargs` without the LoRA scale (None if nothing is left), and that scale (default 1.0)."""
    if cross_attention_kwargs is None:
        return None, 1.0
    rest = {name: value for name, value in cross_attention_kwargs.items() if name != "scale"}
    return rest or None, cross_attention_kwargs.get("scale", 1.0)


_READ_ONLY = {"gligen", "ip_adapter_masks"}  # what diffusers' own processors take
_CONTAINERS = dict, list, set


def written_by_processors(cross_attention_kwargs: dict[str, Any] | None) -> str:
    """The name of a dict, list or set among them that processors may write to (reference attention does); or ""."""
    for name, value in (cross_attention_kwargs or {}).items():
        if isinstance(value, _CONTAINERS) and name not in _READ_ONLY:
            return name
    return ""
