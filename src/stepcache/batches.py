"""Which pipelines' U-Net batch is [unconditional, conditional], so that guidance can be reused.

Known by name, after reading each pipeline's loop: a batch of another make-up looks the same from inside. Left out:
three-way batches (InstructPix2Pix), those with a perturbed part (PAG), several U-Net calls a step (SAG, LEdits++,
Attend-and-Excite, panorama), and pipelines that do not tell whether guidance is on (no `do_classifier_free_guidance`:
ModelScope's) or whose answer lies on the device, where reading it would make the host wait (StableVideoDiffusion).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import UnsupportedPipeline

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


def _made_by_us(cls: type) -> bool:
    return any(name.startswith("_stepcache") for name in vars(cls))
