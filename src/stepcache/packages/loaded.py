"""Loaded packages, one of each kind in a process."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALIGNED = 16  # bytes: what Inductor assumes of inputs on a GPU

# (function, tensors) -> its results: how the stand-in for CUDA graphs records native code, which it cannot look into.
watcher: ContextVar[Callable[[Callable[..., Any], list[Tensor]], list[Tensor]] | None] = ContextVar(
    "stepcache_package_watcher", default=None
)


class Package:
    """A package's native code in this process, for one device. Holds no weights and keeps nothing between calls.

    Torch holds Python's global lock while it runs. On a CPU that is the whole time, on a GPU only that of launching.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self._device, self._lock = device, threading.Lock()
        index = -1 if device.index is None else device.index
        with self._on_device():
            self.loader = _loader(path, index)

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """The program's outputs for weights, kept values and inputs, in this order. Threads take turns."""
        if self._device.type == "cuda":
            tensors = [tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone() for tensor in tensors]
        watch = watcher.get()
        with self._lock, self._on_device():
            return self.loader.run(tensors) if watch is None else watch(self.loader.run, tensors)


def _loader(path: Path, index: int) -> Any:
    # Single-threaded: without the container's own events and waits, which a CUDA graph's capture does not allow.
    try:
        # What torch._inductor.aoti_load_package wraps. That imports Inductor, which takes seconds, and parses the
        # nesting of inputs at each call, which takes milliseconds.
        return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, index)
    except (AttributeError, TypeError):  # another torch
        return torch._inductor.aoti_load_package(str(path), run_single_threaded=True, device_index=index).loader


_loaded: weakref.WeakValueDictionary[tuple[str, torch.device], Package] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load(path: Path, sha256: str, device: torch.device) -> Package:
    """The package in the file `path`, whose hash was checked; the same one for all pipes while one of them has it.

    Raises RuntimeError, from torch, if it cannot be loaded.
    """
    with _loading:
        package = _loaded.get((sha256, device))
        if package is None:
            package = _loaded[sha256, device] = Package(path, device)
        return package
