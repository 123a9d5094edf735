"""The model of a solver with skipped steps follows from diffusers' own update; rows are of the error that was added."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from support.small import tiny_pipe

from benchmarks.frontier import stability
from benchmarks.frontier.stability import Row, limit
from stepcache.bench.rows import read, write

STEPS, AT = 20, 8


def added(order, errors):
    """What step AT of diffusers adds to the latents over the noise, with these numbers as data predictions."""
    options = {"prediction_type": "sample", "use_lu_lambdas": True}  # steps of equal length in log SNR
    scheduler = DPMSolverMultistepScheduler(**options, solver_order=order)
    scheduler.set_timesteps(STEPS)
    latents, over_noise = torch.zeros(1), []
    for step, timestep in enumerate(scheduler.timesteps[: AT + 1]):
        latents = scheduler.step(torch.tensor([errors(step)]), timestep, latents, return_dict=False)[0]
        sigma = float(scheduler.sigmas[step + 1])
        over_noise.append(latents.item() * (1 + sigma**2) ** 0.5 / sigma)
    return over_noise[AT] - over_noise[AT - 1]


def test_alternating_errors_weigh_twice_as_much_at_second_order():
    assert added(2, lambda step: 1.0) == pytest.approx(added(1, lambda step: 1.0), rel=1e-3)

    def alternating(step):
        return (-1.0) ** step

    assert added(2, alternating) == pytest.approx(2 * added(1, alternating), rel=1e-3)

    once = added(1, lambda step: float(step == AT))
    assert added(2, lambda step: float(step == AT)) == pytest.approx(1.5 * once, rel=1e-3)
    assert added(2, lambda step: float(step == AT - 1)) == pytest.approx(-0.5 * once, rel=1e-3)


@pytest.mark.parametrize(
    ("order", "interval", "damping", "known"),
    [
        (1, 1, 0.0, 2.0),  # Euler's
        (2, 1, 0.0, 1.0),  # that of Adams and Bashforth
        (1, 2, 0.0, 1.0),  # two steps by the same answer: |1 - 2 k| <= 1
        (1, 3, 0.0, 2 / 3),
        (1, 2, 1.0, 2 / 3),  # z^2 - (1 - 2.5 k) z - 0.5 k = 0 at z = -1
    ],
)
def test_limits_that_are_known(order, interval, damping, known):
    assert limit(order, interval, damping) == pytest.approx(known, abs=1.1e-3)


def test_errors_die_out_up_to_the_limit_in_a_run_of_the_model():
    """The recurrence step by step, from an error at one step."""

    def left(order, interval, damping, k):
        y, answers, full = 1.0, [0.0], [(-interval, 0.0)]
        for step in range(600):
            if step % interval == 0:
                full = [(step, y), *full][:2]
            (newest, value), (before, old) = full[0], full[-1]
            answers.append(value + damping * (step - newest) / max(newest - before, 1) * (value - old))
            y -= k * (answers[-1] if order == 1 else 1.5 * answers[-1] - 0.5 * answers[-2])
        return abs(y)

    for order in (1, 2):
        for interval, damping in ((2, 1.0), (2, -0.25), (3, 0.0), (3, -0.5)):
            most = limit(order, interval, damping)
            assert left(order, interval, damping, most - 0.02) < 1e-2, (order, interval, damping)
            assert left(order, interval, damping, most + 0.02) > 1e2, (order, interval, damping)


def test_rows_of_a_tiny_pipeline(tmp_path):
    options = {"prompts": ("fox face", "hamburger"), "steps": 8, "at_step": 5}
    torch.manual_seed(0)
    pipe = tiny_pipe()
    rows = list(stability.measure(pipe, 1, 3.0, **options))
    assert [(row.interval, row.mean, row.difference) for row in rows] == list(stability.SKIPPING)
    assert all(row.limit == limit(1, row.interval, row.difference) and row.images == 2 for row in rows)
    assert all(np.isfinite(row.growth) and row.growth > 0 for row in rows)
    write(tmp_path / "stability.csv", rows)
    assert read(tmp_path / "stability.csv", Row) == rows


def test_the_growth_is_that_of_the_last_step_where_the_error_is_added_there():
    """Nothing answers it any more: the last step at first order multiplies it by the change of sigma."""
    pipe = tiny_pipe()
    options = {"prompts": ("fox face",), "steps": 8, "at_step": 7}
    rows = list(stability.measure(pipe, 1, 3.0, **options))
    *_, before, after = pipe.scheduler.sigmas.tolist()
    last = (before - after) / (1 + after**2) ** 0.5
    assert [row.growth for row in rows] == pytest.approx([last] * len(rows), rel=2e-2)
