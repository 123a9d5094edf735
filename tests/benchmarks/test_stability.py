"""The model of a solver with skipped steps is diffusers' own update, and what is added to a run is what is measured."""

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from support.small import tiny_pipe

from benchmarks.frontier import stability
from stepcache.bench.rows import read, write


def solved(scheduler, errors):
    """Latents at each step of a scheduler whose data predictions are these numbers, in units of the noise."""
    scheduler.set_timesteps(len(errors))
    x, found = torch.zeros(1), []
    for timestep, error in zip(scheduler.timesteps, errors, strict=True):
        x = scheduler.step(torch.tensor([error]), timestep, x, return_dict=False)[0]
        found.append(x.item())
    return found


def test_alternating_errors_weigh_twice_as_much_at_second_order():
    """The derivation in docs/notes.md, by diffusers' update: errors of the data prediction, with steps of equal length."""
    options = {"prediction_type": "sample", "use_lu_lambdas": True, "lower_order_final": False}  # equal steps in log SNR
    first, second = (DPMSolverMultistepScheduler(**options, solver_order=order) for order in (1, 2))

    def moved(scheduler, errors):
        """What step 4 adds to the latents over what it would at first order with one of its errors."""
        kept = solved(scheduler, [0.0] * 3 + [0.0] + errors[4:]) if False else solved(scheduler, errors)
        sigmas = scheduler.sigmas
        scale = float(sigmas[5] / sigmas[4] * ((1 + sigmas[4] ** 2) / (1 + sigmas[5] ** 2)) ** 0.5)
        return kept[4] - scale * kept[3]

    one, alternating = [1.0] * 20, [(-1.0) ** step for step in range(20)]
    assert moved(second, one) == pytest.approx(moved(first, one), rel=1e-4)
    assert moved(second, alternating) == pytest.approx(2 * moved(first, alternating), rel=1e-2)
