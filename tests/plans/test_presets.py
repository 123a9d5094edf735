"""Presets are what their table says, at any number of steps."""

import pytest
import torch
from support.small import generate, loop_pipe, tiny_pipe

from stepcache import accelerate, last_run
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.plans.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [8, 20])
def test_a_preset_is_the_arguments_that_it_stands_for(name, steps):
    preset, pipe = PRESETS[name], tiny_pipe()
    accelerate(pipe, preset.interval, predict="auto", guidance=preset.guidance)
    want = generate(pipe, steps=steps)
    for _ in range(2):
        torch.testing.assert_close(generate(accelerate(pipe, preset=name), steps=steps), want, rtol=1e-5, atol=1e-5)
    assert last_run(pipe).kinds == preset.schedule.kinds(steps)


def test_fast_reuses_guidance_where_that_is_known():
    pipe = accelerate(tiny_pipe(), 5, predict="auto", guidance="reuse")
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
