"""Which joins run on the Triton ops by default: those where a benchmark on that GPU found them faster than Inductor.

`defaults.csv` is written by `benchmarks/choose_kernels.py` from the benchmarks' own CSVs, never by hand. A GPU that is
not in it has not been measured, and joins there are left to Inductor.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from importlib.resources import files

import torch

COLUMNS = ("gpu", "dtype", "hidden", "skip", "triton_us", "inductor_us")


def wanted_on(gpu: str) -> Callable[[torch.dtype, int, int], bool]:
    """For a GPU by its name, whether a join of (dtype, hidden channels, skip channels) is faster on the ops."""
    with (files(__package__) / "defaults.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["gpu"] == gpu]
    faster = {
        (row["dtype"], int(row["hidden"]), int(row["skip"]))
        for row in rows
        if float(row["triton_us"]) < float(row["inductor_us"])
    }
    return lambda dtype, hidden, skip: (str(dtype).removeprefix("torch."), hidden, skip) in faster
