"""Which pipelines' U-Net batch is [unconditional, conditional], so that guidance can be reused.

Known by name, after reading each pipeline's loop: a batch of another make-up looks the same from inside. Left out:
three-way batches (InstructPix2Pix), those with a perturbed part (PAG), several U-Net calls a step (SAG, LEdits++,
Attend-and-Excite, panorama), and pipelines that do not tell whether guidance is on (no `do_classifier_free_guidance`:
ModelScope's) or whose answer lies on the device, where reading it would make the host wait (StableVideoDiffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import UnsupportedPipeline

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


# Where the processors are that treat each row of a batch by itself.
KNOWN_PROCESSORS = ("diffusers.models.",)


def guided(pipe: Any) -> Callable[[], bool]:
    """A function that tells whether the pipe's present U-Net call has a batch [unconditional, conditional].

    Guidance may be dropped in the middle of a run, so it is asked at each call. UnsupportedPipeline where the pipe's
    loop is none of those known here; a subclass counts where it keeps the loop of its base.
    """
    owner = next(cls for cls in type(pipe).__mro__ if "__call__" in vars(cls) and not _made_by_us(cls))
    if owner.__name__ not in HALVED or not owner.__module__.startswith("diffusers."):
        raise UnsupportedPipeline(
            f'guidance="reuse" needs a pipeline whose batch is known to be [unconditional, conditional]; the loop of '
            f"{owner.__module__}.{owner.__name__} is not. Known: {', '.join(sorted(HALVED))}. "
            'With guidance="both" it runs.'
        )
    return lambda: bool(pipe.do_classifier_free_guidance)


def whole_batches_only(unet: nn.Module) -> str:
    """Why half a batch must not be given to `unet`; "" where it can be.

    An attention processor of somebody's own may look across the batch (frames that attend to the first one, styles
    shared by images), and IP-Adapter's FaceID Plus keeps embeddings of the whole batch.
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
