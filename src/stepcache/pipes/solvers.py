"""What kind of solver a scheduler is."""

from __future__ import annotations

from typing import Any

# Each step follows from that step's output alone.
FIRST_ORDER = frozenset({"DDIMScheduler", "EulerDiscreteScheduler"})


def is_first_order(scheduler: Any) -> bool:
    """Whether it is DDIM or Euler, or DPM++ of order 1, which is DDIM.

    Multistep solvers extrapolate from the outputs of earlier steps, and amplify errors that alternate. All that are not
    known to be of the first order (stochastic ones, for example) count as such.
    """
    if any(cls.__name__ in FIRST_ORDER for cls in type(scheduler).__mro__):
        return True
    config = getattr(scheduler, "config", {})
    return type(scheduler).__name__ == "DPMSolverMultistepScheduler" and config.get("solver_order") == 1
