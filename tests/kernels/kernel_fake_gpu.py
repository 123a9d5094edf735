"""The CUDA branch of an op on fake tensors, on a machine without a GPU: which kernels it launches, and what else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class _Others(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def launches(
    launcher: Callable[..., Tensor], shapes: list[tuple[int, ...]], *rest: Any
) -> tuple[list[Launch], list[str]]:
    """`launcher(*tensors of those shapes, *rest)`: its launches, and its calls of torch's operators.

    The tensors are bfloat16 and on "cuda", 4-d ones in channels_last.
    """
    noted: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args and not warmup
        noted.append(Launch(self.fn.__name__, grid, kwargs))

    def make(shape: tuple[int, ...]) -> Tensor:
        options = {"memory_format": torch.channels_last} if len(shape) == 4 else {}
        return torch.empty(shape, dtype=torch.bfloat16, device="cuda", **options)

    h100 = SimpleNamespace(multi_processor_count=132, warp_size=32)
    with FakeTensorMode(), mock.patch("torch.cuda.get_device_properties", return_value=h100):
        tensors = [make(shape) for shape in shapes]
        with mock.patch.object(JITFunction, "run", run), _Others() as others:
            launcher(*tensors, *rest)
    return noted, others.names
