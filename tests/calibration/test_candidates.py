"""What a plan may be: masks, costs, and weights."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stepcache.calibration.candidates import Candidate, most_full_steps, moves, predictors, speedup, uniform, warped
from stepcache.calibration.grams import Grams
from stepcache.reuse.predict import HOLD, Apart, Fitted, Line
from stepcache.reuse.schedule import Schedule


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0]))
def test_warped_masks_have_their_full_steps(steps, full, power):
    full = min(steps, full)
    mask = warped(steps, full, power)
    assert len(mask) == steps and mask.count("F") == full and mask[0] == "F"


def test_powers_over_1_are_denser_early():
    early, late = (warped(50, 15, power)[:25].count("F") for power in (1.6, 0.65))
    assert early > 7 > late and warped(12, 4) == uniform(12, 3) == "FPP" * 4
    assert uniform(7, 3) == Schedule.uniform(3).kinds(7)


@given(st.integers(2, 60), st.integers(0, 9), st.booleans(), st.integers(5, 40))
def test_the_most_full_steps_that_fit(steps, tenths, reuse, budget):
    share, budget = tenths / 10, budget / 4
    n = most_full_steps(steps, share, reuse, budget)

    def cost(full):
        return speedup("F" * full + "P" * (steps - full), share, reuse)

    assert n == 0 or cost(n) >= budget - 1e-9
    assert n == steps or cost(n + 1) < budget


def test_speedup_counts_half_a_partial_step_with_reuse():
    assert speedup("FPPP", 0.2, False) == pytest.approx(4 / 1.6)
    assert speedup("FPPP", 0.2, True) == pytest.approx(4 / 1.3)


def test_moves_keep_the_number_and_the_first_step():
    near = Candidate("FPPFPPF", 0, False)
    masks = [c.mask for c in moves(near, random.Random(0))]
    assert sorted(masks) == sorted(["FPFPPPF", "FPPPFPF", "FPPFPFP", "FFPPPPF", "FPPPPFF", "FPPFFPP"])
    assert masks == [c.mask for c in moves(near, random.Random(0))]  # the order is drawn by the seed


def test_other_predictions_are_others():
    for near in (Candidate("FPPF", 0, True), Candidate("FPPF", 0, True, fitted=True, order=3, early=1.0, late=0.5)):
        others = list(predictors(near))
        assert all(c.mask == near.mask and c.reuse for c in others)
        assert len({c.key for c in others}) >= len(others) - 1


def line_gram(steps):
    """Of features that lie on a line over steps, in two dimensions."""
    f = torch.stack([torch.ones(steps), torch.arange(steps)], dim=1).double()
    return f @ f.T


def test_weights_of_hold_line_and_in_between():
    grams = Grams(line_gram(6))
    hold, line = Candidate("FPPFPP", 0, False), Candidate("FPPFPP", 0, False, early=1.0, late=1.0)
    assert hold.predictor(grams) == HOLD and line.predictor(grams) == Line(1.0)
    assert hold.table(grams) == {} == line.table(grams)
    ramp = Candidate("FPPFPP", 0, False, early=1.0, late=0.0).table(grams)
    # Step 4 of 0..5: a fifth of the line's step of a third.
    assert ramp[0, 4, (3, 0)] == pytest.approx((1 + 0.2 / 3, -0.2 / 3), abs=1e-6)
    assert ramp[0, 5, (3, 0)] == (1.0, 0.0) and ramp[0, 1, (0,)] == (1.0,)
    assert Candidate("FPPFPP", 0, False, early=-1.0, late=-1.0).predictor(grams) == Line(-1.0)
    back = Candidate("FPPFPP", 0, False, early=-1.0, late=-1.0 - 1e-9)
    assert isinstance(back.predictor(grams), Fitted)
    assert back.table(grams)[0, 4, (3, 0)] == pytest.approx((1 - 1 / 3, 1 / 3), abs=1e-6)


def test_fitted_weights_find_the_line_and_have_a_table_for_each_value():
    grams = Grams(line_gram(6), half=line_gram(6), difference=9 * line_gram(6))
    fitted = Candidate("FPPFPP", 0, True, fitted=True, early=1.0, late=1.0)
    table = fitted.table(grams)
    assert set(table) == {(v, i, full) for v in (0, 1) for i, full in ((1, (0,)), (2, (0,)), (4, (3, 0)), (5, (3, 0)))}
    assert table[0, 5, (3, 0)] == pytest.approx(Line(1.0).weights(0, 5, (3, 0)), abs=1e-3)
    assert fitted.predictor(grams).order == 2


def test_halves_apart_are_two_lines_or_a_table_for_both():
    grams = Grams(line_gram(6))
    apart = Candidate("FPPFPP", 0, False, early=1.0, late=1.0, difference=-0.25)
    assert apart.predictor(grams) == Apart(1.0, -0.25) and apart.table(grams) == {}
    ramp = Candidate("FPPFPP", 0, False, early=1.0, late=0.0, difference=-0.5)
    found = ramp.predictor(grams)
    assert found.apart and isinstance(found, Fitted) and len(found.table) == 8
    assert found.table[0, 4, (3, 0)] == pytest.approx((1 + 0.2 / 3, -0.2 / 3), abs=1e-6)
    assert found.table[1, 4, (3, 0)] == pytest.approx((1 - 0.5 / 3, 0.5 / 3), abs=1e-6)
    # Each has a name of its own in the journal, and least squares take the halves together.
    keys = {c.key for c in (apart, ramp, Candidate("FPPFPP", 0, False, early=1.0, late=1.0))}
    assert len(keys) == 3
    near = list(predictors(apart))
    assert {c.difference for c in near if not c.fitted} >= {-0.5, 0.0}
    assert all(c.difference is None for c in near if c.fitted) and any(c.fitted for c in near)
