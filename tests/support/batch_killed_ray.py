"""The Ray recipe with actors that are killed: one of them once, and each that gets the task POISON."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import batch
import batch_ray
import ray
from support.batch_killed import log_writes, mortal


class Mortal(batch_ray.Worker):
    def __init__(self, whole: batch.Batch, device: str) -> None:
        mortal(Path(os.environ["FOLDER"]), images=2)
        log_writes(Path(os.environ["FOLDER"]))
        super().__init__(whole, device)

    def __call__(self, block):
        if os.environ.get("POISON") in block["id"]:
            with Path(os.environ["FOLDER"], "poisoned").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(block)


if __name__ == "__main__":
    batch_ray.RETRIES = 1  # each takes an actor's start
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
    sys.exit(batch_ray.main(Mortal))
