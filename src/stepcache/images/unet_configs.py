"""U-Net configs by name: bundled ones, and those of local files. Nothing is downloaded."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import InvalidSetting, StepCacheError, UnsupportedPipeline, UnsupportedUNet
from ..files.reading import NotJson, parsed, path_of, read_text
from .pipelines import DEMO

# Bundled configs by name.
BUNDLED = ("sd15", "sd21", "sdxl", "sdxl-refiner")

# Pixels to a latent, each way, as in Stable Diffusion's VAEs. A U-Net's config does not say.
PIXELS = 8


def read_config(name: str) -> dict[str, Any]:
    """The config of a U-Net. name: of a bundled one, of a file, or of the directory of a pipeline or U-Net.

    StepCacheError, with path and reason, if there is none, or none that can be read.
    """
    path = _path(name)
    config = _read(path)
    if not isinstance(config, dict) or "_class_name" not in config:
        raise UnsupportedUNet(f"{path} is not the config of a diffusers model: it has no _class_name.")
    return config


def pixels_per_latent(name: str) -> int | None:
    """Along a side, by the VAE of the pipeline that the U-Net of `read_config` is from; 1 for a pipeline without one.

    None if the U-Net's config is there alone.
    """
    if name in BUNDLED:
        return PIXELS
    path = _path(name).absolute()  # not resolved: in Hugging Face's cache, files are links to another folder
    if path.parent.name != "unet":
        return None
    from ..pipes.vae import NAMES, factor_of  # imports torch

    pipeline = path.parent.parent
    for vae in NAMES:
        if (pipeline / vae / "config.json").is_file():
            config = _read(pipeline / vae / "config.json")
            return factor_of(config) if isinstance(config, dict) else None
    index = _read(pipeline / "model_index.json") if (pipeline / "model_index.json").is_file() else None
    if not isinstance(index, dict) or any(_is_named(index.get(vae)) for vae in NAMES):
        return None  # not downloaded
    return 1


def _is_named(part: object) -> bool:
    """Whether a model_index.json has this part: a part that is left out is [null, null] there."""
    return isinstance(part, list) and any(part)


def _path(name: str) -> Path:
    """The file that `name` means; StepCacheError if there is none."""
    path = path_of(name, "The U-Net's config")
    assets = Path(str(files("stepcache") / "assets"))
    if name in BUNDLED:
        return assets / "unets" / f"{name}.json"
    if name == DEMO:
        path = assets / "demo"
    if path.name == "model_index.json":
        path = path.parent
    if path.is_dir():
        path = _config_in(path)
    if not path.exists():
        raise InvalidSetting(
            f"{name!r} does not exist. Give the directory of a downloaded pipeline, a U-Net's config.json, or one of "
            f"{', '.join((DEMO, *BUNDLED))}; nothing is downloaded."
        )
    return path


def _read(path: Path) -> Any:
    try:
        return parsed(read_text(path))
    except NotJson as error:
        raise StepCacheError(f"{path} is not JSON: {error}.") from error


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
