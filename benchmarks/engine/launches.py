"""The kernels that stepcache's own launchers launch for fake CUDA tensors. No GPU is needed, and nothing runs."""

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
class OwnLaunch:
    """One launch of one of stepcache's kernels."""

    function: JITFunction
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """By name, including num_warps and num_stages if the launcher sets them."""

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        return self.function.fn.__name__


@contextmanager
def launches_go_to(note: Callable[[OwnLaunch], None]) -> Iterator[None]:
    """Inside, launches of stepcache's kernels are passed to `note` and do not run."""

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert not args and not warmup
        note(OwnLaunch(self, grid, kwargs))

    with mock.patch.object(JITFunction, "run", run):
        yield


def noted_launches(call: Callable[[], object], warp_size: int = 32) -> list[OwnLaunch]:
    """What `call` launches on a GPU with as many multiprocessors as an H100. Tensors that it makes are fake."""
    noted: list[OwnLaunch] = []
    gpu = SimpleNamespace(multi_processor_count=132, warp_size=warp_size, major=9, minor=0)
    device = mock.patch.object(torch.cuda, "get_device_properties", lambda _: gpu)
    with FakeTensorMode(), device, launches_go_to(noted.append):
        call()
    return noted
