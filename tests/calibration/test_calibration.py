"""Calibration as a whole, with few steps and small images: plans of the demo pipeline, the rest on a tiny one."""

import copy
import json
import random
import re

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from support.bench_tiny import tiny_pipe
from support.macs import macs_counted_once
from support.small import demo_pipe, loop_pipe, state_of

from stepcache import Schedule, accelerate, last_run, restore
from stepcache.calibration import _plan, calibrate, laboratory
from stepcache.calibration.candidates import Candidate
from stepcache.calibration.images import PromptSet, split
from stepcache.calibration.journal import Journal
from stepcache.calibration.segments import SegmentMeter
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.images.fidelity import mean_psnr
from stepcache.images.make import Request
from stepcache.plans.plan import MadeFor, Plan

PROMPTS = ["tiger face", "red apple", "rose", "fox face", "lemon", "tulip", "panda face", "mushroom"]
SIZE = {"height": 32, "width": 32}
SETTING = {
    "steps": 5, "guidance": 3.0, "trials": 5, "branches": 2, "progress": False, "seed": 4, "size": tuple(SIZE.values())
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _macs_are_counted_once():
    with macs_counted_once(laboratory):
        yield


def found(pipe, budgets=(2.0,), **changes):
    return calibrate(pipe, PROMPTS, budgets=budgets, **{**SETTING, **changes})


def count_measured(patch):
    """A list that grows with each candidate whose images are made, and with each part of the table of segments."""
    measured, under, noted = [], PromptSet.under, SegmentMeter._noted

    def note(self, name, shape, measure):
        return noted(self, name, shape, lambda: measured.append(name) or measure())

    patch.setattr(PromptSet, "under", lambda *args: measured.append(args) or under(*args))
    patch.setattr(SegmentMeter, "_noted", note)
    return measured


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan that was asked for twice, the journal, and how many candidates were measured for both."""
    path = tmp_path_factory.mktemp("plan") / "trials.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        measured = count_measured(patch)
        plan, again = found(demo_pipe(), budgets=(2.0, 2.0), journal=path)
    assert again == plan
    return plan, path, len(measured)


def test_a_plan_within_the_budget_whose_figures_are_those_of_accelerate(planned, tmp_path):
    plan, *_ = planned
    assert plan.speedup >= 2.0 and len(plan.mask) == 5
    plan.write(tmp_path / "plan.json")
    made = plan.made_with
    assert made["prompts"] == {"calibration": 4, "held out": 4}
    assert made["call"] == {"num_inference_steps": 5, "guidance_scale": 3.0, **SIZE}
    # The held-out prompts, made again by hand.
    shuffled = [(prompt, "") for prompt in PROMPTS]
    random.Random(4).shuffle(shuffled)
    held = tuple(prompt for prompt, _ in shuffled[4:])
    request, pipe = Request(held, (8, 9, 10, 11), 5, {"guidance_scale": 3.0, **SIZE}), demo_pipe()
    originals = request.make(pipe).images
    accelerate(pipe, plan=Plan.read(tmp_path / "plan.json"))
    images = request.make(pipe).images
    assert last_run(pipe).kinds == plan.mask
    figures = plan.figures[0]
    assert figures.psnr == pytest.approx(mean_psnr(images, originals), abs=1e-3)
    auto = plan.figures[1]
    assert auto.what == 'even full steps, predict="auto"' and auto.speedup == plan.speedup
    full = plan.mask.count("F")
    even = "".join("F" if step in {round(5 * i / full) for i in range(full)} else "P" for step in range(5))
    accelerate(pipe, branch=plan.branch, guidance=plan.guidance, schedule=Schedule.explicit(even), predict="auto")
    assert auto.psnr == pytest.approx(mean_psnr(request.make(pipe).images, originals), abs=1e-3)
    restore(pipe)
    within = plan.figures[2]
    assert within.what.startswith("DeepCache, interval") and within.speedup >= 2.0
    interval, branch = (int(part.split()[-1]) for part in within.what.split(",")[1:])
    rival = request.make(accelerate(pipe, interval, branch)).images
    assert within.psnr == pytest.approx(mean_psnr(rival, originals), abs=1e-3)
    assert plan.figures[3].speedup < 2.0


def held_out(pipe, steps):
    """Images of the held-out prompts, made by hand."""
    shuffled = [(prompt, "") for prompt in PROMPTS]
    random.Random(4).shuffle(shuffled)
    held = tuple(prompt for prompt, _ in shuffled[4:])
    return Request(held, (8, 9, 10, 11), steps, {"guidance_scale": 3.0, **SIZE}).make(pipe).images


def test_of_several_numbers_of_steps_the_figures_are_against_the_most(tmp_path):
    path, pipe = tmp_path / "trials.jsonl", demo_pipe()
    (plan,) = found(pipe, steps=[4, 8, 6], trials=6, journal=path)
    head = json.loads(path.read_text().splitlines()[0])
    assert head["steps"] == [8, 6, 4] == plan.made_with["steps"]
    own = plan.made_with["call"]["num_inference_steps"]
    assert own == len(plan.mask) and own in (4, 6, 8) and plan.speedup >= 2.0
    tried = path.read_text()
    # All three were tried, one of them without partial steps: half the steps are half the cost.
    assert "first: FFFF branch 0 both hold" in tried
    assert {len(mask) for mask in re.findall(r'"first: ([FP]+) ', tried)} == {4, 6, 8}
    assert {int(steps) for steps in re.findall(r'"(\d) steps: segments', tried)} == {6, 8}
    originals = held_out(pipe, 8)
    accelerate(pipe, plan=plan)
    assert plan.figures[0].psnr == pytest.approx(mean_psnr(held_out(pipe, own), originals), abs=1e-3)
    restore(pipe)
    fewer = plan.figures[-1]
    assert (fewer.what, fewer.speedup) == ("fewer steps: 4, all full", 2.0)
    assert fewer.psnr == pytest.approx(mean_psnr(held_out(pipe, 4), originals), abs=1e-3)
    with pytest.raises(InvalidSetting, match="not the same: steps"):
        found(pipe, steps=[8, 6], journal=path)


def test_the_pipe_is_what_it_was():
    pipe = accelerate(tiny_pipe(), 2)
    before = vars(state_of(restore(copy.copy(pipe))))
    found(pipe, trials=2)
    after = vars(state_of(pipe))
    assert after["cls"] is before["cls"] and after["modules"] == before["modules"]


def test_an_interrupted_search_goes_on_and_finds_the_same(planned, tmp_path, monkeypatch):
    plan, notes, count = planned
    lines = notes.read_text().splitlines(keepends=True)
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(lines[:5]))
    calls = count_measured(monkeypatch)
    (again,) = found(demo_pipe(), journal=path)
    assert again == plan and path.read_text() == notes.read_text()
    assert len(calls) == len(lines) - 5
    # A head, and each segment and candidate once: two budgets share what was measured.
    assert count == len(lines) - 1 and "segments 0 to" in notes.read_text()
    # All of it known: nothing is measured.
    calls.clear()
    assert found(demo_pipe(), journal=path) == [plan] and not calls
    with pytest.raises(InvalidSetting, match="not the same: guidance"):
        found(demo_pipe(), journal=path, guidance=4.0)
    pipe = demo_pipe()
    pipe.unet = copy.deepcopy(pipe.unet).to(torch.bfloat16)  # tests share the pipe's other parts
    with pytest.raises(InvalidSetting, match=r"not the same: .*dtype"):
        found(pipe, journal=path)


def test_pipelines_without_known_halves_keep_both():
    class Other(StableDiffusionPipeline):
        def __call__(self, prompt, num_inference_steps, guidance_scale, generator, output_type, **size):
            return super().__call__(
                prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generator,
                output_type=output_type, **size,
            )  # fmt: skip

    (plan,) = found(tiny_pipe(Other), trials=1)
    assert plan.guidance == "both"


def test_without_guidance():
    (plan,) = found(tiny_pipe(), guidance=1.0, trials=1)
    assert plan.guidance == "both" and np.isfinite(plan.figures[0].psnr)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budgets": (1.0,)}, "A budget is a number over 1"),
        ({"budgets": ("fast",)}, "A budget is a number over 1"),
        ({"budgets": (60.0,)}, "the most that these branches can save"),
        ({"steps": 1}, "steps must be"),
        ({"steps": [5, 1]}, "steps must be"),
        ({"steps": []}, "got none"),
        ({"steps": "20,50"}, "steps must be"),
        ({"trials": 0}, "trials must be"),
        ({"negatives": ["blue"]}, "8 prompts and 1 negative"),
    ],
)
def test_what_cannot_be_done(changes, reason):
    with pytest.raises(InvalidSetting, match=reason):
        found(tiny_pipe(), **changes)


def test_too_few_prompts_and_pipelines_that_need_more():
    with pytest.raises(InvalidSetting, match=r"at least 8 different prompts.*got 7"):
        calibrate(demo_pipe(), [*PROMPTS[:7], PROMPTS[0]], budgets=[2.0], **SETTING)
    with pytest.raises(UnsupportedPipeline, match="takes image"):
        found(demo_pipe(StableDiffusionImg2ImgPipeline))
    with pytest.raises(UnsupportedPipeline, match="LoopPipe takes no"):
        found(loop_pipe())


def test_fitted_plans_know_what_to_do_in_other_steps():
    """Where weights were fitted, the line beside them is the one that was best with that mask."""
    pipe = tiny_pipe()
    sets = split(PROMPTS, None, 0, 6, {"guidance_scale": 3.0, **SIZE}, 8)
    lab = laboratory.Laboratory.open(pipe, sets, 1, Journal(None, {}))
    fitted = Candidate("FPFPFP", 0, True, fitted=True, order=3, early=1.0, late=0.5)
    plan = _plan(lab, 1.5, fitted, MadeFor.of(pipe, 3.0), {})
    scores = {d: lab.psnr(Candidate("FPFPFP", 0, True, early=d, late=d)) for d in (0.0, 0.5, 1.0)}
    assert plan.damping == max(scores, key=scores.get) and plan.order == 3 and len(plan.table) == 6
    accelerate(pipe, plan=plan)
    image = pipe("rose", num_inference_steps=6, guidance_scale=3.0, output_type="latent").images
    assert torch.isfinite(image).all() and last_run(pipe).kinds == "FPFPFP"
    restore(pipe)


def test_plans_of_halves_apart_have_two_lines_for_other_steps():
    pipe = tiny_pipe()
    sets = split(PROMPTS, None, 0, 6, {"guidance_scale": 3.0, **SIZE}, 8)
    lab = laboratory.Laboratory.open(pipe, sets, 1, Journal(None, {}))
    lines = _plan(
        lab, 1.5, Candidate("FPFPFP", 0, False, early=1.0, late=1.0, difference=-0.25), MadeFor.of(pipe, 3.0), {}
    )
    assert lines.apart and (lines.damping, lines.difference, dict(lines.table)) == (1.0, -0.25, {})
    ramp = _plan(
        lab, 1.5, Candidate("FPFPFP", 0, False, early=1.0, late=0.5, difference=-1.25), MadeFor.of(pipe, 3.0), {}
    )
    assert ramp.apart and len(ramp.table) == 6 and ramp.difference == -1.0
    assert ramp.predictor.weights(1, 3, (2, 0)) == pytest.approx((1 - 1.25 / 2, 1.25 / 2))
