"""Checks of a registered op that must hold with Triton's interpreter on and off."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from support.kernel_cases import LAYOUTS, Shape, conv_arguments, norm_arguments
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

SHAPE = Shape("small, a group across the seam", 2, 20, 12, 6, 4, 5, 7)
WITH_MIX = Shape("small, from three buffers", 2, 20, 12, 6, 4, 5, 7, mix=3)
WITH_HALVES = Shape("small, halves of three buffers", 2, 20, 12, 6, 4, 5, 7, mix=3, halves=True)
ARGUMENTS = {"cat_group_norm_silu": norm_arguments, "dual_conv1x1": conv_arguments}


def _op(name: str) -> Callable[..., Tensor]:
    return getattr(importlib.import_module(f"stepcache.kernels.{name}"), name)


def _all_arguments(name: str) -> list[dict]:
    shapes = SHAPE, WITH_MIX, WITH_HALVES
    return [ARGUMENTS[name](shape, torch.float32, layout) for shape in shapes for layout in LAYOUTS.values()]


def _few_arguments(name: str) -> list[dict]:
    """The first and the last shape, each layout once, for what takes long."""
    first, *_, last = _all_arguments(name)
    return [first, last]


def opcheck(name: str) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch agree with the op."""
    for arguments in _few_arguments(name):
        torch.library.opcheck(_op(name), (), arguments)


def compiles(name: str, backend: str, dynamic: bool) -> None:
    """One graph, the same result and the same strides as in eager."""
    op = _op(name)
    for arguments in _few_arguments(name):
        torch.compiler.reset()
        compiled = torch.compile(lambda a: op(**a) * 1, backend=backend, fullgraph=True, dynamic=dynamic)
        expected, got = op(**arguments), compiled(arguments)
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


def compiles_once_for_all_sizes(name: str) -> None:
    """With dynamic shapes, three sizes of batch, height and width share one graph, with halves one of their own."""
    op, graphs = _op(name), []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(lambda a: op(**a), backend=backend, fullgraph=True, dynamic=True)
    # No size equals a channel count, because equal sizes share a symbol in the first trace.
    plain, halved = {}, {"mix": 2, "halves": True}
    for batch, height, width, options in (
        (2, 9, 11, plain), (3, 5, 14, plain), (7, 13, 8, plain), (4, 9, 11, halved), (8, 5, 14, halved),
    ):  # fmt: skip
        shape = Shape("dynamic", batch, 20, 12, 6, 4, height, width, **options)
        arguments = ARGUMENTS[name](shape, torch.float32, torch.channels_last)
        torch.testing.assert_close(compiled(arguments), op(**arguments))
    assert len(graphs) == 2


def exports(name: str) -> None:
    """torch.export keeps the op as one node, and the exported program runs."""
    op = _op(name)

    class Module(torch.nn.Module):
        def forward(self, arguments: dict) -> Tensor:
            return op(**arguments)

    arguments = ARGUMENTS[name](SHAPE, torch.float32, torch.channels_last)
    program = torch.export.export(Module(), (arguments,))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == [f"stepcache.{name}.default"]
    torch.testing.assert_close(program.module()(arguments), op(**arguments))


def knows_shapes(name: str) -> None:
    """On the meta device and with fake tensors, shape, dtype and strides are those of the real result."""
    op = _op(name)
    for arguments in _all_arguments(name):
        expected = op(**arguments)
        on_meta = op(**{k: v.to("meta") if isinstance(v, Tensor) else v for k, v in arguments.items()})
        with FakeTensorMode() as mode:
            fake = op(**{k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()})
        for got in (on_meta, fake):
            assert (got.shape, got.dtype, got.stride()) == (expected.shape, expected.dtype, expected.stride())
