import itertools
import math

import numpy as np
import pytest

from stepcache.images.bootstrap import bootstrap


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    chance = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        prompts = chance.normal(1.0, 2.0, (30, 1)) + chance.normal(0, 0.5, (30, 3))  # seeds of a prompt are alike
        found = bootstrap(prompts, resamples=400)
        inside += found.low <= 1.0 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_interval_is_that_of_all_resamples():
    """Against the exact distribution: the means of all 5**5 ways to draw five of five with replacement."""
    values = np.array([-1.0, 0.2, 0.7, 1.9, 4.0])
    means = values[list(itertools.product(range(5), repeat=5))].mean(axis=1)
    found = bootstrap(values[:, None], resamples=100_000)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.05)


def test_seeds_of_a_prompt_stay_together():
    """Many seeds of few prompts do not make an interval narrow."""
    few = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert bootstrap(np.repeat(few, 50, axis=1)) == pytest.approx(bootstrap(few))


def test_the_same_numbers_give_the_same_interval():
    numbers = np.random.default_rng(1).normal(size=(8, 2))
    assert bootstrap(numbers) == bootstrap(numbers) != bootstrap(numbers, seed=3)


def test_identical_images_are_left_out():
    known = bootstrap(np.array([[1.0, math.inf], [3.0, -math.inf], [2.0, math.nan]]))
    assert known.mean == 2.0 and 1.0 <= known.low <= known.high <= 3.0
    assert all(map(math.isnan, bootstrap(np.full((3, 1), math.inf))))


def test_in_words():
    assert str(bootstrap(np.full((4, 1), -0.01))) == "+0.0 (+0.0 to +0.0)"
    assert bootstrap(np.full((4, 1), 2.0)).better
    mixed = bootstrap(np.array([[-5.0], [5.0], [4.0], [-4.0]]))
    assert not mixed.better and mixed.low < 0 < mixed.high
