"""A batch job on all GPUs of a Ray cluster, or of this machine, by Ray Data: an actor with a pipeline for each GPU.

    python batch_ray.py prompts.txt out --pipeline path/to/model --workers 8

Blocks of tasks go to whichever actor is free. An actor that is killed is started again and its block retried; a block
that fails at each of RETRIES retries is given up, and the others go on. Started again, the job makes what is missing.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import ray
import ray.data
from batch_job import Job, finish, job_of, missing, open_pipe, parser, work

RETRIES = 3

# Blocks for each worker: enough that all end at about the same time, and few enough for Ray to keep in its books.
BLOCKS = 64


class Worker:
    """A pipeline on the GPU that Ray gives this actor, as `cuda`."""

    def __init__(self, job: Job, device: str) -> None:
        self.job = job
        self.tasks = {task.id: task for task in missing(job)}
        self.pipe = open_pipe(job, device, list(self.tasks.values()))

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Make the images of a block of ids; gives the ids back. What failed is what is missing in the end."""
        # Retried after the actor's restart, a block has ids that were done before it, and are not in its tasks.
        tasks = [self.tasks[id] for id in block["id"] if id in self.tasks]
        try:
            failed = work(self.pipe, self.job, tasks, f"actor {os.getpid()}")
        except Exception:
            traceback.print_exc()
            failed = tasks
        if failed:
            # An error would be the end of the block, but not of a process whose GPU may be the cause, and which would
            # fail the next blocks as fast as they come. A dead actor is replaced, and its block tried again.
            sys.stderr.flush()
            os._exit(1)
        return block


def prepare(job: Job, device: str) -> None:
    """Compile once, before there are actors that would all do so."""
    open_pipe(job, device, missing(job), first=True)


def main(actor: type = Worker) -> int:
    """Run the job; the exit status, 1 where images are missing in the end."""
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, required=True, help="actors, each with a GPU")
    arguments.add_argument("--cpu", action="store_true", help="a CPU core for each actor in place of a GPU")
    args = arguments.parse_args()
    job = job_of(args)
    if todo := missing(job):
        device, resources = ("cpu", {"num_cpus": 1}) if args.cpu else ("cuda", {"num_gpus": 1})
        ray.init(ignore_reinit_error=True)
        if job.compile is not False and not job.artifacts.exists():
            ray.get(ray.remote(**resources)(prepare).remote(job, device))
        context = ray.data.DataContext.get_current()
        context.max_errored_blocks = -1  # a block that was given up does not end the job
        context.max_consecutive_actor_init_deaths = RETRIES  # nor does an actor that is killed while it loads
        ids = ray.data.from_items(
            [{"id": task.id} for task in todo],
            override_num_blocks=min(-(-len(todo) // job.batch_size), BLOCKS * args.workers),
        )
        made = ids.map_batches(
            actor,
            fn_constructor_args=(job, device),
            batch_size=None,  # a block as it is: the worker makes its own batches
            # One block at a time: a second one would wait behind a killed actor's restart.
            compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=1),
            # Ray's default is to retry for ever. (2.60 warns of these two: 2.64 will not take them in this way.)
            max_restarts=-1,
            max_task_retries=RETRIES,
            **resources,
        )
        for _ in made.iter_rows():
            pass
    left = finish(job)
    print(f"done; {len(left)} images are missing{': ' if left else ''}{', '.join(task.id for task in left[:10])}")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
