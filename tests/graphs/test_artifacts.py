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
import sys, torch
from support.small import ONE_LEVEL, loop_pipe
from stepcache import accelerate, save_compiled
from torch._dynamo.utils import counters

path, first = sys.argv[1], sys.argv[2] == "save"
torch.set_num_threads(1)
pipe = loop_pipe("least", **ONE_LEVEL)
want = accelerate(pipe, 2)(4)
accelerate(pipe, 2, compile=True, compiled=None if first else path)
got = pipe(4)
assert (got - want).abs().max() < 1e-4
if first:
    save_compiled(pipe, path)
print("misses", counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_miss"])
print("hits", counters["aot_autograd"]["autograd_cache_hit"])
"""


def run(script, path, what, cache):
    """Output of `script` in a new process, with its own folder for torch's caches."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(
        [sys.executable, "-c", script, str(path), what], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_second_process_compiles_nothing(tmp_path):
    first = run(SCRIPT, tmp_path / "graphs", "save", tmp_path / "cache1")
    assert "hits 0" in first and "misses 0 0" not in first
    second = run(SCRIPT, tmp_path / "graphs", "load", tmp_path / "cache2")
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


NOTHING = """
import sys
from support.small import loop_pipe
from stepcache import StepCacheError, accelerate, save_compiled
pipe = accelerate(loop_pipe("least"))
pipe(2)
try:
    save_compiled(pipe, sys.argv[1])
except StepCacheError as error:
    print(error)
"""


def test_nothing_to_save(tmp_path):
    assert "There is nothing to save" in run(NOTHING, tmp_path / "graphs", "save", tmp_path / "cache")
    assert not list(tmp_path.glob("graphs*"))


def test_needs_an_accelerated_pipe(tmp_path):
    with pytest.raises(NotAccelerated, match="save_compiled"):
        save_compiled(loop_pipe("least"), tmp_path / "graphs")
