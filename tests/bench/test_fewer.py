"""The number of steps that cost no more than reuse."""

import diffusers
import pytest
from support import small

from stepcache.bench.fewer import fewer_steps
from stepcache.forwards.macs import BranchMacs

TENTH = BranchMacs(0, 1000, 100, (1, 4, 8, 8))


@pytest.mark.parametrize(
    ("name", "interval", "steps", "fewer"),
    [
        ("DDIMScheduler", 3, 50, 20),  # 17 full and 33 partial steps cost 20.3
        ("DDIMScheduler", 3, 30, 12),  # 10 and 20: 12.0, which is no more than it costs
        ("HeunDiscreteScheduler", 2, 30, 16),  # of 59 calls 30 and 29: 32.9; 16 steps are 31 calls, 17 are 33
    ],
)
def test_the_most_steps_that_cost_no_more(name, interval, steps, fewer):
    scheduler = getattr(diffusers, name).from_config(small.demo_pipe().scheduler.config)
    assert fewer_steps(scheduler, steps, interval, TENTH) == fewer


def test_none_where_it_is_not_known():
    scheduler = small.demo_pipe().scheduler
    assert fewer_steps(scheduler, 50, 3, None) is None
    assert fewer_steps(scheduler, 50, 1, TENTH) is None  # nothing is reused
    assert fewer_steps(scheduler, 10**9, 3, TENTH) is None  # a number that the scheduler cannot do
    assert fewer_steps(diffusers.PNDMScheduler(), 2, 10**6, BranchMacs(0, 1000, 0, (1,))) is None  # one step needs two
