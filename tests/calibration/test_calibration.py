"""Calibration as a whole, on the demo pipeline with few steps."""

import copy

import numpy as np
import pytest
import torch
from support.small import demo_pipe, loop_pipe, state_of

from stepcache import accelerate, last_run, restore
from stepcache.calibration import calibrate
from stepcache.calibration.images import Shots
from stepcache.errors import InvalidSetting, UnsupportedPipeline
from stepcache.images.fidelity import mean_psnr
from stepcache.plans.plan import Plan

PROMPTS = ["tiger face", "red apple", "rose", "fox face", "lemon", "tulip", "panda face", "mushroom"]
SETTING = {"steps": 6, "guidance": 3.0, "trials": 8, "branches": 2, "progress": False, "seed": 4}


def found(pipe, budgets=(2.0,), **changes):
    return calibrate(pipe, PROMPTS, budgets=budgets, **{**SETTING, **changes})


@pytest.fixture(scope="module")
def plan_and_notes(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "trials.jsonl"
    (plan,) = found(demo_pipe(), journal=path)
    return plan, path


def test_a_plan_within_the_budget_whose_figures_are_those_of_accelerate(plan_and_notes, tmp_path):
    plan, _ = plan_and_notes
    assert plan.speedup >= 2.0 and len(plan.mask) == 6
    plan.write(tmp_path / "plan.json")
    made = plan.made_with
    assert made["prompts"] == {"calibration": 4, "held out": 4}
    # The held-out prompts, made again by hand.
    import random

    shuffled = [(prompt, "") for prompt in PROMPTS]
    random.Random(4).shuffle(shuffled)
    held = tuple(prompt for prompt, _ in shuffled[4:])
    shots = Shots(held, ("",) * 4, (8, 9, 10, 11), {"num_inference_steps": 6, "guidance_scale": 3.0}, 4)
    pipe = demo_pipe()
    originals = shots.make(pipe, slice(0, 4))
    accelerate(pipe, plan=Plan.read(tmp_path / "plan.json"))
    images = shots.make(pipe, slice(0, 4))
    assert last_run(pipe).kinds == plan.mask
    figures = plan.figures[0]
    assert figures.psnr == pytest.approx(mean_psnr(images, originals), abs=1e-3)
    restore(pipe)
    within = plan.figures[1]
    assert within.what.startswith("DeepCache, interval") and within.speedup >= 2.0
    interval, branch = (int(part.split()[-1]) for part in within.what.split(",")[1:])
    rival = shots.make(accelerate(pipe, interval, branch), slice(0, 4))
    assert within.psnr == pytest.approx(mean_psnr(rival, originals), abs=1e-3)
    assert plan.figures[2].speedup < 2.0


def test_the_pipe_is_what_it_was():
    pipe = accelerate(demo_pipe(), 2)
    before = vars(state_of(restore(copy.copy(pipe))))
    found(pipe, trials=2)
    after = vars(state_of(pipe))
    assert after["cls"] is before["cls"] and after["modules"] == before["modules"]


def test_an_interrupted_search_goes_on_and_finds_the_same(plan_and_notes, tmp_path, monkeypatch):
    plan, notes = plan_and_notes
    lines = notes.read_text().splitlines(keepends=True)
    path = tmp_path / "trials.jsonl"
    path.write_text("".join(lines[:5]))
    calls = []
    under = Shots.under
    monkeypatch.setattr(Shots, "under", lambda *args: calls.append(args) or under(*args))
    (again,) = found(demo_pipe(), journal=path)
    assert again == plan and path.read_text() == notes.read_text()
    assert len(calls) == len(lines) - 5
    # All of it known: nothing is measured.
    calls.clear()
    assert found(demo_pipe(), journal=path) == [plan] and not calls
    with pytest.raises(InvalidSetting, match="not the same: guidance"):
        found(demo_pipe(), journal=path, guidance=4.0)


def test_several_budgets_share_what_was_measured(plan_and_notes, monkeypatch):
    plan, _ = plan_and_notes
    makes = []
    make = Shots.make
    monkeypatch.setattr(Shots, "make", lambda *args: makes.append(args) or make(*args))
    two = found(demo_pipe(), budgets=(2.0, 2.0))
    several = len(makes)
    makes.clear()
    (one,) = found(demo_pipe())
    assert two == [one, one] == [plan, plan] and several == len(makes)


def test_pipelines_without_known_halves_keep_both(monkeypatch):
    class Other(type(demo_pipe())):
        def __call__(self, prompt=None, num_inference_steps=50, guidance_scale=7.5, generator=None, output_type="pil"):
            return super().__call__(
                prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generator,
                output_type=output_type,
            )  # fmt: skip

    (plan,) = found(demo_pipe(Other), budgets=(2.5,), trials=3)
    assert plan.guidance == "both"


def test_without_guidance():
    (plan,) = found(demo_pipe(), guidance=1.0, trials=3)
    assert plan.guidance == "both" and np.isfinite(plan.figures[0].psnr)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"budgets": (1.0,)}, "A budget is a number over 1"),
        ({"budgets": ("fast",)}, "A budget is a number over 1"),
        ({"budgets": (60.0,)}, "the most that these branches can do"),
        ({"steps": 1}, "steps must be"),
        ({"trials": 0}, "trials must be"),
        ({"negatives": ["blue"]}, "8 prompts and 1 negative"),
    ],
)
def test_what_cannot_be_done(changes, reason):
    with pytest.raises(InvalidSetting, match=reason):
        found(demo_pipe(), **changes)


def test_too_few_prompts_and_pipelines_that_need_more():
    with pytest.raises(InvalidSetting, match=r"at least 8 different prompts.*got 7"):
        calibrate(demo_pipe(), [*PROMPTS[:7], PROMPTS[0]], budgets=[2.0], **SETTING)
    from diffusers import StableDiffusionImg2ImgPipeline

    with pytest.raises(UnsupportedPipeline, match="takes image"):
        found(demo_pipe(StableDiffusionImg2ImgPipeline))
    with pytest.raises(UnsupportedPipeline, match="LoopPipe takes no"):
        found(loop_pipe())


def test_fitted_plans_know_what_to_do_in_other_steps(monkeypatch):
    """Where weights were fitted, the line beside them is the one that was best with that mask."""
    from stepcache.calibration import _plan, candidates, laboratory
    from stepcache.plans.plan import MadeFor

    pipe = demo_pipe()
    from stepcache.calibration import _split
    from stepcache.calibration.journal import Journal

    sets = _split(PROMPTS, None, 0, {"num_inference_steps": 6, "guidance_scale": 3.0}, 8)
    lab = laboratory.Laboratory.open(pipe, sets, 1, Journal(None, {}))
    fitted = candidates.Candidate("FPFPFP", 0, True, fitted=True, order=3, early=1.0, late=0.5)
    plan = _plan(lab, 1.5, fitted, MadeFor.of(pipe, 3.0), {})
    scores = {d: lab.psnr(candidates.Candidate("FPFPFP", 0, True, early=d, late=d)) for d in (0.0, 0.5, 1.0)}
    assert plan.damping == max(scores, key=scores.get) and plan.order == 3 and len(plan.table) == 6
    accelerate(pipe, plan=plan)
    image = pipe("rose", num_inference_steps=6, guidance_scale=3.0, output_type="latent").images
    assert torch.isfinite(image).all() and last_run(pipe).kinds == "FPFPFP"
    restore(pipe)
