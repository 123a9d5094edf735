"""Imports of the ops with and without Triton, their names, and their benchmarks without a GPU."""

import importlib
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kernels.bench import joins

ROOT = Path(__file__).resolve().parents[2]
OPS = ["cat_group_norm_silu", "dual_conv1x1"]

# Without Triton: it is neither found nor importable.
WITHOUT_TRITON = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "triton" else find_spec(name, package)
sys.modules["triton"] = None
"""


def _python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("op", OPS)
def test_three_names_of_one_signature(op):
    module = importlib.import_module(f"stepcache.kernels.{op}")
    assert module.__all__ == [op, f"{op}_reference", f"{op}_triton"]
    registered, reference, launcher = (getattr(module, name) for name in module.__all__)
    assert inspect.signature(reference) == inspect.signature(launcher)
    schema = getattr(torch.ops.stepcache, op).default._schema
    assert schema == registered._opoverload._schema
    assert [(a.name, a.has_default_value()) for a in schema.arguments] == [
        (p.name, p.default is not p.empty) for p in inspect.signature(launcher).parameters.values()
    ]
    lines = inspect.getsource(inspect.getmodule(reference)).splitlines()
    assert len(lines) <= 40


def test_stepcache_needs_neither_triton_nor_the_kernels_and_the_ops_not_triton():
    """Without Triton there are the references, and the ops on the CPU."""
    imports = """
import sys, stepcache
assert not [m for m in sys.modules if m == "triton" or m.startswith("stepcache.kernels")]
"""
    code = """
import torch
from stepcache.kernels import cat_group_norm_silu as norm, dual_conv1x1 as conv
h, skip = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
for module, rest in ((norm, (torch.ones(8), torch.zeros(8), 2, 1e-5)), (conv, (torch.ones(4, 8, 1, 1), None))):
    op, reference, launcher = (getattr(module, name) for name in module.__all__)
    assert torch.equal(op(h, skip, *rest), reference(h, skip, *rest))
    try:
        launcher(h, skip, *rest)
    except RuntimeError as error:
        print(error)
"""
    printed = _python(imports + WITHOUT_TRITON + code)
    assert printed.count("this kernel needs Triton, which is not installed here") == 2


def test_the_benchmarks_know_the_real_joins():
    sd15, sdxl = joins("sd15"), joins("sdxl")
    assert (len(sd15), len(sdxl)) == (12, 9)
    assert [(j.hidden, j.skip) for j in sdxl[:4]] == [(320, 320), (320, 320), (640, 320), (640, 320)]
    assert max(j.concat_elements for j in sdxl) == 2 * 960 * 128 * 128


def test_benchmarks_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Both dry runs are in tests/benchmarks/test_gpu_gate.py."""
    out = tmp_path / "rows.csv"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["dual_conv1x1", "--out", str(out)])
    runpy.run_module("benchmarks.kernels.dual_conv1x1", run_name="__main__")
    assert "no CUDA GPU here" in capsys.readouterr().out
    assert not out.exists()
