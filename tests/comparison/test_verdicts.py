"""The sentences that compare reuse with fewer steps."""

import math

import pytest
from PIL import Image

from stepcache.comparison.results import Compared, Comparison, Fewer, Shot, Variant
from stepcache.comparison.verdicts import EXPLAINED, verdicts
from stepcache.images.make import Request

VARIANT, FEWER = Variant(3, 0, (1.0, -0.25)), Fewer(8, 20)
BEGIN = "Interval 3, branch 0, predict 1 and -0.25, against 8 of 20 steps: "


def comparison(ours, theirs, rivals=None):
    def shot(psnr):
        return Shot("", Image.new("RGB", (1, 1)), 1.0, "F", psnr=psnr)

    results = [
        Compared(Request("x", 0, 20), 1, 1, shot(None), [shot(a), shot(b)]) for a, b in zip(ours, theirs, strict=True)
    ]
    return Comparison("m", "s", [VARIANT, FEWER], results, rivals={VARIANT: FEWER} if rivals is None else rivals)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ([30, 31, 32, 33], [20, 21, 23, 25], "reuse is closer to the original, +9.2 (+"),
        ([20, 21, 23, 25], [30, 31, 32, 33], "fewer steps are closer to the original, -9.2 (-"),
        ([20, 30, 20, 30], [30, 20, 29, 21], "no clear difference, +0.0 (-"),
        ([30, 31, 32], [20, 21, 22], "3 images to compare, too few to tell."),
        ([30, None, math.inf, 31], [20, 20, 20, 21], "2 images to compare, too few to tell."),
        ([30], [20], "1 image to compare, too few to tell."),
    ],
)
def test_what_is_said(ours, theirs, said):
    sentence, explained = verdicts(comparison(ours, theirs))
    assert sentence.startswith(BEGIN + said) and explained == EXPLAINED


def test_nothing_is_said_without_fewer_steps():
    assert verdicts(comparison([30], [20], rivals={})) == verdicts(comparison([30], [20], {VARIANT: None})) == []
