"""Paired differences and their confidence intervals."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.frontier.rivals_rows import (
    FEWER,
    Row,
    by_setting,
    difference,
    fewer_for,
    front,
    psnrs_of,
    text_of,
)

ROW = Row("demo", "ddim", 20, 7.5, "hold", 2, "FP" * 10, 10.9, 30.0, 25.0, 3, 2, 50, "30 31 29 30 28 32", "25 " * 6)


def test_psnrs_are_prompt_major():
    made = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 30.004])  # two seeds of three prompts, seed-major
    row = replace(ROW, psnrs=text_of(made, 2))
    assert row.psnrs == "1.00 10.00 2.00 20.00 3.00 30.00"
    assert psnrs_of(row).tolist() == [[1, 10], [2, 20], [3, 30]]
    assert psnrs_of(row, most=True).shape == (3, 2)
    with pytest.raises(ValueError, match="reshape"):
        psnrs_of(replace(row, seeds=4))


def test_differences_are_of_the_same_images():
    better = replace(ROW, method="auto", psnrs="31 32 30 31 29 33", psnrs_most="24 " * 6)
    assert difference(better, ROW) == (1.0, 1.0, 1.0) and difference(better, ROW).better
    assert str(difference(better, ROW)) == "+1.0 (+1.0 to +1.0)" and str(difference(ROW, ROW)) == "+0.0 (+0.0 to +0.0)"
    assert difference(better, ROW, most=True).mean == -1.0 and not difference(better, ROW, most=True).better
    for other in (replace(ROW, scheduler="euler"), replace(ROW, guidance_scale=3.0), replace(ROW, steps=30)):
        with pytest.raises(ValueError, match="not of the same images"):
            difference(better, other)
    assert difference(better, replace(ROW, steps=30), most=True).mean == -1.0  # the reference is the same


def test_fewer_steps_of_the_same_cost():
    tens = [replace(ROW, method=FEWER, steps=n, cost=float(n), interval=None) for n in (8, 10, 11)]
    others = [replace(tens[1], scheduler="euler"), replace(tens[1], guidance_scale=3.0), replace(ROW, steps=10)]
    assert fewer_for(ROW, [*others, *tens]) is tens[1]
    assert fewer_for(ROW, others) is None
    assert list(by_setting([*tens, ROW]).values()) == [[ROW]]


def test_the_front():
    rows = [replace(ROW, cost=cost, psnr_most=psnr) for cost, psnr in ((10, 25.0), (8, 26.0), (12, 27.0), (12, 26.5))]
    assert [(row.cost, row.psnr_most) for row in front(rows)] == [(8, 26.0), (12, 27.0)]
