"""The number of CPU threads that a command runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Run torch on one CPU thread, if wanted, and afterwards on as many as before. For the demo on a CPU.

    Its small layers gain little from a second thread, and OpenMP's threads spin while they wait for each other: as soon
    as something else wants a core, times grow tenfold.
    """
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
