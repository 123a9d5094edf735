import json

import pytest

from stepcache.errors import StepCacheError
from stepcache.images.unet_configs import pixels_per_latent, read_config


def test_a_pipeline_directory_its_index_and_its_config_are_the_same(tmp_path):
    config = {"_class_name": "UNet2DConditionModel", "sample_size": 8}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for path in (tmp_path, tmp_path / "model_index.json", tmp_path / "unet", tmp_path / "unet" / "config.json"):
        assert read_config(str(path)) == config
    assert read_config("demo")["cross_attention_dim"] and pixels_per_latent("demo") == 4


@pytest.mark.parametrize(
    ("vae", "config", "index", "factor"),
    [
        ("vae", {"block_out_channels": [8, 8, 8, 8]}, {}, 8),
        ("vqvae", {"block_out_channels": [8, 8, 8]}, {}, 4),
        ("movq", {"block_out_channels": [8]}, None, 1),
        ("vae", {"latent_channels": 4}, {}, None),
        ("", None, {"unet": ["diffusers", "UNet2DModel"], "vae": [None, None]}, 1),
        ("", None, {"vae": ["diffusers", "AutoencoderKL"]}, None),  # not downloaded
        ("", None, None, None),
    ],
)
def test_the_pixels_of_a_latent_are_those_of_the_pipeline_s_vae(vae, config, index, factor, tmp_path):
    for name, content in {"unet/config.json": {}, f"{vae}/config.json": config, "model_index.json": index}.items():
        if content is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "config.json"):
        assert pixels_per_latent(str(path)) == factor


def test_a_damaged_vae_config_is_named(tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{" if part == "vae" else "{}")
    with pytest.raises(StepCacheError, match=r"vae/config.json is not JSON"):
        pixels_per_latent(str(tmp_path))
