import itertools
import time

import numpy as np
import pytest
import torch

from stepcache import Schedule, StepCacheError
from stepcache.errors import InvalidSetting

# The steps that the paper's published code gives, recorded from it.
PUBLISHED = {
    (50, 5, 15, 1.4): [0, 5, 9, 13, 17, 21, 26, 31, 37, 43],
    (50, 3, 15, 1.4): [0, 3, 6, 8, 11, 13, 15, 17, 20, 22, 25, 28, 32, 35, 38, 42, 46],
    (50, 10, 15, 1.4): [0, 9, 17, 26, 37],
}


def steps_of(schedule, steps):
    return [step for step, full in enumerate(schedule.mask(steps)) if full]


@pytest.mark.parametrize("n, kinds", [(1, "FFFFFFF"), (2, "FPFPFPF"), (3, "FPPFPPF"), (5, "FPPPPFP"), (9, "FPPPPPP")])
def test_uniform(n, kinds):
    assert Schedule.uniform(n).kinds(7) == kinds


def test_first_and_last_add_full_steps_and_move_nothing():
    assert Schedule.uniform(4, first=2).kinds(9) == "FFPPFPPPF"
    assert Schedule.uniform(4, last=2).kinds(10) == "FPPPFPPPFF"
    assert Schedule.uniform(4, first=3, last=3).kinds(4) == "FFFF"
    assert Schedule.explicit("FPPPPP", first=2, last=1).kinds(6) == "FFPPPF"


def test_last_needs_the_number_of_steps():
    with pytest.raises(StepCacheError, match=r"last=2 needs the number of steps"):
        Schedule.uniform(3, last=2).is_full(5)
    assert not Schedule.uniform(3, last=2).is_full(5, steps=8)


@pytest.mark.parametrize("parameters, steps", PUBLISHED.items())
def test_nonuniform_gives_the_published_steps(parameters, steps):
    assert steps_of(Schedule.nonuniform(*parameters), parameters[0]) == steps


def test_nonuniform_half_has_25_steps():
    assert len(steps_of(Schedule.nonuniform(50, 2, 15, 1.4), 50)) == 25


@pytest.mark.parametrize("total", [20, 50, 100])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("center", [5, 10, 15, 20])
def test_nonuniform_is_the_papers_code(total, n, center):
    """Against numpy's complex arithmetic, as the published code does it, retries included."""
    power, k, want = 1.4, -(-total // n), None
    while power > 1:
        x = np.linspace(complex(-center) ** (1 / power), complex(total - center) ** (1 / power), k + 1)
        index = [0] + [int(v) + center for v in np.unique(np.int32((x**power).real))[1:-1]]
        if len(set(index)) == k:
            want = sorted(index)
            break
        power -= 0.02
    if want is None:
        with pytest.raises(StepCacheError, match="No schedule of"):
            Schedule.nonuniform(total, n, center, 1.4)
    else:
        assert steps_of(Schedule.nonuniform(total, n, center, 1.4), total) == want


def test_explicit_takes_strings_and_masks_and_is_full_beyond_its_end():
    assert Schedule.explicit("FPPF").kinds(6) == "FPPFFF"
    assert Schedule.explicit([True, False, 0, 1]).mask(4) == (True, False, False, True)
    for mask in ([1, 0, 0, 1], np.array([1.0, 0, 0, 1]), np.array([1, 0, 0, 1]) > 0, torch.tensor([1, 0, 0, 1])):
        assert Schedule.explicit(mask) == Schedule.explicit("FPPF")
    assert Schedule.explicit(i % 3 == 0 for i in range(4)) == Schedule.explicit("FPPF")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Schedule.uniform(0), "got 0"),
        (lambda: Schedule.uniform(-1), "got -1"),
        (lambda: Schedule.uniform(2.5), "got 2.5"),
        (lambda: Schedule.uniform(True), "got True"),
        (lambda: Schedule.uniform("3"), "got '3'"),
        (lambda: Schedule.uniform(3, first=-1), "first must be .* got -1"),
        (lambda: Schedule.explicit("PFP"), "must start with a full step"),
        (lambda: Schedule.explicit(""), "must start with a full step"),
        (lambda: Schedule.explicit("FXP"), "'X'"),
        (lambda: Schedule.explicit([1, 2]), "got 2 at step 1"),
        (lambda: Schedule.explicit(5), "got 5"),
        (lambda: Schedule(interval=0), "got 0"),
        (lambda: Schedule(), "an interval or a mask"),
        (lambda: Schedule.nonuniform(50, 5, 15, "x"), "'x'"),
        (lambda: Schedule.nonuniform(50, 0), "got 0"),
        (lambda: Schedule.nonuniform(50, 1, 0, 1.01), "power"),
    ],
)
def test_bad_schedules_name_the_value(make, message):
    with pytest.raises(StepCacheError, match=message):
        make()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Schedule(full="FPP"), "a tuple of True and False, got 'FPP'"),
        (lambda: Schedule(full=[True]), "a tuple of True and False"),
        (lambda: Schedule(full=(1, 0)), "a tuple of True and False"),
        (lambda: Schedule(full=np.ones(3)), "got a ndarray of shape"),
        (lambda: Schedule(interval=3, full=(True,)), "an interval or a mask"),
        (lambda: Schedule(full=(False, True)), "an interval or a mask"),
        (lambda: Schedule(full=(True,) * 10_001), "at most 10000 steps"),
        (lambda: Schedule(interval=10**5000), "an integer of 16610 bits"),
        (lambda: Schedule.uniform(3, last=10**5000), "an integer of 16610 bits"),
        (lambda: Schedule.explicit("F" * 10**6), "at most 10000 steps"),
        (lambda: Schedule.explicit("F" + "x" * 5000), "F .full. and P .partial. only"),
        (lambda: Schedule.explicit(itertools.repeat(True)), "at most 10000 steps"),
        (lambda: Schedule.explicit(torch.ones(2, 2)), r"got a Tensor of shape \(2,\) at step 0"),
        (lambda: Schedule.explicit(torch.ones(())), "a string or a sequence, got a Tensor"),
        (lambda: Schedule.explicit(torch.ones(3, device="meta")), "got a Tensor at step 0"),
        (lambda: Schedule.explicit(1 / 0 for _ in "ab"), "a string or a sequence, got a generator"),
        (lambda: Schedule.explicit({1: 0, 0: 0}), "a string or a sequence, got {1: 0, 0: 0}"),
        (lambda: Schedule.explicit({0, 1}), "a string or a sequence"),
        (lambda: Schedule.explicit(b"\x01\x00"), "a string or a sequence, got b'.x01.x00'"),
        (lambda: Schedule.explicit(["1", "0"]), "got '1' at step 0"),
        (lambda: Schedule.explicit([True, float("nan")]), "got nan at step 1"),
        (lambda: Schedule.explicit([True, [0]]), r"got \[0\] at step 1"),
        (lambda: Schedule.explicit([True, np.zeros(2)]), "got a ndarray of shape"),
        (lambda: Schedule.nonuniform(10**12, 5), "from 1 to 10000"),
        (lambda: Schedule.nonuniform(50, 10**400), "an integer of 1329 bits"),
        (lambda: Schedule.nonuniform(50, 5, power=1e17), "power of at most 5, got 15 and 1e.17"),
        (lambda: Schedule.nonuniform(50, 5, power=10**400), "power of at most 5"),
        (lambda: Schedule.nonuniform(50, 5, power=float("nan")), "got 15 and nan"),
        (lambda: Schedule.nonuniform(50, 5, power=float("inf")), "got 15 and inf"),
        (lambda: Schedule.nonuniform(50, 5, power=-1e308), "No schedule of 10"),
        (lambda: Schedule.nonuniform(50, 5, power=True), "got 15 and True"),
        (lambda: Schedule.nonuniform(50, 5, center=1e308), "center of at most 10000"),
        (lambda: Schedule.nonuniform(50, 5, center=float("-inf")), "got -inf"),
        (lambda: Schedule.nonuniform(50, 5, center=float("nan")), "got nan"),
        (lambda: Schedule.nonuniform(50, 5, center=None), "got None"),
        (lambda: Schedule.uniform(3).mask(10**12), "steps must be an integer from 0 to 10000"),
        (lambda: Schedule.uniform(3).kinds(2.5), "steps must be .* got 2.5"),
        (lambda: Schedule.uniform(3).is_full("0"), "step must be .* got '0'"),
        (lambda: Schedule.uniform(3).is_full(-1), "step must be .* got -1"),
        (lambda: Schedule.explicit("FPP").is_full(torch.zeros(3)), "step must be"),
        (lambda: Schedule.uniform(3, last=1).is_full(0, 2.5), "steps must be .* got 2.5"),
    ],
)
def test_junk_is_refused_at_once(make, message):
    start = time.perf_counter()
    with pytest.raises(InvalidSetting, match=message) as caught:
        make()
    assert time.perf_counter() - start < 1 and len(str(caught.value)) < 500


@pytest.mark.parametrize("center", [-5, 0, 15.5, 50, 70])
def test_nonuniform_keeps_its_steps_wherever_the_center_is(center):
    assert len(steps_of(Schedule.nonuniform(50, 5, center), 50)) == 10


def test_nonuniform_counts_no_step_after_the_end():
    """Rounding puts one at step 26 here, which would leave 25 full steps."""
    with pytest.raises(InvalidSetting, match="No schedule of 26 full steps in 26"):
        Schedule.nonuniform(26, 1, 7172, 3.813400713428735)


def test_whole_numbers_of_any_kind_are_kept_as_ints():
    schedule = Schedule.uniform(np.int64(3), first=torch.tensor(2))
    assert schedule == Schedule.uniform(3, first=2) and type(schedule.interval) is type(schedule.first) is int


def test_schedules_print():
    assert str(Schedule.uniform(3, first=2)) == "uniform(3, first=2)"
    assert str(Schedule.explicit("FPP", last=1)) == "explicit(FPP, last=1)"
