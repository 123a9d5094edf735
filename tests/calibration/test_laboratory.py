"""What a laboratory knows of a number of steps: the loop, the masks to begin with, and what fewer steps cost."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
from diffusers import DDIMScheduler, HeunDiscreteScheduler, PNDMScheduler, StableDiffusionSAGPipeline
from support.bench_tiny import tiny_pipe
from support.macs import macs_counted_once

from stepcache import accelerate, restore
from stepcache.calibration import laboratory
from stepcache.calibration.images import split
from stepcache.calibration.journal import Journal
from stepcache.calibration.laboratory import Laboratory, Length, expected_spaces
from stepcache.calibration.search import Option, Space
from stepcache.reuse.auto import Auto, Loop
from stepcache.settings import Settings

PROMPTS = ["tiger face", "red apple", "rose", "fox face", "lemon", "tulip", "panda face", "mushroom"]
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module", autouse=True)
def _macs_are_counted_once():
    with macs_counted_once(laboratory):
        yield


def opened(scheduler, steps, **config):
    pipe = tiny_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **config)
    sets = split(PROMPTS, None, 0, steps, {"guidance_scale": 3.0, **SIZE}, 8)
    return Laboratory.open(pipe, sets, 1, Journal(None, {}))


@contextmanager
def loops_noted():
    """A list of the loops that accelerated calls choose their predictor by."""
    loops, stock = [], Settings.for_loop
    with mock.patch.object(Settings, "for_loop", lambda self, loop: loops.append(loop) or stock(self, loop)):
        yield loops


@pytest.mark.parametrize(("scheduler", "calls"), [(HeunDiscreteScheduler, 7), (PNDMScheduler, 5)])
def test_the_loop_is_the_one_that_a_run_sees(scheduler, calls):
    """Also where a step has two U-Net calls: predict="auto" must mean the same in a search as in a run."""
    lab = opened(scheduler, 4, **({"skip_prk_steps": True} if scheduler is PNDMScheduler else {}))
    with loops_noted() as loops:
        accelerate(lab.pipe, 2, predict="auto")
        lab.pipe("rose", num_inference_steps=4, guidance_scale=3.0, output_type="latent", **SIZE)
    restore(lab.pipe)
    assert loops == [lab.original.loop] and lab.original.loop.steps == calls


def test_fewer_steps_are_counted_in_calls_of_the_unet():
    """PNDM calls it n + 1 times: 2 of 5 steps are 3 of 6 calls, exactly half."""
    lab = opened(PNDMScheduler, 5, skip_prk_steps=True)
    two, one = lab._fewer_steps(2.0), lab._fewer_steps(2.1)
    assert (two.what, two.speedup) == ("fewer steps: 2, all full", 2.0)
    lab.pipe.scheduler.set_timesteps(1)
    assert (one.what, one.speedup) == ("fewer steps: 1, all full", 6 / len(lab.pipe.scheduler.timesteps))


class Masks:
    """Tables of segments that note which are measured, and under which dampings masks are asked for."""

    def __init__(self):
        self.tables, self.asked = set(), []

    def table(self, branch, reuse, longest):
        self.tables.add((branch, reuse, longest))
        return self

    def mask(self, full, mean, difference, minimax):
        self.asked.append((mean, difference))
        return "F" * full + "P" * (20 - full)


@pytest.mark.parametrize("halves", [True, False])
def test_masks_are_chosen_under_the_dampings_of_their_runs(halves):
    loop, masks = Loop(20, 20, False, 7.5), Masks()
    length = Length({}, SimpleNamespace(), Space(20, {0: 0.1}, halves), masks, loop)
    starts = list(length.proposals(Option(20, 0, False, 8), 3.0))
    mean, difference = (round(damping, 2) for damping in Auto(loop).dampings(2))
    assert mean > 0 > difference
    wanted = (mean, difference) if halves else (0.0, 0.0)
    assert set(masks.asked) == {wanted}
    assert {(c.early, c.late, c.difference) for c in starts} == {(wanted[0], wanted[0], difference if halves else None)}


def test_one_table_serves_all_branches_and_budgets():
    masks, space = Masks(), Space(50, {0: 0.1, 1: 0.3, 2: 0.5}, True)
    length = Length({}, SimpleNamespace(), space, masks, Loop(50, 50, False, 7.5))
    options = [option for budget in (1.5, 2.0, 3.0) for option in space.options(budget)]
    assert {option.branch for option in options} == {0, 1, 2}
    for option in options:
        list(length.proposals(option, 3.0))
    assert {table[:2] for table in masks.tables} == {(0, False), (0, True)} and len(masks.tables) == 2
    assert all(option.full * longest >= 50 for option in options for _, _, longest in masks.tables)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, HeunDiscreteScheduler])
def test_spaces_are_what_a_run_finds(scheduler):
    pipe = tiny_pipe()
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    sets = split(PROMPTS, None, 0, 3, {"guidance_scale": 3.0, "height": 32, "width": 48}, 4)
    run = Laboratory.open(pipe, sets, 2, Journal(None, {}), (2,))
    found = [length.space for _, length in sorted(run.lengths.items(), reverse=True)]
    expected = expected_spaces(pipe, (3, 2), 2, 3.0, (32, 48))
    # The relative number of the most steps' own space is left out.
    assert [replace(space, most=None) for space in expected] == [replace(space, most=None) for space in found]
    assert [space.options(1.5) for space in expected] == [space.options(1.5) for space in found]


def test_where_only_a_run_can_tell_nothing_is_expected():
    pipe = tiny_pipe()
    assert expected_spaces(pipe, (3,), 2, 3.0, None) and not expected_spaces(pipe, (10**9,), 2, 3.0, None)
    pipe.unet.register_to_config(sample_size=None)
    assert not expected_spaces(pipe, (3,), 2, 3.0, None) and expected_spaces(pipe, (3,), 2, 3.0, (32, 32))
    assert not expected_spaces(tiny_pipe(StableDiffusionSAGPipeline), (3,), 2, 3.0, (32, 32))
