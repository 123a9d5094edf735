"""A batch in two processes of torchrun on CPUs."""

import json
import re

import pytest
from support.batch_checks import (
    FORKED,
    HERE,
    NAMES,
    NO_COMPILER,
    OWN,
    RECIPES,
    TORCHRUN,
    command_line,
    images,
    prompts_file,
    run,
    run_here,
)


@pytest.mark.slow
def test_a_killed_process_loses_nothing_and_nothing_is_done_twice(single, tmp_path, monkeypatch, capsys):
    out, prompts = tmp_path / "out", prompts_file(tmp_path)
    start = [*FORKED, "--max-restarts", 1, HERE / "batch_killed.py", *command_line(prompts, out)]
    output = run(start, FOLDER=str(tmp_path), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert (tmp_path / "died").exists() and "exitcode: -9" in output
    assert images(out) == single and len(single) == len(NAMES)
    made = (tmp_path / "log").read_text().split()
    # One line less if the other process was stopped between an image and its line.
    assert len(made) == len(set(made)) >= len(NAMES) - 1
    assert {path.name for path in out.iterdir()} == {*single, *OWN}
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
    # Once more: nothing is missing, so no pipeline is loaded.
    monkeypatch.setattr("batch.load_pipe", lambda *args: pytest.fail("loaded"))
    run_here(*command_line(prompts, out))
    assert "0 images are missing" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert {name for name in before if after[name] != before[name]} == {"000004.png"}


@pytest.mark.slow
def test_one_process_compiles_and_both_load(tiny, tmp_path):
    """Each has its own compile cache, as on two machines."""
    out = tmp_path / "out"
    arguments = command_line(prompts_file(tmp_path), out, "--compile", "on", pipeline=tiny)
    output = run([*TORCHRUN, HERE / "batch_compiled.py", *arguments], FOLDER=str(tmp_path))
    for rank, made in enumerate((2, 0)):
        assert f"rank {rank}: {made} packages made, 2 loaded, 0 graphs and 0.0 s compiled" in output
    before = images(out)
    assert len(before) == len(NAMES)

    # A later start, where there is no compiler.
    (out / "000004.png").unlink()
    cache = str(tmp_path / "cache")
    run([RECIPES / "batch_torchrun.py", *arguments], **NO_COMPILER, TORCHINDUCTOR_CACHE_DIR=cache)
    assert images(out) == before
