"""The examples in separate processes, as a user starts them; batches are of the demo pipeline."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.small import DEMO

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "examples" / "batch"
SERVER = RECIPES.parent / "server"
TWO = ["--standalone", "--nproc-per-node", "2"]
TORCHRUN = ["-m", "torch.distributed.run", *TWO]
FORKED = [HERE / "torchrun_forked.py", *TWO, "--start-method", "forkserver", "--run-path"]
NAMES = ["fox face", "cherry blossom", "hamburger", "red apple", "tiger face", "pineapple", "mushroom"]
LINES = [
    {"prompt": "fox face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "hamburger", "negative_prompt": ""},
    {"prompt": "tiger face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "pineapple"},
]
OWN = {"manifest.jsonl", "job.json", ".job.lock"}  # in a batch's folder when it is done, besides its images
NO_COMPILER = {"CXX": "/nowhere/g++"}
SETTINGS = ["--dtype", "float32", "--steps", "4", "--guidance", "3"]


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(NAMES))
    return path


def begin(command, **environment) -> subprocess.Popen:
    """`python command...`, in a session of its own. Its output is a pipe."""
    paths = os.pathsep.join(map(str, [RECIPES, SERVER, HERE, HERE.parent]))
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(command, timeout=240, status=0, **environment) -> str:
    """What `python command...` prints. Its children end with it."""
    process = begin(command, **environment)
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, output
    return output


def run_here(*arguments: object) -> None:
    """`python batch_torchrun.py arguments...` in this process, which has torch already, and on one thread as `run`."""
    script, threads = str(RECIPES / "batch_torchrun.py"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            runpy.run_path(script, run_name="__main__")
        assert ended.value.code == 0
    finally:
        torch.set_num_threads(threads)


def command_line(prompts: Path, out: Path, *more: object, pipeline: object = DEMO) -> list:
    return [prompts, out, "--pipeline", pipeline, *SETTINGS, *more]


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def names(batch) -> list[str]:
    """The files of a batch's folder."""
    return sorted(path.name for path in batch.out.iterdir())
