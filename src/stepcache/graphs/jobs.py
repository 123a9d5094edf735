"""What packages are to be made of a model's programs."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..forwards.guidance import KeptValues
from ..packages.job import Job, Joins
from ..packages.manifest import Entry
from ..packages.spec import kept_without_contents, spec_of, without_contents
from ..packages.state import NotPackaged, state_of, without_adapter


def graph_of(branch: int, reuse: bool, kernels: Any) -> dict[str, Any]:
    """A U-Net's settings as in `Entry.graph`, without joins."""
    return {"branch": branch, "guidance": "reuse" if reuse else "both", **_common(kernels)}


def decoders_graph() -> dict[str, Any]:
    """The same for a VAE's decoder, which joins nothing."""
    return _common("auto")


def _common(kernels: Any) -> dict[str, Any]:
    # A `Judge` (tests, `stepcache tune`) decides like "auto".
    named = kernels if isinstance(kernels, bool) else "auto"
    return {"kernels": named, "deterministic": torch.are_deterministic_algorithms_enabled()}


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
            entry = Entry(what, program, state.digest, {**graph, "joins": named}, spec_of(inputs), spec_of(kept))
            if model not in self._structures:
                self._structures[model] = _structure(model)
        except NotPackaged as error:
            self.reasons.append(f"{what}: {error}")
            return
        empty, empty_kept = without_contents(inputs), kept_without_contents(kept)
        self.made[entry.key] = Job(
            entry, state, self._structures[model], str(device), empty, empty_kept, options, branch, reuse, joins
        )


def _structure(model: nn.Module) -> nn.Module:
    """A copy of the model without idle adapters, its weights on the meta device. NotPackaged if it cannot be copied."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user keeps on it
        raise NotPackaged(f"a {type(model).__name__} like this cannot be copied: {error}") from error
    for module in list(copied.modules()):
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = without_adapter(child)
    return copied
