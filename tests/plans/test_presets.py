"""Presets are what their table says, at any number of steps."""

import pytest
import torch
from support.small import demo_pipe, generate, loop_pipe

from stepcache import accelerate, last_run
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.plans.presets import PRESETS


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
    pipe = accelerate(demo_pipe(), 5, guidance="reuse")
    want = generate(pipe)
    torch.testing.assert_close(generate(accelerate(pipe, preset="fast")), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(UnsupportedPipeline, match="LoopPipe"):
        accelerate(loop_pipe("least"), preset="fast")


@pytest.mark.parametrize("other", [{"interval": 2}, {"branch": 1}, {"predict": "linear"}, {"guidance": "reuse"}])
def test_nothing_else_beside_it(other):
    with pytest.raises(InvalidSetting, match=f"preset= and {next(iter(other))}"):
        accelerate(demo_pipe(), preset="fast", **other)


@pytest.mark.parametrize("name", ["slow", "", 3, True])
def test_no_such_preset(name):
    with pytest.raises(InvalidSetting, match="faithful, balanced, fast"):
        accelerate(demo_pipe(), preset=name)
