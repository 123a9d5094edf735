"""Pipelines that commands run: the bundled demo, and local directories. Nothing is downloaded."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidSetting, StepCacheError, UnsupportedPipeline

DEMO = "demo"  # the PIPELINE that stands for the bundled one
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Name on the command line -> class in diffusers, and what its config needs beside the pipeline's own.
SCHEDULERS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),  # as in Stable Diffusion 1.x
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a local pipeline is loaded: --device, --dtype, --variant."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="data type (default: float16 on a GPU, else float32)")
    parser.add_argument("--variant", help="fp16 for a directory whose weight files are named *.fp16.safetensors")


def asked_for(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """Device and dtype of `add_loading`'s arguments; InvalidSetting where the device cannot be used."""
    device = usable_device(args.device)
    return device, DTYPES[args.dtype or ("float32" if device == "cpu" else "float16")]


def load(args: argparse.Namespace, device: str, dtype: torch.dtype) -> Any:
    """The pipeline of `args.pipeline`: the bundled demo, or a directory. Errors as in `load_directory`."""
    if args.pipeline == DEMO:
        return load_demo(device, dtype)
    return load_directory(Path(args.pipeline), device, dtype, args.variant)


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable_device(name: str | None) -> str:
    """The device, once a tensor could be put there; InvalidSetting where it could not."""
    name = name or default_device()
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InvalidSetting(f"--device {name!r} cannot be used here: {reason}") from error
    return name


def load_demo(device: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The bundled StableDiffusionPipeline without its own progress bar; device None: the GPU if there is one."""
    from diffusers import StableDiffusionPipeline

    with as_file(files("stepcache") / "assets" / "demo") as path:
        pipe = StableDiffusionPipeline.from_pretrained(path, local_files_only=True, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    # The weights are stored in fp16, and the text encoder is loaded as it is stored.
    return pipe.to(device or default_device(), dtype)


def load_directory(path: Path, device: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """The pipeline that `pipe.save_pretrained` wrote to `path`, without its own progress bar.

    variant: "fp16" for weight files named *.fp16.safetensors. StepCacheError for what is no pipeline with a U-Net,
    looked at before any weights are read, and for what diffusers cannot load, with its reason.
    """
    from diffusers import DiffusionPipeline

    index = path / "model_index.json"
    if not index.is_file():
        raise InvalidSetting(
            f"{str(path)!r} is no pipeline: there is no {index} here. Give the directory of a downloaded pipeline, or "
            "'demo' for the bundled one; nothing is downloaded."
        )
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StepCacheError(f"{index} is no JSON: {error}.") from error
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


def swap_scheduler(pipe: Any, name: str | None, steps: int) -> None:
    """Give `pipe` the scheduler of that name (None: leave it its own). InvalidSetting where it cannot do `steps`."""
    import diffusers

    if name is not None:
        cls, extra = SCHEDULERS[name]
        pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **extra)
    try:
        pipe.scheduler.set_timesteps(steps)
    except (ValueError, IndexError, RuntimeError) as error:
        kind = type(pipe.scheduler).__name__
        raise InvalidSetting(f"{kind} cannot do --steps {steps} ({error}). Take another number.") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with one CPU thread, then with as many as before: for the demo.

    Layers as small as its gain little from a second one, and OpenMP's threads wait for each other by spinning: as soon
    as something else wants a core, times grow tenfold.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_guidance(pipe: Any) -> float:
    """The guidance scale that a call of `pipe` has by default."""
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)
