"""U-Net configs by name: bundled ones, and those of local files. Nothing is downloaded."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting, StepCacheError, UnsupportedPipeline, UnsupportedUNet
from ..files.reading import NotJson, parsed, path_of, read_text

# Bundled configs by name.
BUNDLED = ("sd15", "sd21", "sdxl", "sdxl-refiner")

# Pixels to a latent, each way, as in Stable Diffusion's VAEs. A U-Net's config does not say.
PIXELS = 8


def read_config(name: str) -> dict[str, Any]:
    """The config of a U-Net. name: of a bundled one, of a file, or of the directory of a pipeline or U-Net.

    StepCacheError, with path and reason, if there is none, or none that can be read.
    """
    path = path_of(name, "The U-Net's config")
    if name in BUNDLED:
        text = (files("stepcache") / "assets" / "unets" / f"{name}.json").read_text(encoding="utf-8")
    else:
        if path.name == "model_index.json":
            path = path.parent
        if path.is_dir():
            path = _config_in(path)
        if not path.exists():
            raise InvalidSetting(
                f"{name!r} does not exist. Give the directory of a downloaded pipeline, a U-Net's config.json, or "
                f"one of {', '.join(BUNDLED)}; nothing is downloaded."
            )
        text = read_text(path)
    try:
        config = parsed(text)
    except NotJson as error:
        raise StepCacheError(f"{path} is not JSON: {error}.") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UnsupportedUNet(f"{path} is not the config of a diffusers model: it has no _class_name.")
    return config


def _config_in(directory: Path) -> Path:
    """The U-Net's config.json in the directory of a pipeline or U-Net."""
    for path in (directory / "unet" / "config.json", directory / "config.json"):
        if path.exists():
            return path
    if (directory / "transformer").is_dir():
        raise UnsupportedPipeline(
            f"{directory} is a pipeline with a transformer. stepcache is for U-Nets; for diffusion transformers see "
            "cache-dit or diffusers' own enable_cache."
        )
    raise UnsupportedPipeline(
        f"{directory} has no unet/config.json, so it is not a diffusers pipeline with a U-Net. Give a directory that "
        "pipe.save_pretrained wrote, or the config.json itself."
    )
