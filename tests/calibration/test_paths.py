"""Paths of segments, against all masks there are."""

import itertools
import random

import pytest

from stepcache.calibration.paths import cheapest, mask_of, segments_of


def masks(steps, full):
    for places in itertools.combinations(range(1, steps), full - 1):
        yield "".join("F" if step in (0, *places) else "P" for step in range(steps))


@pytest.mark.parametrize("minimax", [False, True])
@pytest.mark.parametrize(
    ("steps", "full", "longest"), [(8, 3, 8), (9, 4, 4), (9, 5, 9), (7, 7, 3), (6, 1, 6), (10, 4, 3)]
)
def test_the_path_is_the_best_of_all_masks(steps, full, longest, minimax):
    chance = random.Random(steps * full)
    for _ in range(20):
        # Few values, so that the order is decided by the second and the third segment too.
        costs = {(a, b): float(chance.randrange(1, 6)) for a, b in itertools.combinations(range(steps + 1), 2)}

        def order(mask, costs=costs):
            found = [costs[each] for each in segments_of(mask)]
            return sorted(found + [0.0] * (full - len(found)), reverse=True) if minimax else sum(found)

        allowed = [m for m in masks(steps, full) if all(b - a <= longest for a, b in segments_of(m))]
        mask = mask_of(cheapest(steps, full, longest, lambda a, b, costs=costs: costs[a, b], minimax))
        assert mask in allowed
        assert order(mask) == min(map(order, allowed))


def test_the_orders_differ():
    """One very bad segment, or several that cost more together."""
    costs = {(0, 2): 3.0, (2, 4): 3.0, (0, 3): 5.0, (1, 4): 6.0, (1, 3): 4.0}
    paths = [mask_of(cheapest(4, 2, 3, lambda a, b: costs[a, b], minimax)) for minimax in (False, True)]
    assert paths == ["FPPF", "FPFP"]


def test_masks_and_segments():
    assert mask_of(((0, 1), (1, 4), (4, 6))) == "FFPPFP"
    assert segments_of("FFPPFP") == [(1, 4), (4, 6)] and segments_of("FFF") == []


def test_what_cannot_be_filled():
    for full, longest in ((2, 3), (8, 8)):
        with pytest.raises(ValueError, match="cannot fill 7 steps"):
            cheapest(7, full, longest, lambda a, b: 1.0)
