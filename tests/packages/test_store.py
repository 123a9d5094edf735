"""Which packages are for a pipe, and why not; damage is found before anything is loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from support.packages import HOW, eager, pipe
from support.small import ONE_LEVEL, generate, loop_pipe, tiny_pipe

from stepcache import accelerate, last_run, restore
from stepcache.errors import InvalidSetting, NotAccelerated, NotCompiled
from stepcache.packages import loaded, store
from stepcache.packages.manifest import NAME
from stepcache.packages.state import NotPackaged
from stepcache.packages.store import open_packages


@pytest.fixture
def folder(packages, tmp_path, monkeypatch):
    """A copy to be damaged; loading from it fails the test."""

    def load(path, sha256, device):
        raise AssertionError(f"{path} was loaded")

    monkeypatch.setattr(store, "load", load)
    return shutil.copytree(packages, tmp_path / "packages")


def edit(folder, change):
    data = json.loads((folder / NAME).read_text())
    change(data)
    (folder / NAME).write_text(json.dumps(data))


def of(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "no folder": (shutil.rmtree, "is missing"),
    "no manifest": (lambda folder: (folder / NAME).unlink(), f"{NAME} cannot be read: No such file"),
    "a cut manifest": (lambda folder: cut(folder / NAME), f"{NAME}: it is not JSON"),
    "a cut package": (lambda folder: cut(of(folder, "full*.pt2")), "full-2x4x16x16-.*bytes instead of"),
    "a changed package": (lambda folder: flip(of(folder, "partial*.pt2")), "partial-2x4x16x16-.*SHA-256"),
    "a missing package": (lambda folder: of(folder, "full*.pt2").unlink(), "full-2x4x16x16-.*No such file"),
    "a folder for its group": (lambda folder: folder.chmod(0o775), "may be written by its group: run `chmod g-w"),
    "a manifest for all": (lambda folder: (folder / NAME).chmod(0o666), f"{NAME} may be written by everybody"),
    "a package for all": (lambda folder: of(folder, "full*.pt2").chmod(0o646), "full-2x4x16x16-.*written by everybody"),
    "another torch": (
        lambda folder: edit(folder, lambda data: data["maker"].update(torch="1.0")),
        "made with torch 1.0",
    ),
    "another device": (
        lambda folder: edit(folder, lambda data: data["maker"].update(device={"type": "cuda", "name": "A card"})),
        "made for cuda A card",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_said_and_everything_runs_as_usual(folder, damage, reason, caplog):
    made = pipe()
    want = eager(made)
    before = vars(made).copy()
    damage(folder)
    with pytest.raises(NotCompiled, match=reason):
        accelerate(made, **HOW, compiled=folder, compiled_only=True)
    with pytest.raises(NotAccelerated):
        last_run(made)
    assert vars(made) == before
    if "package" not in reason and "-2x4" not in reason:  # the other program's package would be loaded
        accelerate(made, **HOW, compiled=folder)
        assert torch.equal(generate(made), want)
        assert sum("not used" in message for message in caplog.messages) == 1
        restore(made)


def test_the_packages_that_are_whole_are_used(packages, tmp_path, caplog):
    folder = shutil.copytree(packages, tmp_path / "packages")
    flip(of(folder, "full*.pt2"))
    made = pipe()
    accelerate(made, **HOW, compiled=folder)
    torch.testing.assert_close(generate(made), eager(pipe()), rtol=1e-5, atol=1e-5)
    assert "The package of the full graph 2x4x16x16 is not used" in caplog.text
    assert any("full graph" in text and "does not run from a package" in text for text in caplog.messages)
    assert not any("partial graph" in text for text in caplog.messages)


def test_changed_between_opening_and_loading(packages, tmp_path):
    folder = shutil.copytree(packages, tmp_path / "packages")
    made = pipe()
    accelerate(made, **HOW, compiled=folder, compiled_only=True)
    flip(of(folder, "full*.pt2"))
    with pytest.raises(NotCompiled, match="SHA-256"):
        generate(made)


def test_what_torch_cannot_load_is_said(packages, tmp_path, monkeypatch, caplog):
    def fail(path, device):
        raise RuntimeError("undefined symbol: aoti_torch_new\nmore lines")

    monkeypatch.setattr(loaded, "Package", fail)
    monkeypatch.setattr(loaded, "_loaded", {})
    made = pipe()
    accelerate(made, **HOW, compiled=packages)
    assert torch.equal(generate(made), eager(pipe()))
    assert "cannot be loaded: undefined symbol: aoti_torch_new. It runs eager." in caplog.text


UNSUITED = {
    "architecture": (lambda: tiny_pipe(unet=ONE_LEVEL), {}, "up_block_types was"),
    "dtype": (lambda: halved(), {}, "weights in float32, these are torch.bfloat16"),
    "branch": (pipe, {"branch": 1}, "branch was 0, here it is 1"),
    "guidance": (pipe, {"guidance": "both"}, "guidance was reuse, here it is both"),
    "kernels": (pipe, {"kernels": True}, "kernels was auto, here it is True"),
}


def halved():
    made = pipe()
    made.unet.to(torch.bfloat16)
    return made


@pytest.mark.parametrize(("make", "changes", "reason"), UNSUITED.values(), ids=UNSUITED)
def test_packages_for_another_pipe(folder, make, changes, reason, caplog):
    made = make()
    settings = {**HOW, **changes}
    with pytest.raises(NotCompiled, match=reason):
        accelerate(made, **settings, compiled=folder, compiled_only=True)
    accelerate(made, **settings, compiled=folder)
    if made.unet.dtype == torch.float32:
        generate(made)
    said = [message for message in caplog.messages if "ackage" in message]
    assert len(said) == 1 and reason in said[0]  # once, at accelerate


def test_without_a_decoders_package_vae_is_refused_at_once(packages):
    with pytest.raises(NotCompiled, match="vae=True, and there are none for a decoder"):
        accelerate(pipe(), **HOW, vae=True, compiled=packages, compiled_only=True)


def test_offloaded_weights_are_on_a_cpu_until_they_are_needed(monkeypatch):
    made = {"device": {"type": "cuda", "name": "A card", "capability": [9, 0]}}
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert store._device_of(made, cpu) == cpu  # there is no GPU here: they cannot run
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert store._device_of(made, cpu) == cuda and store._device_of(made, torch.device("cuda", 1)).index == 1
    assert store._device_of({"device": {"type": "cpu"}}, cuda) == cuda and store._device_of({}, cpu) == cpu


def test_joins_on_the_triton_ops_are_imported_before_loading(packages, monkeypatch):
    imported, held = [], open_packages(packages)
    monkeypatch.setattr(store, "fused_join", imported.append)
    entry = held.manifest.packages[0]
    held.load(entry, torch.device("cpu"))
    assert not imported
    held.load(replace(entry, graph={**entry.graph, "joins": "all"}), torch.device("cpu"))
    assert len(imported) == 1

    def fail(wanted):
        raise ImportError("no Triton here")

    monkeypatch.setattr(store, "fused_join", fail)
    with pytest.raises(NotPackaged, match="no Triton here"):
        held.load(replace(entry, graph={**entry.graph, "joins": "all"}), torch.device("cpu"))


def test_another_prediction_fits_only_the_full_step(packages, caplog):
    made = pipe()
    settings = {**HOW, "predict": "hold"}
    accelerate(made, **settings, compiled=packages)
    got = generate(made)
    accelerate(made, **settings, compile=False)
    torch.testing.assert_close(got, generate(made), rtol=1e-5, atol=1e-5)
    (said,) = [message for message in caplog.messages if "does not run" in message]
    assert "partial graph" in said and "predict" in said


def test_kernels_off_takes_packages_without_them(packages):
    accelerate(pipe(), **HOW, kernels=False, compiled=packages, compiled_only=True)


@pytest.mark.parametrize("compiled", [1, "", b"x", True])
def test_what_is_no_path_is_refused(compiled):
    with pytest.raises(InvalidSetting, match="compiled must be the path of a folder"):
        accelerate(loop_pipe("least"), compiled=compiled)


def test_settings_that_make_no_sense(packages):
    with pytest.raises(InvalidSetting, match="compiled_only=True is for compiled="):
        accelerate(loop_pipe("least"), compiled_only=True)
    with pytest.raises(InvalidSetting, match="compiled_only must be"):
        accelerate(loop_pipe("least"), compiled=packages, compiled_only=1)
    with pytest.raises(InvalidSetting, match="Leave capturing to stepcache"):
        accelerate(pipe(), **HOW, compiled=packages, compile={"mode": "reduce-overhead"})
