"""What all families share about a call: its arguments, bound for `full` and `partial`, and its output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UnsupportedUNet


class Call(NamedTuple):
    """One U-Net call. `inputs` go to `full` and `partial`; the caller handles the rest."""

    inputs: dict[str, Any]
    lora_scale: float
    return_dict: bool


def bound(bind: Callable[..., Call], stock: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A U-Net call's arguments, bound by a family's `bind`. stock: the U-Net's own forward.

    For arguments that `bind` does not take: the stock forward's own TypeError if it does not take them either, else
    UnsupportedUNet with their names, because `full` and `partial` would ignore them.
    """
    try:
        return bind(*args, **kwargs)
    except TypeError as error:
        failure = error
    # Outside of the except clause, so that the user's traceback does not start with one about `bind`.
    known = inspect.signature(bind)
    if _takes(known, args, kwargs):
        raise failure
    theirs = inspect.signature(stock)
    if not _takes(theirs, args, kwargs):
        stock(*args, **kwargs)  # raises
        raise failure
    named = {**dict(zip(theirs.parameters, args, strict=False)), **kwargs}
    odd = [name for name in named if name not in known.parameters]
    odd += [f"no {name}" for name, p in known.parameters.items() if p.default is p.empty and name not in named]
    raise UnsupportedUNet(
        f"The U-Net was called with {', '.join(odd)}. Its own forward takes that, as another version of diffusers may, "
        f"but stepcache does not. It knows the arguments {', '.join(known.parameters)}. Change the call, or run this "
        "pipeline without stepcache (stepcache.restore(pipe))."
    )


def _takes(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


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
