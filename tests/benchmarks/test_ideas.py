"""The ideas do what their rows say: what is repeated, revised or skipped, what it costs, and what is compared."""

import functools
import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from support.small import tiny_pipe

from benchmarks.frontier import by_gradient, ideas
from benchmarks.frontier.dampings import Apart
from benchmarks.frontier.iec import Corrected
from benchmarks.frontier.ltc import Coherent
from benchmarks.frontier.multistep import DataLine, FirstOrder, Revised, interpolated
from benchmarks.frontier.solver import Run, running
from benchmarks.frontier.weighted import weighted
from stepcache.bench.rows import read, write

STEPS, GUIDANCE, SHARE = 8, 7.5, 0.25
PAIR = Apart(2, 1.0, -0.25)


@pytest.fixture(params=["dpm++", "euler"])
def pipe(request):
    return piped(request.param)


@functools.cache
def made():
    torch.manual_seed(0)
    return tiny_pipe()


def piped(scheduler):
    """A tiny pipeline with this scheduler, the same one at each call."""
    kind = {"dpm++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}[scheduler]
    pipe = made()
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe


def call(pipe, prompts=("fox face",)):
    noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": noise}
    return pipe(list(prompts), output_type="latent", **options).images


def latents(pipe, kind=Run, method=PAIR, **options):
    """Final latents, and the run."""
    run = kind(pipe, method, STEPS, GUIDANCE, SHARE, **options)
    with running(pipe, run):
        return call(pipe), run


def test_a_run_is_the_weighted_one_and_leaves_no_trace(pipe):
    found, run = latents(pipe)
    with weighted(pipe, PAIR, 0, STEPS):
        assert torch.equal(found, call(pipe))
    assert run.spent == 4 + 4 * SHARE
    assert "forward" not in vars(pipe.unet) and "step" not in vars(pipe.scheduler)


@pytest.mark.parametrize(
    "options",
    [
        (Corrected, {"gamma": 0.0}),
        (DataLine, {"mix": 0.0}),
        (Revised, {"weight": 0.0, "parabola": True}),
        (FirstOrder, {"where": ""}),
    ],
    ids=lambda options: options[0].__name__,
)
def test_with_a_share_of_zero_an_idea_changes_nothing(pipe, options):
    kind, options = options
    torch.testing.assert_close(latents(pipe, kind, **options)[0], latents(pipe)[0], rtol=0, atol=2e-4)


def test_iec_does_a_partial_step_again_with_the_output_at_its_end():
    """By hand, for Euler: step, evaluate the end at this step's timestep, step again from where it started."""
    pipe = piped("euler")
    seen = []

    class Seen(Corrected):
        def advance(self, output, timestep, x):
            after = super().advance(output, timestep, x)
            seen.append((self.at, output, timestep, x, after, self._value(self.at), self.inputs))
            return after

    _, run = latents(pipe, Seen, gamma=0.5)
    step, output, _, x, after, feature, inputs = seen[3]
    sigmas, next_sigma = pipe.scheduler.sigmas, float(pipe.scheduler.sigmas[step + 1])
    first = x + (sigmas[step + 1] - sigmas[step]) * output
    sample = torch.cat([first] * 2) / math.sqrt(1 + next_sigma**2)
    with torch.no_grad():
        again = run.guided(run.family.partial(pipe.unet, run.cut, feature, **{**inputs, "sample": sample}))
    expected = x + (sigmas[step + 1] - sigmas[step]) * (output + again) / 2
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert run.spent == 4 + 4 * 2 * SHARE
    assert not torch.allclose(expected, first, atol=1e-2)


def test_first_order_everywhere_is_the_solver_of_first_order():
    pipe = piped("dpm++")
    found, _ = latents(pipe, FirstOrder, where="PA")  # at interval 2 no step is neither
    second, _ = latents(pipe)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=1)
    torch.testing.assert_close(found, latents(pipe)[0], rtol=0, atol=1e-4)
    assert not torch.allclose(found, second, atol=1e-2)


def test_where_partial_outputs_are_on_the_line_anyway_there_is_nothing_to_revise(pipe):
    """The x0 of the partial steps is made to lie between that of the full steps, which a first run has noted."""
    points = {}

    class Noting(Revised):
        def advance(self, output, timestep, x):
            data = self.data_of(output, x, self.at)
            if self.is_full(self.at):
                data = points.setdefault(self.at, data)
            elif self.at + 1 in points:
                data = (points[self.at - 1] + points[self.at + 1]) / 2
            return super().advance(self.noise_of(data, x, self.at), timestep, x)

    latents(pipe, Noting, weight=0.0, parabola=False)
    plain, run = latents(pipe, Noting, weight=0.0, parabola=False)
    assert run.spent == 4 + 4 * SHARE
    torch.testing.assert_close(latents(pipe, Noting, weight=1.0, parabola=False)[0], plain, rtol=0, atol=5e-4)
    assert not torch.allclose(latents(pipe, Revised, weight=1.0, parabola=False)[0], latents(pipe)[0], atol=1e-2)


def test_interpolation():
    points = [(step, torch.tensor([float(step**2 + 1)])) for step in (0, 3, 6)]
    assert interpolated(points, 4).item() == pytest.approx(17.0)
    assert interpolated(points[1:], 4).item() == pytest.approx(10 + (37 - 10) / 3)


def test_x0_held_is_the_full_steps_own(pipe):
    seen = {}

    class Seen(DataLine):
        def advance(self, output, timestep, x):
            seen[self.at] = self.data_of(output, x, self.at)
            return super().advance(output, timestep, x)

    _, run = latents(pipe, Seen, Apart(2, 0.0, 0.0), mix=1.0)
    assert run.spent == 4  # nothing of the U-Net in skipped steps
    for step in (1, 3, 5):
        torch.testing.assert_close(seen[step], seen[step - 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("of", ["latents", "output"])
def test_ltc_repeats_the_change_of_the_step_before_times_the_scalar_that_fitted(pipe, of):
    values = {}

    class Seen(Coherent):
        def advance(self, output, timestep, x):
            after = super().advance(output, timestep, x)
            values[self.at] = x, after
            return after

    _, fit = latents(pipe, Coherent, of=of)
    assert fit.spent == STEPS and list(fit.scalars) == [3, 5, 7]
    found, run = latents(pipe, Seen, of=of, scalars=fit.scalars)
    assert run.spent == 5 and run.letters == "FFFPFPFP"
    fitted_latents, _ = latents(pipe, Coherent, of=of)
    torch.testing.assert_close(found, fitted_latents, rtol=0, atol=1e-3)  # the fit goes on as the run will
    if of == "latents":
        (before, _), (x, after) = values[4], values[5]
        torch.testing.assert_close(after, x + fit.scalars[5] * (x - before), rtol=1e-3, atol=1e-3)


def test_full_steps_in_pairs_are_as_many():
    assert ideas.InPairs(2, 0.0, 0.0).mask(12) == "FFPPFFPPFFPP"
    for interval in (2, 3, 5):
        for steps in (20, 21, 50):
            mask = ideas.InPairs(interval, 0.0, 0.0).mask(steps)
            assert mask.count("F") == Apart(interval, 0.0, 0.0).mask(steps).count("F") and len(mask) == steps


def test_the_bent_mean_meets_the_parabola():
    values = [float((step - 2) ** 2) for step in range(8)]
    full = (6, 4, 2)
    mean, difference = ideas.Curved(2, 1.0, 0.0, curve=1.0).weights(7, full, 8)
    assert sum(w * values[step] for w, step in zip(mean, full, strict=True)) == pytest.approx(values[7])
    assert difference == (1.0, 0.0, 0.0)
    assert ideas.Curved(2, 1.0, 0.0, curve=1.0).weights(5, full[1:], 8)[0] == (1.5, -0.5)


def test_pairs_that_change_by_place_and_time():
    place = ideas.Changing(3, 0.5, -0.5, added=ideas.PLACES["both"])
    assert place.weights(7, (6, 3), 20) == Apart(3, 1.0, -0.25).weights(7, (6, 3), 20)
    assert place.weights(8, (6, 3), 20) == Apart(3, 0.25, -0.75).weights(8, (6, 3), 20)
    falling = ideas.Changing(2, 0.5, 0.0, added=ideas.TIMES["mean falls"])
    assert falling.weights(19, (18, 16), 20)[0] == pytest.approx(Apart(2, 0.1, 0.0).weights(19, (18, 16), 20)[0])


def test_the_descent_brings_the_latents_nearer_and_stays_with_what_it_says():
    pipe = piped("euler")
    raw = functools.partial(type(pipe).__call__.__wrapped__, pipe)

    def make():
        noise = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": noise}
        return raw(["fox face"], output_type="latent", **options).images

    with torch.no_grad():
        wanted = make()
    start = Apart(2, 0.0, 0.0)
    method, nearer = by_gradient.fitted(pipe, make, start, STEPS, GUIDANCE, 4)
    assert nearer > 0.1
    losses = [float(by_gradient.decibel(latents(pipe, method=each)[0], wanted)) for each in (start, method)]
    assert losses[0] - losses[1] == pytest.approx(nearer, abs=0.05)
    assert torch.equal(method.dampings[::2], torch.zeros(4, 2))  # full steps have none


def test_rows_of_a_tiny_setting(tmp_path):
    pipe, prompts = piped("euler"), ("fox face", "hamburger")
    own = pipe.scheduler
    rows = list(
        ideas.measure(pipe, ("dpm++", 8, 3.0), (3,), chosen_on=(prompts[:1], 7), judged_on=(prompts, 9), iterations=2)
    )
    assert pipe.scheduler is own  # else the next setting's scheduler would be made from this one's config
    by_idea = {row.idea: row for row in rows}
    assert len(by_idea) == 13 and [row.setting for row in rows[:5]] == [ideas.told(*pair) for pair in ideas.PAIRS]
    (best,) = (row for row in rows[:5] if row.psnr_calibration is not None)
    assert all(row.baseline == best.setting and row.baseline_psnr == best.psnr for row in rows)
    assert best.gain == best.gain_error == 0.0
    assert all(row.gain == pytest.approx(row.psnr - best.psnr) for row in rows)
    assert by_idea["full steps in pairs"].cost == best.cost < by_idea["IEC: partial steps repeated"].cost
    assert by_idea["x0 extrapolated, no shallow part"].cost == 3
    write(tmp_path / "ideas.csv", rows)
    assert read(tmp_path / "ideas.csv", ideas.Row) == rows


def test_the_best_variant_is_that_of_these_pictures():
    pictures = ideas.Pictures.__new__(ideas.Pictures)
    close = {"a": 20.0, "b": 30.0, "c": 25.0}
    pictures.run = lambda variant: (np.array([close[variant.name]]), None)
    variants = [ideas.Variant(name, PAIR) for name in close]
    assert pictures.best(variants) == (variants[1], 30.0)
    assert pictures.best(variants[:1]) == (variants[0], None)


def test_what_is_measured_where():
    found = {setting: ideas.options_of(setting) for setting in ideas.SETTINGS}
    assert found["dpm++", 20, 7.5] == ((2, 3), {"all_of_them": True, "iterations": ideas.ITERATIONS})
    assert found["euler", 20, 7.5] == ((2, 3), {"all_of_them": True, "iterations": 0})
    assert found["dpm++", 20, 3.0] == ((2,), {"all_of_them": False, "iterations": 0})
