"""What a captured graph depends on beside its inputs: addresses of weights, and every Python value of the modules.

A CUDA graph replays kernels with the arguments that they had at capture. A weight that was updated in place is seen; a
weight that was replaced (LoRA loaded or unloaded, `pipe.to`, a reload) is not, nor is a Python number that some module
holds (a LoRA's scaling, FreeU's factors, an IP-Adapter's scale, another attention processor).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..pipes.seat import ORIGINAL


class Snapshot:
    """The state of a model but for the modules `without`, to be compared with it later.

    It holds the modules' attributes, the entries of dicts and lists among them (parameters, submodules, hooks, LoRA
    scalings), the attributes of attention processors, the addresses of parameters and buffers, and kernels' strides.
    """

    def __init__(self, model: nn.Module, without: Iterable[nn.Module] = ()) -> None:
        left_out = {module for root in without for module in root.modules()}
        # Compared pair by pair: what is there, and what was there when the snapshot was made.
        self._now: list[Any] = []
        self._then: list[Any] = []
        # Most modules have no buffers and no hooks; that a dict or list is still empty is asked faster.
        self._empty: list[Any] = []
        # Where stepcache itself puts a new `forward` in each run.
        self._watched: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._tensors: list[Tensor] = []
        for module in model.modules():
            if module not in left_out:
                self._tensors += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
                self._keep(vars(module))
                if hasattr(processor := vars(module).get("processor"), "__dict__"):
                    self._keep(vars(processor))
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        # A weight that was re-laid (channels_last) and moved may be at an old address again, in another layout. Kernels
        # of 1 x 1 are in both at once.
        self._kernels = [t for t in self._tensors if t.dim() == 4 and not _in_both_layouts(t)]
        self._strides = [tensor.stride() for tensor in self._kernels]

    def _keep(self, values: dict[str, Any]) -> None:
        if any(hasattr(value, ORIGINAL) for value in values.values()):
            self._watched.append((values, _without_watch(values)))
        else:
            self._now.append(values)
            self._then.append(values.copy())
        for value in values.values():
            if isinstance(value, (dict, list)):
                if value:
                    self._now.append(value)
                    self._then.append(value.copy())
                else:
                    self._empty.append(value)

    def holds(self) -> bool:
        """Whether the model is still what it was. Costs the host a third of a microsecond a module."""
        if any(self._empty):
            return False
        try:
            if not all(map(operator.eq, self._now, self._then)) and not all(map(_same, self._now, self._then)):
                return False
            if not all(_without_watch(now) == then for now, then in self._watched):
                return False
        except (RuntimeError, ValueError):
            # Two different tensors compared have no one truth value; the same tensor is known by identity.
            return False
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            return False
        return [tensor.stride() for tensor in self._kernels] == self._strides


def _in_both_layouts(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _same(now: Any, then: Any) -> bool:
    # Another thread's run may watch, or watch no longer, what it did not when the snapshot was made.
    return now == then or (isinstance(now, dict) and _without_watch(now) == then)


def _without_watch(values: dict[str, Any]) -> dict[str, Any]:
    """Without stepcache's own interceptions."""
    return {name: value for name, value in values.items() if not hasattr(value, ORIGINAL)}
