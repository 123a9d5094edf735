"""Compiled artifacts, passed from one process to the next."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small import loop_pipe

from stepcache import accelerate, last_run, save_compiled
from stepcache.errors import NotAccelerated
from stepcache.graphs import artifacts

SCRIPT = """
import os, sys, torch
from support.small import ONE_LEVEL, loop_pipe
from stepcache import StepCacheError, accelerate, save_compiled
from torch._dynamo.utils import counters

path, first, mode = sys.argv[1], sys.argv[2] == "save", sys.argv[3]
torch.set_num_threads(1)
pipe = loop_pipe("least", **ONE_LEVEL)
want = accelerate(pipe, 2)(4)
if first:
    try:
        save_compiled(pipe, path)
    except StepCacheError as error:
        print(error, os.listdir(os.path.dirname(path)))
accelerate(pipe, 2, compile={"mode": mode}, compiled=None if first else path)
got = pipe(4)
assert (got - want).abs().max() < 1e-4
if first:
    save_compiled(pipe, path)
print("misses", counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_miss"])
print("hits", counters["aot_autograd"]["autograd_cache_hit"])
"""


def run(tmp_path, what, mode):
    """Output of SCRIPT in a new process, with its own folder for torch's caches."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"cache_{what}"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "graphs"), what, mode]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


# "lite" is Inductor with torch's own kernels: no C++ compiler runs, and what is saved and found again is the same.
@pytest.mark.parametrize("mode", ["lite", pytest.param("default", marks=pytest.mark.slow)])
def test_the_second_process_compiles_nothing(tmp_path, mode):
    first = run(tmp_path, "save", mode)
    assert "There is nothing to save" in first and "['cache_save']" in first
    assert "hits 0" in first and "misses 0 0" not in first
    assert len(list(tmp_path.glob("graphs*"))) == 1
    second = run(tmp_path, "load", mode)
    assert "misses 0 0" in second and "hits 2" in second


def write(path, **changes):
    header = {**artifacts._maker(), "sha256": "0" * 64, **changes}
    path.write_bytes(json.dumps(header).encode() + b"\n" + b"data")


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda p: p.write_bytes(b"\x80\x04 not ours"), "did not write this file"),
        (lambda p: p.write_bytes(b""), "did not write this file"),
        (lambda p: p.write_bytes(b"[1]\n"), "did not write this file"),
        (lambda p: write(p, torch="1.13.1"), "made with torch 1.13.1, this is"),
        (lambda p: write(p, device="Abacus"), "made with device Abacus"),
        (lambda p: write(p), "the file is damaged"),
    ],
)
def test_stale_or_foreign_artifacts_are_passed_over_with_a_warning(tmp_path, caplog, make, reason):
    make(tmp_path / "graphs")
    pipe = loop_pipe("least")
    accelerate(pipe, 2, compile=False, compiled=tmp_path / "graphs")
    (record,) = caplog.records
    assert reason in record.getMessage() and "compiles as usual" in record.getMessage()
    pipe(4)
    assert last_run(pipe).kinds == "FPFP"


def test_needs_an_accelerated_pipe(tmp_path):
    with pytest.raises(NotAccelerated, match="save_compiled"):
        save_compiled(loop_pipe("least"), tmp_path / "graphs")
