"""The search, on a stand-in for images whose best candidate is known."""

import numpy as np
import pytest

from stepcache.calibration.candidates import Candidate, speedup
from stepcache.calibration.search import Option, Space, dampings, search, uniform_starts
from stepcache.errors import InvalidSetting
from stepcache.reuse.predict import HOLD

SPACE = Space(20, {0: 0.08, 1: 0.24}, reuse=True)


def distance(candidate, best):
    """-PSNR, say: how far the full steps and the dampings are from those of `best`."""
    at, wanted = ([i for i, letter in enumerate(c.mask) if letter == "F"] for c in (candidate, best))
    moved = sum(abs(a - b) for a, b in zip(at, wanted, strict=True))
    return moved + 4 * abs(candidate.early - best.early) + 4 * abs(candidate.late - best.late) + 3 * candidate.fitted


def test_it_finds_the_best_mask_and_damping():
    best = Candidate("FPFPPFPPPFPPFPPPFPPP", 0, True, early=0.75, late=0.25)
    tried = []

    def measure(candidate, beat):
        assert (beat is None) == (not tried)
        tried.append(candidate)
        if (candidate.branch, candidate.reuse, candidate.mask.count("F")) != (0, True, 6):
            return [-100.0, -100.0]
        return [-distance(candidate, best)] * 2

    found = search([SPACE], 3.0, 400, 0, measure, uniform_starts)
    assert (found.mask, found.early, found.late) == (best.mask, best.early, best.late)
    assert len(tried) == len(set(tried)) <= 400
    assert all(SPACE.speedup(candidate) >= 3.0 for candidate in tried)


def test_it_is_the_same_again_and_keeps_to_its_trials():
    def searched(trials):
        tried = []

        def measure(candidate, beat):
            tried.append(candidate)
            return [-distance(candidate, Candidate("F" * candidate.mask.count("F"), 0, False))]

        return search([SPACE], 2.5, trials, 3, measure, uniform_starts), tried

    assert searched(40) == searched(40)
    assert len(searched(40)[1]) == 40 and searched(40)[1][:7] == searched(7)[1]


def test_masks_are_tried_before_dampings():
    """The first start of each option, all of the best, DeepCache's algorithm, and other dampings of the best mask."""
    tried = []

    def propose(option):
        for place in (1, 2):
            mask = "F" + "P" * place + "F" * (option.full - 1) + "P" * (20 - place - option.full)
            yield Candidate(mask, option.branch, option.reuse, early=0.3, late=0.3)

    def measure(candidate, beat):
        tried.append(candidate)
        return [float(candidate.branch == 1) + candidate.mask.startswith("FPP")] * 3

    options = SPACE.options(2.5)
    assert {option.branch for option in options} == {0, 1}
    best = next(option for option in options if option.branch == 1)
    others = list(dampings(list(propose(best))[1], halves=True))
    assert len(others) == 7 and sum(c.difference is None for c in others) == 3
    found = search([SPACE], 2.5, len(options) + 2 + len(others), 0, measure, propose)
    count = len(options)
    assert [(c.branch, c.reuse, c.mask[:3]) for c in tried[:count]] == [(o.branch, o.reuse, "FPF") for o in options]
    assert tried[count] == list(propose(best))[1] == found
    assert (tried[count + 1].line, tried[count + 1].mask) == (HOLD, uniform_starts(best)[-1].mask)
    assert tried[count + 2 :] == others


@pytest.mark.parametrize(("gains", "taken"), [([3, 3, 3, 3], True), ([9, -5, -5, 5], False), ([-1, -1, -1, -1], False)])
def test_a_gain_that_may_be_chance_is_none(gains, taken):
    """The same mean can be a gain on each image, or one image's luck."""
    plain = np.array([30.0, 20.0, 25.0, 35.0])

    def propose(option):
        mask = "F" * option.full + "P" * (20 - option.full)
        yield Candidate(mask, option.branch, option.reuse)
        if option == SPACE.options(2.5)[0]:
            yield Candidate(mask, option.branch, option.reuse, early=0.9)

    def measure(candidate, beat):
        if candidate.early == 0.9:
            return plain + gains
        first = SPACE.options(2.5)[0]
        return (
            plain if (candidate.branch, candidate.reuse) == first[1:3] and candidate.mask[:5] == "FFFFF" else plain - 9
        )

    found = search([SPACE], 2.5, 12, 0, measure, propose)
    assert (found.early == 0.9) == taken


def test_options_have_as_many_full_steps_as_fit():
    options = SPACE.options(2.5)
    assert options[0] == Option(20, 0, True, 7) and Option(20, 0, False, 7) not in options
    for steps, branch, reuse, full in options:
        assert speedup("F" * full + "P" * (20 - full), SPACE.shares[branch], reuse) >= 2.5 and steps == 20
    # Where reuse gives no further full step, it is left out.
    assert not any(option.reuse for option in SPACE.options(2.0) if option.branch == 0)
    assert not any(option.reuse for option in Space(20, {0: 0.08}, reuse=False).options(2.5))


def test_the_budget_is_in_full_steps_of_the_most_steps():
    fewer = Space(20, SPACE.shares, reuse=True, most=50)
    assert fewer.options(2.5) == [Option(20, 0, False, 20)] == fewer.options(2.0)
    assert fewer.speedup(Candidate("F" * 20, 0, False)) == pytest.approx(2.5)
    for option in fewer.options(4.0):
        mask = "F" * option.full + "P" * (20 - option.full)
        assert 4.0 <= fewer.speedup(Candidate(mask, option.branch, option.reuse)) < 4.4
    # 12.5 full steps of 50.
    assert fewer.options(4.0)[0].full == 12


@pytest.mark.parametrize("wanted", [20, 50])
def test_the_number_of_steps_is_searched(wanted):
    spaces = [Space(50, SPACE.shares, True), Space(20, SPACE.shares, True, most=50)]
    found = search(
        spaces, 2.5, 30, 0, lambda candidate, beat: [float(len(candidate.mask) == wanted)] * 2, uniform_starts
    )
    assert len(found.mask) == wanted and found.mask.count("P") == (0 if wanted == 20 else 50 - found.mask.count("F"))


@pytest.mark.parametrize(("tuned", "wanted"), [(4.9, 20), (7.0, 50)])
def test_partial_steps_are_tuned_though_all_of_fewer_are_full_at_first(tuned, wanted):
    spaces = [Space(50, SPACE.shares, True), Space(20, SPACE.shares, True, most=50)]
    tried = []

    def measure(candidate, beat):
        tried.append(candidate)
        if "P" not in candidate.mask:
            return [5.0] * 3
        return [tuned if candidate.difference == -0.25 else 4.5 if candidate.branch == 1 else 4.0] * 3

    found = search(spaces, 2.5, 40, 0, measure, uniform_starts)
    assert len(found.mask) == wanted and len(tried) == 40
    if wanted == 50:
        assert found.difference == -0.25 and found.branch == 1


def test_clearly_worse_partial_steps_are_let_be():
    spaces = [Space(50, SPACE.shares, True), Space(20, SPACE.shares, True, most=50)]
    tried = []

    def measure(candidate, beat):
        tried.append(candidate)
        return [5.0] * 3 if "P" not in candidate.mask else ()

    options = [option for space in spaces for option in space.options(2.5)]
    found = search(spaces[::-1], 2.5, 40, 0, measure, uniform_starts)
    assert found.mask == "F" * 20 and len(tried) == len(options)


def test_a_budget_that_cannot_be_had():
    with pytest.raises(InvalidSetting, match=r"12x cheaper: the most .* is 11\.36x"):
        SPACE.options(12)
    few = Space(10, SPACE.shares, True, most=20)
    found = search([SPACE, few], 13, 3, 0, lambda candidate, beat: [1.0], uniform_starts)
    assert len(found.mask) == 10
    with pytest.raises(InvalidSetting, match="No run of 10 steps is 50x cheaper"):
        search([SPACE, few], 50, 3, 0, lambda candidate, beat: [1.0], uniform_starts)
