"""Full and partial forward, each compiled alone by torch.compile: one whole graph, static shapes.

Each bucket compiles functions of its own. Dynamo keeps its compilations by code object and gives up after a handful
(`recompile_limit`), so each bucket's functions get code objects of their own: a pipeline that is used at twenty sizes
still compiles each once, and a bucket that is dropped takes its compilations along.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..cut import Cut
from ..errors import GraphCompileError, InvalidSetting
from ..join import Join
from .costs import Costs
from .eager import EagerRunner
from .stages import stage

# Modes in which Inductor captures CUDA graphs by itself (CUDA graph trees).
TREE_MODES = ("reduce-overhead", "max-autotune")

# Inductor options for CUDA, where the user gives neither mode nor options. From PyTorch's and Hugging Face's
# "diffusion-fast" recipe for SDXL; handed to torch.compile, never set globally.
CUDA_OPTIONS = {
    "conv_1x1_as_mm": True,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
}

_FIXED = {"fullgraph": True, "dynamic": False}


def check_options(options: dict[str, Any]) -> None:
    """Raise InvalidSetting for torch.compile arguments that torch, here, does not take. Imports Dynamo."""
    unknown = sorted(set(options) - {"backend", "mode", "options"})
    if unknown:
        fixed = " (fullgraph=True and dynamic=False are fixed)" if set(unknown) & set(_FIXED) else ""
        raise InvalidSetting(f"compile takes backend, mode and options for torch.compile, got {unknown}{fixed}.")
    mode, backend = options.get("mode"), options.get("backend", "inductor")
    if mode is not None and backend == "inductor":
        from torch._inductor import list_mode_options

        if mode not in list_mode_options():
            raise InvalidSetting(f"compile mode {mode!r} is unknown; torch has {', '.join(list_mode_options())}.")
    try:
        torch.compile(lambda: None, **_FIXED, **options)
    except Exception as error:  # whatever torch finds wrong with them: a backend, an option, this Python
        raise InvalidSetting(f"torch.compile refuses compile={options!r}: {error}") from error


class CompiledRunner:
    """The two forwards of one bucket, compiled at their first call.

    `label` names the bucket in messages; the seconds that the first calls take are added to `costs`.
    """

    def __init__(
        self, family: types.ModuleType, cut: Cut, join: Join, options: dict[str, Any], label: str, costs: Costs
    ) -> None:
        # Trees write their outputs and read their inputs at fixed addresses; see `partial`.
        self.trees = options.get("mode") in TREE_MODES and options.get("backend", "inductor") == "inductor"
        self.label, self.costs = label, costs
        self._fresh = {"full", "partial"}

        def full(unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return family.full(unet, cut, join, **inputs)

        def partial(unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor:
            return family.partial(unet, cut, feature, join, **inputs)

        self._full = torch.compile(_with_own_code(full), **_FIXED, **options)
        self._partial = torch.compile(_with_own_code(partial), **_FIXED, **options)

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The whole U-Net: (output [B, out_channels, H, W], feature)."""
        output, feature = self._call("full", self._full, unet, inputs)
        return (output.clone(), feature) if self.trees else (output, feature)

    def partial(self, unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The shallow part on `feature`: output [B, out_channels, H, W]."""
        if self.trees:
            # Otherwise trees would copy the feature to an address of theirs at each call.
            torch._dynamo.mark_static_address(feature, guard=False)
        output = self._call("partial", self._partial, unet, feature, inputs)
        return output.clone() if self.trees else output

    def _call(self, kind: str, function: Callable[..., Any], *args: Any) -> Any:
        if self.trees:
            torch.compiler.cudagraph_mark_step_begin()
        if kind not in self._fresh:
            return function(*args)
        with _first_call(f"{kind} graph {self.label}", self.costs):
            result = function(*args)
        self._fresh.discard(kind)
        return result


class RegionalRunner(EagerRunner):
    """The two forwards eager, but for the repeated blocks, each kind of which is compiled once.

    Compilation takes as long as one block of each shape (SD: 4, SDXL: 2) instead of the whole U-Net; ResNets stay
    eager, and the launches between blocks are left to capture.
    """

    def __init__(self, plan: Any, join: Join, options: dict[str, Any], label: str, costs: Costs) -> None:
        super().__init__(plan.family, plan.cut, join)
        self.plan, self.options, self.label, self.costs = plan, options, label, costs
        self._blocks: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._seen: set[object] = set()

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The whole U-Net: (output [B, out_channels, H, W], feature)."""
        with self._active():
            return super().full(unet, inputs)

    def partial(self, unet: nn.Module, feature: Tensor, inputs: dict[str, Any]) -> Tensor:
        """The shallow part on `feature`: output [B, out_channels, H, W]."""
        with self._active():
            return super().partial(unet, feature, inputs)

    def block(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a repeated block, whose class has `forward`; compiled at the first call of its shape."""
        compiled = self._blocks.get(forward)
        if compiled is None:

            def block(module: nn.Module, args: Any, kwargs: Any) -> Any:
                return forward(module, *args, **kwargs)

            compiled = self._blocks[forward] = torch.compile(_with_own_code(block), **_FIXED, **self.options)
        shape = tuple(args[0].shape)
        if shape in self._seen:
            return compiled(module, args, kwargs)
        self._seen.add(shape)
        with _first_call(f"block {type(module).__name__} of bucket {self.label}", self.costs):
            return compiled(module, args, kwargs)

    @contextmanager
    def _active(self) -> Iterator[None]:
        self.plan.active = self
        try:
            yield
        finally:
            self.plan.active = None


@contextmanager
def _first_call(what: str, costs: Costs) -> Iterator[None]:
    """Around the call that compiles: says so, adds up its seconds, names the graph where torch fails."""
    stage(f"{what}: compiling")
    start = time.perf_counter()
    try:
        yield
    except Exception as error:
        raise GraphCompileError(
            f"torch.compile failed on the {what}; accelerate(..., compile=False) runs without it.\n{error}"
        ) from error
    costs.compile_seconds += time.perf_counter() - start


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own, on which Dynamo keeps its compilations."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
