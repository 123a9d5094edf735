"""Examples that make images: each is run as a user runs it, and its images are those of the same calls made here."""

import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors.torch import save_file
from support.builders import LEAN, OTHER_PICTURE, PIXELS, sd, sdxl
from support.cases.adapters import lora
from support.cases.control import control_net
from support.scripts import counted, pixels, quiet_load, run_script, same, seeded
from support.small import DEMO, captured

from stepcache import accelerate

KINDS = "FPP" * 16 + "FP"  # of 50 steps, interval 3


def test_text_to_image(tmp_path, capsys):
    out = tmp_path / "fox.png"
    with counted() as calls:
        run_script("text_to_image", DEMO, "fox face", out, "--steps", 6, "--seed", 3)
    assert capsys.readouterr().out.startswith("FPPFPP: 6 steps, sizes 2x4x16x16, ")
    assert calls["UNet2DConditionModel"] == 6 and calls["UNetMidBlock2DCrossAttn"] == 2
    pipe, call = quiet_load(DiffusionPipeline, DEMO), {"prompt": "fox face", "num_inference_steps": 6}
    assert pixels(out)[0] == (64, 64) and not same(out, pipe(**call, generator=seeded(3)).images[0])
    assert same(out, accelerate(pipe, preset="balanced")(**call, generator=seeded(3)).images[0])


@pytest.mark.parametrize(("preset", "kinds"), [("faithful", "FPFPFP"), ("fast", "FPPPPF")])
def test_text_to_image_by_other_presets(preset, kinds, tmp_path, capsys):
    run_script("text_to_image", DEMO, "fox face", tmp_path / "fox.png", "--steps", 6, "--preset", preset)
    assert capsys.readouterr().out.startswith(f"{kinds}: 6 steps")


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """The folder of an SDXL pipeline, and the files of two LoRAs for it."""
    folder = tmp_path_factory.mktemp("xl")
    pipe = sdxl(StableDiffusionXLPipeline)
    pipe.save_pretrained(folder / "pipeline")
    files = [folder / "pixel_art.safetensors", folder / "paper_cut.safetensors"]
    for seed, file in enumerate(files, start=1):
        save_file(lora(pipe.unet, seed), file)
    return folder / "pipeline", files


@pytest.fixture(scope="module")
def with_each_lora(xl):
    """The images of a pipe without stepcache."""
    folder, files = xl
    made = []
    for file in files:
        pipe = quiet_load(DiffusionPipeline, folder)
        pipe.load_lora_weights(file)
        made.append(pipe("a lighthouse", generator=seeded()).images[0])
    assert made[0].tobytes() != made[1].tobytes()
    return made


@pytest.mark.parametrize("more", [[], ["--hotswap"]], ids=["load and unload", "hotswap"])
def test_every_swapped_lora_counts(more, xl, with_each_lora, tmp_path, monkeypatch, capsys):
    """With interval 1, which reuses nothing; graphs are captured by the stand-in."""
    folder, files = xl
    monkeypatch.setattr("stepcache.accelerate", captured)
    run_script("sdxl_lora_swap", folder, "a lighthouse", tmp_path / "out", *files, "--interval", 1, *more)
    assert [same(tmp_path / f"out-{i}.png", image) for i, image in enumerate(with_each_lora)] == [True, True]
    captures = [1, 0 if more else 1]  # of the graph of full steps
    lines = capsys.readouterr().out.splitlines()
    wanted = [f"{file}: {n} graphs captured, {'F' * 50}: 50 steps" for file, n in zip(files, captures, strict=True)]
    assert [line.partition(", sizes")[0] for line in lines] == wanted


def test_loras_with_reuse(xl, with_each_lora, tmp_path, capsys):
    folder, files = xl
    with counted() as calls:
        run_script("sdxl_lora_swap", folder, "a lighthouse", tmp_path / "out", *files)
    # The VAE's decoder has such a block too, and so has a ControlNet.
    assert calls["UNet2DConditionModel"] == 100 and calls["UNetMidBlock2D"] - calls["Decoder"] == 34
    assert capsys.readouterr().out.count(f"0 graphs captured, {KINDS}: 50 steps") == 2
    found = [pixels(tmp_path / f"out-{i}.png") for i in range(2)]
    assert {size for size, _ in found} == {(32, 32)} and found[0] != found[1]
    assert not any(same(tmp_path / f"out-{i}.png", image) for i, image in enumerate(with_each_lora))


def test_controlnet(tmp_path, capsys):
    sd(StableDiffusionPipeline).save_pretrained(tmp_path / "pipeline")
    torch.manual_seed(1)
    control_net(LEAN).save_pretrained(tmp_path / "controlnet")
    OTHER_PICTURE.save(tmp_path / "edges.png")
    out = tmp_path / "teapot.png"
    folders = tmp_path / "pipeline", tmp_path / "controlnet"
    with counted() as calls:
        run_script("controlnet", *folders, tmp_path / "edges.png", "a glass teapot", out)
    assert capsys.readouterr().out.startswith(f"{KINDS}: 50 steps")
    assert calls["UNet2DConditionModel"] == calls["ControlNetModel"] == 50
    assert calls["UNetMidBlock2D"] - calls["ControlNetModel"] - calls["Decoder"] == 17
    controlnet = ControlNetModel.from_pretrained(folders[1])
    pipe = quiet_load(AutoPipelineForText2Image, folders[0], controlnet=controlnet)
    assert type(pipe) is StableDiffusionControlNetPipeline
    call = {"prompt": "a glass teapot", "image": OTHER_PICTURE}
    assert pixels(out)[0] == (PIXELS, PIXELS) and not same(out, pipe(**call, generator=seeded()).images[0])
    accelerate(pipe, preset="balanced")
    assert same(out, pipe(**call, generator=seeded()).images[0])
    assert not same(out, pipe(**call, generator=seeded(), controlnet_conditioning_scale=0.0).images[0])
