"""What a captured graph depends on besides its inputs: addresses of weights, and the modules' Python values.

A CUDA graph replays kernels with the arguments they had at capture. It sees a weight that is updated in place. It does
not see a weight that is replaced (LoRA loaded or unloaded, `pipe.to`, a reload), or a changed Python value of a module
(a LoRA's scaling, FreeU's factors, an IP-Adapter's scale, another attention processor).
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..pipes.foreign import State, foreign_code
from ..pipes.seat import ORIGINAL


class Snapshot:
    """The state of a model, except the modules `without`, to compare with its state later.

    It holds the modules' classes and attributes, the entries of attributes that are dicts or lists (parameters,
    submodules, hooks, LoRA scalings), the attributes of attention processors, the addresses of parameters and buffers,
    the strides of convolution weights, and what foreign code on the modules reads elsewhere.
    """

    def __init__(self, model: nn.Module, without: Iterable[nn.Module] = ()) -> None:
        left_out = {module for root in without for module in root.modules()}
        # Compared in pairs: the live dict or list, and a copy from when the snapshot was made.
        self._now: list[Any] = []
        self._then: list[Any] = []
        # Empty dicts and lists apart: most modules have no buffers or hooks, and testing for emptiness is faster.
        self._empty: list[Any] = []
        # Modules on which stepcache itself replaces `forward` in each run.
        self._watched: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._tensors: list[Tensor] = []
        every = list(model.modules())
        modules = [module for module in every if module not in left_out]
        code = foreign_code(modules)
        self._outside = State(code, every) if code else None
        self._outside_then = [] if self._outside is None else self._outside.values()
        for module in modules:
            self._tensors += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
            self._keep(vars(module))
            if hasattr(processor := vars(module).get("processor"), "__dict__"):
                self._keep(vars(processor))
        # Its own attributes hold all modules but the model itself, which must not live as long as this.
        self._model, self._modules = weakref.ref(model), [module for module in modules if module is not model]
        self._classes = [type(model), *map(type, self._modules)]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        # A weight that is re-laid (channels_last) and moved may return to an old address in another layout. 1 x 1
        # kernels are in both layouts at once.
        self._kernels = [t for t in self._tensors if t.dim() == 4 and not _in_both_layouts(t)]
        self._strides = [tensor.stride() for tensor in self._kernels]

    def _keep(self, values: dict[str, Any]) -> None:
        if any(hasattr(value, ORIGINAL) for value in values.values()):
            self._watched.append((values, _bare(values)))
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
        """Whether the model is unchanged. Costs the host a third of a microsecond per module."""
        if any(self._empty) or [type(self._model()), *map(type, self._modules)] != self._classes:
            return False
        if self._outside is not None and not self._outside.holds(self._outside_then):
            return False
        try:
            if not all(map(operator.eq, self._now, self._then)):
                if not all(map(_same, self._now, self._then)):
                    return False
                self._then = [values.copy() for values in self._now]  # the next comparison is the fast one again
            if not all(_bare(now) == then for now, then in self._watched):
                return False
        except (RuntimeError, ValueError):
            # Comparing two different tensors has no single truth value; the same tensor is equal by identity.
            return False
        if [tensor.data_ptr() for tensor in self._tensors] != self._addresses:
            return False
        return [tensor.stride() for tensor in self._kernels] == self._strides


def _in_both_layouts(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _same(now: Any, then: Any) -> bool:
    # Another thread's run may have started or stopped watching since the snapshot was made, or a hook come and gone.
    return now == then or (isinstance(now, dict) and _bare(now) == _bare(then))


def _bare(values: dict[str, Any]) -> dict[str, Any]:
    """A module's attributes without stepcache's own interceptions, and without what diffusers' hooks leave when they
    go: an empty registry, and the module's own forward.
    """
    return {
        name: value
        for name, value in values.items()
        if not hasattr(value, ORIGINAL)
        and not (name == "_diffusers_hook" and not getattr(value, "hooks", True))
        and not (name == "forward" and _is_own_forward(value, values))
    }


def _is_own_forward(forward: Any, values: dict[str, Any]) -> bool:
    module: Any = getattr(forward, "__self__", None)
    return getattr(module, "__dict__", None) is values and getattr(forward, "__func__", None) is type(module).forward
