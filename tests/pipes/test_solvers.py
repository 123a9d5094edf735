import pytest
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from stepcache.pipes.solvers import is_first_order, unet_calls


class Derived(DDIMScheduler):
    pass


@pytest.mark.parametrize(
    ("scheduler", "first"),
    [
        (DDIMScheduler(), True),
        (Derived(), True),
        (EulerDiscreteScheduler(use_karras_sigmas=True), True),
        (DPMSolverMultistepScheduler(solver_order=1), True),
        (DPMSolverMultistepScheduler(solver_order=1, algorithm_type="sde-dpmsolver++"), False),
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


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [
        (DDIMScheduler(), 10),
        (HeunDiscreteScheduler(), 19),
        (PNDMScheduler(skip_prk_steps=True), 11),
        (DDIMScheduler(num_train_timesteps=5), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_calls_of_the_unet_in_ten_steps(scheduler, calls):
    before = repr(vars(scheduler))
    assert unet_calls(scheduler, 10) == calls
    assert repr(vars(scheduler)) == before
