import argparse
import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from support import small
from support.clip import save_clip
from support.commands import lines_of, run_command
from support.comparing import fake_make

from stepcache import cli
from stepcache.commands import compare
from stepcache.comparison import runs
from stepcache.comparison.page import write_page
from stepcache.comparison.summary import summaries
from stepcache.images import fidelity, pipelines
from stepcache.images.make import Request
from stepcache.images.prompts import Prompt

PROMPTS = [
    {"prompt": "red apple", "seed": 3},
    {"prompt": "fox face", "negative_prompt": "tiger face", "height": 48, "width": 80},
]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """(status, output, errors, page, sheet) of a small run on a pipeline's directory, with CLIP scores."""
    path = tmp_path_factory.mktemp("compare")
    save_clip(path / "clip")
    (path / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    result = run_command(
        "compare", small.DEMO, "--prompts", path / "prompts.jsonl", "--interval", "1,3", "--branch", 1, "--steps", 4,
        "--guidance", "3", "--drift", "1", "--clip", path / "clip", "--out", path / "page.html", "--device", "cpu",
    )  # fmt: skip
    return *result, (path / "page.html").read_text(), path / "page.png"


def test_the_table_has_every_setting(small_run):
    status, output, _, _, _ = small_run
    assert status == 0
    original, exact, reused, fewer = (line for line in lines_of(output) if re.match(r"original|interval|fewer", line))
    assert re.fullmatch(r"original [\d.]+ -?[\d.]+", original)  # seconds and CLIP score
    assert re.fullmatch(r"interval 1, branch 1 [\d.]+ [\d.]+x identical identical 1\.000 1\.000 -?[\d.]+", exact)
    assert original.split()[-1] == exact.split()[-1]
    assert re.fullmatch(r"interval 3, branch 1 [\d.]+ [\d.]+x [\d.]+ dB [\d.]+ dB 0\.\d+ 0\.\d+ -?[\d.]+", reused)
    assert re.fullmatch(r"fewer steps: 2 of 4 [\d.]+ [\d.]+x [\d.]+ dB [\d.]+ dB 0\.\d+ 0\.\d+ -?[\d.]+", fewer)
    assert "LPIPS needs" in output and "CLIP scores need" not in output
    assert "2 prompts, 4 steps of DDIMScheduler, guidance 3, float32" in output


def test_fewer_steps_are_said_before_and_after(small_run):
    """Interval 3 of four steps: two full ones, and two at a share of its size."""
    _, output, _, page, _ = small_run
    assert "Fewer steps at no higher cost, of 4: 2 for interval 3, branch 1.\n" in output
    assert "Fewer steps are left out for interval 1, branch 1: it costs as much as all 4 steps." in output
    share = 0.240  # `stepcache inspect demo`, branch 1
    words = (
        "2 prompts are too few to tell whether interval 3, branch 1 or 2 of 4 steps at no higher cost (2.0 full U-Net "
        f"calls, against {2 + 2 * share:.1f} with reuse) come closer to the original; at least 4 are needed."
    )
    assert words in output and words in page
    assert output.index("fewer steps: 2 of 4") < output.index(words)
    assert page.index(words) < page.index('id="overview"')
    assert "Fewer steps are left out for interval 1" in page


def test_without_fewer_steps(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(compare, "count", lambda *args: pytest.fail("counted"))
    monkeypatch.setattr(compare, "try_sizes", lambda *args: [])
    monkeypatch.setattr(compare, "make_all", lambda pipe, requests, comparison, *rest: seen.append(comparison) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_command("compare", "demo", "--no-fewer-steps", "--predict", "0.5", "--out", tmp_path / "x.html")
    assert [each.name for each in seen[0].settings] == [f"interval {n}, branch 0, predict 0.5" for n in (2, 3, 5)]


def test_a_cost_that_cannot_be_counted_only_costs_the_fewer_steps(monkeypatch, tmp_path, capsys):
    seen = []
    monkeypatch.setattr(compare, "try_sizes", lambda *args: [])  # a pipeline that does not call its U-Net as a module
    monkeypatch.setattr(compare, "make_all", lambda pipe, requests, comparison, *rest: seen.append(comparison) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_command("compare", "demo", "--out", tmp_path / "x.html")
    assert seen[0].settings == seen[0].variants
    assert seen[0].notes[0].startswith("Fewer steps are left out, since their cost cannot be counted: No")


def pictures(page, kind):
    """The pixels of the page's images of that class, 0..1."""
    uris = re.findall(rf'<figure class="{kind}".*?src="data:image/webp;base64,([^"]+)"', page, re.DOTALL)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))).convert("RGB")) / 255 for uri in uris]


def test_the_page_has_the_images_that_the_pipeline_makes(small_run):
    """Against stock calls of the same pipeline, with the prompts' seeds, sizes and negative prompts."""
    page = small_run[3]
    originals, faster, differences = (pictures(page, kind) for kind in ("original", "faster", "difference"))
    assert [len(images) for images in (originals, faster, differences)] == [2, 6, 6]
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
    first = small.demo_pipe()("red apple", generator=torch.Generator().manual_seed(3), **options).images[0]
    fewer = small.demo_pipe()(
        "red apple", generator=torch.Generator().manual_seed(3), **{**options, "num_inference_steps": 2}
    ).images[0]
    second = small.demo_pipe()(
        "fox face", negative_prompt="tiger face", height=48, width=80, generator=torch.Generator().manual_seed(1),
        **options,
    ).images[0]  # fmt: skip
    for shown, made in zip((*originals, faster[2]), (first, second, fewer), strict=True):
        assert shown.shape == made.shape
        assert np.abs(shown - made).max() <= 0.5 / 255 + 1e-6
    for i, original in enumerate(originals):
        exact = faster[3 * i]
        assert (exact == original).all() and not differences[3 * i].any()
        for j in (1, 2):
            fast = faster[3 * i + j]
            expected = np.clip(4 * np.abs(fast - original).max(-1, keepdims=True), 0, 1)
            assert np.abs(differences[3 * i + j] - expected).max() < 0.03  # shown in 8 bits each
            psnr = float(re.findall(r"<dt>PSNR</dt><dd>([\d.]+) dB", page)[2 * i + j - 1])
            assert fidelity.psnr(fast[None], original[None])[0] == pytest.approx(psnr, abs=0.2)


def test_the_page_says_what_was_run(small_run):
    page = small_run[3]
    for words in ("DDIMScheduler", "StableDiffusionPipeline", "float32", torch.__version__, "prompts.jsonl", "CLIP"):
        assert words in page
    assert page.count('class="drift"') == 2 and "the first prompt;" not in page
    assert "mean over\n    the first prompt." in page
    assert 'aria-label="2 of 4 U-Net calls are partial: FPPF"' in page


def test_the_sheet_has_a_row_a_setting(small_run):
    with Image.open(small_run[4]) as sheet:
        assert sheet.format == "PNG"
        pixels = np.asarray(sheet.convert("RGB"))
    assert ((pixels[..., 0] > 150) & (pixels[..., 1] < 90)).mean() > 0.01  # red apples and foxes
    assert pixels.shape[0] > 3 * 192


def test_progress_is_shown_and_libraries_are_not_heard(small_run):
    _, output, errors, _, _ = small_run
    assert "100% 9/9 images [" in errors and "\r" not in errors  # two prompts, four settings, one run for drift
    assert "interval 3, branch 1" in errors and "fewer steps: 2 of 4" in errors and "drift" in errors
    for noise in ("torchvision (not", "Loading", "Warning", "deprecated"):
        assert noise not in errors + output


def test_the_bundled_prompts_fit_the_pipeline(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(compare, "make_all", lambda pipe, requests, *rest: asked.extend(requests) or 1 / 0)
    monkeypatch.setattr(compare, "try_sizes", lambda *args: [])
    for pipeline, first in (("demo", "fox face"), (small.DEMO, "a macro photograph")):
        asked.clear()
        with pytest.raises(ZeroDivisionError):
            run_command("compare", pipeline, "--out", tmp_path / "x.html")
        assert asked[0].text.startswith(first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no/such/place"], "'no/such/place' is not a pipeline: there is no no/such/place/model_index.json."),
        (["demo", "--prompts", "nowhere.txt"], "nowhere.txt cannot be read: No such file or directory"),
        (["demo", "--prompts", "empty.txt"], "empty.txt has no prompts"),
        (["demo", "--prompts", "bad.jsonl"], "bad.jsonl, line 2: unknown key 'promt'"),
        (["demo", "--interval", "0"], "interval must be an integer of at least 1, got 0"),
        (["demo", "--predict", "straight"], "predict must be "),
        (["demo", "--predict", "1.5"], "got 1.5"),
        (["demo", "--predict", "1,2,3"], "got (1.0, 2.0, 3.0)"),
        (["demo", "--predict", "nan"], "got nan (a NaN)"),
        (["demo", "--branch", "12"], "branch=12 is out of range"),
        (["demo", "--steps", "0"], "--steps must be an integer of at least 1, got 0"),
        (["demo", "--steps", "2000"], "DDIMScheduler cannot do --steps 2000"),
        (["demo", "--scheduler", "lcm", "--steps", "60"], "LCMScheduler cannot do --steps 60"),
        (["demo", "--drift", "-1"], "--drift must be an integer of at least 0, got -1"),
        (["demo", "--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["demo", "--seed", "-1"], "--seed must be from 0"),
        (["demo", "--size", "big"], "--size must be pixels such as 512 or 512x768 (height x width), got 'big'"),
        (["demo", "--size", "64x60"], "--size must be a multiple of 8 pixels and at least 16, got 60"),
        (["demo", "--device", "nonsense"], "--device 'nonsense' cannot be used here"),
        (["demo", "--clip", "nowhere"], "--clip 'nowhere' is not the directory of a CLIP model"),
        (["demo", "--out", "no/such/place.html"], "no/such/place.html: No such file or directory"),
        (["demo", "--out", "taken.html"], "taken_files is no folder, and the pictures of taken.html may need one"),
        (["demo", "--out", "page.png"], "--out must be a file name that ends in .html, got 'page.png'"),
        (["demo", "--sheet", "sheet.jpg"], "--sheet must be a file name that ends in .png, got 'sheet.jpg'"),
    ],
)
def test_bad_arguments_are_said_before_anything_is_made(arguments, words, monkeypatch, tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "taken_files").touch()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"promt": "x"}\n')
    there = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Request, "make", lambda *args, **kwargs: pytest.fail("made an image"))
    status, _, errors = run_command("compare", *arguments)
    assert status == 2
    assert errors.startswith("stepcache: ") and words in errors
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("arguments", [[], ["demo", "--nonsense"], ["demo", "--dtype", "int8"]])
def test_arguments_that_do_not_parse(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["compare", *arguments])
    assert exit.value.code == 2


def test_directories_that_are_no_pipeline_with_a_unet(tmp_path):
    index = tmp_path / "model_index.json"
    for text, words in (
        ("{", f"{index} is not JSON"),
        ('{"_class_name": "FluxPipeline", "transformer": []}', "FluxPipeline without a U-Net"),
        ('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}', "cannot load"),
    ):
        index.write_text(text)
        status, _, errors = run_command("compare", tmp_path, "--out", tmp_path / "x.html")
        assert status == 2 and words in errors


def test_pipelines_that_start_from_an_image_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines, "load_demo", lambda *args: small.demo_pipe(StableDiffusionImg2ImgPipeline))
    status, _, errors = run_command("compare", "demo", "--out", tmp_path / "x.html")
    assert status == 2
    assert "StableDiffusionImg2ImgPipeline takes image: compare is for text-to-image" in errors


def test_an_interrupted_run_writes_what_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "last_run", lambda pipe: argparse.Namespace(kinds="FP"))
    monkeypatch.setattr(Request, "make", fake_make(0.1, 0.5, 0.6, 0.7, 0.5, None))
    status, output, _ = run_command(
        "compare", "demo", "--interval", "2", "--steps", "2", "--drift", "0", "--out", tmp_path / "x.html"
    )
    assert status == 130
    assert "Interrupted after 1 of 12 prompts. The figures are over the prompts done." in output
    assert re.search(r"^fewer steps: 1 of 2 .*14\.0 dB", output, re.MULTILINE)
    page = (tmp_path / "x.html").read_text()
    assert "Interrupted after 1 of 12 prompts." in page and ">1 of 12 prompts (interrupted), 2 steps of DDIM" in page
    assert (tmp_path / "x.png").exists()


def documented(monkeypatch, page, *levels, censored=()):
    """(status, document, errors, the table's rows as values) of a run with --json of images of those levels."""
    seen = []
    monkeypatch.setattr(compare, "write_page", lambda *args: seen.append(args[0]) or write_page(*args))
    monkeypatch.setattr(runs, "last_run", lambda pipe: argparse.Namespace(kinds="FP"))
    monkeypatch.setattr(Request, "make", fake_make(*levels, censored=censored))
    status, output, errors = run_command(
        "compare", "demo", "--interval", "2", "--steps", "2", "--drift", "0", "--json", "--out", page
    )
    return status, json.loads(output, parse_constant=pytest.fail), errors, summaries(seen[0])


SETTING = [
    "name", "kind", "interval", "branch", "predict", "steps", "kinds", "seconds", "cost_full_calls", "speedup",
    "speedup_min", "speedup_max", "psnr_db", "identical", "worst_psnr_db", "ssim", "worst_ssim", "lpips", "worst_lpips",
    "clip",
]  # fmt: skip


def test_the_document_has_what_the_table_has(monkeypatch, tmp_path):
    """Of the one prompt that is done; the image of reuse is the original's."""
    page = tmp_path / "x.html"
    status, document, errors, rows = documented(monkeypatch, page, 0.1, 0.5, 0.5, 0.7, 0.5, None)
    assert status == 130 and errors.endswith("stepcache: interrupted; the page has 1 of 12 prompts\n")
    assert "12 prompts, 2 steps of DDIMScheduler" in errors and "Fewer steps at no higher cost" in errors
    settings = document.pop("settings")
    assert [list(setting) for setting in settings] == [SETTING] * 3
    for setting, row in zip(settings, rows, strict=True):
        assert [setting[name] for name in ("name", "kinds", "seconds", "cost_full_calls", "speedup", "ssim")] == [
            row.name, row.kinds, row.seconds, row.cost, row.speed_up, row.ssim
        ]  # fmt: skip
    original, reused, fewer = settings
    assert [original[name] for name in SETTING[1:6]] == ["original", None, None, None, 2]
    assert [reused[name] for name in SETTING[1:6]] == ["reuse", 2, 0, "hold", 2]
    assert [fewer[name] for name in SETTING[1:6]] == ["fewer steps", None, None, None, 1]
    assert [(each["psnr_db"], each["identical"], each["worst_psnr_db"]) for each in settings] == [
        (None, None, None), (None, True, None), (rows[2].psnr, False, rows[2].psnr)
    ]  # fmt: skip
    assert fewer["psnr_db"] == pytest.approx(13.98, abs=0.01)
    assert (fewer["speedup_min"], fewer["speedup_max"]) == rows[2].speed_ups
    assert list(document) == [
        "model", "summary", "closer", "notes", "missing", "prompts", "steps", "rig", "facts", "prompts_asked", "page",
        "pictures", "sheet",
    ]  # fmt: skip
    assert (document["prompts"], document["prompts_asked"], document["steps"]) == (1, 12, 2)
    assert (document["page"], document["pictures"], document["sheet"]) == (str(page), None, str(tmp_path / "x.png"))
    assert page.exists() and document["facts"]["Scheduler"] == "DDIMScheduler"
    assert "Interrupted after 1 of 12 prompts. The figures are over the prompts done." in document["notes"]
    assert document["summary"].startswith("1 of 12 prompts (interrupted), 2 steps of DDIMScheduler")


def test_the_help_names_the_document_s_keys(monkeypatch, tmp_path, capsys):
    _, document, _, _ = documented(monkeypatch, tmp_path / "x.html", 0.1, 0.5, 0.5, 0.7, 0.5, None)
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    text = capsys.readouterr().out
    named = set(re.findall(r"[a-z_]+", text[text.index("  --json") :]))
    ranges = {"speedup_min", "speedup_max", "worst_psnr_db", "worst_ssim", "worst_lpips"}
    assert set(document) | set(SETTING) - ranges <= named


def test_a_comparison_without_any_image_compared_fails(monkeypatch, tmp_path):
    """All were censored; the page, which shows the seconds, is written."""
    page, count = tmp_path / "x.html", 1 + 12 * 3
    status, document, errors, _ = documented(monkeypatch, page, *[0.5] * count, censored=range(count))
    assert status == 2 and errors.endswith(
        "\nstepcache: No image was compared: the pipeline's safety checker replaced each, or its original.\n"
    )
    assert page.exists() and document["prompts"] == 12
    assert {(each["psnr_db"], each["identical"]) for each in document["settings"]} == {(None, None)}


def test_prompts_that_are_cut_off_are_mentioned():
    (note,) = compare._too_long(small.demo_pipe(), [Prompt("red apple"), Prompt("face " * 30)])
    assert note.startswith("1 prompt of more than 14 tokens, which the pipeline cuts off: face face")


def test_a_pipeline_s_own_defaults(tmp_path, monkeypatch):
    """Without options: its scheduler and its guidance scale; a copy elsewhere is named after its directory."""
    shutil.copytree(small.DEMO, tmp_path / "my model")
    seen = []
    monkeypatch.setattr(compare, "try_sizes", lambda *args: [])
    monkeypatch.setattr(
        compare, "make_all", lambda pipe, requests, comparison, *rest: seen.append((requests[0], comparison)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run_command("compare", tmp_path / "my model", "--out", tmp_path / "x.html")
    ((request, comparison),) = seen
    assert (request.call["guidance_scale"], request.steps, comparison.model) == (7.5, 30, "my model")
    assert [variant.name for variant in comparison.variants] == [f"interval {n}, branch 0" for n in (2, 3, 5)]
