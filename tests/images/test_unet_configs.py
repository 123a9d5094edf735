import json

from stepcache.images.unet_configs import read_config


def test_a_pipeline_directory_its_index_and_its_config_are_the_same(tmp_path):
    config = {"_class_name": "UNet2DConditionModel", "sample_size": 8}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for path in (tmp_path, tmp_path / "model_index.json", tmp_path / "unet", tmp_path / "unet" / "config.json"):
        assert read_config(str(path)) == config
