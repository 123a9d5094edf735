import math

import numpy as np
import pytest
from PIL import Image

from stepcache.comparison.closer import closer
from stepcache.comparison.cost import Cost
from stepcache.comparison.results import Compared, Comparison, FewerSteps, Shot, Variant
from stepcache.images.bootstrap import bootstrap
from stepcache.images.make import Request

TWO, THREE = Variant(2, 0), Variant(3, 0, "linear")
SETTINGS = [TWO, FewerSteps(16, 30, (TWO,)), THREE, FewerSteps(12, 30, (THREE,))]


def shot(kinds, psnr=None):
    return Shot("", Image.new("RGB", (8, 8)), 1.0, kinds, psnr=psnr)


def comparison(rows, settings=SETTINGS, cost=None):
    """Of one prompt for each row: the PSNR of each setting."""
    kinds = ["FP" * 15, "F" * 16, "FPP" * 10, "F" * 12]
    results = [
        Compared(Request("x", 0, 30), 8, 8, shot("F" * 30), [shot(k, p) for k, p in zip(kinds, row, strict=False)])
        for row in rows
    ]
    return Comparison("m", "s", settings, results, cost=cost)


def test_each_variant_against_its_own_rival_with_an_interval():
    rows = [(30 + i, 25, 22, 22 + 2 * i + 1) for i in range(4)]
    first, second = closer(comparison(rows, cost=Cost(100, {0: 10})))
    _, low, high = bootstrap(np.array([[5.0], [6.0], [7.0], [8.0]]))
    assert first == (
        "Interval 2, branch 0 comes closer to the original than 16 of 30 steps at no higher cost (16.0 full U-Net "
        f"calls, against 16.5 with reuse): PSNR is 6.5 dB higher, on average over 4 prompts (95% interval {low:.1f} to "
        f"{high:.1f} dB)."
    )
    _, low, high = bootstrap(np.array([[-1.0], [-3.0], [-5.0], [-7.0]]))
    assert second == (
        "12 of 30 steps come closer to the original than interval 3, branch 0, predict linear at no higher cost (12.0 "
        f"full U-Net calls, against 12.0 with reuse): PSNR is 4.0 dB higher, on average over 4 prompts (95% interval "
        f"{-high:.1f} to {-low:.1f} dB)."
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_no_clear_difference_where_the_interval_includes_zero(sign):
    rows = [(25 + sign * d, 25) for d in (-2.0, -1.0, 1.0, 3.0)]
    (line,) = closer(comparison(rows, SETTINGS[:2]))
    _, low, high = bootstrap(sign * np.array([[-2.0], [-1.0], [1.0], [3.0]]))
    assert low < 0 < high
    assert line == (
        "There is no clear difference between interval 2, branch 0 and 16 of 30 steps at no higher cost: PSNR is 0.2 "
        f"dB {'higher' if sign > 0 else 'lower'} with reuse, on average over 4 prompts (95% interval {low:.1f} to "
        f"{high:.1f} dB)."
    )


def test_fewer_than_four_prompts_are_too_few():
    for count, words in ((3, "3 prompts are too few to tell"), (1, "1 prompt is too few to tell")):
        (line,) = closer(comparison([(30.0, 20.0)] * count, SETTINGS[:2]))
        assert line == (
            f"{words} whether interval 2, branch 0 or 16 of 30 steps at no higher cost come closer to the original; at "
            "least 4 are needed."
        )


def test_images_without_a_figure_are_left_out_and_counted():
    rows = [(30.0, 20.0)] * 4
    (line,) = closer(comparison([*rows, (math.inf, 20.0), (30.0, None)], SETTINGS[:2]))
    assert "10.0 dB higher, on average over 4 prompts" in line
    assert line.endswith(" 2 prompts are left out: an image was identical with the original's, or not compared.")
    (line,) = closer(comparison([(None, None)], SETTINGS[:2]))
    assert line.startswith("There is no prompt to tell whether") and "1 prompt is left out" in line


def test_without_rivals_there_is_nothing_to_say():
    assert closer(comparison([(30.0, 20.0)] * 4, [TWO, THREE])) == []


def test_a_rival_that_cost_more_is_said_to():
    """Where a run did not follow its schedule."""
    (line,) = closer(comparison([(25, 30)] * 4, SETTINGS[:2], cost=Cost(100, {0: 0})))
    assert "come closer to the original than interval 2, branch 0 at a higher cost (16.0 full U-Net calls, " in line


def test_no_difference_has_no_sign():
    (line,) = closer(comparison([(25 + d, 25) for d in (-0.05, 0.01, -0.02, 0.02)], SETTINGS[:2]))
    assert "PSNR is 0.0 dB higher with reuse" in line and "(95% interval 0.0 to 0.0 dB)" in line
