"""Programs: what runs of a model at one set of static shapes, eager or compiled.

Each is one function, (module, kept values, inputs) -> (output, values to keep): a U-Net's full or partial forward, or a
VAE's decoder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..forwards.guidance import Compute, KeptValues, Values
from ..forwards.nested import tensors_of
from .compiled import Compilations
from .kept import Kept
from .options import captures_itself
from .progress import Costs


def _none(module: nn.Module) -> Iterable[nn.Module]:
    return ()


@dataclass(frozen=True)
class Program:
    """`compute`, and what callers must know about it.

    what: its name in messages. reads: whether it reads kept values. left_out: the modules that it does not run.
    """

    what: str
    compute: Compute
    reads: bool = False
    left_out: Callable[[nn.Module], Iterable[nn.Module]] = _none

    def __call__(self, module: nn.Module, inputs: dict[str, Any], kept: Kept) -> Tensor:
        """Returns the output; writes `kept` if the program keeps anything."""
        output, values = self.compute(module, kept.current if self.reads else (), inputs)
        if values:
            kept.write(values)
        return output


def compiled(
    compute: Compute, what: str, options: dict[str, Any], costs: Costs, compilations: Compilations, key: Hashable
) -> Compute:
    """`compute` under torch.compile with these options. What was compiled for the same `what` and `key` is reused."""
    function = functools.partial(compilations.get((what, key), compute, options, what), costs)
    if not captures_itself(options):
        return function

    def in_trees(module: nn.Module, kept: KeptValues, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        # Otherwise CUDA graph trees copy the kept values to their own addresses at each call.
        for tensor in tensors_of(kept):
            torch._dynamo.mark_static_address(tensor, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        output, values = function(module, kept, inputs)
        return output.clone(), values  # the next replay overwrites it

    return in_trees
