"""The CUDA branch of an op, traced with fake tensors on a machine without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch._higher_order_ops.triton_kernel_wrap as wrap
import triton
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from triton.backends.compiler import GPUTarget


class _Driver:
    """What torch asks Triton's driver while it looks for the tensors that a kernel writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    drivers = triton.runtime.driver
    before = drivers._active
    drivers.set_active(_Driver())
    try:
        yield
    finally:
        drivers._active = before


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a traced graph."""

    kernel: str
    num_warps: set[int]
    grid: tuple[Any, ...]
    written: list[str]
    """The arguments that the compiler believes are written to; those it would copy for safety's sake."""


def trace(call: Callable[..., Tensor], shapes: list[tuple[int, ...]], dynamic: bool) -> tuple[list[Launch], list[str]]:
    """Trace `call` on fake bfloat16 tensors on "cuda", 4-D ones in channels_last: its launches, and its other calls.

    `dynamic` makes batch, height and width of the 4-D tensors symbols, but not of [O, C, 1, 1] weights.
    """
    env = ShapeEnv()
    symbols: dict[tuple[int, int], Any] = {}

    def size(axis: int, value: int) -> Any:
        if not dynamic or axis == 1 or value == 1:
            return value
        if (axis, value) not in symbols:
            source = ConstantSource(f"axis{axis}_{value}")
            symbols[axis, value] = env.create_symintnode(env.create_symbol(value, source), hint=value, source=source)
        return symbols[axis, value]

    def make(shape: tuple[int, ...]) -> Tensor:
        if len(shape) != 4:
            return torch.empty(shape, dtype=torch.bfloat16, device="cuda")
        sizes = shape if shape[2:] == (1, 1) else tuple(size(i, n) for i, n in enumerate(shape))
        return torch.empty(sizes, dtype=torch.bfloat16, device="cuda", memory_format=torch.channels_last)

    with _driver(), FakeTensorMode(shape_env=env):
        tensors = [make(shape) for shape in shapes]
        graph = make_fx(dispatch_functionalize(call), tracing_mode="symbolic" if dynamic else "fake")(*tensors).graph
    launches, others = [], []
    for node in graph.nodes:
        if node.target is wrap.triton_kernel_wrapper_functional:
            tuner = wrap.kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            launches.append(
                Launch(
                    kernel=tuner.fn.__name__,
                    num_warps={config.num_warps for config in tuner.configs},
                    grid=tuple(node.kwargs["grid"]),
                    written=sorted(node.kwargs["tensors_to_clone"]),
                )
            )
        elif isinstance(node.target, torch._ops.OpOverload):
            others.append(str(node.target))
    return launches, others
