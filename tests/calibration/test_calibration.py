"""Calibration as a whole, with few steps and small images: plans of the demo pipeline, the rest on a tiny one."""

import copy
import random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from support.bench_tiny import tiny_pipe
from support.macs import macs_counted_once
from support.small import demo_pipe, loop_pipe, state_of

from stepcache import accelerate, last_run, restore
from stepcache.calibration import _plan, calibrate, laboratory
from stepcache.calibration.candidates import Candidate
from stepcache.calibration.images import PromptSet, split
from stepcache.calibration.journal import Journal
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
    """A list that grows with each candidate whose images are made."""
    measured, under = [], PromptSet.under
    patch.setattr(PromptSet, "under", lambda *args: measured.append(args) or under(*args))
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
    restore(pipe)
    within = plan.figures[1]
    assert within.what.startswith("DeepCache, interval") and within.speedup >= 2.0
    interval, branch = (int(part.split()[-1]) for part in within.what.split(",")[1:])
    rival = request.make(accelerate(pipe, interval, branch)).images
    assert within.psnr == pytest.approx(mean_psnr(rival, originals), abs=1e-3)
    assert plan.figures[2].speedup < 2.0


def test_the_pipe_is_what_it_was():
    pipe = accelerate(tiny_pipe(), 2)
    before = vars(state_of(restore(copy.copy(pipe))))
    found(pipe, trials=2)
    after = vars(state_of(pipe))
    assert after["cls"] is before["cls"] and after["modules"] == before["modules"]


def test_an_interrupted_search_goes_on_and_finds_the_same(planned, tmp_path, monkeypatch):
    plan, notes, count = planned
    lines = notes.read_text().splitlines(keepends=True)
    images = [i for i, line in enumerate(lines) if i and " steps: " not in line]  # the others are segments
    path, kept = tmp_path / "trials.jsonl", images[1]
    path.write_text("".join(lines[:kept]))
    calls = count_measured(monkeypatch)
    (again,) = found(demo_pipe(), journal=path)
    assert again == plan and path.read_text() == notes.read_text()
    assert len(calls) == len([i for i in images if i >= kept])
    assert count == len(images)  # each candidate once: two budgets share what was measured
    # All of it known: nothing is measured.
    calls.clear()
    assert found(demo_pipe(), journal=path) == [plan] and not calls
    with pytest.raises(InvalidSetting, match="not the same: guidance"):
        found(demo_pipe(), journal=path, guidance=4.0)


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
