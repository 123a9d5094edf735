"""The published architectures without weights, the demo, and local directories; and their sizes."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from support.small import UNETS, tiny_pipe

from stepcache.errors import InvalidSetting, StepCacheError
from stepcache.images import models
from stepcache.images.make import Request

# Millions of parameters of the published weights.
PUBLISHED = {
    "sd15": {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06},
    "sd21": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
    "sdxl": {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66},
}


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_architectures_have_the_published_number_of_parameters(name):
    model = models.load(name, "meta", torch.float16)
    assert model.weights == "random"
    parts = {part: getattr(model.pipe, part) for part in PUBLISHED[name]}
    counts = {part: sum(p.numel() for p in module.parameters()) / 1e6 for part, module in parts.items()}
    assert counts == pytest.approx(PUBLISHED[name], abs=0.006)
    assert all(p.dtype == torch.float16 for module in parts.values() for p in module.parameters())
    assert model.size() == {"sd15": (512, 512), "sd21": (768, 768), "sdxl": (1024, 1024)}[name]


@pytest.mark.parametrize("layout", ["sd2", "sdxl"])
def test_random_weights_give_finite_images_and_the_same_ones(layout, monkeypatch):
    """With a small U-Net and small text encoders; the VAE is the real one."""
    text = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    text["projection_dim"] = 8
    encoders = (text, text) if layout == "sdxl" else (text,)
    monkeypatch.setitem(models.ARCHITECTURES, "small", models._Architecture(encoders, 64, "v_prediction"))
    config = {**UNETS[layout], "cross_attention_dim": 4 * len(encoders)}
    monkeypatch.setattr(models, "read_config", lambda name: config)
    before = torch.random.get_rng_state()
    first, second = (models.load("small", "cpu", torch.float32) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    request = Request(["a lighthouse", "plums"], [0, 1], 2, {"height": 32, "width": 32, "guidance_scale": 7.5})
    images = request.make(first.pipe).images
    assert images.shape == (2, 32, 32, 3) and np.isfinite(images).all() and images.std() > 0.01
    assert np.array_equal(request.make(second.pipe).images, images)
    assert not np.array_equal(images[0], images[1])


def test_the_demo_is_trained():
    model = models.load("demo", "cpu", torch.float32)
    assert model.weights == "trained" and model.size() == (64, 64)
    assert model.pipe.unet.dtype == model.pipe.text_encoder.dtype == torch.float32


def test_a_local_directory(tmp_path):
    tiny_pipe().save_pretrained(tmp_path / "mine")
    model = models.load(str(tmp_path / "mine"), "cpu", torch.float32)
    assert model.name == "mine" and model.weights == "trained"
    assert type(model.pipe).__name__ == "StableDiffusionPipeline"


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(StepCacheError, match="nothing is downloaded"):
        models.load("runwayml/stable-diffusion-v1-5", "cpu", torch.float32)


def test_a_model_without_a_size_of_its_own_asks_for_one():
    pipe = tiny_pipe()
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(InvalidSetting, match=r"U-Net of mine has no sample_size.* --size 512 or 512x768"):
        models.Model("mine", pipe, "trained", ("fox face",)).size()


def test_without_a_vae_the_size_is_that_of_the_unet():
    model = models.Model("mine", DDPMPipeline(tiny_pipe(unet={"sample_size": 32}).unet, DDPMScheduler()), "trained", ())
    assert model.size() == (32, 32)
