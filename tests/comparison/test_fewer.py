"""Fewer steps at the cost of an accelerated run."""

import pytest
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler
from support.small import demo_pipe

from stepcache.comparison.fewer import fewer_steps
from stepcache.comparison.results import Fewer, Variant, columns_of
from stepcache.forwards.macs import branch_macs, meta_unet

TWO, THREE, DEEP = Variant(2, 0), Variant(3, 0), Variant(3, 2, "auto")


@pytest.fixture(scope="module")
def shares():
    pipe = demo_pipe()
    counted = branch_macs(meta_unet(pipe.unet.config), 16, 16, 2, [0, 2])
    return {each.branch: each.share for each in counted}


@pytest.mark.parametrize("steps", [3, 20, 21, 50])
def test_it_is_the_most_steps_that_cost_no_more(shares, steps):
    pipe = demo_pipe()
    found = fewer_steps(pipe, [TWO, THREE, DEEP], steps, (64, 64))
    for variant, fewer in found.items():
        kinds = variant.schedule.kinds(steps)
        cost = kinds.count("F") + shares[variant.branch] * kinds.count("P")
        assert fewer.of == steps and fewer.steps <= cost < fewer.steps + 1


def test_cost_is_counted_in_calls_of_the_unet():
    pipe = demo_pipe(scheduler=HeunDiscreteScheduler())
    found = fewer_steps(pipe, [TWO], 10, (64, 64))
    # 19 calls, of which 10 full and 9 partial cost less than 11; 5 steps have 9 calls, and 6 have 11.
    assert found == {TWO: Fewer(5, 10)}


def test_what_reuses_nothing_has_no_rival_and_a_single_step_none():
    pipe = demo_pipe()
    assert fewer_steps(pipe, [Variant(1, 0), Variant(30, 0)], 20, (None, None)) == {Variant(30, 0): Fewer(2, 20)}
    assert fewer_steps(pipe, [Variant(2, 0)], 2, (None, None)) == {Variant(2, 0): Fewer(1, 2)}
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    before = pipe.scheduler.timesteps.tolist()
    fewer_steps(pipe, [TWO], 20, (None, None))
    assert pipe.scheduler.timesteps.tolist() == before


def test_columns_stand_behind_the_variants_that_cost_as_much():
    eight, ten = Fewer(8, 20), Fewer(10, 20)
    deep = Variant(3, 1)
    rivals = {TWO: ten, THREE: eight, deep: eight, DEEP: None}
    assert columns_of([TWO, THREE, deep, DEEP], rivals) == [TWO, ten, THREE, deep, eight, DEEP]
    assert columns_of([TWO], {}) == [TWO]
