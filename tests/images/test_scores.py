import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.clip import save_clip

from stepcache.commands.quiet import quiet
from stepcache.errors import InvalidSetting, StepCacheError
from stepcache.images import scores
from stepcache.images.scores import ClipScore, Lpips, missing_for_lpips

# OpenAI's, as in its repository.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """(score, model, tokenizer, path) of the tiny CLIP model."""
    path = tmp_path_factory.mktemp("clip")
    model, tokenizer = save_clip(path)
    with quiet("transformers"):
        return ClipScore(path, "cpu"), model, tokenizer, path


def picture(seed=0, size=32):
    return np.random.default_rng(seed).random((size, size, 3)).astype(np.float32)


def test_the_clip_score_is_100_times_the_cosine(clip):
    """Against the model's own logits, on pixels that are normalised by hand."""
    score, model, tokenizer, _ = clip
    image = picture()
    mean, std = (torch.tensor(values) for values in (CLIP_MEAN, CLIP_STD))
    pixels = (torch.from_numpy((image * 255).round() / 255) - mean) / std
    with torch.no_grad():
        output = model(**tokenizer("tiger face", return_tensors="pt"), pixel_values=pixels.permute(2, 0, 1)[None])
    expected = 100 * (output.logits_per_image / model.logit_scale.exp()).item()
    assert score(image, "tiger face") == pytest.approx(expected, rel=1e-4)
    assert score(image, "tiger face") != pytest.approx(score(picture(1), "tiger face"), rel=1e-3)
    assert score(image, "tiger face") != pytest.approx(score(image, "red apple"), rel=1e-3)


def test_long_prompts_and_other_sizes_are_taken(clip):
    assert -100 <= clip[0](picture(size=48), "face " * 50) <= 100


def test_a_directory_that_is_no_clip_model(clip, tmp_path):
    with pytest.raises(InvalidSetting, match="not the directory of a CLIP model"):
        ClipScore(tmp_path / "nowhere", "cpu")
    (tmp_path / "config.json").write_text((clip[3] / "config.json").read_text())
    with pytest.raises(StepCacheError, match=f"--clip {tmp_path} cannot be loaded: "), quiet("transformers"):
        ClipScore(tmp_path, "cpu")


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """`lpips` and torchvision's part of it, which are not installed here; torch's hub cache in tmp_path."""

    class Distance(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, image, original):
            assert image.shape == original.shape == (1, 3, 4, 8)
            assert image.min() == -1 and image.max() == 1
            return (image - original).abs().mean().reshape(1, 1, 1, 1)

    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://example.org/models/alexnet-1234.pth"))
    modules = {"lpips": ModuleType("lpips"), "torchvision": ModuleType("torchvision")}
    modules["torchvision.models"] = ModuleType("torchvision.models")
    modules["lpips"].LPIPS, modules["torchvision.models"].AlexNet_Weights = Distance, weights
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(scores.importlib.util, "find_spec", lambda name: None if name in lacking else object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    lacking = set()
    return lacking


def test_what_lpips_lacks_is_said(packages, tmp_path):
    packages |= {"lpips", "torchvision"}
    assert "the packages lpips and torchvision (pip install lpips torchvision)" in missing_for_lpips()
    packages -= {"torchvision"}
    assert "the package lpips (pip install lpips)" in missing_for_lpips()
    packages.clear()
    assert f"weights in {tmp_path / 'checkpoints' / 'alexnet-1234.pth'}" in missing_for_lpips()
    assert "https://example.org/models/alexnet-1234.pth" in missing_for_lpips()
    with pytest.raises(InvalidSetting, match="nothing is downloaded"):
        Lpips("cpu")


def test_a_torchvision_for_another_torch_is_no_crash(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)  # importing it raises
    assert missing_for_lpips().startswith(f"LPIPS needs a torchvision for torch {torch.__version__}")


def test_lpips_gets_what_it_takes(packages, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "alexnet-1234.pth").touch()
    assert missing_for_lpips() == ""
    original = np.zeros((4, 8, 3), np.float32)
    original[0] = 1
    image = original.copy()
    image[0, 0, 0] = 0.04
    assert Lpips("cpu")(image, original) == pytest.approx(2 * 0.96 / 96)


def test_pictures_are_rounded_as_files_are(clip):
    image = picture()
    seen = np.asarray(Image.fromarray((image * 255).round().astype("uint8"))) / 255
    assert clip[0](image, "x") == pytest.approx(clip[0](seen, "x"))
