"""Repeated measurements: medians with percentiles, and functions called in turn."""

import pytest

from stepcache.bench.repeats import Spread, interleave


def test_spread():
    assert Spread.of([5.0]) == (5.0, 5.0, 5.0)
    assert Spread.of([float(n) for n in range(11)]) == pytest.approx((5.0, 2.0, 8.0))
    assert Spread.of([3.0, 1.0]).median == 2.0
    assert Spread.of_ratios([4.0, 9.0, 8.0], [2.0, 3.0, 2.0]).median == 3.0


def test_interleave_rotates_and_drops_the_warm_up():
    order = []

    def function(name):
        return lambda: (order.append(name), float(len(order)))[1]

    values = interleave({name: function(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert values == {"a": [6.0, 8.0, 10.0], "b": [4.0, 9.0, 11.0], "c": [5.0, 7.0, 12.0]}
