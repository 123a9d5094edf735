"""Batches of the demo pipeline in separate processes, as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from support.small import DEMO

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "examples" / "batch"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
NAMES = ["fox face", "cherry blossom", "hamburger", "red apple", "tiger face", "pineapple", "mushroom"]
SETTINGS = ["--dtype", "float32", "--steps", "4", "--guidance", "3"]


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(NAMES))
    return path


def run(command, timeout=240, status=0, **environment) -> str:
    """What `python command...` prints. Its children end with it."""
    paths = os.pathsep.join(map(str, [RECIPES, HERE, HERE.parent]))
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, output
    return output


def command_line(prompts: Path, out: Path, *more: object, pipeline: object = DEMO) -> list:
    return [prompts, out, "--pipeline", pipeline, *SETTINGS, *more]


def images(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.png")}
