"""Tensors in nested dicts, lists and tuples, as a U-Net's inputs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in `value`, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with each tensor replaced by `function` of it, in the same nesting and order."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(function, item) for item in value)
    return value
