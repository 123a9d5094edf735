"""The torchrun recipe with a compile cache for each process, as on two machines; prints what each one compiled."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

rank = os.environ["RANK"]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(os.environ["FOLDER"], f"cache{rank}")

import batch_torchrun  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

# Inductor with torch's own kernels, as in test_artifacts.py: each process would run the C++ compiler for a minute.
batch_of = batch_torchrun.batch_of
batch_torchrun.batch_of = lambda args: replace(batch_of(args), compile={"mode": "lite"})

status = batch_torchrun.main()
misses = counters["inductor"]["fxgraph_cache_miss"] + counters["aot_autograd"]["autograd_cache_miss"]
print(f"rank {rank} misses {misses} hits {counters['aot_autograd']['autograd_cache_hit']}", flush=True)
sys.exit(status)
