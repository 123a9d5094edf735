"""Both ops in torch's machinery: opcheck, torch.compile, torch.export, fake and meta tensors."""

import importlib

import pytest
import torch
from support import kernel_checks

pytestmark = pytest.mark.parametrize("op", kernel_checks.ARGUMENTS)


def test_opcheck(anywhere, op):
    anywhere("support.kernel_checks", "opcheck", op)


@pytest.mark.parametrize("dynamic", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles_to_one_graph(anywhere, op, dynamic):
    """With AOT autograd on top of Dynamo's graph."""
    anywhere("support.kernel_checks", "compiles", op, "aot_eager", dynamic)


def test_compiles_with_inductor(op):
    function = getattr(importlib.import_module(f"stepcache.kernels.{op}"), op)
    arguments = kernel_checks.ARGUMENTS[op](kernel_checks.SHAPE, torch.float32, torch.channels_last)
    compiled = torch.compile(lambda a: function(**a) * 1, fullgraph=True)
    torch.testing.assert_close(compiled(arguments), function(**arguments))


@pytest.mark.parametrize("check", ["compiles_once_for_all_sizes", "exports", "knows_shapes"])
def test_dynamic_shapes_export_and_meta(anywhere, op, check):
    anywhere("support.kernel_checks", check, op)
