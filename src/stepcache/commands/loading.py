"""The prompts, device, dtype and guidance that a command line asks for."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..errors import InvalidSetting
from ..images.pipelines import DEMO, default_device, default_guidance, dtype_named
from ..images.prompts import Prompt, bundled_prompts, read_prompts


def prompts_of(args: argparse.Namespace) -> list[Prompt]:
    """The prompts of the file --prompts; without one, bundled prompts that suit the pipeline."""
    if args.prompts is not None:
        return read_prompts(args.prompts)
    return bundled_prompts(DEMO if args.pipeline == DEMO else "general")


def usable_device(name: str | None) -> str:
    """The device; None: the GPU if there is one. InvalidSetting if no tensor can be put there."""
    name = name or default_device()
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InvalidSetting(f"--device {name!r} cannot be used here: {reason}") from error
    return name


def device_and_dtype(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """What `add_loading`'s arguments ask for. InvalidSetting if the device cannot be used."""
    device = usable_device(args.device)
    return device, dtype_named(args.dtype or ("float32" if device == "cpu" else "float16"))


def guidance_of(args: argparse.Namespace, pipe: Any) -> float:
    """--guidance; without it 3 for the demo, and the default of any other pipeline."""
    if args.guidance is not None:
        return float(args.guidance)
    return 3.0 if args.pipeline == DEMO else default_guidance(pipe)
