"""Spectrum's weights are those of its regression, and its schedules cost what they may."""

import numpy as np
import pytest

from benchmarks.frontier.spectrum import OF_SDCPP, PUBLISHED, Spectrum, Values, _growing
from stepcache.errors import InvalidSetting
from stepcache.reuse.schedule import Schedule

FULL, STEP, STEPS = (12, 9, 6, 3, 0), 14, 20  # newest first


def forecast(values, at, shrinks, values_of):
    """By least squares: the penalty as further equations, Chebyshev polynomials as cosines, the line by hand."""
    degree, penalty, mix = values_of[:3]

    def basis(steps):
        angles = np.arccos(2 * np.array(steps) / STEPS - 1)
        return np.cos(np.arange(degree + 1) * angles[:, None])

    extra = np.sqrt(penalty) * np.eye(degree + 1)[0 if shrinks else 1 :]
    left, right = np.vstack([basis(FULL), extra]), np.concatenate([values, np.zeros(len(extra))])
    ridge = basis([at])[0] @ np.linalg.lstsq(left, right, rcond=None)[0]
    line = values[0] + (at - FULL[0]) / (FULL[0] - FULL[1]) * (values[0] - values[1])
    return mix * ridge + (1 - mix) * line


@pytest.mark.parametrize("shrinks", [True, False])
@pytest.mark.parametrize("values_of", [PUBLISHED, OF_SDCPP])
def test_weights_are_those_of_least_squares(shrinks, values_of):
    values = np.random.default_rng(1).normal(size=len(FULL))
    mean, difference = Spectrum("feature", 9, 0.1, False, shrinks, values_of).weights(STEP, FULL, STEPS)
    assert mean == difference
    assert np.dot(mean, values) == pytest.approx(forecast(values, STEP, shrinks, values_of), abs=1e-9)


def test_weights_sum_to_one_only_if_the_constant_is_kept():
    kept, _ = Spectrum("output", 9, 0.0, shrinks_constant=False).weights(STEP, FULL, STEPS)
    shrunk, _ = Spectrum("output", 9, 0.0).weights(STEP, FULL, STEPS)
    assert sum(kept) == pytest.approx(1, abs=1e-9) and abs(sum(shrunk) - 1) > 1e-3
    assert Spectrum("output", 9, 0.0, shrinks_constant=False).weights(2, (0,), STEPS)[0] == pytest.approx((1.0,))


def test_without_a_penalty_a_polynomial_is_continued():
    exact = Spectrum("output", 9, 0.0, values=Values(4, 1e-13, 1.0, 5, 2))
    weights, _ = exact.weights(STEP, FULL, STEPS)
    assert np.dot(weights, np.array(FULL) ** 3.0) == pytest.approx(STEP**3, rel=1e-6)


def test_its_own_schedule_grows_as_published():
    assert _growing(PUBLISHED, 0.75, 50).count("F") == 14  # the two settings that its README counts
    assert _growing(PUBLISHED, 3.0, 50).count("F") == 10
    gaps = [len(gap) for gap in _growing(PUBLISHED, 0.5, 50).split("F")[PUBLISHED.warmup :]]
    assert gaps[0] == PUBLISHED.window - 1 and gaps[:-1] == sorted(gaps[:-1]) and gaps[-2] > gaps[0]


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.086])
def test_a_schedule_costs_as_much_as_it_may(even, share):
    for steps, budget in ((20, 8.2), (20, 10.9), (30, 11.7), (30, 16.3), (50, 13.4), (50, 19.8)):
        mask = Spectrum("output", budget, share, even, values=OF_SDCPP).mask(steps)
        cost = mask.count("F") + share * mask.count("P")
        assert len(mask) == steps and mask[0] == "F"
        assert budget - 1 < cost <= budget, (steps, budget, mask)


@pytest.mark.parametrize(("steps", "interval"), [(20, 2), (20, 3), (30, 2), (30, 3), (50, 3), (50, 5)])
def test_evenly_spaced_is_uniform_where_a_skipped_step_costs_the_same(steps, interval):
    kinds = Schedule.uniform(interval).kinds(steps)
    cost = kinds.count("F") + 0.1 * kinds.count("P")
    assert Spectrum("feature", cost, 0.1, even=True).mask(steps) == kinds


def test_a_budget_below_its_warmup():
    with pytest.raises(InvalidSetting, match="costs at most 3 full steps, but at least 6"):
        Spectrum("output", 3.0, 0.0).mask(20)
