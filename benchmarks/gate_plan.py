"""What the gate runs, in order of worth: on a GPU, or as a dry run on a CPU."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gate_cells import CELLS, DRY, Cell
from gate_jobs import ROOT, Job

TESTS = "tests", "kernel tests"
"""Jobs whose failure means that there are no figures."""
KERNELS = "cat_group_norm_silu", "dual_conv1x1"
QUICK_TESTS = "tests/graphs/test_standin.py", "tests/test_cut.py"
"""What a dry run has in the place of the tests that need a GPU."""

# "FAILED tests/..." of pytest's summary, and what it prints as it goes, with xdist and without.
RED = re.compile(r"(FAILED|ERROR) .*|\[gw\d+\].* (FAILED|ERROR) .*|.*::.* (FAILED|ERROR)( +\[ *\d+%\])?")


def gpu_jobs(out: Path, scratch: Path) -> list[Job]:
    """The jobs on a GPU. They write to `out`, and keep in `scratch` what is only needed meanwhile."""
    profile = ["--out", str(out / "profile_steps.csv")]
    kernels = {name: out / f"bench_{name}.csv" for name in KERNELS}
    compiled = Job(
        "profile, compiled",
        _script("profile_steps.py", "--variants", "compiled + captured", "--append", *profile),
        least=40,
        most=90,
        needs=("tests",),
        environment=_cache(scratch, "sd21-512-b1-ours"),  # kernels of the same U-Net
    )
    first, ours, rival, *rest = (_cell(name, cell, out, scratch) for name, cell in CELLS.items())
    return [
        Job("environment", _own(out, "--environment"), least=5, most=60, gate=True),
        _tests("tests", ["-m", "gpu", *_gpu_tests(kernels=False)], most=150),
        _tests("kernel tests", ["-m", "gpu", *_gpu_tests(kernels=True)], most=150),
        Job("profile", _script("profile_steps.py", *profile), least=20, most=60, needs=("tests",)),
        *(
            Job(name, _script(f"bench_{name}.py", "--out", str(path)), least=20, most=40, needs=TESTS)
            for name, path in kernels.items()
        ),
        Job("choose kernels", _own(out, "--choose"), least=5, most=30, reads=kernels[KERNELS[0]]),
        *(first, ours, rival, compiled),
        *rest,
    ]


def dry_jobs(out: Path, scratch: Path, tests: Sequence[str] = QUICK_TESTS) -> list[Job]:
    """The same on a CPU, in small sizes: that the gate works. `tests`: files of tests that need no GPU."""
    toy = ["--model", "demo", "--latent", "16", "--steps", "1", "--out", str(out / "profile_steps.csv")]
    return [
        Job("environment", _own(out, "--environment", "--dry-run"), least=5, most=60, gate=True),
        _tests("tests", tests, most=120),
        Job("profile", _script("profile_steps.py", *toy), least=5, most=60, needs=("tests",)),
        Job(KERNELS[1], _script(f"bench_{KERNELS[1]}.py", "--dry-run"), least=5, most=60, needs=("tests",)),
        *(_cell(name, cell, out, scratch) for name, cell in DRY.items()),
    ]


def _script(name: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "benchmarks" / name), *options]


def _own(out: Path, *options: str) -> list[str]:
    """The gate's own script, for what must not run in its process."""
    return _script("gpu_gate.py", *options, "--out", str(out))


def _cell(name: str, cell: Cell, out: Path, scratch: Path) -> Job:
    return Job(
        name,
        _own(out, "--cell", name),
        least=cell.least,
        most=cell.most,
        needs=("tests",),
        told=True,
        environment=_cache(scratch, name),
    )


def _cache(scratch: Path, name: str) -> dict[str, str]:
    """A cache of Inductor's and Triton's of a cell's own: what another one compiled must not shorten its compiling."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(scratch / f"cache {name}")}


def _tests(name: str, arguments: Sequence[str], most: float) -> Job:
    """Tests as a job that ends the gate where one fails, in several processes where there are cores for them."""
    workers = min(8, _cores() // 2) if find_spec("xdist") else 0
    options = ["-v", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=90"]
    return Job(
        name,
        [sys.executable, "-m", "pytest", *options, *(["-n", str(workers)] if workers > 1 else []), *arguments],
        least=20,
        most=most,
        gate=True,
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
    lines = [line.strip() for line in output.splitlines() if RED.fullmatch(line.strip())]
    summed_up = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return [line[:200] for line in summed_up or lines]


def _gpu_tests(kernels: bool) -> list[str]:
    """The files with tests marked gpu: those of the kernels, or all others."""
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    return [
        str(path)
        for path in paths
        if (path.parts[1] == "kernels") == kernels and re.search(r"mark\.gpu\b", (ROOT / path).read_text())
    ]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
