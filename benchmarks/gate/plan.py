"""What the gate runs, in order of worth: on a GPU, or as a dry run on a CPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gate.cells import CELLS, DRY, Cell
from benchmarks.gate.jobs import ROOT, Job

CORE = "tests/graphs/test_gpu.py", "tests/graphs/test_gpu_neighbours.py"
"""Tests that are worth the first minutes, the first ones most: are images right, and does it live beside others?"""
TESTS = "core tests", "kernel tests", "further tests"
"""Red ones hold up no job. But the pages' tables leave out what a GPU measured at a commit with red tests."""
KERNELS = "cat_group_norm_silu", "dual_conv1x1"
PIXELS = {"sd21": 512, "sdxl": 1024}
"""The architectures whose joins are measured both ways, and the image's height and width."""
DRY_TESTS = "tests/graphs/test_standin.py", "tests/reuse/test_cut.py"
"""What a dry run has in the place of the tests that need a GPU."""
NEEDS = ("environment",)
"""No other job holds up another: each one's figures stand on its own results."""

# "FAILED tests/..." of pytest's summary, and what it prints as it goes, with xdist and without.
FAILED = re.compile(r"(FAILED|ERROR) .*|\[gw\d+\].* (FAILED|ERROR) .*|.*::.* (FAILED|ERROR)( +\[ *\d+%\])?")


def gpu_jobs(out: Path, scratch: Path) -> list[Job]:
    """The jobs on a GPU. They write to `out`, and keep in `scratch` what is only needed meanwhile.

    The seconds are estimates that no GPU has confirmed yet. What counts is that all before the first cell, whatever
    becomes of it, ends within three minutes and a half.
    """
    cells = {name: _cell(name, cell, out, scratch) for name, cell in CELLS.items()}
    profile = Job("profile", _profile(out, "profile_steps.csv"), least=20, most=60, needs=NEEDS)
    compiled = Job(
        "profile, compiled",
        _profile(out, "profile_compiled.csv", "--variants", "compiled + captured"),
        least=30,
        most=90,
        needs=NEEDS,
        environment=_cache(scratch, "sd21-512-b1-ours"),  # kernels of the same U-Net
    )
    return [
        _environment(out),
        _tests(TESTS[0], ["-m", "gpu", *CORE], most=120),
        cells.pop("sd21-512-b1"),
        cells.pop("sd21-512-b1-ours"),
        profile,
        compiled,
        *(_kernel(name, out) for name in KERNELS),
        *(Job(f"joins of {model}", _own(out, "--tune", model), least=30, most=60, needs=NEEDS) for model in PIXELS),
        _tests(TESTS[1], ["-m", "gpu", *_gpu_tests(kernels=True)], most=60),
        *(cells.pop(f"{size}{rest}") for size in ("sd21-768-b1", "sdxl-1024-b1") for rest in ("", "-ours")),
        _tests(TESTS[2], ["-m", "gpu", *_gpu_tests(kernels=False)], most=120),
        *cells.values(),
    ]


def dry_jobs(out: Path, scratch: Path, tests: Sequence[str] = DRY_TESTS) -> list[Job]:
    """The same on a CPU, in small sizes: that the gate works. `tests`: files of tests that need no GPU."""
    toy = "--model", "demo", "--latent", "16", "--steps", "1"
    return [
        _environment(out, "--dry-run"),
        _tests(TESTS[0], tests, most=120),
        *(_cell(name, cell, out, scratch) for name, cell in DRY.items()),
        Job("profile", _profile(out, "profile_steps.csv", *toy), least=5, most=60, needs=NEEDS),
        *(
            Job(name, _module(f"kernels.{name}", "--dry-run"), least=5, most=60, told=True, needs=NEEDS)
            for name in KERNELS
        ),
    ]


def kernel_file(out: Path, name: str = KERNELS[0]) -> Path:
    """Where the benchmark of that kernel writes to."""
    return out / f"bench_{name}.csv"


def _environment(out: Path, *options: str) -> Job:
    return Job("environment", _own(out, "--environment", *options), least=5, most=60)


def _profile(out: Path, file: str, *options: str) -> list[str]:
    return _module("engine.profile_steps", *options, "--out", str(out / file))


def _kernel(name: str, out: Path) -> Job:
    """A kernel's benchmark, which goes on with the joins that its file does not have yet."""
    command = _module(f"kernels.{name}", "--continue", "--out", str(kernel_file(out, name)))
    return Job(name, command, least=25, most=60, needs=NEEDS, told=True)


def _module(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def _own(out: Path, *options: str) -> list[str]:
    """The gate's own script, for what must not run in its process."""
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_gate.py"), *options, "--out", str(out)]


def _cell(name: str, cell: Cell, out: Path, scratch: Path) -> Job:
    return Job(
        name,
        _own(out, "--cell", name),
        least=cell.least,
        most=cell.most,
        needs=NEEDS,
        told=True,
        environment=_cache(scratch, name),
    )


def _cache(scratch: Path, name: str) -> dict[str, str]:
    """A cache of Inductor's and Triton's of a cell's own: what another one compiled must not shorten its compiling."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(scratch / f"cache {name}")}


def _tests(name: str, arguments: Sequence[str], most: float) -> Job:
    """Tests as a job, in several processes where there are cores for them: then one that hangs stops only its own."""
    workers = min(8, _cores() // 2) if find_spec("xdist") else 0
    options = ["-v", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
    return Job(
        name,
        [sys.executable, "-m", "pytest", *options, *(["-n", str(workers)] if workers > 1 else []), *arguments],
        least=20,
        most=most,
        needs=NEEDS,
        check=failures,
        # Each process would compile with as many of its own as there are cores.
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "2"} if workers > 1 else {},
    )


def failures(output: str, finished: bool) -> str:
    """What is wrong with tests that printed `output`; "" where nothing is."""
    if failed := red_lines(output):
        return failed[-1]
    return "No test passed." if finished and not re.search(r"\d+ passed", output) else ""


def red_lines(output: str) -> list[str]:
    """The lines of pytest's output that say that a test failed, each cut to 200 characters."""
    lines = [line.strip() for line in output.splitlines() if FAILED.fullmatch(line.strip())]
    summed_up = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [line[:200] for line in summed_up or lines]


def _gpu_tests(kernels: bool) -> list[str]:
    """The files with tests marked gpu beside CORE: those of the kernels, or all others."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    return [
        str(path)
        for path in paths
        if (path.parts[1] == "kernels") == kernels
        and str(path) not in CORE
        and re.search(r"mark\.gpu\b", (ROOT / path).read_text())
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
