"""`stepcache calibrate` on the demo pipeline."""

import shlex

import pytest
from support.macs import macs_counted_once

from stepcache import accelerate, cli
from stepcache.calibration import laboratory
from stepcache.calibration.journal import Journal
from stepcache.commands import calibrate
from stepcache.images.make import Request
from stepcache.images.pipelines import load_demo
from stepcache.images.schedulers import swap_scheduler
from stepcache.plans.plan import Plan

QUICK = ["calibrate", "demo", "--steps", "4", "--trials", "1", "--budget", "2x", "--device", "cpu", "--size", "32"]


def test_it_writes_a_plan_that_runs_and_prints_a_table(tmp_path, capsys):
    out, prompts = tmp_path / "plan.json", tmp_path / "prompts.txt"
    prompts.write_text("rose\ntulip\nfox face\nlemon\npanda face\ntiger face\nred apple\nmushroom\n")
    arguments = [*QUICK, "--prompts", str(prompts), "--guidance", "2", "--out", str(out)]
    with macs_counted_once(laboratory):
        assert cli.main([*arguments, "--scheduler", "euler"]) == 0
    printed = capsys.readouterr().out
    plan = Plan.read(out)
    assert plan.made_with["command"] == shlex.join(["stepcache", *arguments, "--scheduler", "euler"])
    assert plan.made_for.scheduler["class"] == "EulerDiscreteScheduler" and plan.made_for.guidance == 2
    assert plan.mask in printed and f"{plan.figures[0].psnr:.1f} dB" in printed and "DeepCache, interval" in printed
    assert 'even full steps, predict="auto"' in printed
    assert (tmp_path / "plan.json.trials.jsonl").exists()
    pipe = load_demo("cpu")
    swap_scheduler(pipe, "euler", 4)
    accelerate(pipe, plan=out)
    assert pipe("rose", num_inference_steps=4, guidance_scale=2.0).images[0].size == (64, 64)
    # Once more, with other arguments: what is there is not mixed up with it.
    assert cli.main([*arguments, "--scheduler", "ddim"]) == 2
    assert "not of this calibration (not the same: scheduler)" in capsys.readouterr().err


@pytest.mark.parametrize("measured", [False, True])
def test_an_interrupt_says_how_to_go_on_if_something_is_measured(measured, tmp_path, monkeypatch, capsys):
    def interrupted(*args, journal, **options):
        with Journal(journal, {}) as notes:
            if measured:
                notes.add("a", [1.0])
            raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "calibrate", interrupted)
    out = tmp_path / "plan.json"
    assert cli.main([*QUICK, "--out", str(out)]) == 130
    more = f"; run the same command to go on from {out}.trials.jsonl" if measured else ""
    assert capsys.readouterr().err == f"stepcache: interrupted{more}\n"


def test_prompts_of_a_file(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("rose\ntulip\n")
    assert cli.main([*QUICK, "--prompts", str(prompts), "--out", str(tmp_path / "plan.json")]) == 2
    assert "at least 8 different prompts" in capsys.readouterr().err
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "rose", "seed": 3}\n')
    assert cli.main([*QUICK, "--prompts", str(own), "--out", str(tmp_path / "plan.json")]) == 2
    assert "'rose' has a seed or a size of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--budget", "1x"], "A budget is a number over 1"),
        (["--budget", "nanx"], "A budget is a number over 1"),
        (["--steps", "0"], "--steps must be"),
        (["--steps", "6,1"], "--steps must be"),
        (["--guidance", "nan"], "--guidance must be"),
        (["--seed", "-1"], "--seed must be"),
        (["--size", "big"], "--size must be"),
        (["--out", "plan.txt"], "ends in .json"),
        (["--trials", "0"], "--trials must be"),
    ],
)
def test_what_cannot_be_done(tmp_path, monkeypatch, capsys, arguments, reason):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*QUICK, *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_of_several_numbers_of_steps_one_is_chosen(tmp_path, capsys):
    out, prompts = tmp_path / "plan.json", tmp_path / "prompts.txt"
    prompts.write_text("rose\ntulip\nfox face\nlemon\npanda face\ntiger face\nred apple\nmushroom\n")
    several = ["--steps", "8", "--trials", "3", "--prompts", str(prompts), "--out", str(out)]  # besides 4
    with macs_counted_once(laboratory):
        assert cli.main([*QUICK, *several]) == 0
    plan, printed = Plan.read(out), capsys.readouterr().out
    own = plan.made_with["call"]["num_inference_steps"]
    assert plan.made_with["steps"] == [8, 4] and own == len(plan.mask) and own in (4, 8)
    assert f"against the run of 8 steps; the plan is for {own} steps" in printed
    assert "fewer steps: 4, all full" in printed


@pytest.mark.parametrize(("steps", "guidance", "most"), [("6", "3", "6 steps"), ("6,4", "1", "4 steps")])
def test_a_budget_out_of_reach_is_said_before_anything_runs(steps, guidance, most, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: pytest.fail("made an image"))
    arguments = ["calibrate", "demo", "--steps", steps, "--guidance", guidance, "--budget", "100", "--device", "cpu"]
    with macs_counted_once(laboratory):
        assert cli.main([*arguments, "--out", str(tmp_path / "plan.json")]) == 2
    errors = capsys.readouterr().err
    assert f"No run of {most} is 100x cheaper: the most that these branches can save is " in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", ["20,", "20;50", "", "20.5", "x,30"])
def test_steps_that_are_no_numbers(capsys, steps):
    with pytest.raises(SystemExit):
        cli.main([*QUICK, "--steps", steps])
    assert "argument --steps: must be integers with commas between" in capsys.readouterr().err


def test_a_budget_that_is_no_number(capsys):
    with pytest.raises(SystemExit):
        cli.main([*QUICK, "--budget", "fast"])
    assert "must be a number over 1 such as 2.5x; got 'fast'" in capsys.readouterr().err
