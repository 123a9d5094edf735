"""A batch job on all GPUs of one or more machines, by torchrun and Hugging Face Accelerate.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 batch_torchrun.py prompts.txt out --pipeline path/to/model

Each process makes its share of what is missing. When one is killed, torchrun starts all of them again, up to
--max-restarts times, and they share what is missing then. Started again later, the job does the same.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from batch_job import finish, job_of, missing, open_pipe, parser, work

from stepcache.errors import InvalidSetting


def check_store() -> None:
    """InvalidSetting where processes that are started again would look for each other at the dead ones' addresses.

    torchrun keeps the store they meet at over a restart, with all that is in it, unless it is told not to:
    https://github.com/pytorch/pytorch/issues/135712, still so in torch 2.13.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise InvalidSetting(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment, and "
            "--standalone (or, on several machines, --rdzv-backend c10d)."
        )


def main() -> int:
    """One process's part of the job; the exit status, 1 where tasks failed (torchrun starts again, to retry them)."""
    job = job_of(parser(__doc__).parse_args())
    check_store()
    # On a CPU it must be told: it would take each process for the only one otherwise, and each would do all of the job.
    # Processes wait for the first one to compile, which may take longer than the ten minutes after which NCCL gives up.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=1))
    # One process looks and tells the others: each for itself would see another's new images already, share out
    # something else, and tasks would be lost or done twice.
    todo, warm = broadcast_object_list(
        [missing(job), job.artifacts.exists()] if state.is_main_process else [None, None]
    )
    if todo:
        with nullcontext() if warm else state.main_process_first():
            pipe = open_pipe(job, state.device, todo, first=state.is_main_process)
    state.destroy_process_group()  # from here on nobody waits for anybody
    failed = []
    if todo:
        with state.split_between_processes(todo) as mine:
            failed = work(pipe, job, mine, f"process {state.process_index}")
    left = finish(job)
    print(f"process {state.process_index}: done, {len(failed)} failed; the job misses {len(left)} images", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
