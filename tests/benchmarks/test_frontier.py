"""The frontier's rows describe what ran, and fronts and gains follow from them."""

import copy
from dataclasses import replace

import pytest
from support.small import demo_pipe, generate, tiny_pipe

from benchmarks.frontier import measure as frontier
from benchmarks.frontier import rows as frontier_rows
from benchmarks.frontier.alternate import alternating
from benchmarks.frontier.rows import Row
from benchmarks.pages.frontier_pages import frontier_figures, frontier_table
from stepcache.bench.rows import read, write
from stepcache.forwards.macs import branch_macs, meta_unet

PROMPTS = ("fox face", "hamburger", "red apple", "pineapple", "panda face", "maple leaf", "dog face", "raccoon")


def test_a_tiny_setting(tmp_path):
    pipe = tiny_pipe()
    rows = list(
        frontier.measure(
            pipe, "demo", ("ddim", 6, 3.0), PROMPTS, ("tiger face",),
            intervals=(3,), branches=(0,), seeds=(1,), trials=3,
        )
    )  # fmt: skip
    methods = [row.method for row in rows]
    assert methods[:2] == ["DeepCache", "linear"] and frontier_rows.ALTERNATE in methods
    by_method = {row.method: row for row in rows}
    assert by_method["DeepCache"].schedule == by_method["linear"].schedule == "FPPFPP"
    (count,) = branch_macs(meta_unet(pipe.unet.config), 16, 16, branches=[0])
    share, faster = count.share, by_method["DeepCache"].speedup_macs
    assert faster == pytest.approx(6 / (2 + 4 * share), rel=1e-3)
    assert by_method["reuse"].speedup_macs == pytest.approx(6 / (2 + 2 * share), rel=1e-3)
    assert by_method["reuse"].psnr != by_method["DeepCache"].psnr
    assert by_method["calibrated"].speedup_macs >= 0.995 * by_method["calibrated"].budget
    write(tmp_path / "frontier.csv", rows)
    assert read(tmp_path / "frontier.csv", Row) == rows
    assert "ddim, 6 steps, guidance 3" in frontier_table(tmp_path / "frontier.csv")
    assert frontier_figures(tmp_path / "frontier.csv") == []  # not a setting in SHOWN


def test_the_prototype_of_alternate_guidance():
    pipe = copy.deepcopy(demo_pipe())
    with alternating(pipe, 2, 0) as run:
        got = generate(pipe, steps=6)
    assert run.letters == "FPCPFP" and got.isfinite().all()
    assert run.cost(0.2) == pytest.approx(2 * 1 + 0.5 + 3 * 0.1)
    assert "forward" not in vars(pipe.unet)


ROW = Row(
    "demo", "ddim", 50, 3.0, "DeepCache", "hold", "both", 0, "F", None, 2.5, 1.0, 1.0, 30.0, 29.0, 31.0, 0.9, 4, 3
)


def test_fronts_and_gains():
    theirs = [replace(ROW, speedup_macs=s, psnr=p) for s, p in ((1.8, 40.0), (2.5, 35.0), (2.4, 34.0), (3.5, 25.0))]
    ours = [replace(ROW, method="linear", speedup_macs=s, psnr=p) for s, p in ((2.5, 37.0), (2.6, 36.0), (3.4, 50.0))]
    prototype = replace(ROW, method=frontier_rows.ALTERNATE, speedup_macs=5.0, psnr=99.0)
    rows = [*theirs, *ours, prototype]
    assert [row.speedup_macs for row in frontier_rows.front(theirs)] == [1.8, 2.5, 3.5]
    assert [(g.theirs.speedup_macs, g.ours.psnr) for g in frontier_rows.gains(rows)] == [(2.5, 50.0)]
    faster = replace(ROW, method="calibrated", speedup_macs=3.49, psnr=26.0)  # within half a percent of 3.5
    assert frontier_rows.gains([*rows, faster])[1].decibel == pytest.approx(1.0)
    assert frontier_rows.best_at(theirs, 4.0) is None


def test_a_setting_on_the_command_line():
    assert frontier.setting_of("dpm++:20:7.5") == ("dpm++", 20, 7.5)
    with pytest.raises(frontier.argparse.ArgumentTypeError, match="SCHEDULER:STEPS:GUIDANCE"):
        frontier.setting_of("ddim")
