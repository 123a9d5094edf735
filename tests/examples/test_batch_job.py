"""The short batch job: a file of prompts becomes a folder of images, and only what is missing is made."""

import pytest
from diffusers import DiffusionPipeline
from PIL import Image
from support.scripts import counted, quiet_load, run_script, same, seeded

from stepcache import accelerate


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("fox face\n\ncaf\u00e9 fox\u2028\n", "utf-8")  # a separator of lines within a line
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_each_line_becomes_an_image_once(prompts, attended, tmp_path):
    out = tmp_path / "deep" / "out"
    with counted() as calls:
        run_script("batch_job", attended, prompts, out)
    assert names(out) == ["00000.png", "00002.png"]
    assert calls["UNet2DConditionModel"] == 100
    stock, pipe = (quiet_load(DiffusionPipeline, attended) for _ in range(2))
    accelerate(pipe, preset="balanced")
    for seed, prompt in ((0, "fox face"), (2, "caf\u00e9 fox\u2028")):
        assert same(out / f"0000{seed}.png", pipe(prompt, generator=seeded(seed)).images[0])
        assert not same(out / f"0000{seed}.png", stock(prompt, generator=seeded(seed)).images[0])

    whole = (out / "00002.png").read_bytes()
    (out / "00002.png").unlink()
    (out / "00000.png").write_bytes(b"as it was")
    with counted() as calls:
        run_script("batch_job", attended, prompts, out)
    assert calls["UNet2DConditionModel"] == 50
    assert (out / "00002.png").read_bytes() == whole and (out / "00000.png").read_bytes() == b"as it was"


def test_what_is_cut_off_is_made_again(prompts, attended, tmp_path, monkeypatch):
    save = Image.Image.save

    def cut_off(image, path, *form):
        save(image, path, *form)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run_script("batch_job", attended, prompts, tmp_path / "out")
    assert not [name for name in names(tmp_path / "out") if name.endswith(".png")]
    monkeypatch.undo()
    prompts.write_text("fox face")
    run_script("batch_job", attended, prompts, tmp_path / "out")
    assert names(tmp_path / "out") == ["00000.png"]
    with Image.open(tmp_path / "out" / "00000.png") as image:
        image.load()
