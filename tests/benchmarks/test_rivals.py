"""Rivals run at equal cost, against two references, on originals that are made once."""

import copy
import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from support.small import tiny_pipe

from benchmarks.frontier import rivals
from benchmarks.frontier.pictures import images
from benchmarks.frontier.rivals import Accelerated, Bench, candidates, cost, fewer_steps, measure
from benchmarks.frontier.rivals_rows import AUTO, FEWER, HOLD, LINE, NONUNIFORM, SPECTRUM, Row, psnrs_of
from stepcache.bench.rows import read
from stepcache.forwards.macs import branch_macs, meta_unet
from stepcache.images.fidelity import psnr
from stepcache.images.schedulers import swap_scheduler
from stepcache.reuse.schedule import Schedule

PROMPTS, SEEDS, MOST = ("tiger face", "rose", "banana"), (1, 2), 16
SETTING = "ddim", 12, 3.0
WITHOUT_AUTO = [method for method in rivals.METHODS if method != AUTO]


@pytest.fixture(scope="module")
def rows():
    """Of a tiny pipe at one setting, with as many steps as Spectrum's warm-up needs."""
    bench = Bench(tiny_pipe(), "tiny", PROMPTS, SEEDS, MOST)
    return list(measure(bench, SETTING, WITHOUT_AUTO, intervals=(2,)))


@pytest.mark.parametrize("setting", rivals.SETTINGS, ids=str)
def test_all_methods_of_a_setting_cost_the_same(setting):
    share, (_, steps, guidance) = 0.086, setting
    intervals = rivals.INTERVALS[steps]
    found = Counter()
    for candidate in candidates(setting, intervals, share):
        budget = cost(Schedule.uniform(candidate.interval).kinds(steps), share)
        if isinstance(candidate.way, Accelerated):
            options = candidate.way.options
            schedule = options.get("schedule") or Schedule.uniform(options["interval"])
            kinds, price = schedule.kinds(steps), share
            assert options["branch"] == rivals.BRANCH
        else:
            kinds, price = candidate.way.method.mask(steps), candidate.share
            assert price == (share if candidate.way.method.of == "feature" else 0)
        spent = cost(kinds, price)
        assert budget - 1 < spent <= budget + 1e-9, candidate
        assert math.floor(spent) in fewer_steps(setting, intervals, share)
        found[candidate.method.partition(" ")[0]] += 1
    fixed = 2 * len(rivals.PAIRS) if (steps, guidance) == rivals.FIXED_IN else 0
    assert found["hold"] == found["line"] == found["auto"] == 2 and found["fixed"] == fixed
    assert found["Spectrum"] == (10 if fixed else 8)
    assert found["DeepCache"] == 2 - (steps == 30)  # 30 steps, interval 2: the paper's formula has no such schedule


def test_what_is_measured(rows):
    by_method = {(row.method, row.steps): row for row in rows}
    assert {HOLD, LINE, NONUNIFORM} < {method for method, _ in by_method}
    assert len([method for method, _ in by_method if method.startswith(SPECTRUM)]) == 4
    hold, line = by_method[HOLD, 12], by_method[LINE, 12]
    assert hold.schedule == line.schedule == "FPFPFPFPFPFP" and hold.cost == line.cost
    (count,) = branch_macs(meta_unet(tiny_pipe().unet.config), 16, 16, branches=[0])
    assert hold.cost == pytest.approx(6 + 6 * count.share, rel=1e-9) and 7 < hold.cost < 8
    assert hold.psnr != line.psnr and hold.speedup == MOST / hold.cost
    assert by_method[f"{SPECTRUM} on outputs, own schedule", 12].cost == 7.0  # its skipped steps run nothing
    assert [row.steps for row in rows if row.method == FEWER] == [7, 12]


def test_two_references(rows):
    pipe = tiny_pipe()

    def originals(steps):
        swap_scheduler(pipe, "ddim", steps)
        return images(pipe, PROMPTS, SEEDS, steps, 3.0)

    few, same, most = originals(7), originals(12), originals(MOST)
    fewer = {row.steps: row for row in rows if row.method == FEWER}
    assert fewer[7].psnr is None and fewer[7].psnrs == ""
    assert fewer[7].psnr_most == pytest.approx(psnr(few, most).mean())
    assert fewer[12].psnr_most == pytest.approx(psnr(same, most).mean())
    prompt_major = psnr(few, most).reshape(len(SEEDS), len(PROMPTS)).T
    assert psnrs_of(fewer[7], most=True) == pytest.approx(prompt_major, abs=0.006)

    bench = Bench(pipe, "tiny", PROMPTS, SEEDS, MOST)
    (hold,) = candidates(SETTING, (2,), bench.share, [HOLD])
    made, _ = hold.way.run(pipe, bench.maker(*SETTING))
    (row,) = (row for row in rows if row.method == HOLD)
    assert row.psnr == pytest.approx(psnr(made, same).mean())
    assert row.psnr_most == pytest.approx(psnr(made, most).mean())
    assert psnrs_of(row).mean() == pytest.approx(row.psnr, abs=0.01)


def test_originals_are_made_once_and_kept(monkeypatch, tmp_path):
    made = []
    noted = images
    monkeypatch.setattr(rivals, "images", lambda *args: (made.append(args[3:]), noted(*args))[1])
    for originals in ({4: 1, 2: 1, MOST: 1}, {}):  # the second time they are in the folder
        bench = Bench(tiny_pipe(), "tiny", PROMPTS[:1], SEEDS[:1], MOST, tmp_path / "kept")
        for methods in ([HOLD, FEWER], [LINE]):
            list(measure(bench, ("ddim", 4, 3.0), methods, intervals=(2,)))
        accelerated = 2  # hold and line
        assert Counter(steps for steps, _ in made) == Counter(originals) + Counter({4: accelerated})
        made.clear()
    other = Bench(tiny_pipe(), "tiny", PROMPTS[1:2], SEEDS[:1], MOST, tmp_path / "kept")
    other.originals("ddim", 4, 3.0)
    assert len(made) == 1  # of another prompt
    pipe = copy.deepcopy(bench.pipe).to(torch.bfloat16)  # the VAE and the text encoder are those of other tests
    half = Bench(pipe, "tiny", PROMPTS[:1], SEEDS[:1], MOST, tmp_path / "kept")
    half.originals("ddim", 4, 3.0)
    assert len(made) == 2  # in another dtype


def test_originals_in_memory_are_those_of_one_scheduler_and_guidance_scale():
    bench = Bench(tiny_pipe(), "tiny", PROMPTS[:1], SEEDS[:1], MOST)
    for scheduler, steps, guidance in (("ddim", 4, 3.0), ("ddim", 2, 3.0), ("ddim", 4, 7.5), ("euler", 4, 7.5)):
        bench.originals(scheduler, steps, guidance)
        assert (scheduler, steps, guidance) in bench._originals
        assert {(key[0], key[2]) for key in bench._originals} == {(scheduler, guidance)}
    assert len(bench._originals) == 1


def test_a_scheduler_leaves_nothing_to_the_next():
    bench = Bench(tiny_pipe(), "tiny", PROMPTS, SEEDS, MOST)
    bench.maker("dpm++-karras", 8, 3.0)
    assert bench.pipe.scheduler.config.use_karras_sigmas
    bench.maker("euler", 8, 3.0)
    assert not bench.pipe.scheduler.config.use_karras_sigmas


def test_other_methods_are_added_to_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(rivals, "load_demo", lambda device, dtype: tiny_pipe())
    monkeypatch.setattr(rivals, "Bench", functools.partial(Bench, seeds=SEEDS[:1], most=4))
    (tmp_path / "prompts.txt").write_text("rose\nbanana\n")
    out = tmp_path / "rivals.csv"
    common = ["--prompts", f"{tmp_path}/prompts.txt", "--out", f"{out}", "--settings", "ddim:4:3", "euler:4:3"]
    rivals.main([*common, "--schedulers", "ddim", "--methods", HOLD])
    first = out.read_text()
    assert [(row.scheduler, row.method, row.interval) for row in read(out, Row)] == [("ddim", HOLD, n) for n in (2, 3)]
    rivals.main([*common, "--schedulers", "ddim", "--append", "--methods", HOLD, LINE])
    assert out.read_text().startswith(first)
    assert [row.method for row in read(out, Row)] == [HOLD, HOLD, LINE, LINE]
    with pytest.raises(SystemExit):
        rivals.main(["some/pipeline"])  # whose prompts?


def test_pictures_of_a_weighted_run_are_finite():
    bench = Bench(tiny_pipe(), "tiny", PROMPTS[:1], SEEDS[:1], 4)
    for candidate in candidates(("ddim", 20, 7.5), (3,), bench.share, ["fixed", SPECTRUM]):
        made, kinds = candidate.way.run(bench.pipe, bench.maker("ddim", 20, 7.5))
        assert np.isfinite(made).all() and len(kinds) == 20
        assert "forward" not in vars(bench.pipe.unet)
