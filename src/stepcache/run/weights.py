"""Finds the 4-d weights of a model that can be re-laid in channels_last, and replaces their data."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..graphs.turns import exclusive

Stride = tuple[int, ...]

# A module's parent, and its name there; and the same with the module, all as weak references.
Place = tuple[nn.Module, str]
Edge = tuple[weakref.ref[nn.Module], str, weakref.ref[nn.Module]]


@contextmanager
def settled(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Re-lay these tensors inside: on CUDA the device is synchronised before and after.

    Other streams may still run a graph on the old memory, which the allocator reuses once it is free on this stream.
    """
    tensors = list(tensors)
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    with ExitStack() as stack:
        if tensors:
            stack.enter_context(exclusive())
        for device in devices:
            torch.cuda.synchronize(device)
        try:
            # A weight made in inference mode could not be used outside it.
            with torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            for device in devices:
                torch.cuda.synchronize(device)


def lay(tensor: Tensor, data: Tensor) -> None:
    """Give the weight other data, always in other memory: a captured graph recognises a weight by its address."""
    tensor.data = data


def weights_of(model: nn.Module) -> tuple[list[tuple[nn.Module, str, Tensor]], dict[nn.Module, Place], bool]:
    """The weights that can be re-laid, each once, with module and name; each module's place; and whether any 4-d
    parameter is on the meta device.
    """
    found: dict[int, tuple[nn.Module, str, Tensor]] = {}
    places: dict[nn.Module, Place] = {}
    seen, meta, stack = {model}, False, [model]
    while stack:
        module = stack.pop()
        adapters: Any = getattr(type(module), "adapter_layer_names", ())  # peft's layers beside the base layer
        for name, child in module._modules.items():
            if child is not None and child not in seen and name not in adapters:
                seen.add(child)
                places[child] = module, name
                stack.append(child)
        for name, tensor in module._parameters.items():
            if tensor is None or tensor.dim() != 4 or name in adapters:
                continue
            meta |= tensor.is_meta
            if is_eligible(tensor):
                found[id(tensor)] = module, name, tensor
    return list(found.values()), places, meta


def edges_of(modules: Iterable[nn.Module], places: dict[nn.Module, Place]) -> list[Edge]:
    """The parent-child links from the model to these modules."""
    edges: dict[nn.Module, Edge] = {}
    for module in modules:
        while module in places and module not in edges:
            parent, name = places[module]
            edges[module] = weakref.ref(parent), name, weakref.ref(module)
            module = parent
    return list(edges.values())


def is_eligible(tensor: Tensor) -> bool:
    """Whether we may re-lay a weight (channels_last.py says which ones we may not)."""
    if type(tensor) is not nn.Parameter or tensor.layout is not torch.strided or tensor.dim() != 4:
        return False
    if not tensor.is_floating_point() or tensor.is_meta or tensor.is_inference() or not tensor.numel():
        return False
    if tensor.device.type == "cpu":  # views are allowed there: most are into the file that was loaded
        return _is_dense(tensor) and not tensor.is_shared()
    owns = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return _is_dense(tensor) and owns


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


def is_laid_out(tensor: Tensor) -> bool:
    """Whether the tensor is in channels_last."""
    return tensor.is_contiguous(memory_format=torch.channels_last)


def in_both_layouts(tensor: Tensor) -> bool:
    """Whether the tensor is both channels_last and contiguous, as weights of 1 x 1 kernels are."""
    return tensor.is_contiguous() and is_laid_out(tensor)
