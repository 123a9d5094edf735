"""Stand-ins for tensors in host memory, on a machine where ordinary tensors stand for the GPU's. For tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

HOST = torch.device("cpu", 0)  # not equal to torch.device("cpu"), which stands for the GPU


class HostTensor(Tensor):
    """A tensor in pageable host memory. `device` is HOST, and results made from it alone are on the host too.

    waits: counts copies between host and GPU, for which the host waits. Tests set it to 0.
    """

    waits = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:  # ==, because it is a new object each time
            return HOST
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        others = [tensor for tensor in tensors if not isinstance(tensor, HostTensor)]
        devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, (torch.device, str))]
        to_gpu = any(_device(leaf) not in (None, HOST) for leaf in devices)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            if to_gpu:
                # On this CPU `to` may return the same tensor; on a GPU it would be a new one.
                result = tree_map_only(HostTensor, lambda tensor: tensor.clone().as_subclass(Tensor), result)
        if "copy_" in func.__name__ or (func is Tensor.to and to_gpu):
            HostTensor.waits += 1
        if to_gpu:
            return result
        if others:
            return result
        return tree_map_only(Tensor, lambda tensor: tensor.as_subclass(cls), result)


def _device(value: Any) -> torch.device | None:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError):
        return None


def on_host(tensor: Tensor) -> HostTensor:
    """The same tensor as a `HostTensor`."""
    return tensor.as_subclass(HostTensor)
