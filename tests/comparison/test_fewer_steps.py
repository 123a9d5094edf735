import copy

import diffusers
import pytest
from PIL import Image
from support import small

from stepcache.comparison.cost import Cost
from stepcache.comparison.fewer_steps import announced, dearer, with_fewer_steps
from stepcache.comparison.results import Compared, Comparison, FewerSteps, Shot, Variant
from stepcache.images.make import Request

COST = Cost(1000, {0: 100, 1: 250})  # a partial call is a tenth of a full one, or a quarter


def scheduler(name="DDIMScheduler", **changes):
    return getattr(diffusers, name).from_config(small.demo_pipe().scheduler.config, **changes)


def found(variants, steps, name="DDIMScheduler", **changes):
    return with_fewer_steps(variants, steps, scheduler(name, **changes), COST)


@pytest.mark.parametrize(
    ("name", "interval", "steps", "fewer"),
    [
        ("DDIMScheduler", 2, 30, 16),  # 15 full and 15 partial ones cost 16.5
        ("DDIMScheduler", 3, 30, 12),  # 10 and 20: 12.0, which is no more than it costs
        ("DDIMScheduler", 30, 30, 3),  # 1 and 29: 3.9
        ("DDIMScheduler", 2, 2, 1),
        ("DPMSolverMultistepScheduler", 3, 20, 8),  # 7 and 13: 8.3
        ("HeunDiscreteScheduler", 2, 30, 16),  # of 59 calls 30 and 29: 32.9; 16 steps are 31 calls, 17 are 33
        # By steps instead of calls, these would be 5 and 10.
        ("KDPM2DiscreteScheduler", 5, 20, 6),  # of 39 calls 8 and 31: 11.1; 6 steps are 11 calls
        ("PNDMScheduler", 3, 25, 9),  # of 26 calls 9 and 17: 10.7; 9 steps are 10 calls
    ],
)
def test_the_most_steps_that_cost_no_more(name, interval, steps, fewer):
    variant = Variant(interval, 0)
    settings, notes = found([variant], steps, name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    assert settings == [variant, FewerSteps(fewer, steps, (variant,))] and not notes
    assert settings[1].name == f"fewer steps: {fewer} of {steps}"


def test_variants_of_the_same_number_share_it_and_stand_before_it():
    two, three, five = Variant(2, 0), Variant(3, 0), Variant(5, 0)
    same = Variant(3, 1)  # 10 full and 20 partial ones at a quarter: 15, beside the 16.5 of `two`
    cost = Cost(1000, {0: 100, 1: 300})  # and now 16.0
    settings, _ = with_fewer_steps([two, three, five, same], 30, scheduler(), cost)
    assert settings == [
        *(two, same, FewerSteps(16, 30, (two, same))),
        *(three, FewerSteps(12, 30, (three,))),
        *(five, FewerSteps(8, 30, (five,))),
    ]
    assert announced(settings) == [
        "Fewer steps at no higher cost, of 30: 16 for interval 2, branch 0 and interval 3, branch 1; "
        "12 for interval 3, branch 0; 8 for interval 5, branch 0."
    ]


def test_where_there_are_none_a_note_says_why():
    exact, two = Variant(1, 0), Variant(2, 0)
    settings, notes = found([exact, two], 4)
    assert settings == [exact, two, FewerSteps(2, 4, (two,))]
    assert notes == ["Fewer steps are left out for interval 1, branch 0: it costs as much as all 4 steps."]
    settings, notes = found([two], 1)
    assert settings == [two] and "it costs as much as all 1 step." in notes[0]
    assert announced(settings) == []
    # With Runge-Kutta steps at its start it does four steps at least, 13 calls; 14 calls at interval 5 cost 4.1.
    settings, notes = found([Variant(5, 0)], 5, "PNDMScheduler", skip_prk_steps=False)
    assert settings == [Variant(5, 0)]
    assert notes == [
        "Fewer steps are left out for interval 5, branch 0: PNDMScheduler can do none that cost as little."
    ]


def test_the_scheduler_stays_as_it_is():
    mine = scheduler()
    mine.set_timesteps(7)
    before = copy.deepcopy(vars(mine))
    with_fewer_steps([Variant(2, 0)], 30, mine, COST)
    assert vars(mine).keys() == before.keys() and mine.num_inference_steps == 7 and len(mine.timesteps) == 7


def test_a_rival_that_cost_more_is_not_passed_over():
    variant = Variant(3, 0)
    settings = [variant, FewerSteps(2, 6, (variant,))]

    def comparison(*kinds):
        shots = [Shot("", Image.new("RGB", (8, 8)), 1.0, letters) for letters in kinds]
        return Comparison("m", "s", settings, [Compared(Request("x", 0, 6), 8, 8, shots[0], shots)], cost=COST)

    assert dearer(comparison("FPPFPP", "FF")) == []
    (line,) = dearer(comparison("FPPFPP", "FFF"))
    assert line.startswith("2 of 6 steps cost more than interval 3, branch 0: 3.0 full U-Net calls, against 2.4.")
    uncounted = comparison("FPPFPP", "FFF")
    uncounted.cost = None
    assert dearer(uncounted) == []
