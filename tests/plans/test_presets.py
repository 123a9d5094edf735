"""Presets are what their table says, at any number of steps."""

import csv

import pytest
import torch
from support.small import generate, loop_pipe, tiny_pipe

from benchmarks import RESULTS
from stepcache import accelerate, last_run
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.plans.presets import GAINS, PRESETS, SETTINGS


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("steps", "damping"), [(8, 0.0), (20, 0.0), (35, 0.5), (50, 1.0), (60, 1.0)])
def test_a_preset_is_the_arguments_that_it_stands_for(name, steps, damping):
    preset = PRESETS[name]
    assert preset.for_steps(steps)[1].damping == damping * preset.damping
    assert preset.for_steps(None)[1].damping == 0
    if name == "fast" or steps > 35:
        return  # the same way through the code, and more of it
    pipe = loop_pipe("least")
    want = accelerate(pipe, preset.interval, predict=damping)(steps)
    for _ in range(2):
        torch.testing.assert_close(accelerate(pipe, preset=name)(steps), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).kinds == preset.schedule.kinds(steps)


def test_runs_of_different_lengths_in_turn():
    """One with lines and one without on the same buffers: the weights of the one are not left to the other."""
    pipe = loop_pipe("least")
    want = {steps: accelerate(pipe, 3, predict=damping)(steps) for steps, damping in ((20, 0.0), (50, 1.0))}
    accelerate(pipe, preset="balanced")
    for steps in (50, 20, 50, 20):
        torch.testing.assert_close(pipe(steps), want[steps], rtol=1e-5, atol=1e-5)


def test_fast_reuses_guidance_where_that_is_known():
    pipe = accelerate(tiny_pipe(), 5, guidance="reuse")
    want = generate(pipe)
    torch.testing.assert_close(generate(accelerate(pipe, preset="fast")), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedPipeline, match="LoopPipe"):
        accelerate(loop_pipe("least"), preset="fast")


@pytest.mark.parametrize("other", [{"interval": 2}, {"branch": 1}, {"predict": "linear"}, {"guidance": "reuse"}])
def test_nothing_else_beside_it(other):
    with pytest.raises(InvalidSetting, match=f"preset= and {next(iter(other))}"):
        accelerate(tiny_pipe(), preset="fast", **other)


@pytest.mark.parametrize("name", ["slow", "", 3, True])
def test_no_such_preset(name):
    with pytest.raises(InvalidSetting, match="faithful, balanced, fast"):
        accelerate(tiny_pipe(), preset=name)


@pytest.mark.parametrize(("name", "steps"), GAINS)
def test_the_evidence_is_in_the_results(name, steps):
    preset = PRESETS[name]
    with open(RESULTS / "frontier.csv") as file:
        rows = list(csv.DictReader(file))

    def psnr(scheduler, guidance_scale, predict):
        """Of the one row with the preset's schedule and guidance; a calibrated plan's is another thing."""
        want = (scheduler, str(steps), str(guidance_scale), predict, preset.guidance, "0", preset.schedule.kinds(steps))
        columns = ("scheduler", "steps", "guidance_scale", "predict", "guidance", "branch", "schedule")
        (row,) = [r for r in rows if tuple(r[c] for c in columns) == want and r["method"] != "calibrated"]
        return float(row["psnr"])

    line = {1.0: "linear", 0.5: "0.5"}[preset.damping]
    found = [psnr(*setting, line) - psnr(*setting, "hold") for setting in SETTINGS]
    assert GAINS[name, steps] == pytest.approx(found, abs=0.051)
    # What the presets are built on: the line pays at 50 steps, all but once, and not at 20.
    losses = [setting for setting, gain in zip(SETTINGS, found, strict=True) if gain < 0]
    assert len(losses) <= 1 if steps == 50 else any(guidance_scale == 7.5 for _, guidance_scale in losses)
