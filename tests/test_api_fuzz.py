"""Junk for every public call: a StepCacheError, and the pipe is what it was.

`make test` runs a few hundred examples, the same ones each time; `make fuzz` runs thousands of others. A fault that
they find gets a test of its own beside the code that it was in.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.junk import JUNK, MAKERS, Attributes, Junk, built
from support.small import generate, loop_pipe, state_of, tiny_pipe

from stepcache import (
    DeepCacheSDHelper,
    Schedule,
    StepCacheError,
    accelerate,
    denoising,
    last_run,
    restore,
    save_compiled,
    warmup,
)
from stepcache.errors import InvalidSetting, NotAccelerated, UnsupportedPipeline, UnsupportedUNet
from stepcache.plans.plan import MadeFor, Plan
from stepcache.reuse.predict import predictor_of
from stepcache.run.attach import attachment_of
from stepcache.values import as_int

NAMES = list(inspect.signature(accelerate).parameters)[1:]


@dataclass(frozen=True)
class Good:
    """A value that a pipeline can take; which of them, `good_values` knows."""

    number: int


ARGUMENTS = st.dictionaries(st.sampled_from(NAMES), JUNK | st.builds(Good, st.integers(0, 6)), min_size=1, max_size=4)
ANY = JUNK | st.integers(0, 50) | st.lists(st.booleans(), max_size=5) | st.text("FP", max_size=5)
COMMON = {
    "deadline": None,
    "database": None,
    "phases": (Phase.generate, Phase.shrink),
    "suppress_health_check": list(HealthCheck),
}
THE_SAME = settings(max_examples=300, derandomize=True, **COMMON)
OTHERS = settings(max_examples=20_000, **COMMON)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A pipe, and a plan for it in a file. In the end the pipe makes the image that it made at first."""
    pipe, path = tiny_pipe(), tmp_path_factory.mktemp("plans") / "plan.json"
    plan = Plan(MadeFor.of(pipe, 3.0), "FPPFPF", 1, "reuse", 2, 0.5, {(0, 1, (0,)): (0.9,)}, 1.5)
    plan.write(path)
    image = generate(pipe, 2)
    before = everything(pipe)
    yield SimpleNamespace(pipe=pipe, good=good_values(plan, path))
    state, weights, attachment = everything(restore(pipe))
    assert (state, attachment) == (before[0], None)
    assert [weight[:2] for weight in weights] == [weight[:2] for weight in before[1]]  # re-laid, they are elsewhere
    assert torch.equal(generate(pipe, 2), image)


def good_values(plan, path):
    return {
        "interval": [1, 2, 5, np.int64(3), torch.tensor(3)],
        "branch": [0, 1, 3, np.int8(2)],
        "schedule": [None, Schedule.explicit("FPP"), Schedule.uniform(3, last=1)],
        "predict": ["hold", "linear", 0, 0.5, np.float64(0.5)],
        "guidance": ["both", "reuse"],
        "compile": ["auto", True, False, "regional", {"backend": "eager"}, {"mode": "default"}, {"options": {}}],
        "cuda_graphs": ["auto", False],
        "kernels": ["auto", False],
        "max_buckets": [1, 4],
        "vae": [True, False],
        "channels_last": ["auto", True, False],
        "scheduler": ["scheduler"],
        "preset": [None, "faithful", "balanced", "fast"],
        "plan": [None, plan, path, str(path)],
        "adapt": [True, False],
        "compiled": [None, path.parent / "none", path.parent],
        "compiled_only": [False, True],
    }


def everything(pipe):
    """All that an error must leave as it was; of an accelerated pipe, its settings too."""
    weights = [weight for model in (pipe.unet, pipe.vae) for weight in model.parameters()]
    attachment = attachment_of(pipe)
    held = attachment and (attachment, attachment.settings)
    return [vars(state_of(pipe)), [(id(w), w.stride(), w.data_ptr()) for w in weights], held]


def check_accelerate(bench, arguments, accelerated):
    """Whether `accelerate` takes the arguments."""
    pipe = restore(bench.pipe)
    if accelerated:
        accelerate(pipe, 2, channels_last=True)
    before, was = everything(pipe), attachment_of(pipe)
    given = {
        name: bench.good[name][value.number % len(bench.good[name])] if isinstance(value, Good) else built(value)
        for name, value in arguments.items()
    }
    try:
        assert accelerate(pipe, **given) is pipe
    except StepCacheError as error:
        assert everything(pipe) == before
        assert len(str(error)) < 2000
        return False
    assert attachment_of(pipe) not in (None, was)
    return True


def check_schedule(make):
    try:
        schedule = make()
    except InvalidSetting as error:
        assert len(str(error)) < 1000
        return
    kinds = schedule.kinds(20)
    assert len(kinds) == 20 and kinds[0] == "F" and set(kinds) <= {"F", "P"}
    assert str(schedule) and hash(schedule) == hash(copy.deepcopy(schedule))


def check_schedules(one, two, three, four, which):
    one, two, three, four = map(built, (one, two, three, four))
    makers = (
        lambda: Schedule(one, two, three, four),
        lambda: Schedule.uniform(one, first=two, last=three),
        lambda: Schedule.explicit(one, first=two, last=three),
        lambda: Schedule.explicit(one),
        lambda: Schedule.nonuniform(one, two, three, four),
        lambda: Schedule.nonuniform(50, 5, one, two),
        lambda: Schedule(full=one),
    )
    check_schedule(makers[which])
    with suppress(InvalidSetting):
        Schedule.uniform(3, last=1).is_full(one, two)
    with suppress(InvalidSetting):
        Schedule.explicit("FP").mask(one)
    with suppress(InvalidSetting):
        assert 0 <= predictor_of(one).damping <= 1


def test_valid_arguments_are_taken(bench):
    """So the fuzz has something to take."""
    for name in NAMES:
        for number in range(len(bench.good[name])):
            arguments = {name: Good(number)}
            if name not in ("adapt", "compiled_only") or number:
                assert check_accelerate(bench, arguments, accelerated=number % 2 == 0) or name in (
                    "adapt",
                    "compiled_only",
                )


@THE_SAME
@given(arguments=ARGUMENTS, accelerated=st.booleans())
def test_any_arguments(bench, arguments, accelerated):
    check_accelerate(bench, arguments, accelerated)


@pytest.mark.fuzz
@OTHERS
@given(arguments=ARGUMENTS, accelerated=st.booleans())
def test_any_other_arguments(bench, arguments, accelerated):
    check_accelerate(bench, arguments, accelerated)


@pytest.mark.parametrize("name", NAMES)
def test_each_argument_with_each_kind_of_junk(bench, name):
    for maker in range(len(MAKERS)):
        check_accelerate(bench, {name: Junk(maker)}, accelerated=maker % 2 == 0)


@pytest.mark.parametrize("name", ["branch", "schedule", "predict", "guidance", "plan"])
def test_junk_beside_a_preset(bench, name):
    for maker in range(len(MAKERS)):
        check_accelerate(bench, {"preset": Good(3), name: Junk(maker)}, accelerated=False)


@THE_SAME
@given(one=ANY, two=ANY, three=ANY, four=ANY, which=st.integers(0, 6))
def test_any_schedule(one, two, three, four, which):
    check_schedules(one, two, three, four, which)


@pytest.mark.fuzz
@OTHERS
@given(one=ANY, two=ANY, three=ANY, four=ANY, which=st.integers(0, 6))
def test_any_other_schedule(one, two, three, four, which):
    check_schedules(one, two, three, four, which)


@pytest.mark.parametrize("maker", range(len(MAKERS)))
def test_what_is_no_pipe(maker):
    junk = MAKERS[maker]()
    assert restore(junk) is junk
    with pytest.raises((UnsupportedPipeline, UnsupportedUNet)):
        accelerate(junk)
    with pytest.raises(NotAccelerated, match="needs an accelerated pipe"):
        last_run(junk)
    with pytest.raises(NotAccelerated):
        warmup(junk, 64, 64)
    with pytest.raises(NotAccelerated):
        save_compiled(junk, "folder")
    with pytest.raises(NotAccelerated), denoising(junk):
        pass
    with pytest.raises((UnsupportedPipeline, UnsupportedUNet)):
        DeepCacheSDHelper(junk).enable()
    DeepCacheSDHelper(junk).disable()


def test_junk_for_the_other_calls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = accelerate(loop_pipe("least"), 2)
    before = state_of(pipe)
    helper = DeepCacheSDHelper(pipe)
    for make in MAKERS:
        if as_int(make()) is None:
            with pytest.raises(InvalidSetting, match="steps must be"), denoising(pipe, make()):
                pass
        for changes in ({"height": make()}, {"width": make()}, {"batch_size": make()}):
            with pytest.raises(InvalidSetting):
                warmup(pipe, **{"height": 64, "width": 64, **changes})
        for name in ("guidance", "tune", "progress"):
            with pytest.raises(InvalidSetting, match=f"{name} must be True or False"):
                warmup(pipe, 64, 64, **{name: make()})
        with pytest.raises(InvalidSetting, match="progress must be True or False"):
            save_compiled(pipe, tmp_path, progress=make())
        with pytest.raises(StepCacheError):
            save_compiled(pipe, make())
        for name in ("cache_interval", "skip_mode"):
            if name == "skip_mode" or as_int(make()) is None:
                with pytest.raises(InvalidSetting):
                    helper.set_params(**{name: make()})
    assert state_of(pipe) == before and not list(tmp_path.iterdir())
    pipe(4)
    assert last_run(pipe).kinds == "FPFP"


class Slotted:
    __slots__ = ("scheduler", "unet")

    def __call__(self):
        pass


class Frozen:
    def __init__(self, pipe):
        vars(self).update(vars(pipe))

    def __setattr__(self, name, value):
        raise TypeError("frozen")

    def __call__(self):
        pass


def test_pipes_whose_class_cannot_be_another():
    whole = loop_pipe("least")
    slotted, frozen = Slotted(), Frozen(whole)
    slotted.unet, slotted.scheduler = whole.unet, whole.scheduler
    for pipe in (slotted, frozen):
        before = state_of(whole)
        with pytest.raises(UnsupportedPipeline, match=f"a {type(pipe).__name__} cannot have one"):
            accelerate(pipe, channels_last=True)
        assert type(pipe) in (Slotted, Frozen) and state_of(whole) == before


def test_pipes_with_junk_inside():
    for make in MAKERS:
        pipe = loop_pipe("least")
        pipe.unet = make()
        with pytest.raises(StepCacheError):
            accelerate(pipe)
        pipe = loop_pipe("least")
        pipe.scheduler = make()
        with pytest.raises(StepCacheError):
            accelerate(pipe)
        pipe = loop_pipe("least")
        pipe.vae = make()
        with pytest.raises(StepCacheError):
            accelerate(pipe, vae=True)
    with pytest.raises(UnsupportedUNet, match=r"The .unet of this LoopPipe is 3, which is no torch.nn.Module"):
        accelerate(type(pipe)(3, pipe.scheduler))


def test_classes_in_the_place_of_pipes():
    with pytest.raises(UnsupportedPipeline, match=r"got the class StableDiffusionPipeline itself.*from_pretrained"):
        accelerate(StableDiffusionPipeline)


class Answers:
    """A pipe that says RuntimeError for what it lacks."""

    __getattr__ = Attributes.__getattr__

    def __init__(self, pipe):
        self.unet, self.scheduler = pipe.unet, pipe.scheduler

    def __call__(self):
        pass


def test_a_pipe_that_cannot_be_asked_what_it_lacks():
    with pytest.raises(UnsupportedPipeline, match=r"Answers cannot be looked at: .*RuntimeError.*AttributeError"):
        accelerate(Answers(loop_pipe("least")))
