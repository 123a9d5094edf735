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

from .. import guidance
from ..errors import GraphCompileError, InvalidSetting
from ..guidance import Values
from ..join import Blend, Join
from .costs import Costs
from .eager import EagerRunner
from .stages import stage
from .tensors import tensors_of

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


def own_copy(options: dict[str, Any]) -> dict[str, Any]:
    """A copy for torch.compile, which takes entries out of the `options` that it is given."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in options.items()}


def captures_itself(options: dict[str, Any]) -> bool:
    """Whether with these arguments torch captures CUDA graphs by itself (CUDA graph trees)."""
    inductor = options.get("backend", "inductor") == "inductor"
    by_option = bool((options.get("options") or {}).get("triton.cudagraphs"))
    return options.get("backend") == "cudagraphs" or (
        inductor and (options.get("mode") == "reduce-overhead" or by_option)
    )


class CompiledFunction:
    """One function under torch.compile, with a code object of its own.

    Where Dynamo's recompile limit is reached (each scale of a LoRA is a compilation of its own), it starts anew with
    another code object and forgets the earlier ones. `what` names it in messages; the seconds of calls in which
    something was compiled are added to `costs`.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], what: str, costs: Costs) -> None:
        from torch._dynamo.utils import counters

        self._function, self._options, self._what, self._costs = function, options, what, costs
        self._counters = counters["stats"]  # unique_graphs: compilations of this process
        self._compiled = self._compile()
        self._said = False

    def _compile(self) -> Callable[..., Any]:
        return torch.compile(_with_own_code(self._function), **_FIXED, **own_copy(self._options))

    def __call__(self, *args: Any) -> Any:
        """Call it; GraphCompileError, with torch's own error, where it cannot be compiled."""
        if not self._said:
            stage(f"{self._what}: compiling")
            self._said = True
        before, start = self._counters["unique_graphs"], time.perf_counter()
        try:
            return self._call(args)
        except _dynamo_errors() as error:
            raise GraphCompileError(
                f"torch.compile failed on the {self._what}; accelerate(..., compile=False) runs without it, and tells "
                f"whether the call itself is at fault.\n{error}"
            ) from error
        finally:
            if self._counters["unique_graphs"] != before:
                self._costs.compile_seconds += time.perf_counter() - start

    def _call(self, args: tuple[Any, ...]) -> Any:
        from torch._dynamo.exc import FailOnRecompileLimitHit

        try:
            return self._compiled(*args)
        except FailOnRecompileLimitHit:
            self._compiled = self._compile()
            return self._compiled(*args)


def _dynamo_errors() -> type[Exception]:
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


class CompiledRunner:
    """The two forwards of one bucket of `plan`, compiled at their first call. `label` names the bucket in messages."""

    def __init__(self, plan: Any, join: Join, options: dict[str, Any], label: str, reuse_guidance: bool) -> None:
        # Trees write their outputs and read their inputs at fixed addresses; see `partial`.
        self.trees = captures_itself(options)
        family, cut, costs = plan.family, plan.cut, plan.costs

        def full(unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
            return guidance.full(family, unet, cut, join, reuse_guidance, inputs)

        def partial(unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
            return guidance.partial(family, unet, cut, join, kept, inputs)

        self._full = CompiledFunction(full, options, f"full graph {label}", costs)
        self._partial = CompiledFunction(partial, options, f"partial graph {label}", costs)

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        """The whole U-Net: (output [B, out_channels, H, W], what is kept)."""
        if not self.trees:
            return self._full(unet, inputs)
        torch.compiler.cudagraph_mark_step_begin()
        output, values = self._full(unet, inputs)
        return output.clone(), values

    def partial(self, unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
        """The shallow part on what was kept: output [B, out_channels, H, W]."""
        if not self.trees:
            return self._partial(unet, kept, inputs)
        # Otherwise trees would copy what is kept to addresses of theirs at each call.
        for tensor in tensors_of(kept):
            torch._dynamo.mark_static_address(tensor, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        return self._partial(unet, kept, inputs).clone()


class RegionalRunner(EagerRunner):
    """The two forwards eager, but for the repeated blocks, each kind of which is compiled once.

    Compilation takes as long as one block of each shape (SD: 4, SDXL: 2) instead of the whole U-Net; ResNets stay
    eager, and the launches between blocks are left to capture.
    """

    def __init__(self, plan: Any, join: Join, options: dict[str, Any], label: str, reuse_guidance: bool) -> None:
        super().__init__(plan.family, plan.cut, join, reuse_guidance)
        self.plan, self.options, self.label = plan, options, label
        self._blocks: dict[object, CompiledFunction] = {}

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        """The whole U-Net: (output [B, out_channels, H, W], what is kept)."""
        with self._active():
            return super().full(unet, inputs)

    def partial(self, unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
        """The shallow part on what was kept: output [B, out_channels, H, W]."""
        with self._active():
            return super().partial(unet, kept, inputs)

    def block(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One call of a repeated block, whose class has `forward`; compiled at the first call of its shape."""
        key = forward, args[0].shape
        compiled = self._blocks.get(key)
        if compiled is None:

            def block(module: nn.Module, args: Any, kwargs: Any) -> Any:
                return forward(module, *args, **kwargs)

            what = f"block {type(module).__name__} {tuple(args[0].shape)} of bucket {self.label}"
            compiled = self._blocks[key] = CompiledFunction(block, self.options, what, self.plan.costs)
        return compiled(module, args, kwargs)

    @contextmanager
    def _active(self) -> Iterator[None]:
        self.plan.active = self
        try:
            yield
        finally:
            self.plan.active = None


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own, on which Dynamo keeps its compilations."""
    assert isinstance(function, types.FunctionType)
    return types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
