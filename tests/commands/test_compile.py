"""`stepcache compile`: what it compiles for which options, and that the packages run."""

import re

import pytest
import torch
from support.commands import run_command
from support.packages import writes_package
from support.small import ATTENDED, generate, tiny_pipe

from stepcache import accelerate, last_run, restore
from stepcache.packages import build
from stepcache.packages.folder import read_manifest


@pytest.fixture
def pipeline(tmp_path):
    """The directory of a small pipeline."""
    tiny_pipe(unet=ATTENDED).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.setattr(build, "COMMAND", writes_package())


def whats(folder):
    return sorted(entry.what for entry in read_manifest(folder).packages)


def test_all_sizes_and_batches_once(pipeline, compiler, tmp_path):
    out = tmp_path / "packages"
    command = ("compile", pipeline, "--size", "64,64x32", "--batch", "1,2", "--out", out)
    status, output, errors = run_command(*command)
    assert status == 0, errors
    assert whats(out) == sorted(
        f"{program} graph {shape}"
        for program in ("full", "partial")
        for shape in ("2x4x16x16", "2x4x16x8", "4x4x16x16", "4x4x16x8")
    )
    assert "stages" not in errors and "100% 8/8 packages" in errors  # a warm-up on a CPU has nothing to show
    assert "8 packages" in output and "partial graph 2x4x16x8" in output
    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    status, output, errors = run_command(*command)
    assert status == 0 and re.search(r"100% 8/8 packages \[\S+\] all there\n", errors) and "8 packages" in output
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == written


def test_options_are_those_of_accelerate(pipeline, compiler, tmp_path):
    out = tmp_path / "packages"
    options = ("--branch", 1, "--reuse-guidance", "--predict", "0.5", "--vae")
    assert run_command("compile", pipeline, "--size", 64, "--out", out, *options)[0] == 0
    full, partial, decoder = sorted(read_manifest(out).packages, key=lambda entry: "fpd".index(entry.program[0]))
    assert full.graph["branch"] == partial.graph["branch"] == 1 and full.graph["guidance"] == "reuse"
    assert [len(value["blend"]) for value in partial.kept] == [3, 3] and decoder.what == "decoder graph 1x4x16x16"
    status, output, _ = run_command("inspect", out)
    assert status == 0 and "branch 1, guidance reused, blend of 2" in output
    assert run_command("compile", pipeline, "--size", 64, "--out", out, "--no-guidance")[0] == 0
    assert "full graph 1x4x16x16" in whats(out) and len(whats(out)) == 5
    assert run_command("compile", pipeline, "--size", 64, "--out", out, "--preset", "fast")[0] == 0
    assert len(whats(out)) == 7


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--predict", "often"), "predict must be"),
        (("--predict", "2"), "predict must be"),
        (("--batch", "0"), "--batch"),
        (("--preset", "fast", "--branch", "1"), "preset="),
        (("--size", "64,60"), "--size must be a multiple of 8 pixels and at least 16, got 60"),
        (("--device", "moon"), "moon"),
    ],
)
def test_what_cannot_be(pipeline, compiler, tmp_path, options, word):
    status, _, errors = run_command("compile", pipeline, "--out", tmp_path / "packages", *options)
    assert status == 2 and word in errors
    assert not (tmp_path / "packages").exists()


def test_a_folder_without_packages(tmp_path):
    status, _, errors = run_command("inspect", tmp_path)
    assert status == 2 and "unet/config.json" in errors


@pytest.mark.slow
def test_the_packages_run(pipeline, tmp_path):
    """For real, with the decoder."""
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "packages"
    status, _, errors = run_command("compile", pipeline, "--size", 64, "--out", out, "--vae")
    assert status == 0, errors
    made = StableDiffusionPipeline.from_pretrained(pipeline)
    made.set_progress_bar_config(disable=True)
    accelerate(made, 2, vae=True, compile=False)
    want = generate(made, output_type="pt")
    restore(made)
    accelerate(made, 2, vae=True, compiled=out, compiled_only=True)
    torch.testing.assert_close(generate(made, output_type="pt"), want, rtol=1e-4, atol=1e-4)
    assert last_run(made).compile_seconds == 0
