"""Pipelines by name: the bundled demo, and local directories. Nothing is downloaded.

torch and diffusers are imported when one is loaded: `stepcache COMMAND --help` needs the names alone.
"""

from __future__ import annotations

import inspect
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting, StepCacheError, UnsupportedPipeline
from ..files.reading import NotJson, parsed, read_text

if TYPE_CHECKING:
    import torch

DEMO = "demo"  # the name of the bundled one on the command line
DTYPES = ("float32", "float16", "bfloat16")


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name in DTYPES."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def default_device() -> str:
    """The GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_demo(device: str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The bundled StableDiffusionPipeline, without its own progress bar.

    device: None is the GPU if there is one. dtype: None is float32.
    """
    from diffusers import StableDiffusionPipeline

    with as_file(files("stepcache") / "assets" / "demo") as path:
        pipe = StableDiffusionPipeline.from_pretrained(path, local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    # The weights are stored in fp16, and the text encoder is loaded as it is stored.
    return pipe.to(device or default_device(), dtype or dtype_named("float32"))


def load_pipeline(name: str, device: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The bundled demo if that is the name, else the pipeline of the directory, as in `load_directory`."""
    return load_demo(device, dtype) if name == DEMO else load_directory(Path(name), device, dtype, variant)


def load_directory(path: Path, device: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The pipeline that `pipe.save_pretrained` wrote to `path`, without its own progress bar.

    variant: "fp16" for weight files named *.fp16.safetensors. StepCacheError, before any weights are read, if it is not
    a pipeline with a U-Net; and with diffusers' reason if diffusers cannot load it.
    """
    from diffusers import DiffusionPipeline

    index = path / "model_index.json"
    if not index.is_file():
        raise InvalidSetting(
            f"{str(path)!r} is not a pipeline: there is no {index}. Give the directory of a downloaded pipeline, or "
            "'demo' for the bundled one; bench, compile and tune also take sd15, sd21 and sdxl, with random weights; "
            "nothing is downloaded."
        )
    try:
        parts = parsed(read_text(index))
    except NotJson as error:
        raise StepCacheError(f"{index} is not JSON: {error}.") from error
    if not isinstance(parts, dict) or "unet" not in parts:
        name = parts.get("_class_name") if isinstance(parts, dict) else None
        raise UnsupportedPipeline(f"{path} is a {name} without a U-Net. stepcache is for pipelines with one.")
    options = {} if variant is None else {"variant": variant}
    try:
        pipe = DiffusionPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise StepCacheError(f"diffusers cannot load {path}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def default_guidance(pipe: Any) -> float:
    """The default guidance scale of a call of `pipe`."""
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)
