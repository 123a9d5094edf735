"""A batch in two processes of torchrun on CPUs."""

import json
import re

import pytest
from support.batch_checks import FORKED, HERE, NAMES, TORCHRUN, command_line, images, prompts_file, run, run_here
from support.small import demo_pipe, make_unet


def test_a_killed_process_loses_nothing_and_nothing_is_done_twice(single, tmp_path, monkeypatch, capsys):
    out, prompts = tmp_path / "out", prompts_file(tmp_path)
    start = [*FORKED, "--max-restarts", 1, HERE / "batch_killed.py", *command_line(prompts, out)]
    output = run(start, FOLDER=str(tmp_path), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert (tmp_path / "died").exists() and "exitcode: -9" in output
    assert images(out) == single and len(single) == len(NAMES)
    made = (tmp_path / "log").read_text().split()
    # One line less if the other process was stopped between an image and its line.
    assert len(made) == len(set(made)) >= len(NAMES) - 1
    assert {path.name for path in out.iterdir()} == {*single, "manifest.jsonl"}
    manifest = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [(line["file"], line["prompt"], line["seed"]) for line in manifest] == [
        (f"{i:06d}.png", name, i) for i, name in enumerate(NAMES)
    ]

    # Both processes worked, before the restart or after it.
    assert "process 0: 0" in output and "process 1: 0" in output

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "000004.png").unlink()
    run_here(*command_line(prompts, out))
    assert re.findall(r"process 0: (\d+) in", capsys.readouterr().out) == ["000004"]
    assert images(out) == single
    # Once more: nothing is missing, so no pipeline is opened.
    monkeypatch.setattr("batch.open_pipe", lambda *args, **options: pytest.fail("opened"))
    run_here(*command_line(prompts, out))
    assert "0 images are missing" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {"000004.png"}


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path):
    """Each has its own compile cache, as on two machines: what the first one compiled is in the output folder."""
    pipe = demo_pipe()
    one_level = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    width = pipe.text_encoder.config.hidden_size
    unet = make_unet("least", block_out_channels=(8,), cross_attention_dim=width, **one_level)
    demo_pipe(unet=unet).save_pretrained(tmp_path / "pipeline")
    arguments = command_line(
        prompts_file(tmp_path), tmp_path / "out", "--compile", "on", pipeline=tmp_path / "pipeline"
    )
    output = run([*TORCHRUN, HERE / "batch_compiled.py", *arguments], FOLDER=str(tmp_path))
    found = {
        rank: (int(misses), int(hits)) for rank, misses, hits in re.findall(r"rank (.) misses (\d+) hits (\d+)", output)
    }
    assert found["0"][0] > 0
    assert found["1"] == (0, 2)
    assert len(images(tmp_path / "out")) == len(NAMES)
