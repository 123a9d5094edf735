"""The pipelines whose U-Net batch is [unconditional, conditional]: guidance can be reused, or its halves told apart.

A list of names, from reading each pipeline's loop, because a batch does not show what it is made of. Not on it are
pipelines with three-way batches (InstructPix2Pix), with a perturbed part (PAG), with several U-Net calls per step (SAG,
LEdits++, Attend-and-Excite, panorama), without `do_classifier_free_guidance` (ModelScope's), and those where it is on
the device, so that reading it makes the host wait (StableVideoDiffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import UnsupportedPipeline
from .modular import is_modular

HALVED = frozenset(
    {
        "AnimateDiffControlNetPipeline",
        "AnimateDiffPipeline",
        "AnimateDiffSDXLPipeline",
        "AnimateDiffSparseControlNetPipeline",
        "AnimateDiffVideoToVideoControlNetPipeline",
        "AnimateDiffVideoToVideoPipeline",
        "KandinskyV22Img2ImgPipeline",
        "KandinskyV22InpaintPipeline",
        "KandinskyV22Pipeline",
        "KolorsImg2ImgPipeline",
        "KolorsPipeline",
        "PIAPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionXLAdapterPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLPipeline",
    }
)


# Modules whose attention processors treat each row of a batch by itself.
KNOWN_PROCESSORS = ("diffusers.models.",)


def guided(pipe: Any) -> Callable[[], bool]:
    """A function that returns whether the pipe's current U-Net call has a batch [unconditional, conditional].

    Call it at each U-Net call, because guidance may be dropped mid-run. Raises UnsupportedPipeline if the pipe's loop
    is not known here; a subclass is known if it keeps its base's loop.
    """
    if is_modular(pipe):
        if getattr(pipe, "guider", None) is None:
            raise UnsupportedPipeline(
                f'guidance="reuse" needs the names of the guidance branches, and this {type(pipe).__name__} has no '
                'guider to tell them. Use guidance="both" instead.'
            )
        return lambda: False  # the halves come in separate calls (run/halves.py)
    owner = next(cls for cls in type(pipe).__mro__ if "__call__" in vars(cls) and not _made_by_us(cls))
    if owner.__name__ not in HALVED or not owner.__module__.startswith("diffusers."):
        raise UnsupportedPipeline(
            f'guidance="reuse" needs a pipeline whose batch is known to be [unconditional, conditional]; the loop of '
            f"{owner.__module__}.{owner.__name__} is not. Known: {', '.join(sorted(HALVED))}. "
            'Use guidance="both" instead; of the presets, "faithful" or "balanced".'
        )
    return lambda: bool(pipe.do_classifier_free_guidance)


def guidance_scale(pipe: Any) -> Any:
    """The scale of the pipe's current call, or of its guider if it is a modular one; None if nothing tells it."""
    if is_modular(pipe):
        return getattr(getattr(pipe, "guider", None), "guidance_scale", None)
    return getattr(pipe, "_guidance_scale", None)


def shows_halves(pipe: Any) -> bool:
    """Whether the halves of guidance are known to come in one batch, so that `guided` tells of each call."""
    try:
        guided(pipe)
    except UnsupportedPipeline:
        return False
    return not is_modular(pipe)


def whole_batches_only(unet: nn.Module) -> str:
    """Why `unet` must not run half a batch; "" if it may.

    A custom attention processor may look across the batch (frames that attend to the first one, images that share a
    style), and IP-Adapter's FaceID Plus keeps embeddings of the whole batch.
    """
    for module in unet.modules():
        values = vars(module)
        processor = values.get("processor") or values["_modules"].get("processor")
        if processor is not None and not type(processor).__module__.startswith(KNOWN_PROCESSORS):
            return f"{type(processor).__name__} on the U-Net may look across the batch"
        if values.get("clip_embeds") is not None:
            return f"{type(module).__name__} keeps embeddings of the whole batch"
    return ""


def _made_by_us(cls: type) -> bool:
    return any(name.startswith("_stepcache") for name in vars(cls))
