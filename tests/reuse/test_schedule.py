import pytest

from stepcache import Schedule, StepCacheError

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
    import numpy as np

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
    assert Schedule.explicit("FPPF") == Schedule.explicit([1, 0, 0, 1])


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


def test_schedules_print():
    assert str(Schedule.uniform(3, first=2)) == "uniform(3, first=2)"
    assert str(Schedule.explicit("FPP", last=1)) == "explicit(FPP, last=1)"
