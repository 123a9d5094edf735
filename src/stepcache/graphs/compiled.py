"""Full and partial forward, each compiled alone by torch.compile: one whole graph, static shapes.

Each bucket compiles functions of its own. Dynamo keeps its compilations by code object and gives up after a handful
(`recompile_limit`), so each bucket's functions get code objects of their own: a pipeline that is used at twenty sizes
still compiles each once. What is compiled outlives its bucket: compiling takes minutes and holds little memory.
"""

from __future__ import annotations

import threading
import time
import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GraphCompileError, InvalidSetting
from ..forwards import guidance
from ..forwards.blend import Blend
from ..forwards.guidance import Values
from ..forwards.join import JoinFunction
from ..forwards.join_shape import JoinShape
from .costs import Costs
from .eager import EagerRunner
from .stages import stage
from .tensors import tensors_of
from .turns import exclusive

# Inductor options for CUDA, where the user gives neither mode nor options; handed to torch.compile, never set globally.
# Each kernel is compiled once, as Inductor's heuristics have it at first (their number: benchmarks/engine/gpu_code.py).
# Inductor's own default tries 1 to 6 configurations a kernel, max-autotune more, and coordinate descent, as in the
# "diffusion-fast" recipe of PyTorch and Hugging Face, some 10, one after the other: minutes before the first image.
CUDA_OPTIONS = {
    "conv_1x1_as_mm": True,
    "triton.autotune_pointwise": False,
    "test_configs.force_filter_reduction_configs": True,
    "dynamic_scale_rblock": False,
}

_FIXED = {"fullgraph": True, "dynamic": False}


def cuda_options() -> dict[str, Any]:
    """Those of `CUDA_OPTIONS` that this torch knows. Imports Inductor."""
    from torch._inductor import list_options

    known = set(list_options())
    return {name: value for name, value in CUDA_OPTIONS.items() if name in known}


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
    another code object and forgets the earlier ones. `what` names it in messages.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], what: str) -> None:
        from torch._dynamo.utils import counters

        self._function, self._options, self._what = function, options, what
        self._trees = captures_itself(options)
        self._counters = counters["stats"]  # unique_graphs: compilations of this process
        self._compiled = self._compile()
        self._began = self._warm = False

    def _compile(self) -> Callable[..., Any]:
        return torch.compile(_with_own_code(self._function), **_FIXED, **own_copy(self._options))

    def __call__(self, costs: Costs, *args: Any) -> Any:
        """Call it with `args`; seconds of calls in which something was compiled are added to `costs`.

        GraphCompileError, with torch's own error, where it cannot be compiled.
        """
        if self._warm and not self._trees:
            return self._attempt(costs, args)
        # The first call compiles, and times candidates on the device where it was asked to. A second thread waits for
        # it instead of compiling the same. Trees may capture at any call.
        with exclusive():
            result = self._attempt(costs, args)
            self._warm = True
            return result

    def _attempt(self, costs: Costs, args: tuple[Any, ...]) -> Any:
        if not self._began:
            stage(f"{self._what}: compiling")
            self._began = True
        before, start = self._counters["unique_graphs"], time.perf_counter()
        try:
            return self._call(args)
        except _dynamo_errors() as error:
            raise GraphCompileError(
                f"torch.compile failed on the {self._what}; accelerate(..., compile=False) runs without it, and tells "
                f"whether the call itself is at fault.\n{error}"
            ) from error
        except AssertionError as error:
            if not self._trees or threading.current_thread() is threading.main_thread():
                raise
            # torch 2.11: trees look for their state in the thread, and find it only in the one that imported them.
            raise GraphCompileError(
                f"The {self._what} was called in the thread {threading.current_thread().name!r}, in which the CUDA "
                f"graphs of this torch ({torch.__version__}) do not work: {error!r}. Leave capturing to stepcache: "
                'accelerate(..., compile="auto") in the place of mode="reduce-overhead" or backend="cudagraphs".'
            ) from error
        finally:
            if self._counters["unique_graphs"] != before:
                costs.compile_seconds += time.perf_counter() - start

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


class Programs:
    """What has been compiled for one pipe, by what it was compiled for: for all of its runs, in any thread."""

    def __init__(self) -> None:
        self._held: dict[Hashable, CompiledFunction] = {}
        # By a bucket's key: its joins on the Triton ops. A bucket that comes back finds what was compiled for it, even
        # if more is known about joins by then.
        self.joins: dict[Hashable, frozenset[JoinShape]] = {}

    def get(self, key: Hashable, function: Callable[..., Any], options: dict[str, Any], what: str) -> CompiledFunction:
        """What was compiled under `key`; else `function`, not compiled before its first call."""
        held = self._held.get(key)
        return held if held is not None else self._held.setdefault(key, CompiledFunction(function, options, what))


class CompiledRunner:
    """The two forwards of one bucket of `plan`, compiled at their first call. `label` names the bucket in messages.

    key: the bucket's; what another run of the pipe compiled under it is not compiled again.
    """

    def __init__(
        self, plan: Any, join: JoinFunction, options: dict[str, Any], label: str, reuse_guidance: bool, key: Hashable
    ) -> None:
        # Trees write their outputs and read their inputs at fixed addresses; see `partial`.
        self.trees = captures_itself(options)
        family, cut, self.costs = plan.family, plan.cut, plan.costs

        def full(unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
            return guidance.full(family, unet, cut, join, reuse_guidance, inputs)

        def partial(unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
            return guidance.partial(family, unet, cut, join, kept, inputs)

        self._full = plan.programs.get(("full", key), full, options, f"full graph {label}")
        self._partial = plan.programs.get(("partial", key), partial, options, f"partial graph {label}")

    def full(self, unet: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Values]:
        """The whole U-Net: (output [B, out_channels, H, W], what is kept)."""
        if not self.trees:
            return self._full(self.costs, unet, inputs)
        torch.compiler.cudagraph_mark_step_begin()
        output, values = self._full(self.costs, unet, inputs)
        return output.clone(), values

    def partial(self, unet: nn.Module, kept: tuple[Tensor | Blend, ...], inputs: dict[str, Any]) -> Tensor:
        """The shallow part on what was kept: output [B, out_channels, H, W]."""
        if not self.trees:
            return self._partial(self.costs, unet, kept, inputs)
        # Otherwise trees would copy what is kept to addresses of theirs at each call.
        for tensor in tensors_of(kept):
            torch._dynamo.mark_static_address(tensor, guard=False)
        torch.compiler.cudagraph_mark_step_begin()
        return self._partial(self.costs, unet, kept, inputs).clone()


class RegionalRunner(EagerRunner):
    """The two forwards eager, but for the repeated blocks, each kind of which is compiled once.

    Compilation takes as long as one block of each shape (SD: 4, SDXL: 2) instead of the whole U-Net; ResNets stay
    eager, and the launches between blocks are left to capture.
    """

    def __init__(
        self, plan: Any, join: JoinFunction, options: dict[str, Any], label: str, reuse_guidance: bool, key: Hashable
    ) -> None:
        super().__init__(plan.family, plan.cut, join, reuse_guidance)
        self.plan, self.options, self.label, self.key = plan, options, label, key

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

        def block(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return forward(module, *args, **kwargs)

        what = f"block {type(module).__name__} {tuple(args[0].shape)} of bucket {self.label}"
        compiled = self.plan.programs.get((forward, args[0].shape, self.key), block, self.options, what)
        return compiled(self.plan.costs, module, args, kwargs)

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
