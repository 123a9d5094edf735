import argparse
import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import lines_of, run_command
from support.small import demo_pipe

from stepcache import cli
from stepcache.commands import demo
from stepcache.commands.options import demo as options
from stepcache.commands.quiet import quiet
from stepcache.images.make import Made, Request
from stepcache.images.prompts import bundled_prompts
from stepcache.images.sheet import SheetRow, contact_sheet


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """(status, output, errors, path) of one small demo."""
    path = tmp_path_factory.mktemp("demo") / "sheet.png"
    arguments = ["--prompt", "red apple", "--prompt", "fox face", "--interval", "1,3", "--branch", "1"]
    return *run_command("demo", *arguments, "--steps", 4, "--out", path), path


def test_the_table_has_every_setting_with_its_schedule(small_run):
    status, output, _, _ = small_run
    assert status == 0
    original, exact, reused = (line for line in lines_of(output) if line.startswith(("original", "interval")))
    assert original.endswith(" 1.00x FFFF")
    assert exact.startswith("interval 1, branch 1 ") and exact.endswith(" identical FFFF")
    assert reused.startswith("interval 3, branch 1 ") and reused.endswith(" dB FPPF")


def test_the_reused_image_is_close_but_not_the_same(small_run):
    (line,) = (line for line in lines_of(small_run[1]) if line.startswith("interval 3"))
    decibel = float(line.split()[-3])
    assert 12 < decibel < 50


def test_a_line_keeps_the_image_better_than_holding(tmp_path):
    """What the demo shows by default; `--predict hold` is DeepCache's algorithm."""
    decibels = {}
    for predict in ("hold", "auto"):
        options = ["--prompt", "red apple", "--interval", "3", "--branch", "0", "--steps", 12]
        options += [] if predict == "auto" else ["--predict", predict]
        _, output, _ = run_command("demo", *options, "--out", tmp_path / "sheet.png")
        assert f"predict={predict}" in output
        (line,) = (line for line in lines_of(output) if line.startswith("interval 3"))
        decibels[predict] = float(line.split()[-3])
    assert decibels["auto"] > decibels["hold"] + 1


def test_the_picture_has_a_row_a_setting_and_a_column_a_prompt(small_run):
    *_, path = small_run
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet.convert("RGB"))
    empty = np.full((64, 64, 3), 255, np.uint8)
    blank = contact_sheet("", "", ["red apple", "fox face"], [SheetRow("", [Image.fromarray(empty)] * 2)] * 3)
    assert abs(pixels.shape[0] - blank.height) < 200 and pixels.shape[1] == blank.width
    assert (pixels[0] == 255).all() and (pixels[-1] == 255).all()
    assert ((pixels[..., 0] > 150) & (pixels[..., 1] < 90)).mean() > 0.01  # apples and foxes are red


def test_names_that_the_pipeline_does_not_know_are_said(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_all", lambda *args: 1 / 0)
    said = io.StringIO()
    prompts = [f"--prompt={name}" for name in ("red apple", "Tiger  face", "foo", "a car")]
    with contextlib.redirect_stderr(said), pytest.raises(ZeroDivisionError):
        cli.main(["demo", *prompts, "--out", str(tmp_path / "x.png")])
    (line,) = (line for line in said.getvalue().splitlines() if line.startswith("stepcache: "))
    assert "does not know 'foo', 'a car': " in line and "`stepcache demo --names` prints the 354 that" in line


def test_the_names_fit_the_pipeline(capsys):
    assert cli.main(["demo", "--names"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert len(names) == len(set(names)) == 354
    assert {*options.PROMPTS, *(prompt.text for prompt in bundled_prompts("demo"))} <= set(names)
    demo.check_length(demo_pipe(), names)


def test_one_image_of_one_step_is_singular(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "run_all", lambda *args: 1 / 0)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(ZeroDivisionError):
        cli.main(["demo", "--prompt", "fox face", "--steps", "1", "--out", str(tmp_path / "x.png")])
    assert said.getvalue().startswith("1 image of 64x64 px, 1 step of DDIMScheduler, ")


def test_progress_is_shown_and_libraries_are_not_heard(small_run):
    _, output, errors, _ = small_run
    assert "100% 12/12 images [" in errors and "interval 1, branch 1" in errors and "\r" not in errors
    assert "interval 3, branch 1" in errors
    for noise in ("torchvision", "Loading", "Warning", "deprecated"):
        assert noise not in errors + output


def test_the_pipeline_is_a_whole_stable_diffusion_in_float32():
    with quiet("diffusers", "transformers"):
        pipe = demo.load_demo()
    assert type(pipe).__name__ == "StableDiffusionPipeline"
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    twin = demo.twin(pipe)
    assert twin is not pipe and twin.unet is pipe.unet and twin.scheduler is pipe.scheduler


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", " "], "--prompt ' ' is empty"),
        (["--prompt", "face " * 30], "takes 14"),
        (["--interval", "0"], "interval must be an integer of at least 1, got 0"),
        (["--branch", "12"], "branch=12 is out of range"),
        (["--branch", "0,-1"], "branch=-1 is out of range"),
        (["--steps", "0"], "--steps must be an integer of at least 1, got 0"),
        (["--steps", "2000"], "DDIMScheduler cannot do --steps 2000"),
        (["--scheduler", "lcm", "--steps", "60"], "LCMScheduler cannot do --steps 60"),
        (["--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["--seed", "-1"], "--seed must be from 0"),
        (["--out", "no/such/place.png"], "no/such/place.png: No such file or directory"),
        (["--out", "picture.jpg"], "must be a file name that ends in .png, got 'picture.jpg'"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_generated(arguments, words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: pytest.fail("generated an image"))
    assert cli.main(["demo", *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("stepcache: ") and words in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--scheduler", "nonsense"], ["--interval", "2.5"], ["--branch", "1,"]])
def test_arguments_that_do_not_parse(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["demo", *arguments])
    assert exit.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_a_directory_as_picture_is_refused(tmp_path, capsys):
    (tmp_path / "x.png").mkdir()
    assert cli.main(["demo", "--out", str(tmp_path / "x.png")]) == 2
    assert "Is a directory" in capsys.readouterr().err


def result(name, level, *timings, kinds="FP"):
    return demo.Result(name, np.full((2, 8, 8, 3), level), list(timings), kinds)


def test_table_speed_up_is_of_the_best_times_and_psnr_of_the_original():
    original, other = result("original", 0.5, 3.0, 2.0), result("interval 2, branch 0", 0.6, 1.0, 1.5, kinds="FPFP")
    _, first, second = lines_of(demo.table(original, [other]))
    assert first == "original 2.00 1.00x FP"
    assert second == "interval 2, branch 0 1.00 2.00x 20.0 dB FPFP"


def test_table_cuts_schedules_that_are_too_long_for_a_line():
    text = demo.table(result("original", 0.5, 1.0, kinds="F" * 200), [])
    assert text.endswith("F... (200)") and max(map(len, text.splitlines())) < 125


def test_timings_that_differ_are_reported():
    assert demo.unsteadiness([result("original", 0.5, 1.0, 1.2)]) == ""
    assert "factor of 3.0" in demo.unsteadiness([result("original", 0.5, 1.0, 1.2), result("x", 0.5, 3.0, 1.0)])


def test_a_slow_machine_gets_one_round(monkeypatch):
    monkeypatch.setattr(demo, "SECONDS", -1)
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: Made(np.zeros((1, 8, 8, 3)), 1.0, (False,)))
    pipe = argparse.Namespace(scheduler=argparse.Namespace(timesteps=[2, 1]), device=torch.device("cpu"))
    (only,) = demo.run_all({"original": pipe}, Request(["x"], [0], 2))
    assert len(only.timings) == 1 and only.kinds == "FF"
    assert "too busy to time each setting twice" in demo.unsteadiness([only])


def test_an_identical_row_says_so():
    original = result("original", 0.5, 2.0)
    assert " identical " in demo.table(original, [result("interval 1, branch 0", 0.5, 2.0)])
    assert demo.draw(original, [result("interval 1, branch 0", 0.5, 2.0)], ["x", "y"], "s").size[0] > 0
