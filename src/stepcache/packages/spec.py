"""What a package depends on in its inputs, and inputs without contents to compile it with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..forwards.blend import Blend
from ..forwards.guidance import KeptValues
from ..forwards.nested import map_tensors
from .state import NotPackaged


def spec_of(value: Any) -> Any:
    """A nested input as JSON: a tensor as its dtype, shape and strides, anything else as it is.

    Raises NotPackaged for what JSON does not hold.
    """
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "strides": _dense(value)}
    if isinstance(value, Blend):
        return {"blend": [spec_of(item) for item in (*value.buffers, value.weights)]}
    if isinstance(value, dict):
        return {str(key): spec_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec_of(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NotPackaged(f"an input is a {type(value).__qualname__}")


def shapes(spec: Any) -> Any:
    """A spec without strides. Inputs in another layout are copied into that of the package."""
    if isinstance(spec, dict):
        return {key: shapes(item) for key, item in spec.items() if key != "strides"}
    return [shapes(item) for item in spec] if isinstance(spec, list) else spec


def strides_of(spec: Any) -> list[tuple[int, ...]]:
    """The strides of a spec's tensors, in the order of `tensors_of`."""
    if isinstance(spec, dict):
        if "strides" in spec:
            return [tuple(spec["strides"])]
        spec = list(spec.values())
    return [strides for item in spec for strides in strides_of(item)] if isinstance(spec, list) else []


def without_contents(value: Any) -> Any:
    """`value` with each tensor replaced by one of its dtype, shape and strides on the meta device."""
    return map_tensors(_meta, value)


def kept_without_contents(kept: KeptValues) -> KeptValues:
    """The same for kept values."""
    return tuple(
        Blend(tuple(map(_meta, value.buffers)), _meta(value.weights)) if isinstance(value, Blend) else _meta(value)
        for value in kept
    )


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tuple(tensor.shape), _dense(tensor), dtype=tensor.dtype, device="meta")


def _dense(tensor: Tensor) -> list[int]:
    """The tensor's strides; those of a contiguous tensor if it is expanded, as captured graphs keep a copy."""
    strides = tensor.stride()
    if any(stride == 0 and size > 1 for stride, size in zip(strides, tensor.shape, strict=True)):
        strides = torch.empty(tensor.shape, device="meta").stride()
    return list(strides)
