import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from stepcache.pipes.solvers import is_first_order


class Derived(DDIMScheduler):
    pass


@pytest.mark.parametrize(
    ("scheduler", "first"),
    [
        (DDIMScheduler(), True),
        (Derived(), True),
        (EulerDiscreteScheduler(use_karras_sigmas=True), True),
        (DPMSolverMultistepScheduler(solver_order=1), True),
        (DPMSolverMultistepScheduler(), False),
        (UniPCMultistepScheduler(), False),
        (PNDMScheduler(), False),
        (EulerAncestralDiscreteScheduler(), False),
        (object(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_what_is_known_is_of_the_first_order(scheduler, first):
    assert is_first_order(scheduler) is first
