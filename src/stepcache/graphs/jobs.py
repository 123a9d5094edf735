"""What packages are to be made of a model's programs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..forwards.guidance import KeptValues
from ..forwards.nested import tensors_of
from ..packages.job import Job, Joins
from ..packages.manifest import Entry
from ..packages.spec import kept_without_contents, spec_of, without_contents
from ..packages.state import NotPackaged, state_of, without_adapter
from ..packages.switches import switches
from .bucket import Bucket
from .fallback import hooks_on


def graph_of(branch: int, reuse: bool, kernels: Any) -> dict[str, Any]:
    """What `Entry.graph` says of a U-Net's settings."""
    # A `Judge` (tests, `stepcache tune`) decides like "auto".
    named = kernels if isinstance(kernels, bool) else "auto"
    return {"branch": branch, "guidance": "reuse" if reuse else "both", "kernels": named}


DECODERS_GRAPH = {"kernels": "auto"}
"""The same for a VAE's decoder, which joins nothing."""


class Jobs:
    """Collects jobs, and in `reasons` why there are none for some programs."""

    def __init__(self) -> None:
        self.made: dict[str, Job] = {}  # by key of the entry
        self.reasons: list[str] = []
        self._structures: dict[nn.Module, nn.Module] = {}

    def add(
        self,
        model: nn.Module,
        program: str,
        what: str,
        device: torch.device,
        options: dict[str, Any],
        graph: dict[str, Any],
        inputs: dict[str, Any],
        kept: KeptValues = (),
        without: Iterable[nn.Module] = (),
        joins: Joins = frozenset(),
        branch: int = 0,
        reuse: bool = False,
    ) -> None:
        """A job for one program, with the arguments of `Entry` and `Job`. without: the modules that it does not run."""
        named = "all" if joins is None else sorted(list(shape) for shape in joins)
        try:
            state = state_of(model, without)
            how = {"joins": named, "options": {name: str(value) for name, value in sorted(options.items())}}
            graph = {**graph, **how, "switches": switches()}
            entry = Entry(what, program, state.digest, graph, spec_of(inputs), spec_of(kept))
            if model not in self._structures:
                self._structures[model] = _structure(model)
        except NotPackaged as error:
            self.reasons.append(f"{what}: {error}")
            return
        empty, empty_kept = without_contents(inputs), kept_without_contents(kept)
        self.made[entry.key] = Job(
            entry, state, self._structures[model], str(device), empty, empty_kept, options, branch, reuse, joins
        )


def runs_on(model: nn.Module, bucket: Bucket) -> bool:
    """Whether the bucket is for the model as it is now, and not for another dtype or device that it had."""
    weight = next(model.parameters())
    inputs = (tensors_of(example)[0].dtype for example, _ in list(bucket.examples.values()))
    moved = weight.device != bucket.device and not hooks_on(model)  # offloaded weights come when they are needed
    return not moved and all(dtype == weight.dtype for dtype in inputs)


def _structure(model: nn.Module) -> nn.Module:
    """A copy of the model that can be pickled: weights on the meta device, no idle adapters, no offloading hooks.

    Raises NotPackaged for hooks that make it run eager, and for a model that cannot be copied.
    """
    if hooks_on(model) not in ("", "outside"):
        raise NotPackaged("hooks on its layers make it run eager")
    hooks = [(module, name) for module in model.modules() for name in _HOOKS if name in vars(module)]
    memo: dict[int, Any] = {id(vars(module)[name]): None for module, name in hooks}  # they refer to other models
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user keeps on it
        raise NotPackaged(f"a {type(model).__name__} like this cannot be copied: {error}") from error
    for module in list(copied.modules()):
        for name in _HOOKS:
            vars(module).pop(name, None)
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = without_adapter(child)
    try:
        pickle.dumps(copied)
    except Exception as error:  # a class or function that other processes cannot import
        raise NotPackaged(f"a {type(model).__name__} like this cannot be pickled: {error}") from error
    return copied


_HOOKS = ("forward", "_hf_hook", "_old_forward", "_diffusers_hook")  # what offloading leaves on a module
