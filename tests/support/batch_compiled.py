"""The torchrun recipe with a compile cache for each process, as on two machines; prints what each one compiled.

Graphs may only run from packages: any other is an error.
"""

from __future__ import annotations

import functools
import os
import sys

rank = os.environ["RANK"]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(os.environ["FOLDER"], f"cache{rank}")

import batch  # noqa: E402
import batch_torchrun  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from stepcache import accelerate, last_run  # noqa: E402
from stepcache.packages import build, loaded  # noqa: E402

made: list[object] = []
make, work = build._make, batch_torchrun.work


def noted_make(*args):
    made.append(make(*args))
    return made[-1]


def accelerate_strictly(pipe, *args, compiled=None, **options):
    return accelerate(pipe, *args, compiled=compiled, compiled_only=compiled is not None, **options)


@functools.wraps(work)
def noted_work(pipe, *args):
    failed = work(pipe, *args)
    print(
        f"rank {rank}: {len(made)} packages made, {len(loaded._loaded)} loaded, "
        f"{counters['stats']['unique_graphs']} graphs and {last_run(pipe).compile_seconds} s compiled",
        flush=True,
    )
    return failed


build._make, batch.accelerate, batch_torchrun.work = noted_make, accelerate_strictly, noted_work
sys.exit(batch_torchrun.main())
