"""The gate's jobs, most important first: on a GPU, or as a dry run on a CPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gate.cells import CELLS, DRY, GateCell
from benchmarks.gate.jobs import Job

CORE = "tests/graphs/test_gpu.py", "tests/graphs/test_gpu_neighbours.py"
"""The first tests to run: are images right, and does stepcache get on with other users of the GPU?"""
TESTS = "core tests", "kernel tests", "further tests"
"""The jobs of tests. If they fail, the others still run, but the pages leave out the commit's GPU figures."""
KERNELS = "cat_group_norm_silu", "dual_conv1x1"
PIXELS = {"sd21": 512, "sdxl": 1024}
"""The architectures whose joins are tuned, with the height and width of the image."""
DRY_TESTS = "tests/graphs/test_standin.py", "tests/reuse/test_cut.py"
"""Tests of a dry run, instead of those that need a GPU."""
NEEDS = ("environment",)
"""The only job that others need: each checks its own results."""

# "FAILED tests/..." in pytest's summary, and its lines while running, with and without xdist.
FAILED = re.compile(r"(FAILED|ERROR) .*|\[gw\d+\].* (FAILED|ERROR) .*|.*::.* (FAILED|ERROR)( +\[ *\d+%\])?")


def gpu_jobs(out: Path, scratch: Path) -> list[Job]:
    """The jobs on a GPU. They write results to `out` and temporary files to `scratch`.

    The seconds ensure that the first cell starts within three and a half minutes, even if the jobs before it hang.
    """
    cells = {name: _cell(name, cell, out, scratch) for name, cell in CELLS.items()}
    profile = Job("profile", _profile(out, "profile_steps.csv"), least=20, most=60, needs=NEEDS)
    compiled = Job(
        "profile, compiled",
        _profile(out, "profile_compiled.csv", "--variants", "compiled + captured"),
        least=30,
        most=90,
        needs=NEEDS,
        environment=_cache(scratch, "sd21-512-b1"),  # which has the same U-Net's kernels
    )
    return [
        _environment(out),
        _tests(TESTS[0], ["-m", "gpu", *CORE], most=120),
        cells.pop("sd21-512-b1"),
        profile,
        compiled,
        *(_kernel(name, out) for name in KERNELS),
        *(Job(f"joins of {model}", _own(out, "--tune", model), least=30, most=90, needs=NEEDS) for model in PIXELS),
        _tests(TESTS[1], ["-m", "gpu", *_gpu_tests(kernels=True)], most=60),
        *(cells.pop(name) for name in ("sd21-768-b1", "sdxl-1024-b1")),
        _tests(TESTS[2], ["-m", "gpu", *_gpu_tests(kernels=False)], most=120),
        *cells.values(),
    ]


def dry_jobs(out: Path, scratch: Path, tests: Sequence[str] = DRY_TESTS) -> list[Job]:
    """The same in small sizes on a CPU, to check the gate. `tests`: test files that need no GPU."""
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
    """The CSV of this kernel's benchmark."""
    return out / f"bench_{name}.csv"


def _environment(out: Path, *options: str) -> Job:
    return Job("environment", _own(out, "--environment", *options), least=5, most=60)


def _profile(out: Path, file: str, *options: str) -> list[str]:
    return _module("engine.profile_steps", *options, "--out", str(out / file))


def _kernel(name: str, out: Path) -> Job:
    """A kernel's benchmark, for the joins that its CSV does not have yet."""
    command = _module(f"kernels.{name}", "--continue", "--out", str(kernel_file(out, name)))
    return Job(name, command, least=25, most=60, needs=NEEDS, told=True)


def _module(name: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *options]


def _own(out: Path, *options: str) -> list[str]:
    """The gate's own script, for work that needs a separate process."""
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_gate.py"), *options, "--out", str(out)]


def _cell(name: str, cell: GateCell, out: Path, scratch: Path) -> Job:
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
    """A separate compile cache for each cell, so that no cell benefits from another's compiling."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(scratch / f"cache {name}")}


def _tests(name: str, arguments: Sequence[str], most: float) -> Job:
    """Tests as a job, in several processes if there are cores for them: a hang then stops only one."""
    workers = min(14, _cores() - 2) if find_spec("xdist") else 0
    options = ["-v", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
    return Job(
        name,
        [sys.executable, "-m", "pytest", *options, *(["-n", str(workers)] if workers > 1 else []), *arguments],
        least=20,
        most=most,
        needs=NEEDS,
        check=failures,
        # By default, each would start as many compile processes as there are cores.
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"} if workers > 1 else {},
    )


def failures(output: str, finished: bool) -> str:
    """What is wrong with tests that printed `output`, or ""."""
    if failed := red_lines(output):
        return failed[-1]
    return "No test passed." if finished and not re.search(r"\d+ passed", output) else ""


def red_lines(output: str) -> list[str]:
    """The lines of pytest's output that report a failed test, each cut to 200 characters."""
    lines = [line.strip() for line in output.splitlines() if FAILED.fullmatch(line.strip())]
    summed_up = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [line[:200] for line in summed_up or lines]


def _gpu_tests(kernels: bool) -> list[str]:
    """The files with tests marked gpu, without CORE: those of the kernels, or all others."""
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
