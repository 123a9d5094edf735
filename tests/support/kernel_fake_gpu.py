"""Run an op's CUDA branch on fake tensors, without a GPU: which kernels it launches, and what else it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.engine.launches import OwnLaunch, noted_launches


class _Others(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def launches(
    launcher: Callable[..., Tensor], shapes: list[tuple[int, ...]], *rest: Any, dtype: torch.dtype = torch.bfloat16
) -> tuple[list[OwnLaunch], list[str]]:
    """The launches of `launcher(*tensors, *rest)`, and the names of torch's operators that it calls.

    The tensors have those shapes and are on "cuda", 4-d ones in channels_last.
    """
    others = _Others()

    def make(shape: tuple[int, ...]) -> Tensor:
        options = {"memory_format": torch.channels_last} if len(shape) == 4 else {}
        return torch.empty(shape, dtype=dtype, device="cuda", **options)

    def call() -> None:
        tensors = [make(shape) for shape in shapes]
        with others:
            launcher(*tensors, *rest)

    return noted_launches(call), others.names
