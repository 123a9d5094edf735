"""A batch on all GPUs of one or more machines, with torchrun and Hugging Face Accelerate.

    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    torchrun --standalone --nproc-per-node 8 --max-restarts 3 batch_torchrun.py prompts.txt out --pipeline path/to/model

Each process makes its share of what is missing. If one is killed, torchrun restarts all of them, up to --max-restarts
times, and they share what is missing then. Starting the batch again later does the same.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from batch import batch_of, compile_ahead, finish, join, load_pipe, missing, parser, start, work

from stepcache.errors import InvalidSetting


def check_store() -> None:
    """InvalidSetting if restarted processes would look for each other at the dead ones' addresses.

    By default, torchrun keeps the store through which they meet, and its contents, over a restart:
    https://github.com/pytorch/pytorch/issues/135712, still so in torch 2.13.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise InvalidSetting(
            "torchrun --max-restarts needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment, and "
            "--standalone (or, on several machines, --rdzv-backend c10d)."
        )


def main() -> int:
    """One process's part of the batch; the exit status, 1 if tasks failed (torchrun restarts, to retry them)."""
    batch = batch_of(parser(__doc__).parse_args())
    check_store()
    join(batch)
    # cpu=True on a CPU: otherwise each process takes itself for the only one and makes everything.
    # Processes wait for the first one to compile ahead, which may take longer than NCCL's timeout of ten minutes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=1))
    # One process looks and tells the others. If each looked for itself, it might see another's new images, and split a
    # different list: tasks would be lost or done twice.
    (todo,) = broadcast_object_list([missing(batch) if state.is_main_process else None])
    if todo:
        pipe = load_pipe(batch, state.device)
        if state.is_main_process:
            compile_ahead(pipe, batch, todo)
        state.wait_for_everyone()
        start(pipe, batch, todo)
    state.destroy_process_group()  # from here on, no process waits for another
    failed = []
    if todo:
        with state.split_between_processes(todo) as mine:
            failed = work(pipe, batch, mine, f"process {state.process_index}")
    left = finish(batch)
    print(f"process {state.process_index}: done, {len(failed)} failed; {len(left)} images are missing", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
