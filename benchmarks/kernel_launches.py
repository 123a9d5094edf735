"""The kernel launches of a call on CUDA tensors, on a machine without a GPU: fake tensors, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction

H100 = SimpleNamespace(multi_processor_count=132, warp_size=32)


@dataclass(frozen=True)
class Launch:
    """One kernel launch."""

    function: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """By name, with num_warps and num_stages where the launcher sets them."""

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.function.fn.__name__


def noted_launches(call: Callable[[], object]) -> list[Launch]:
    """What `call` launches on an H100. Tensors that it makes on "cuda" are fake ones."""
    noted: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args and not warmup
        noted.append(Launch(self, grid, kwargs))

    device = mock.patch.object(torch.cuda, "get_device_properties", lambda _: H100)
    with FakeTensorMode(), device, mock.patch.object(JITFunction, "run", run):
        call()
    return noted
