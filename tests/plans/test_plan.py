"""Plans: the file, what they were made for, and runs with them."""

import copy
import json
import logging
import math
import resource
import signal

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from support.small import demo_pipe, generate, make_unet, state_of, tiny_pipe

from stepcache import Schedule, accelerate, denoising, last_run, warmup
from stepcache.errors import InvalidSetting
from stepcache.graphs.settings import GraphSettings
from stepcache.plans.plan import Figures, MadeFor, Plan, plan_of, stretched
from stepcache.reuse.predict import Apart, Fitted, Line
from stepcache.run.attach import attach, attachment_of
from stepcache.settings import Settings

MASK = "FPPFPF"
# Far from any line, so that a run without them is another one. Step 4 is left to the line.
TABLE = {
    **{(value, step, (0,)): (0.9,) for value in (0, 1) for step in (1, 2)},
    **{(value, 4, (3, 0)): (1.6, -0.5) for value in (0, 1)},
}


def make_plan(pipe, **changes):
    made = {
        "made_for": MadeFor.of(pipe, 3.0),
        "mask": MASK,
        "branch": 1,
        "guidance": "reuse",
        "order": 2,
        "damping": 0.5,
        "table": TABLE,
        "speedup": 1.75,
        "figures": (Figures("plan", 1.75, 40.5, 0.99), Figures("DeepCache, interval 2, branch 0", 1.8, 31.0, 0.9)),
        "made_with": {"seed": 0, "command": "stepcache calibrate"},
    }
    return Plan(**{**made, **changes})


def by_hand(pipe, schedule=MASK, predictor=None, **call):
    """The same run, with the session's own parts put together here."""
    predictor = predictor or Fitted(TABLE, 2, Line(0.5))
    attach(pipe, Settings(Schedule.explicit(schedule), 1, GraphSettings(), 4, predictor, reuse_guidance=True))
    return generate(pipe, **call)


def test_a_file_holds_all_of_it(tmp_path):
    plan = make_plan(tiny_pipe())
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan and plan_of(str(tmp_path / "plan.json")) == plan
    body = json.loads((tmp_path / "plan.json").read_text())
    assert body["format"] == 2 and body["mask"] == MASK and body["made_for"]["scheduler"]["class"] == "DDIMScheduler"


@pytest.mark.parametrize("given", ["file", "object"])
def test_a_run_goes_by_the_plan(tmp_path, given):
    plan = make_plan(tiny_pipe())
    plan.write(tmp_path / "plan.json")
    want = by_hand(tiny_pipe())
    pipe = accelerate(tiny_pipe(), plan=plan if given == "object" else tmp_path / "plan.json")
    for _ in range(2):
        assert torch.equal(generate(pipe), want)
    assert last_run(pipe).kinds == MASK
    held = accelerate(tiny_pipe(), branch=1, guidance="reuse", schedule=Schedule.explicit(MASK))
    assert not torch.equal(generate(held), want)
    assert torch.equal(generate(copy.deepcopy(pipe)), want)


def test_a_plan_without_weights_is_the_line():
    plan = make_plan(tiny_pipe(), table={}, damping=0.0, order=1, guidance="both", branch=0)
    want = generate(accelerate(tiny_pipe(), schedule=Schedule.explicit(MASK)))
    assert torch.equal(generate(accelerate(tiny_pipe(), plan=plan)), want)


APART = {"guidance": "both", "apart": True, "damping": 1.0, "difference": -0.25}


@pytest.mark.parametrize("table", [TABLE | {(1, 4, (3, 0)): (0.7, 0.3)}, {}], ids=["weights", "lines"])
def test_a_plan_may_weigh_the_halves_apart(tmp_path, table):
    make_plan(tiny_pipe(), table=table, **APART).write(tmp_path / "plan.json")
    plan = Plan.read(tmp_path / "plan.json")
    assert (plan.apart, plan.difference) == (True, -0.25)
    otherwise = Apart(1.0, -0.25)
    assert plan.predictor == (Fitted(table, 2, otherwise, apart=True) if table else otherwise)
    call = {"guidance_scale": 7.5, "steps": 6}
    found = generate(accelerate(tiny_pipe(), plan=plan), **call)
    pipe = tiny_pipe()
    attach(pipe, Settings(Schedule.explicit(MASK), 1, GraphSettings(), 4, plan.predictor))
    assert torch.equal(found, generate(pipe, **call))
    linked = make_plan(tiny_pipe(), table=table, guidance="both", damping=1.0)
    assert not torch.equal(found, generate(accelerate(tiny_pipe(), plan=linked), **call))


def test_a_file_of_format_1_is_a_plan_whose_halves_are_not_apart(tmp_path):
    plan = make_plan(tiny_pipe())
    body = json.loads(plan.to_json()) | {"format": 1}
    del body["apart"], body["difference"]
    (tmp_path / "old.json").write_text(json.dumps(body))
    assert Plan.read(tmp_path / "old.json") == plan and not plan.apart
    # The new keys are no keys of that format, and it does not lack them in the other.
    for wrong, reason in (
        (body | {"apart": True}, "apart is no key"),
        (body | {"format": 2}, "it lacks apart, difference"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(InvalidSetting, match=reason):
            Plan.read(tmp_path / "wrong.json")


def test_warm_up_and_hand_written_loops():
    pipe = accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()))
    assert warmup(pipe, 64, 64, progress=False).kinds == "FP"
    pipe.scheduler.set_timesteps(6)
    x, text = torch.zeros(1, 4, 16, 16), torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
    pipe._guidance_scale = 1.0
    with torch.no_grad(), denoising(pipe):
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t, encoder_hidden_states=text).sample, t, x).prev_sample
    assert last_run(pipe).kinds == MASK


@pytest.mark.parametrize(
    "beside",
    [{"interval": 2}, {"branch": 1}, {"schedule": Schedule.uniform(2)}, {"predict": "linear"}, {"guidance": "reuse"}],
)
def test_what_a_plan_settles_is_not_given_beside_it(beside):
    with pytest.raises(InvalidSetting, match=f"plan= and {next(iter(beside))}="):
        accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()), **beside)


def test_adapt_is_for_plans():
    with pytest.raises(InvalidSetting, match="adapt=True is for plan="):
        accelerate(tiny_pipe(), adapt=True)
    with pytest.raises(InvalidSetting, match="adapt must be"):
        accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()), adapt="yes")


def test_another_model_is_refused_before_anything_changes():
    plan = make_plan(tiny_pipe())
    other = copy.deepcopy(tiny_pipe().unet)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.numel() > 1 else 0
    for unet, reason in ((other, "other weights"), (make_unet("sd"), "another config")):
        pipe = demo_pipe(unet=unet)
        before = state_of(pipe)
        with pytest.raises(InvalidSetting, match=rf"{reason}.*adapt=True"):
            accelerate(pipe, plan=plan)
        assert vars(state_of(pipe)) == vars(before)
        assert accelerate(pipe, plan=plan, adapt=True) is pipe
    # Put in afterwards, it is noticed by the next run.
    pipe = accelerate(tiny_pipe(), plan=plan)
    pipe.unet = other
    with pytest.raises(InvalidSetting, match="other weights"):
        generate(pipe)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_model_in_another_dtype_or_with_a_lora_is_the_same(dtype):
    from peft import LoraConfig

    made_for = MadeFor.of(tiny_pipe(), 3.0)
    unet = copy.deepcopy(tiny_pipe().unet)
    assert made_for.not_the_model(unet.to(dtype)) == ""
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights="gaussian"))
    assert made_for.not_the_model(unet) == ""


def test_weights_that_cannot_be_read_are_not_held_against_a_model():
    made_for = MadeFor.of(tiny_pipe(), 3.0)
    assert made_for.not_the_model(copy.deepcopy(tiny_pipe().unet).to("meta")) == ""


def test_another_scheduler_is_refused_with_what_differs():
    plan = make_plan(tiny_pipe())
    for scheduler, reason in (
        (DPMSolverMultistepScheduler.from_config(tiny_pipe().scheduler.config), "class 'DDIMScheduler' and not 'DPM"),
        (type(tiny_pipe().scheduler).from_config(tiny_pipe().scheduler.config, timestep_spacing="trailing"), "spacing"),
    ):
        with pytest.raises(InvalidSetting, match=reason):
            accelerate(demo_pipe(scheduler=scheduler), plan=plan)
        pipe = accelerate(tiny_pipe(), plan=plan)
        pipe.scheduler = scheduler
        with pytest.raises(InvalidSetting, match=reason):
            generate(pipe)
        assert torch.isfinite(generate(accelerate(demo_pipe(scheduler=scheduler), plan=plan, adapt=True))).all()


def test_another_number_of_steps_is_refused_at_the_first_call():
    pipe = accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()))
    with pytest.raises(InvalidSetting, match=r"for 6 steps.*of 9 steps.*adapt=True"):
        generate(pipe, steps=9)
    assert last_run(pipe).kinds == ""
    generate(pipe)  # and nothing is left of it


def test_adapt_stretches_the_mask_and_takes_the_line(caplog):
    pipe = accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()), adapt=True)
    want = by_hand(tiny_pipe(), "FPPPFPPFP", Line(0.5), steps=9)
    with caplog.at_level(logging.WARNING, "stepcache"):
        assert torch.equal(generate(pipe, steps=9), want)
        generate(pipe, steps=9)
    assert last_run(pipe).kinds == "FPPPFPPFP" == stretched(MASK, 9)
    assert [r.message for r in caplog.records if "stretched to FPPPFPPFP" in r.message] == [caplog.records[0].message]
    # The plan's own number of steps is still the plan's own run.
    assert torch.equal(generate(pipe), by_hand(tiny_pipe()))


def test_adapt_takes_both_lines_of_a_plan_with_halves_apart(caplog):
    plan = make_plan(tiny_pipe(), **APART)
    assert plan.for_steps(9, adapt=True) == (Schedule.explicit("FPPPFPPFP"), Apart(1.0, -0.25))
    with caplog.at_level(logging.WARNING, "stepcache"):
        generate(accelerate(tiny_pipe(), plan=plan, adapt=True), steps=9)
    assert "a line damped by 1 (the difference of the guidance halves by -0.25)" in caplog.text


def test_image_to_image_has_fewer_steps():
    call = {"image": Image.new("RGB", (64, 64), "gray"), "sized": False}
    plan = make_plan(tiny_pipe())
    pipe = accelerate(tiny_pipe(StableDiffusionImg2ImgPipeline), plan=plan)
    with pytest.raises(InvalidSetting, match="of 3 steps"):
        generate(pipe, strength=0.5, **call)
    generate(pipe, strength=1.0, **call)
    accelerate(pipe, plan=plan, adapt=True)
    generate(pipe, strength=0.5, **call)
    assert last_run(pipe).kinds == stretched(MASK, 3)


def test_another_guidance_scale_is_said(caplog):
    pipe = accelerate(tiny_pipe(), plan=make_plan(tiny_pipe()))
    with caplog.at_level(logging.WARNING, "stepcache"):
        generate(pipe)
        assert not caplog.records
        generate(pipe, guidance_scale=7.5)
    assert "guidance scale 3 in a run with 7.5" in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 3}, "format is 3, and this version reads 1 and 2"),
        ({"mask": "PPF"}, "must start with a full step"),
        ({"branch": -1}, "branch of at least 0"),
        ({"guidance": "none"}, '"both" or "reuse"'),
        ({"order": 4}, "order of 1 to 3"),
        ({"order": 1}, "damping"),
        ({"damping": 1.5}, "damping of -1 to 1"),
        ({"table": [{"value": 0, "step": 1, "full": [0], "weights": [1, 2]}]}, "step 1 do not fit"),
        ({"figures": None}, "figures must be a list, got None"),
        ({"mask": None}, "mask must be a string, got None"),
    ],
)
def test_files_that_are_none(tmp_path, change, reason):
    path = tmp_path / "plan.json"
    body = json.loads(make_plan(tiny_pipe()).to_json())
    path.write_text(json.dumps({**body, **change}))
    with pytest.raises(InvalidSetting, match=reason) as error:
        accelerate(tiny_pipe(), plan=path)
    assert "plan.json is no plan" in str(error.value)


def test_text_that_is_no_plan(tmp_path):
    path = tmp_path / "plan.json"
    for text in ("", "[]", "{}", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(InvalidSetting, match="is no plan"):
            Plan.read(path)
    with pytest.raises(InvalidSetting, match="plan must be a file"):
        accelerate(tiny_pipe(), plan=3)
    with pytest.raises(InvalidSetting, match=r"none.json cannot be read: No such file"):
        accelerate(tiny_pipe(), plan=tmp_path / "none.json")


def test_a_scheduler_with_an_infinite_setting_and_images_that_are_identical(tmp_path):
    """DPM++ clips lambda at -inf, which JSON lacks; so it does a PSNR of identical images."""
    pipe = tiny_pipe(scheduler=DPMSolverMultistepScheduler.from_config(tiny_pipe().scheduler.config))
    plan = make_plan(pipe, figures=(Figures("plan", 1.5, math.inf, 1.0),), made_with={"calibration_psnr": math.inf})
    plan.write(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    body = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert body["figures"][0]["psnr"] == body["made_with"]["calibration_psnr"] == "Infinity"
    assert body["made_for"]["scheduler"]["lambda_min_clipped"] == "-Infinity"
    assert Plan.read(tmp_path / "plan.json") == plan and plan.figures[0].psnr == math.inf
    accelerate(pipe, plan=tmp_path / "plan.json")
    # As files were written before.
    (tmp_path / "old.json").write_text(text.replace('"Infinity"', "Infinity").replace('"-Infinity"', "-Infinity"))
    assert Plan.read(tmp_path / "old.json") == plan
    accelerate(pipe, plan=tmp_path / "old.json")


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "plan.json"
    old = make_plan(tiny_pipe())
    old.write(path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        with pytest.raises(OSError, match=r"plan\.json"):
            make_plan(tiny_pipe(), mask="FFFFFF").write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert Plan.read(path) == old and [each.name for each in tmp_path.iterdir()] == ["plan.json"]
    for junk in (None, 3, b"plan.json", "", "a\0b"):
        with pytest.raises(InvalidSetting, match="path must be a path"):
            old.write(junk)


def test_nan_in_a_plans_weights_never_reaches_an_image(tmp_path):
    body = json.loads(make_plan(tiny_pipe()).to_json())
    body["table"][1]["weights"] = [float("nan")]
    (tmp_path / "plan.json").write_text(json.dumps(body))
    with pytest.raises(InvalidSetting, match=r"plan\.json is no plan.*table\[1\]\.weights\[0\] must be a finite"):
        accelerate(tiny_pipe(), plan=tmp_path / "plan.json")


def test_an_absurd_number_of_steps_is_not_stretched_to():
    with pytest.raises(InvalidSetting, match="of 1000000000000 steps"):
        make_plan(tiny_pipe()).for_steps(10**12, adapt=True)


def test_a_branch_that_the_unet_does_not_have():
    pipe = tiny_pipe()
    with pytest.raises(InvalidSetting, match="branch=40"):
        accelerate(pipe, plan=make_plan(pipe, branch=40))
    assert attachment_of(pipe) is None


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, 12, 50])
def test_stretched_masks_start_full_and_keep_their_share(steps):
    mask = stretched("FPPFPP", steps)
    assert len(mask) == steps and mask[0] == "F" and mask.count("F") == min(2, steps)
    assert stretched("FPPFPP", 6) == "FPPFPP"
