"""The calls that Inductor's code for an H100 makes, in order: Triton launches and library calls, with their tensors.

A function is compiled by `torch.compile` with Dynamo, AOTAutograd and all of Inductor's passes, on fake tensors
(`fake_h100.py`). The code that Inductor generates is then called on the same fake tensors. Library calls ("extern") run
as usual and give fake outputs; a Triton kernel's launch is only noted. Nothing is computed.
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
from benchmarks.kernels import launches as kernel_launches
from stepcache.forwards import family_of, guidance
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
"""What decorates a generated kernel and chooses its configurations: functions of Inductor's `triton_heuristics`."""


class Kernel:
    """A Triton kernel of Inductor's, in the generated code."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self._heuristic, self._arguments, autotuner = _load(name, source)
        self.function = autotuner.fn
        # The first of them, which Inductor's heuristics believe in most.
        self.config = autotuner.configs[0]
        self.signature: dict[str, str] = autotuner.triton_meta["signature"]
        self.constants: dict[str, Any] = dict(autotuner.triton_meta.get("constants", {}))
        self._stored = set(re.findall(r"tl\.store\((\w+)", source))

    def reads(self, argument: str) -> bool:
        """Whether it reads what that pointer points to: in_ptr0, in_out_ptr0."""
        return argument.startswith("in_")

    def writes(self, argument: str) -> bool:
        """Whether it writes there."""
        return argument in self._stored

    @cached_property
    def copies(self) -> bool:
        """Whether it computes nothing: each value that it stores is one that it has loaded."""
        return len(set(re.findall(r"\btmp\d+\b", self.source))) == 1 and "tl.load" in self.source

    def configs(self, options: Mapping[str, Any]) -> int:
        """Configurations of it that are compiled with these options of Inductor, each of which is a compilation.

        With coordinate descent, the fewest: those that the search looks at around a first one that nothing beats.
        """
        given = copy.deepcopy(self._arguments)
        before = {k: v for k, v in given["inductor_meta"].items() if not k.startswith("coordinate_descent")}
        with fake_h100(), inductor_config.patch(dict(options)):
            meta = TritonKernel.inductor_meta_common()
            given["inductor_meta"] = before | meta
            autotuner = self._heuristic(**given)(self.function)
        tried = {triton_config_to_hashable(config) for config in autotuner.configs}
        if meta.get("coordinate_descent_tuning") and autotuner._should_coordesc_tune:

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
        # It looks for a driver of its own, of a GPU that is there.
        stack.enter_context(mock.patch("torch._inductor.runtime.triton_helpers.set_driver_to_gpu", lambda: None))
        autotuner = getattr(PyCodeCache.load(source), name)
    ((heuristic, arguments),) = calls
    return heuristic, arguments, autotuner


class OwnKernel:
    """One of our kernels, with the constants that it is compiled for."""

    copies = False

    def __init__(self, name: str, written: Collection[str]) -> None:
        self.name, self._written = name, written

    def reads(self, argument: str) -> bool:
        """Whether it reads what that pointer points to. Pointers that it would not read it is not given."""
        return argument not in self._written

    def writes(self, argument: str) -> bool:
        """Whether it writes there."""
        return argument in self._written

    def configs(self, options: Mapping[str, Any]) -> int:
        """It is compiled once: its launcher has chosen a tile."""
        return 1


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel: the tensors that it gets, by the names of the kernel's pointers."""

    kernel: Kernel | OwnKernel
    tensors: dict[str, Tensor]
    sizes: dict[str, int] = field(default_factory=dict)
    """The integers that one of Inductor's kernels gets, by name: xnumel, r0_numel."""

    @property
    def read(self) -> list[Tensor]:
        """Those that it reads."""
        return [tensor for name, tensor in self.tensors.items() if self.kernel.reads(name)]

    @property
    def written(self) -> list[Tensor]:
        """Those that it writes."""
        return [tensor for name, tensor in self.tensors.items() if self.kernel.writes(name)]


@dataclass(frozen=True)
class Extern:
    """One call of an operator of torch: a library's kernels run."""

    op: Any  # OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def name(self) -> str:
        """Like "convolution"."""
        name: str = self.op._schema.name.rpartition("::")[2]
        return name

    @property
    def read(self) -> list[Tensor]:
        """Its input tensors."""
        kwargs = {name: value for name, value in self.kwargs.items() if name != "out"}
        return [t for t in tree_leaves((self.args, kwargs)) if isinstance(t, Tensor)]

    @property
    def written(self) -> list[Tensor]:
        """Its output tensors."""
        return [t for t in tree_leaves(self.output) if isinstance(t, Tensor)]


@dataclass
class Code:
    """What one compiled graph does."""

    calls: list[Launch | Extern] = field(default_factory=list)
    kernels: dict[Hashable, Kernel | OwnKernel] = field(default_factory=dict)
    """By name, to which Inductor gives one source. Ours by name and constants."""
    weights: set[int] = field(default_factory=set)
    """Storages of the parameters (`storage_of`)."""
    to_pad: set[Product] = field(default_factory=set)
    """Matrix products that Inductor would have timed (`fake_h100`)."""

    @property
    def launches(self) -> list[Launch]:
        """The Triton kernels' launches, in order."""
        return [call for call in self.calls if isinstance(call, Launch)]

    @property
    def externs(self) -> list[Extern]:
        """The other calls, in order."""
        return [call for call in self.calls if isinstance(call, Extern)]


def storage_of(tensor: Tensor) -> int:
    """Names its storage; valid as long as a tensor of that storage lives."""
    return tensor.untyped_storage()._cdata


class _Externs(TorchDispatchMode):
    """Notes calls of operators. Views and allocations are none: nothing runs on the device for them."""

    def __init__(self, code: Code) -> None:
        super().__init__()
        self.code = code

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "stepcache":
            # To the compiler one call. What it consists of is noted by its own launcher, copies included.
            launcher = getattr(import_module(f"stepcache.kernels.{name}"), f"{name}_triton")
            with self, kernel_launches.launches_go_to(self._own):
                return launcher(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        allocates = name in ("empty_strided", "empty", "empty_like", "detach")
        call = Extern(func, args, kwargs or {}, output)
        if call.written and not func.is_view and not allocates:
            self.code.calls.append(call)
        return output

    def _own(self, launch: kernel_launches.Launch) -> None:
        tensors = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
        constants = [(p.name, launch.arguments[p.name]) for p in launch.function.params if p.is_constexpr]
        # Of a join's two launches the first writes partial statistics, which the second reads.
        written = {"out"} if "out" in tensors else {"means", "m2s"}
        kernel = self.code.kernels.setdefault((launch.kernel, *constants), OwnKernel(launch.kernel, written))
        self.code.calls.append(Launch(kernel, tensors))


@contextmanager
def _noting(code: Code) -> Iterator[None]:
    """Inside, generated code that is loaded and called notes its calls in `code`."""

    class Noted:
        """Stands for a compiled kernel in the generated code."""

        def __init__(self, kernel: Kernel) -> None:
            self.kernel = kernel

        def run(self, *args: Any, stream: int, **kwargs: Any) -> None:
            names = [name for name, kind in self.kernel.signature.items() if kind != "constexpr"]
            # Behind the kernel's own arguments there may be the grid's.
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

    args: tensors, or nested dicts, lists and tuples of them, on any device. Only their shapes, strides and dtypes are
    looked at. weights: those of them that count as parameters. options: of Inductor.
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
    """The code of the "full" or the "partial" graph of `unet`, as `accelerate` has it compiled.

    unet: on any device; each parameter's shape, strides and dtype are taken over. inputs: of the family's `full`, the
    timestep included. The feature that a partial step reads has the layout that the full step gives it.
    """
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = {name: nn.Parameter(_fake(mode, p), requires_grad=False) for name, p in unet.named_parameters()}
    buffers = {name: _fake(mode, b) for name, b in unet.named_buffers()}
    faked = tree_map_only(Tensor, lambda t: _fake(mode, t), dict(inputs))

    def full(unet: nn.Module, inputs: dict[str, Any]) -> Any:
        return guidance.full(family, unet, cut, join, False, inputs)

    def partial(unet: nn.Module, kept: Any, inputs: dict[str, Any]) -> Tensor:
        return guidance.partial(family, unet, cut, join, kept, inputs)

    with fake_h100() as to_pad, _reparametrize_module(unet, {**state, **buffers}):
        if kind == "full":
            return _compile(mode, full, [unet, faked], list(state.values()), options, to_pad)
        # As the compiled full step leaves it, layout included.
        with mode, torch.no_grad(), mock.patch.object(torch.compiler, "is_compiling", lambda: True):
            _, kept = full(unet, faked)
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
