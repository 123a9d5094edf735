"""What kind of solver a scheduler is, and how often it has the U-Net called."""

from __future__ import annotations

import copy
from typing import Any

# Each step follows from that step's output alone.
FIRST_ORDER = frozenset({"DDIMScheduler", "EulerDiscreteScheduler"})


def is_first_order(scheduler: Any) -> bool:
    """Whether it is DDIM or Euler, or DPM++ of order 1 without noise, which is DDIM.

    Multistep solvers extrapolate from the outputs of earlier steps, and amplify errors that alternate. All that are not
    known to be of the first order (stochastic ones, for example) count as multistep.
    """
    if any(cls.__name__ in FIRST_ORDER for cls in type(scheduler).__mro__):
        return True
    config = getattr(scheduler, "config", {})
    if type(scheduler).__name__ != "DPMSolverMultistepScheduler":
        return False
    return config.get("solver_order") == 1 and not str(config.get("algorithm_type")).startswith("sde")


def unet_calls(scheduler: Any, steps: int) -> int | None:
    """U-Net calls of a run of `steps`; None if the scheduler, which is left as it is, cannot do so many.

    One for each of its timesteps: Heun and KDPM2 have 2n - 1 of them in n steps, PNDM n + 1.
    """
    mine = copy.deepcopy(scheduler)
    try:
        mine.set_timesteps(steps)
    except Exception:  # schedulers may raise anything for a number that they cannot do
        return None
    return len(mine.timesteps)


def most_steps(scheduler: Any, steps: int, calls: int) -> int | None:
    """The most steps, at most `steps`, that need no more than so many U-Net calls; None if even one needs more."""
    tried = range(min(steps, calls), 0, -1)  # no step does without a call
    fits = (n for n in tried if (needed := unet_calls(scheduler, n)) is not None and needed <= calls)
    return next(fits, None)
