"""What stepcache refuses, each by name and before anything is changed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from support.builders import (
    ddim,
)
from support.cases.case import Case, partial
from support.cases.families import unconditional

from stepcache.errors import UnsupportedPipeline, UnsupportedUNet


def hollow(cls: type, model: type | None = None, **options: Any) -> Any:
    """A pipeline without parts, but for a scheduler and a U-Net of class `model` without weights.

    Not by its constructor, which may ask the parts for their configs.
    """
    parts = dict.fromkeys(inspect.signature(cls.__init__).parameters)
    del parts["self"]
    if "scheduler" in parts:
        parts["scheduler"] = ddim()
    if model is not None:
        with torch.device("meta"):
            parts["unet"] = model(**options)
    pipe = cls.__new__(cls)
    pipe.register_modules(**parts)
    return pipe


NO_UNET = "takes a diffusers pipeline with .unet and .scheduler, got "


def refused(
    pipeline: str, family: str, error: type[Exception], pattern: str, build: Callable[[type], Any] = hollow
) -> Case:
    """`family` is the class of what denoises; where that has another name than `unet`, it is not looked at."""
    cls = getattr(diffusers, pipeline)
    return Case(pipeline, "", functools.partial(build, cls), family=family, error=error, pattern=pattern)


def unknown(pipeline: str, model: str, **options: Any) -> Case:
    """Refused for its U-Net, whose class or blocks stepcache does not know."""
    build = partial(hollow, getattr(diffusers, model), **options)
    return refused(pipeline, model, UnsupportedUNet, f"is a {model}|{model} is not a U-Net|is a DreamLite", build)


CASES = [
    unknown(
        "UniDiffuserPipeline",
        "UniDiffuserModel",
        text_dim=8,
        clip_img_dim=8,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
    ),
    unknown("Kandinsky3Pipeline", "Kandinsky3UNet"),
    unknown("Kandinsky3Img2ImgPipeline", "Kandinsky3UNet"),
    unknown("I2VGenXLPipeline", "I2VGenXLUNet"),
    unknown("AudioLDM2Pipeline", "AudioLDM2UNet2DConditionModel"),
    unknown("StableDiffusionControlNetXSPipeline", "UNetControlNetXSModel"),
    unknown("StableDiffusionXLControlNetXSPipeline", "UNetControlNetXSModel"),
    unknown("DanceDiffusionPipeline", "UNet1DModel"),
    unknown("DreamLitePipeline", "DreamLiteUNetModel"),
    unknown("DreamLiteMobilePipeline", "DreamLiteUNetModel"),
    refused(
        "ScoreSdeVePipeline",
        "UNet2DModel",
        UnsupportedPipeline,
        r"ScoreSdeVeScheduler, which has no step\(\)",
        partial(unconditional, diffusers.ScoreSdeVeScheduler()),
    ),
    refused("UnCLIPPipeline", "UNet2DConditionModel", UnsupportedPipeline, NO_UNET),
    refused("StableCascadePriorPipeline", "StableCascadeUNet", UnsupportedPipeline, NO_UNET),
    refused("WuerstchenDecoderPipeline", "WuerstchenDiffNeXt", UnsupportedPipeline, NO_UNET),
    *(
        refused(f"VersatileDiffusion{kind}Pipeline", "UNet2DConditionModel", UnsupportedPipeline, NO_UNET)
        for kind in ("", "TextToImage", "ImageVariation", "DualGuided")
    ),
]
