"""Plans of which nothing is taken for granted: files cut, flipped and made up, and dataclasses filled by hand."""

import copy
import json
import math
import os
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.junk import JUNK, built, within_itself

from stepcache.errors import InvalidSetting
from stepcache.plans.plan import Figures, MadeFor, Plan, plan_of

MADE_FOR = {"unet": "UNet2DConditionModel", "config": "0123456789abcdef", "weights": (0.5, -0.25), "guidance": 3.0}
MADE_FOR["scheduler"] = {"class": "DDIMScheduler", "beta_start": 0.1, "trained_betas": None}
FIGURES = {"what": "plan", "speedup": 1.75, "psnr": 40.5, "ssim": 0.99}
PLAN = {"mask": "FPPFPF", "branch": 1, "guidance": "reuse", "order": 2, "damping": 0.5, "speedup": 1.75}
PLAN |= {"apart": True, "difference": -0.25}
TABLE = {(0, 1, (0,)): (0.9,), (1, 4, (3, 0)): (1.6, -0.5), (0, 4, (3, 0)): (1.5, -0.5)}
PLAN |= {"table": TABLE, "made_with": {"seed": 0, "call": {"height": 64}}}


def made(**changes):
    about = {"made_for": MadeFor(**MADE_FOR), "figures": (Figures(**FIGURES),) * 2}
    return Plan(**{**PLAN, **about, **changes})


TEXT = made().to_json()


def checked(path):
    """The plan in a file, of which everything that a run uses is sound; None if it is refused with the file's name."""
    start = time.perf_counter()
    try:
        plan = Plan.read(path)
    except InvalidSetting as error:
        assert path.name in str(error) and len(str(error)) < 1000
        return None
    finally:
        assert time.perf_counter() - start < 10
    check_runs(plan)
    return plan


def check_runs(plan):
    full_steps = []
    for step, letter in enumerate(plan.mask):
        schedule, predictor = plan.for_steps(len(plan.mask), adapt=False)
        assert schedule.is_full(step) == (letter == "F")
        if letter == "F":
            full_steps.insert(0, step)
        for value in (0, 1):
            used = full_steps[: predictor.order]
            weights = predictor.weights(value, step + 1, used)
            assert len(weights) == len(used) and all(abs(w) <= 10_000 and math.isfinite(w) for w in weights)
    assert all(abs(w) <= 1000 for weights in plan.table.values() for w in weights)
    assert Plan.to_json(plan)


def replaced(value, path, new):
    """A copy with the value at `path` replaced; removed if new is REMOVED."""
    body = copy.deepcopy(value)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    if new is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return body


REMOVED = object()
BODY = json.loads(TEXT)
BIG = 10**400


@pytest.mark.parametrize(
    ("path", "new", "reason"),
    [
        (["format"], 3, "its format is 3"),
        (["format"], 1, "apart is no key"),
        (["format"], True, "its format is True"),
        (["format"], [[]], r"its format is \[\[\]\]"),
        (["mask"], REMOVED, "it lacks mask"),
        (["made_for", "config"], REMOVED, "it lacks made_for.config"),
        (["figures", 1, "ssim"], REMOVED, r"it lacks figures\[1\].ssim"),
        (["table", 0, "full"], REMOVED, r"it lacks table\[0\].full"),
        (["extra"], 1, "extra is no key of a plan"),
        (["made_for", "extra"], 1, "made_for.extra is no key"),
        (["table", 2, "extra"], 1, r"table\[2\].extra is no key"),
        (["mask"], "F" * 10**6, "mask: .*at most 10000 steps"),
        (["mask"], "FXP", "mask: .*'X'"),
        (["mask"], ["F"], r"mask must be a string, got \['F'\]"),
        (["branch"], 1.0, "branch of at least 0"),
        (["branch"], True, "branch of at least 0"),
        (["branch"], BIG, "branch must be an integer from 0 to 9223372036854775807"),
        (["guidance"], ["both"], '"both" or "reuse"'),
        (["order"], 2.0, "order of 1 to 3 .*got 2.0"),
        (["order"], True, "order of 1 to 3 .*got True"),
        (["damping"], "Infinity", "damping of -1 to 1"),
        (["damping"], None, "damping of -1 to 1"),
        (["damping"], True, "damping of -1 to 1"),
        (["apart"], REMOVED, "it lacks apart"),
        (["apart"], 1, "apart must be True or False, got 1"),
        (["difference"], "NaN", "damping of the difference of -1 to 1"),
        (["difference"], 1.5, "damping of the difference .*got 1.5"),
        (["difference"], False, "damping of the difference .*got False"),
        (["speedup"], "2", "speedup must be a finite number"),
        (["speedup"], -1, "speedup must be a finite number from 0"),
        (["speedup"], BIG, "speedup must be a finite number"),
        (["figures"], {}, "figures must be a list, got {}"),
        (["figures", 1], 3, r"figures\[1\] must be a dict, got 3"),
        (["figures", 1, "psnr"], "-Infinity", r"figures\[1\].psnr must be a finite number"),
        (["figures", 1, "psnr"], None, r"figures\[1\].psnr must be a finite number"),
        (["figures", 0, "what"], 3, r"figures\[0\].what must be a string, got 3"),
        (["made_for"], None, "made_for must be a dict, got None"),
        (["made_for", "weights"], "abc", "made_for.weights must be a list"),
        (["made_for", "weights", 1], "NaN", r"made_for.weights\[1\] must be a finite number, got 'NaN'"),
        (["made_for", "weights", 1], False, r"made_for.weights\[1\] must be a finite number, got False"),
        (["made_for", "scheduler"], [], "made_for.scheduler.class must be a string"),
        (["made_for", "scheduler", "class"], 1, "made_for.scheduler.class must be a string"),
        (["made_for", "guidance"], "Infinity", "made_for.guidance must be a finite number"),
        (["made_for", "unet"], None, "made_for.unet must be a string"),
        (["made_with"], [1], "made_with must be a dict"),
        (["made_with", "seed"], BIG, "made_with.seed must be an integer"),
        (["table"], None, "table must be a list"),
        (["table", 1], [], r"table\[1\] must be a dict, got \[\]"),
        (["table", 1, "value"], 2, r"table\[1\].value must be an integer from 0 to 1, got 2"),
        (["table", 1, "value"], [0], r"table\[1\].value must be an integer"),
        (["table", 1, "step"], 6, r"table\[1\].step must be an integer from 0 to 5, got 6"),
        (["table", 1, "step"], "4", r"table\[1\].step must be an integer"),
        (["table", 1, "full"], {"3": 0}, r"table\[1\].full must be a list"),
        (["table", 1, "full"], [4, 0], r"table\[1\].full\[0\] .steps before 4.* got 4"),
        (["table", 1, "full"], [0, 3], r"table\[1\].full must be steps before 4, newest first"),
        (["table", 1, "full"], [3, 3], r"table\[1\].full\[1\] .* got 3"),
        (["table", 1, "full"], [3.0, 0], r"table\[1\].full\[0\] must be an integer"),
        (["table", 1, "full"], [3], r"table\[1\].weights: a plan's weights at step 4 do not fit"),
        (["table", 1, "full"], [3, 2, 1], r"table\[1\].weights: a plan's weights at step 4 do not fit"),
        (["table", 1, "weights"], [], r"table\[1\].weights: a plan's weights at step 4 do not fit"),
        (["table", 1, "weights"], {"1": 2}, r"table\[1\].weights must be a list"),
        (["table", 1, "weights"], ["1", 0], r"table\[1\].weights\[0\] must be a finite number from -1000 to 1000"),
        (["table", 1, "weights", 1], "NaN", r"table\[1\].weights\[1\] must be a finite number"),
        (["table", 1, "weights", 1], 1000.1, r"table\[1\].weights\[1\] must be .*, got 1000.1"),
        (["table", 1, "weights", 1], -1e30, r"table\[1\].weights\[1\] must be"),
        (["table", 1, "weights", 1], BIG, r"table\[1\].weights\[1\] must be"),
        (["table", 2], BODY["table"][1], r"table\[2\] has weights for the same step"),
    ],
)  # fmt: skip
def test_the_file_and_the_key_are_named(tmp_path, path, new, reason):
    file = tmp_path / "plan.json"
    body = replaced(BODY, path, new)
    file.write_text(json.dumps(body))
    with pytest.raises(InvalidSetting, match=rf"plan\.json is no plan of `stepcache calibrate`: .*{reason}"):
        Plan.read(file)
    # Numbers that JSON lacks are read from files that have them, and refused in the same words.
    for name in ("NaN", "Infinity", "-Infinity"):
        if new == name:
            file.write_text(json.dumps(body).replace(f'"{name}"', name))
            with pytest.raises(InvalidSetting, match=reason):
                Plan.read(file)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (os.mkfifo, "cannot be read: it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is no regular file"),
        (lambda path: path.write_bytes(TEXT.encode("utf-16")), "line 1: not UTF-8"),
        (lambda path: path.write_text("[" * 10**6), "is no plan .*nested too deep"),
        (
            lambda path: path.write_text(TEXT.replace('"seed": 0', '"seed": ' + "[" * 500 + "]" * 500)),
            "nested too deep",
        ),
        (lambda path: path.write_text(TEXT.replace('"order": 2', '"order": 2, "order": 1')), "'order' is there twice"),
        (lambda path: path.write_text(TEXT.replace("[0.9]", "[1e999]")), "1e999 is too large"),
        (lambda path: path.write_text(TEXT + "x"), "is no plan .*Extra data"),
    ],
)
def test_files_that_cannot_be_plans(tmp_path, make, reason):
    path = tmp_path / "plan.json"
    make(path)
    with pytest.raises(InvalidSetting, match=rf"plan\.json.*{reason}"):
        Plan.read(path)


@pytest.mark.parametrize(
    "junk", [3, True, b"plan.json", "", "a\0b", "\ud800", [], {}, np.zeros(2), torch.ones(2), Plan]
)
def test_what_is_neither_a_plan_nor_a_path(junk):
    with pytest.raises(InvalidSetting, match="plan must be"):
        plan_of(junk)


def test_every_cut_of_a_file_is_refused(tmp_path):
    path, data = tmp_path / "plan.json", TEXT.encode()
    path.write_bytes(data)
    assert checked(path) == made()
    for end in range(len(data.rstrip())):
        path.write_bytes(data[:end])
        assert checked(path) is None


def test_flipped_bytes_give_a_plan_that_runs_or_are_refused(tmp_path):
    path, chance, found = tmp_path / "plan.json", random.Random(0), 0
    for _ in range(500):
        data = bytearray(TEXT.encode())
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        found += checked(path) is not None
    assert 0 < found < 500


def paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


PATHS = sorted((path for path in paths(BODY) if path), key=str)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 12), st.integers(), st.sampled_from([BIG, -BIG, 0.5, 1e308, -0.0]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), "NaN", "Infinity", "FPPF", "both", "F" * 10_001]),
    st.text(max_size=5),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)
COMMON = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=200, **COMMON)
@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), st.just(REMOVED) | VALUES), min_size=1, max_size=3))
def test_made_up_structures_give_a_plan_that_runs_or_are_refused(tmp_path, changes):
    body = BODY
    for path, new in changes:
        try:
            body = replaced(body, path, new)
        except (LookupError, TypeError):  # replaced above it
            continue
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(body))
    checked(file)


@settings(max_examples=300, **COMMON)
@given(
    changes=st.dictionaries(st.sampled_from([*PLAN, "made_for", "figures"]), JUNK, max_size=2),
    about=st.dictionaries(st.sampled_from(sorted(MADE_FOR)), JUNK, max_size=1),
    figures=st.dictionaries(st.sampled_from(sorted(FIGURES)), JUNK, max_size=1),
    at=st.tuples(JUNK, JUNK, st.lists(JUNK, max_size=2).map(tuple)),
    weights=st.lists(JUNK, max_size=2).map(tuple) | JUNK,
    entered=st.booleans(),
)
def test_dataclasses_filled_by_hand_are_checked_too(changes, about, figures, at, weights, entered):
    changes, about, figures, at, weights = map(built, (changes, about, figures, at, weights))
    try:
        given = {"made_for": MadeFor(**{**MADE_FOR, **about}), "figures": (Figures(**{**FIGURES, **figures}),)}
        if entered and hashable(at):
            given["table"] = {**TABLE, at: weights}
        plan = made(**{**given, **changes})
    except InvalidSetting as error:
        assert len(str(error)) < 1000
        return
    check_runs(plan)


def hashable(value):
    try:
        hash(value)
    except Exception:
        return False
    return True


def doubled(levels):
    """A list that holds another one twice, and so on: 2 ** levels values in the end."""
    return [1] if not levels else [inner := doubled(levels - 1), inner]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"damping": math.nan}, "damping of -1 to 1"),
        ({"order": np.float64(2)}, "order of 1 to 3"),
        ({"apart": False}, "where halves are not apart.*got -0.25"),
        ({"order": 1, "damping": 0.0, "table": {}}, "0 at order 1.*got -0.25"),
        ({"mask": b"FPP"}, "mask must be a string"),
        ({"mask": [True]}, "mask must be a string"),
        ({"table": {(0, 1, (0,)): (math.nan,)}}, r"table\[0\].weights\[0\] must be a finite number"),
        ({"table": {(0, 1, (0,)): (math.inf,)}}, r"table\[0\].weights\[0\] must be a finite number"),
        ({"table": {(0, 1, (0,)): (torch.tensor(1.0),)}}, r"table\[0\].weights\[0\] must be a finite number"),
        ({"table": {"x": (1.0,)}}, r"table\[0\] must be a list, got 'x'"),
        ({"table": {(0, 1): (1.0,)}}, r"table\[0\] must be for .value, step, full steps."),
        ({"table": [1]}, "table must be a mapping"),
        ({"figures": [3]}, r"figures\[0\] must be Figures, got 3"),
        ({"made_for": MADE_FOR}, "made_for must be a MadeFor"),
        ({"speedup": math.nan}, "speedup must be a finite number"),
        ({"made_with": {"x": object()}}, "made_with.x must be a value that JSON can hold, got a object"),
        ({"made_with": {3: 1}}, "each key of made_with must be a string, got 3"),
        ({"made_with": {"x": within_itself()}}, "nested too deep"),
        ({"made_with": {"x": doubled(50)}}, "more than 100000 values"),
    ],
)
def test_by_hand(changes, reason):
    with pytest.raises(InvalidSetting, match=reason):
        made(**changes)


def test_values_are_kept_as_plain_ones():
    plan = made(branch=np.int64(1), damping=np.float32(0.5), table={(np.int8(0), 1, (0,)): [np.float64(0.9)]})
    assert type(plan.branch) is int and type(plan.damping) is float
    assert plan.table == {(0, 1, (0,)): (0.9,)} and all(type(w) is float for w in plan.table[0, 1, (0,)])
    table = dict(TABLE)
    plan = made(table=table)
    table.clear()
    assert plan.table == TABLE
