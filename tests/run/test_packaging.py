"""`save_compiled`: what it takes, and what it says; the compiler is a stand-in."""

import re
import sys

import pytest
import torch
from support.packages import writes_package
from support.small import ATTENDED, loop_pipe, tiny_pipe

from stepcache import accelerate, save_compiled
from stepcache.errors import GraphCompileError, NotAccelerated, NothingCompiled
from stepcache.packages import build
from stepcache.packages.folder import read_manifest


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    monkeypatch.setattr(build, "COMMAND", writes_package())


def test_nothing_to_save(tmp_path):
    made = loop_pipe("least", **ATTENDED)
    with pytest.raises(NotAccelerated, match="save_compiled"):
        save_compiled(made, tmp_path / "packages")
    accelerate(made, 2)
    with pytest.raises(NothingCompiled, match="has not run"):
        save_compiled(made, tmp_path / "packages")
    made(2)
    made.unet.conv_in.table = torch.ones(1)
    with pytest.raises(NothingCompiled, match=r"no package can be made\.\nfull graph 2x4x16x16: conv_in.table"):
        save_compiled(made, tmp_path / "packages")
    assert not (tmp_path / "packages").exists()


def test_what_has_run_is_saved_and_the_rest_added(tmp_path, capsys):
    made = accelerate(tiny_pipe(unet=ATTENDED), 2, vae=True)

    def call(height):
        made("a", num_inference_steps=2, height=height, width=64)

    call(64)
    nbytes = save_compiled(made, tmp_path)
    assert re.search(r"100% 3/3 packages .* graph \d+x4x16x16 \(0 s\)\n", capsys.readouterr().err)
    call(32)
    assert save_compiled(made, str(tmp_path), progress=False) > nbytes > 0
    assert not capsys.readouterr().err
    assert sorted(entry.what for entry in read_manifest(tmp_path).packages) == [
        "decoder graph 1x4x16x16", "decoder graph 1x4x8x16",
        "full graph 2x4x16x16", "full graph 2x4x8x16", "partial graph 2x4x16x16", "partial graph 2x4x8x16",
    ]  # fmt: skip


def test_some_that_cannot_be_made_are_named(tmp_path, caplog):
    made = accelerate(tiny_pipe(unet=ATTENDED), 2, vae=True)
    made("a", num_inference_steps=2, height=64, width=64)
    made.vae.decoder.conv_in.table = torch.ones(1)
    save_compiled(made, tmp_path, progress=False)
    assert "decoder graph 1x4x16x16: conv_in.table is a tensor" in caplog.text
    assert len(read_manifest(tmp_path).packages) == 2


def test_another_unet_has_not_run(tmp_path):
    made = accelerate(loop_pipe("least", **ATTENDED), 2)
    made(2)
    made.unet = loop_pipe("least", **ATTENDED).unet
    with pytest.raises(NothingCompiled, match="has not run"):
        save_compiled(made, tmp_path)


def test_a_compilers_error_leaves_the_pipe_running(tmp_path, monkeypatch):
    made = accelerate(loop_pipe("least", **ATTENDED), 2)
    want = made(2)
    monkeypatch.setattr(build, "COMMAND", (sys.executable, "-c", "raise SystemExit('no compiler')"))
    with pytest.raises(GraphCompileError, match="no compiler"):
        save_compiled(made, tmp_path, progress=False)
    assert torch.equal(made(2), want)
