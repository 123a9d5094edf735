"""The kernel launches of a call on CUDA tensors, on a machine without a GPU: fake tensors, and nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.runtime.jit import JITFunction


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


@contextmanager
def launches_go_to(note: Callable[[Launch], None]) -> Iterator[None]:
    """Inside, what one of our launchers launches is given to `note`, and does not run."""

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args and not warmup
        note(Launch(self, grid, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield


def noted_launches(call: Callable[[], object], warp_size: int = 32) -> list[Launch]:
    """What `call` launches on a GPU of an H100's size. Tensors that it makes on "cuda" are fake ones."""
    noted: list[Launch] = []
    gpu = SimpleNamespace(multi_processor_count=132, warp_size=warp_size)
    device = mock.patch.object(torch.cuda, "get_device_properties", lambda _: gpu)
    with FakeTensorMode(), device, launches_go_to(noted.append):
        call()
    return noted
