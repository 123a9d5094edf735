"""The grid of dampings, and the rule of predict="auto" that is fitted to it."""

import numpy as np
import pytest
import torch

from benchmarks import RESULTS
from benchmarks.frontier import dampings
from benchmarks.frontier.dampings import Row
from benchmarks.frontier.fit import fit, losses, measured, surface
from stepcache.bench.rows import read
from stepcache.images.pipelines import load_demo
from stepcache.reuse.auto import FIRST_ORDER, MULTISTEP, Rules


@pytest.fixture(scope="module")
def rows():
    return read(RESULTS / "dampings.csv", Row)


@pytest.mark.parametrize(("first_order", "rules"), [(True, FIRST_ORDER), (False, MULTISTEP)])
def test_the_rule_in_the_code_is_the_fitted_one(rows, first_order, rules):
    settings = measured(rows, first_order)
    assert fit(settings) == rules
    found = losses(settings, rules)
    assert min(gain for _, gain in found.values()) > 0  # over holding, everywhere


@pytest.mark.parametrize(("first_order", "rules"), [(True, FIRST_ORDER), (False, MULTISTEP)])
def test_with_guidance_reuse_the_same_rule_gains_over_holding(first_order, rules):
    settings = measured(read(RESULTS / "dampings_reuse.csv", Row), first_order)
    assert min(gain for _, gain in losses(settings, rules).values()) > 0


def test_a_fit_finds_the_rule_that_made_the_rows():
    made = Rules(1.6, 1.2, 1.25)

    def psnr(steps, guidance, interval, mean, difference):
        best = made.difference(interval, steps, guidance)
        return 40 - 3 * (mean - made.mean(interval, steps)) ** 2 - 4 * abs(difference - best)

    rows = [
        Row(
            "dpm++",
            steps,
            guidance,
            interval,
            mean,
            difference,
            psnr(steps, guidance, interval, mean, difference),
            1,
            1,
        )
        for steps in (20, 30, 50)
        for guidance in (3.0, 5.0, 7.5)
        for interval in (2, 3)
        for mean in (0.0, 0.5, 1.0)
        for difference in np.arange(-0.5, 1.01, 0.05).round(2).tolist()
    ]
    rows = [*rows, *(row.__class__(**{**vars(row), "scheduler": "ddim", "psnr": 0.0}) for row in rows)]
    found = fit(measured(rows, first_order=False))
    for steps, guidance, interval in ((20, 7.5, 2), (30, 5.0, 3), (50, 7.5, 3)):
        ours, theirs = (rules.difference(interval, steps, guidance) for rules in (found, made))
        assert ours == pytest.approx(theirs, abs=0.06)


def test_between_measured_pairs_it_is_linear_and_beyond_them_nothing_is_gained():
    pairs = {(1.0, 0.0): 30.0, (1.0, 1.0): 32.0, (0.5, 0.0): 28.0, (0.5, 1.0): 20.0, (0.75, 0.0): 99.0}
    at = np.array([-1.0, 0.0, 0.25, 1.0, 2.0])
    assert surface(pairs, 1.0, at).tolist() == [28.0, 30.0, 30.5, 32.0, 32.0]
    assert surface(pairs, 0.75, at).tolist() == [28.0, 29.0, 28.25, 26.0, 22.0]


def test_rows_are_what_accelerate_makes(monkeypatch):
    torch.set_flush_denormal(True)
    monkeypatch.setattr(dampings, "PROMPTS", ("red apple", "fox face"))
    pipe = load_demo("cpu")
    found = list(dampings.measure(pipe, ("dpm++", 6, 7.5), intervals=(2,), pairs=((0, 0), (1, -0.25))))
    assert [(row.interval, row.mean, row.difference, row.prompts) for row in found] == [(2, 0, 0, 2), (2, 1, -0.25, 2)]
    assert found[0].psnr != found[1].psnr and all(5 < row.psnr < 60 for row in found)
    assert type(pipe).__name__ == "StableDiffusionPipeline" and not hasattr(type(pipe), "_stepcache_attachment")


def test_pairs_on_the_command_line():
    assert dampings.pair_of("1,-0.25") == (1.0, -0.25)
    with pytest.raises(Exception, match="MEAN,DIFFERENCE"):
        dampings.pair_of("1")
