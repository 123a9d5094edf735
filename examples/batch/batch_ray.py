"""A batch on all GPUs of a Ray cluster, or of this machine, with Ray Data: an actor with a pipeline for each GPU.

    python batch_ray.py prompts.txt out --pipeline path/to/model --workers 8

Blocks of tasks go to free actors. An actor that is killed is restarted and its block retried; a block that fails at all
of RETRIES retries is given up, and the others go on. Starting the batch again makes what is missing.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import ray
import ray.data
from batch import Batch, Task, batch_of, compile_ahead, finish, join, load_pipe, missing, parser, start, work

RETRIES = 3

# Blocks per worker: enough that all workers end at about the same time, and few enough for Ray to keep track of.
BLOCKS = 64


class Worker:
    """A pipeline on the GPU that Ray gives this actor as `cuda`."""

    def __init__(self, batch: Batch, device: str) -> None:
        join(batch)
        self.batch = batch
        self.tasks = {task.id: task for task in missing(batch)}
        self.pipe = load_pipe(batch, device)
        start(self.pipe, batch, list(self.tasks.values()))

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Make the images of a block of ids, and return it. What failed is missing in the end."""
        # A block that is retried after a restart may have ids that were done before it, and are not in self.tasks.
        tasks = [self.tasks[id] for id in block["id"] if id in self.tasks]
        try:
            failed = work(self.pipe, self.batch, tasks, f"actor {os.getpid()}")
        except Exception:
            traceback.print_exc()
            failed = tasks
        if failed:
            # An error would end the block, but not this process, whose GPU may be the cause: it would fail the next
            # blocks as fast as they come. A dead actor is replaced, and its block retried.
            sys.stderr.flush()
            os._exit(1)
        return block


def prepare(batch: Batch, device: str, todo: Sequence[Task]) -> None:
    """Compile once, before there are actors that would all do so."""
    compile_ahead(load_pipe(batch, device), batch, todo)


def main(actor: type = Worker) -> int:
    """Run the batch; the exit status, 1 if images are missing in the end."""
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, required=True, help="actors, each with a GPU")
    arguments.add_argument("--cpu", action="store_true", help="a CPU core for each actor instead of a GPU")
    args = arguments.parse_args()
    batch = batch_of(args)
    join(batch)
    if todo := missing(batch):
        device, resources = ("cpu", {"num_cpus": 1}) if args.cpu else ("cuda", {"num_gpus": 1})
        ray.init(ignore_reinit_error=True)
        if batch.has_graphs(device):
            ray.get(ray.remote(**resources)(prepare).remote(batch, device, todo))
        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # a block that was given up does not end the run
        context.max_consecutive_actor_init_deaths = RETRIES  # nor does an actor that is killed while loading
        ids = ray.data.from_items(
            [{"id": task.id} for task in todo],
            override_num_blocks=min(-(-len(todo) // batch.batch_size), BLOCKS * args.workers),
        )
        made = ids.map_batches(
            actor,
            fn_constructor_args=(batch, device),
            batch_size=None,  # whole blocks: the worker groups its tasks
            # One block at a time: a second one would wait for a killed actor's restart.
            compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=1),
            # Ray retries forever by default. (2.60 warns about these two: 2.64 will not take them here.)
            max_restarts=-1,
            max_task_retries=RETRIES,
            **resources,
        )
        for _ in made.iter_rows():
            pass
    left = finish(batch)
    print(f"done; {len(left)} images are missing{': ' if left else ''}{', '.join(task.id for task in left[:10])}")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
