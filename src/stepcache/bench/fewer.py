"""How many steps of the original cost no more than reuse does: the rival that every user has."""

from __future__ import annotations

from typing import Any

from ..forwards.macs import BranchMacs
from ..pipes.solvers import most_steps, unet_calls
from ..reuse.schedule import Schedule


def fewer_steps(scheduler: Any, steps: int, interval: int, macs: BranchMacs | None) -> int | None:
    """The most steps whose U-Net calls cost no more MACs than `steps` with this interval.

    macs: of the branch. None without them, where reuse costs as much as all steps, and where the scheduler can do no
    number of steps that costs as little.
    """
    calls = unet_calls(scheduler, steps)
    if macs is None or calls is None:
        return None
    cost = macs.spent(Schedule.uniform(interval).kinds(calls))
    return most_steps(scheduler, steps, cost // macs.full_macs) if cost < calls * macs.full_macs else None
