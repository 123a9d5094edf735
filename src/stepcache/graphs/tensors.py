"""The tensors in what a graph is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested dicts, lists and tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]
