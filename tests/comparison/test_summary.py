import math

import pytest
from PIL import Image

from stepcache.comparison.cost import Cost
from stepcache.comparison.results import Compared, Comparison, FewerSteps, Shot, Variant
from stepcache.comparison.summary import summaries, table
from stepcache.images.make import Request

PIXEL = Image.new("RGB", (8, 8))


def shot(seconds, kinds="FP", **figures):
    return Shot("data:,", PIXEL, seconds, kinds, **figures)


def comparison(*pairs):
    """Of one variant; pairs of original and accelerated shot."""
    results = [Compared(Request("x", 0, 2), 8, 8, original, [reused]) for original, reused in pairs]
    return Comparison("m", "s", [Variant(3, 1)], results)


def test_medians_of_seconds_and_means_of_figures():
    original, row = summaries(
        comparison(
            (shot(3.0, "FF", clip=20.0), shot(1.0, psnr=20.0, ssim=0.5, lpips=0.1, clip=18.0)),
            (shot(4.0, "FF", clip=30.0), shot(2.0, psnr=30.0, ssim=0.7, lpips=0.3, clip=29.0)),
            (shot(9.0, "FF", clip=40.0), shot(2.0, psnr=40.0, ssim=0.9, lpips=0.2, clip=40.0)),
        )
    )
    assert (original.name, original.kinds, original.seconds, original.clip) == ("original", "FF", 4.0, 30.0)
    assert original.speed_up is None and original.psnr is None
    assert (row.name, row.kinds, row.seconds) == ("interval 3, branch 1", "FP", 2.0)
    assert (row.speed_up, row.speed_ups) == (3.0, (2.0, 4.5))  # of 3, 2 and 4.5; not 4.0 / 2.0
    assert (row.psnr, row.worst_psnr) == (30.0, 20.0)
    assert (row.ssim, row.worst_ssim) == (pytest.approx(0.7), 0.5)
    assert (row.lpips, row.worst_lpips, row.clip) == (pytest.approx(0.2), 0.3, 29.0)


def test_an_identical_image_does_not_hide_the_others():
    *_, row = summaries(
        comparison((shot(1), shot(1, psnr=math.inf, ssim=1.0)), (shot(1), shot(1, psnr=20.0, ssim=0.8)))
    )
    assert (row.psnr, row.worst_psnr) == (20.0, 20.0)
    *_, row = summaries(comparison((shot(1), shot(1, psnr=math.inf, ssim=1.0))))
    assert row.psnr == row.worst_psnr == math.inf


def test_images_that_were_not_compared_are_left_out():
    *_, row = summaries(comparison((shot(1), shot(1, censored=True)), (shot(1), shot(1, psnr=20.0, ssim=0.8))))
    assert (row.psnr, row.ssim, row.lpips, row.clip) == (20.0, 0.8, None, None)
    *_, row = summaries(comparison((shot(1), shot(1, censored=True))))
    assert row.psnr is None and row.worst_ssim is None and row.speed_up == 1.0


def test_fewer_steps_are_a_row_of_their_own():
    variant = Variant(3, 1, (1.0, -0.25))
    settings = [variant, FewerSteps(12, 30, (variant,))]
    shots = [shot(2.0, "FPP", psnr=20.0, ssim=0.9), shot(1.5, "FF", psnr=18.0, ssim=0.8)]
    found = Comparison("m", "s", settings, [Compared(Request("x", 0, 2), 8, 8, shot(3.0, "FFF"), shots)])
    assert [row.cost for row in summaries(found)] == [None, None, None]
    found.cost = Cost(1000, {1: 300})
    rows = summaries(found)
    assert [row.name for row in rows] == ["original", "interval 3, branch 1, predict 1,-0.25", "fewer steps: 12 of 30"]
    assert [row.cost for row in rows] == [3.0, pytest.approx(1.6), 2.0]
    assert (rows[2].speed_up, rows[2].psnr, rows[2].ssim) == (2.0, 18.0, 0.8)
    lines = table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("0.25")[1].split() == ["2.00", "1.50x", "20.0", "dB", "20.0", "dB", "0.900", "0.900"]
    assert lines[3].startswith("fewer steps: 12 of 30 ")
