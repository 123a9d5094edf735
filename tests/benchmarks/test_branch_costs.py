"""The tables of branch costs: counted as `stepcache inspect` counts, of U-Nets that are the models'."""

import json
import math
import re

import pytest
import torch
from diffusers import MotionAdapter, UNetMotionModel
from support.cases.video import MODELSCOPE_UNET

from benchmarks import ROOT
from benchmarks.pages import branch_costs
from benchmarks.pages.branch_costs import ARCHITECTURES, BRANCHES, Architecture, branches_table
from stepcache.cli import main
from stepcache.forwards.macs import branch_macs

# Millions, as published with the models. A config that was written down wrong has another number, in most cases.
PUBLISHED = {
    "sd15": 860, "sd21": 866, "sdxl": 2567, "svd": 1521, "if_xl": 4300, "kandinsky21": 1220, "ddpm256": 114,
    "ldm256": 274,
}  # fmt: skip


def lines_of(text):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return rows[2:]


def parameters(unet):
    return sum(parameter.numel() for parameter in unet.parameters())


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_unet_is_as_large_as_published(key):
    assert parameters(ARCHITECTURES[key].unet()) / 1e6 == pytest.approx(PUBLISHED[key], rel=0.008)


def test_animatediff_is_sd15_with_a_motion_adapter():
    ours = ARCHITECTURES["animatediff"].unet()
    with torch.device("meta"):
        theirs = UNetMotionModel.from_unet2d(ARCHITECTURES["sd15"].unet(), MotionAdapter())
    shapes = [{name: p.shape for name, p in unet.named_parameters()} for unet in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_a_table_is_what_branch_macs_counts():
    architecture = ARCHITECTURES["ldm256"]
    rows = list(branch_macs(architecture.unet(), 64, 64, branches=BRANCHES))
    text = branches_table("ldm256")
    assert f"{rows[0].full_macs / 1e9:,.0f} GMACs in a full step" in text and "274 M parameters, 12 branches" in text
    for row, line in zip(rows, lines_of(text), strict=True):
        assert line[:2] == [f"{row.branch}", f"{row.partial_macs / row.full_macs:.1%}"]
        assert line[2:5] == [f"{row.bound(n):.2f}x" for n in (2, 3, 5)]
        assert line[5:] == [" x ".join(map(str, row.feature_shape[1:])), f"{row.feature_bytes() / 1e6:.3g}"]


def test_a_partial_step_by_hand():
    """DDPM's branch 0 at 256 pixels: conv_in, one ResNet on the concat of two times 128 channels, conv_out."""
    pixels, wide = 256 * 256, 128
    ends = 2 * 9 * 3 * wide * pixels
    resnet = (9 * 2 * wide * wide + 9 * wide * wide + 2 * wide * wide) * pixels  # two 3x3 convolutions, the shortcut
    time = wide * 4 * wide + (4 * wide) ** 2 + 4 * wide * wide  # its embedding, and the ResNet's projection of it
    full = next(iter(branch_macs(ARCHITECTURES["ddpm256"].unet(), 256, 256, branches=[0]))).full_macs
    share = (ends + resnet + time) / full
    first = lines_of(branches_table("ddpm256"))[0]
    assert first[:4] == ["0", f"{share:.1%}", f"{2 / (1 + share):.2f}x", f"{3 / (1 + 2 * share):.2f}x"]
    assert first[5:] == ["128 x 256 x 256", f"{2 * wide * pixels / 1e6:.3g}"]


def test_a_videos_feature_has_all_frames(monkeypatch):
    config = {"_class_name": "UNet3DConditionModel", **MODELSCOPE_UNET}
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture("Tiny", config, 8, 8, "16 frames"))
    line = lines_of(branches_table("tiny"))[0]
    assert line[5:] == ["16 x 8 x 8 x 8", f"{2 * 16 * 8 * 8 * 8 / 1e6:.3g}"]


def test_inspect_prints_the_same(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(ARCHITECTURES["ldm256"].config))
    assert main(["inspect", str(tmp_path), "--size", "512"]) == 0  # latents of 64 x 64
    printed = {words[0]: words for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    for line in lines_of(branches_table("ldm256")):
        _, _, share, percent, *bounds = printed[line[0]][:7]
        assert [f"{share}{percent}", *bounds] == line[1:5]


def test_every_architecture_has_a_table():
    assert list(branch_costs.TABLES) == [f"branches_{key}" for key in ARCHITECTURES]


def test_figures_in_the_text_of_a_page_are_those_of_its_table():
    def page(name):
        return (ROOT / "docs" / "models" / f"{name}.md").read_text()

    def first_line(name, key):
        return next(line for line in lines_of(page(name).split(f"<!-- table: branches_{key} -->")[1]) if line[0] == "0")

    found = re.search(r"at branch 0 does (\S+) of the U-Net's work", page("sdxl"))
    assert found[1] == first_line("sdxl", "sdxl")[1]
    found = re.search(r"SVD's feature needs (\d+) MB, with guidance (\d+), with `predict` (\d+)", page("video"))
    *shape, size = first_line("video", "svd")[5:]
    exact = 2 * math.prod(map(int, shape[0].split(" x "))) / 1e6
    assert found.groups() == tuple(f"{factor * exact:.0f}" for factor in (1, 2, 4)) and size == f"{exact:.3g}"
