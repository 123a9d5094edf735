"""The calls that Inductor's code for an H100 makes, in order: Triton launches and library calls, with their tensors.

`torch.compile` compiles a function on fake tensors (`fake_h100.py`), with Dynamo, AOTAutograd and all of Inductor's
passes. The generated code is then called on the same fake tensors. Library calls ("externs") run as usual and return
fake outputs; launches of Triton kernels are only recorded. Nothing is computed.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import torch._inductor.config as inductor_config
from torch import Tensor, nn
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.codegen.triton import TritonKernel
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_heuristics
from torch._inductor.runtime.runtime_utils import triton_config_to_hashable
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.engine.fake_h100 import Product, fake_h100
from benchmarks.engine.launches import OwnLaunch, launches_go_to
from stepcache.forwards import family_of
from stepcache.forwards.guidance import steps_of
from stepcache.forwards.join import JoinFunction
from stepcache.graphs.options import CUDA_OPTIONS

HEURISTICS = (
    "pointwise",
    "reduction",
    "persistent_reduction",
    "cooperative_reduction",
    "split_scan",
    "user_autotune",
    "foreach",
)
"""Functions of Inductor's `triton_heuristics` that decorate a generated kernel and choose its configurations."""


class Kernel:
    """A Triton kernel that Inductor generated."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self._heuristic, self._arguments, autotuner = _load(name, source)
        self.function = autotuner.fn
        # The first is the one that Inductor's heuristics prefer.
        self.config = autotuner.configs[0]
        self.signature: dict[str, str] = autotuner.triton_meta["signature"]
        self.constants: dict[str, Any] = dict(autotuner.triton_meta.get("constants", {}))
        self._stored = set(re.findall(r"tl\.store\((\w+)", source))

    def reads(self, argument: str) -> bool:
        return argument.startswith("in_")  # in_ptr0, in_out_ptr0

    def writes(self, argument: str) -> bool:
        """Whether it writes there."""
        return argument in self._stored

    @cached_property
    def copies(self) -> bool:
        """Whether it computes nothing: it stores only values that it has loaded."""
        return len(set(re.findall(r"\btmp\d+\b", self.source))) == 1 and "tl.load" in self.source

    def configs(self, options: Mapping[str, Any]) -> int:
        """How many configurations are compiled with these options of Inductor.

        With coordinate descent it is the minimum: what the search tries around a first one that nothing beats.
        """
        given = copy.deepcopy(self._arguments)
        before = {k: v for k, v in given["inductor_meta"].items() if not k.startswith("coordinate_descent")}
        with fake_h100(), inductor_config.patch(dict(options)):
            meta = TritonKernel.inductor_meta_common()
            given["inductor_meta"] = before | meta
            autotuner = self._heuristic(**given)(self.function)
        tried = {triton_config_to_hashable(config) for config in autotuner.configs}
        if meta.get("coordinate_descent_tuning") and getattr(autotuner, "_should_coordesc_tune", True):  # newer torch

            def timed(config: Any) -> float:
                tried.add(triton_config_to_hashable(config))
                return 1.0

            autotuner.coordesc_tuner.autotune(timed, autotuner.configs[0], None)
        return len(tried)


def _load(name: str, source: str) -> tuple[Callable[..., Any], dict[str, Any], Any]:
    """The heuristic that decorates the kernel, its arguments, and the decorated kernel."""
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = []

    def noting(heuristic: Callable[..., Any]) -> Callable[..., Any]:
        def noted(**arguments: Any) -> Any:
            calls.append((heuristic, copy.deepcopy(arguments)))
            return heuristic(**arguments)

        return noted

    with ExitStack() as stack:
        for known in HEURISTICS:
            heuristic = getattr(triton_heuristics, known)
            stack.enter_context(mock.patch.object(triton_heuristics, known, noting(heuristic)))
        # It would look for the driver of a real GPU.
        stack.enter_context(mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu", lambda: None))
        autotuner = getattr(PyCodeCache.load(source), name)
    ((heuristic, arguments),) = calls
    return heuristic, arguments, autotuner


class OwnKernel:
    """One of stepcache's kernels, with the constants it is compiled for."""

    copies = False

    def __init__(self, name: str, written: Collection[str]) -> None:
        self.name, self._written = name, written

    def reads(self, argument: str) -> bool:
        return argument not in self._written  # its launcher passes no pointer that it does not use

    def writes(self, argument: str) -> bool:
        """Whether it writes there."""
        return argument in self._written

    def configs(self, options: Mapping[str, Any]) -> int:
        """Always one: its launcher has chosen a tile."""
        return 1


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel, with its tensors by the names of the kernel's pointers."""

    kernel: Kernel | OwnKernel
    tensors: dict[str, Tensor]
    sizes: dict[str, int] = field(default_factory=dict)
    """The integer arguments of Inductor's kernels, by name: xnumel, r0_numel."""

    @property
    def read(self) -> list[Tensor]:
        return [tensor for name, tensor in self.tensors.items() if self.kernel.reads(name)]

    @property
    def written(self) -> list[Tensor]:
        return [tensor for name, tensor in self.tensors.items() if self.kernel.writes(name)]


@dataclass(frozen=True)
class Extern:
    """One call of a torch operator, which runs a library's kernels."""

    op: Any  # OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def name(self) -> str:
        name: str = self.op._schema.name.rpartition("::")[2]
        return name

    @property
    def read(self) -> list[Tensor]:
        kwargs = {name: value for name, value in self.kwargs.items() if name != "out"}
        return [t for t in tree_leaves((self.args, kwargs)) if isinstance(t, Tensor)]

    @property
    def written(self) -> list[Tensor]:
        return [t for t in tree_leaves(self.output) if isinstance(t, Tensor)]


@dataclass
class Code:
    """The calls of one compiled graph."""

    calls: list[Launch | Extern] = field(default_factory=list)
    kernels: dict[Hashable, Kernel | OwnKernel] = field(default_factory=dict)
    """Inductor's by name, since one name has one source; stepcache's by name and constants."""
    weights: set[int] = field(default_factory=set)
    """Storages of the parameters (`storage_of`)."""
    to_pad: set[Product] = field(default_factory=set)
    """Matrix products that Inductor would have timed (`fake_h100`)."""

    @property
    def launches(self) -> list[Launch]:
        return [call for call in self.calls if isinstance(call, Launch)]

    @property
    def externs(self) -> list[Extern]:
        return [call for call in self.calls if isinstance(call, Extern)]


def storage_of(tensor: Tensor) -> int:
    """Identifies the storage of a tensor, as long as a tensor of that storage lives."""
    return tensor.untyped_storage()._cdata


class _Externs(TorchDispatchMode):
    """Records calls of operators, except views and allocations, which run nothing on the device."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "stepcache":
            # One call to the compiler; its launcher shows what it consists of, copies included.
            launcher = getattr(import_module(f"stepcache.kernels.{name}"), f"{name}_triton")
            with self, launches_go_to(self._own):
                return launcher(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        allocates = name in ("empty_strided", "empty", "empty_like", "detach")
        call = Extern(func, args, kwargs or {}, output)
        if call.written and not func.is_view and not allocates:
            self.code.calls.append(call)
        return output

    def _own(self, launch: OwnLaunch) -> None:
        tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
        constants = [(p.name, launch.arguments[p.name]) for p in launch.function.params if p.is_constexpr]
        # If a join has two launches, the first writes partial statistics, which the second reads.
        written = {"out"} if "out" in tensors else {"means", "m2s"}
        kernel = self.code.kernels.setdefault((launch.kernel, *constants), OwnKernel(launch.kernel, written))
        self.code.calls.append(Launch(kernel, tensors))


@contextmanager
def _noting(code: Code) -> Iterator[None]:
    """Inside, generated code records its calls in `code`."""

    class Noted:
        """Replaces a compiled kernel in the generated code."""

        def __init__(self, kernel: Kernel) -> None:
            self.kernel = kernel

        def run(self, *args: Any, stream: int, **kwargs: Any) -> None:
            names = [name for name, kind in self.kernel.signature.items() if kind != "constexpr"]
            # The grid's arguments may follow the kernel's own.
            given = dict(zip(names, args, strict=False))
            tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
            sizes = {name: value for name, value in given.items() if isinstance(value, int)}
            code.calls.append(Launch(self.kernel, tensors, sizes))

    def triton(self: AsyncCompile, kernel_name: str, source_code: str, device_str: str = "cuda") -> Noted:
        if kernel_name not in code.kernels:
            code.kernels[kernel_name] = Kernel(kernel_name, source_code)
        return Noted(code.kernels[kernel_name])

    def compile_to_module(graph: GraphLowering) -> Any:
        module = compile_module(graph)
        generated = module.call

        def call(args: Any) -> Any:
            with _Externs(code):
                return generated(args)

        module.call = call
        return module

    compile_module = GraphLowering.compile_to_module
    with (
        mock.patch.object(AsyncCompile, "triton", triton),
        mock.patch.object(GraphLowering, "compile_to_module", compile_to_module),
    ):
        yield


def function_code(
    function: Callable[..., Any],
    args: Sequence[Any],
    weights: Sequence[Tensor] = (),
    options: Mapping[str, Any] = CUDA_OPTIONS,
) -> Code:
    """The code of `function(*args)`, which returns tensors.

    args: tensors, or nested dicts, lists and tuples of them, on any device. Only their shapes, strides and dtypes
    matter. weights: those that count as parameters. options: of Inductor.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {id(t): _fake(mode, t) for t in tree_leaves(list(args)) if isinstance(t, Tensor)}
    faked = tree_map_only(Tensor, lambda t: fakes[id(t)], list(args))
    with fake_h100() as to_pad:
        return _compile(mode, function, faked, [fakes[id(t)] for t in weights], options, to_pad)


def graph_code(
    unet: nn.Module,
    kind: str,
    join: JoinFunction,
    branch: int,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any] = CUDA_OPTIONS,
) -> Code:
    """The code of the "full" or the "partial" graph of `unet`, compiled as `accelerate` does.

    unet: on any device; only its parameters' shapes, strides and dtypes matter. inputs: of the family's `full`, with
    the timestep. The feature that a partial step reads has the layout that the full step gives it.
    """
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = {name: nn.Parameter(_fake(mode, p), requires_grad=False) for name, p in unet.named_parameters()}
    buffers = {name: _fake(mode, b) for name, b in unet.named_buffers()}
    faked = tree_map_only(Tensor, lambda t: _fake(mode, t), dict(inputs))

    full, partial = steps_of(family, cut, join, reuse=False)

    with fake_h100() as to_pad, _reparametrize_module(unet, {**state, **buffers}):
        if kind == "full":
            return _compile(mode, full, [unet, (), faked], list(state.values()), options, to_pad)
        # In the layout that the compiled full step gives it.
        with mode, torch.no_grad(), mock.patch.object(torch.compiler, "is_compiling", lambda: True):
            _, kept = full(unet, (), faked)
        return _compile(mode, partial, [unet, kept, faked], list(state.values()), options, to_pad)


def _fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")


def _compile(
    mode: FakeTensorMode,
    function: Callable[..., Any],
    args: Sequence[Any],
    weights: Sequence[Tensor],
    options: Mapping[str, Any],
    to_pad: set[Product],
) -> Code:
    code = Code(weights={storage_of(weight) for weight in weights}, to_pad=to_pad)
    compiled = torch.compile(function, fullgraph=True, dynamic=False, options=dict(options))
    with mode, torch.no_grad(), _noting(code):
        compiled(*args)
    torch._dynamo.reset()
    return code
