"""The search, on a stand-in for images whose best candidate is known."""

import pytest

from stepcache.calibration.candidates import Candidate, speedup
from stepcache.calibration.search import Space, search
from stepcache.errors import InvalidSetting

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
            return -100.0
        return -distance(candidate, best)

    found = search(SPACE, 3.0, 400, 0, measure)
    assert (found.mask, found.early, found.late) == (best.mask, best.early, best.late)
    assert len(tried) == len(set(tried)) <= 400
    assert all(SPACE.speedup(candidate) >= 3.0 for candidate in tried)


def test_it_is_the_same_again_and_keeps_to_its_trials():
    def searched(trials):
        tried = []

        def measure(candidate, beat):
            tried.append(candidate)
            return -distance(candidate, Candidate("F" * candidate.mask.count("F"), 0, False))

        return search(SPACE, 2.5, trials, 3, measure), tried

    assert searched(40) == searched(40)
    assert len(searched(40)[1]) == 40 and searched(40)[1][:7] == searched(7)[1]


def test_options_have_as_many_full_steps_as_fit():
    options = SPACE.options(2.5)
    assert options[0] == (0, True, 7) and (0, False, 7) not in options
    for branch, reuse, full in options:
        assert speedup("F" * full + "P" * (20 - full), SPACE.shares[branch], reuse) >= 2.5
    # Where reuse gives no further full step, it is left out.
    assert not any(reuse for branch, reuse, _ in SPACE.options(2.0) if branch == 0)
    assert not any(reuse for _, reuse, _ in Space(20, {0: 0.08}, reuse=False).options(2.5))


def test_a_budget_that_cannot_be_had():
    with pytest.raises(InvalidSetting, match=r"12x cheaper: the most .* is 11\.36x"):
        SPACE.options(12)
