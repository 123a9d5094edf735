"""Presets are what their table says, at any number of steps, and were measured."""

import pytest
import torch
from support.small import generate, loop_pipe, tiny_pipe

from benchmarks import RESULTS
from benchmarks.frontier import dampings, rivals_rows
from stepcache import accelerate, last_run
from stepcache.bench.rows import read
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


@pytest.mark.parametrize(
    "other",
    [
        {"interval": 2}, {"branch": 1}, {"predict": "linear"}, {"guidance": "reuse"},
        # With their defaults they are given too.
        {"interval": 3}, {"branch": 0}, {"predict": "hold"}, {"guidance": "both"},
    ],
)  # fmt: skip
def test_nothing_else_beside_it(other):
    with pytest.raises(InvalidSetting, match=f"preset= and {next(iter(other))}"):
        accelerate(tiny_pipe(), preset="fast", **other)


@pytest.mark.parametrize("name", ["slow", "", 3, True])
def test_no_such_preset(name):
    with pytest.raises(InvalidSetting, match="faithful, balanced, fast"):
        accelerate(tiny_pipe(), preset=name)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_presets_interval_and_guidance_were_measured(preset):
    """Its predict="auto": with both halves in rivals.csv, with guidance reuse in dampings_reuse.csv."""
    if preset.guidance == "reuse":
        rows = read(RESULTS / "dampings_reuse.csv", dampings.Row)
    else:
        rows = [row for row in read(RESULTS / "rivals.csv", rivals_rows.Row) if row.method == "auto"]
    assert preset.interval in {row.interval for row in rows}


def test_presets_go_from_the_most_faithful_to_the_fastest():
    """In each measured setting a preset with the smaller interval is closer to the original, and costs more."""
    found = {}
    for row in read(RESULTS / "rivals.csv", rivals_rows.Row):
        if row.method == "auto":
            found.setdefault((row.scheduler, row.steps, row.guidance_scale), {})[row.interval] = row
    intervals = [preset.interval for preset in PRESETS.values()]
    assert intervals == sorted(set(intervals)) and found
    for setting, by_interval in found.items():
        rows = [by_interval[interval] for interval in intervals if interval in by_interval]
        assert len(rows) == 2, setting
        assert rows[0].psnr > rows[1].psnr and rows[0].cost > rows[1].cost, setting


def test_only_the_demo_was_measured():
    """As presets.py and the pages say. When this fails there is something new to tell there."""
    assert {row.model for row in read(RESULTS / "rivals.csv", rivals_rows.Row)} == {"demo"}
