"""The runs of a comparison: each prompt by the original pipeline and in each setting, with the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ..api import accelerate, last_run, restore
from ..errors import StepCacheError
from ..images import fidelity
from ..images.make import Made, Request
from ..images.pictures import DIFFERENCE_QUALITY, data_uri, difference, eight_bit
from ..images.progress import ImageBar, image_bar
from ..images.prompts import Prompt
from ..images.scores import ClipScore, Lpips
from .cost import Latents, calls_seen
from .drift import measure_drift
from .results import Compared, Comparison, Setting, Shot, Variant

THUMBNAIL = 256  # pixels, of the contact sheet's images

# Reuse alone is compared, on a GPU too, and nobody waits for Inductor.
EAGER: dict[str, Any] = {"compile": False, "cuda_graphs": False, "channels_last": False}


def requests_of(
    prompts: Sequence[Prompt], steps: int, guidance: float, seed: int, size: tuple[int, int] | None = None
) -> list[Request]:
    """A request for each prompt, with its own seed and size if it has them.

    seed: of the first prompt; the next ones count up. size: (height, width) in pixels, None for the pipeline's.
    """
    height, width = size or (None, None)
    return [
        Request(
            prompt.text,
            seed + i if prompt.seed is None else prompt.seed,
            steps,
            {
                "negative_prompt": prompt.negative,
                "height": prompt.height or height,
                "width": prompt.width or width,
                "guidance_scale": guidance,
            },
        )
        for i, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class Scores:
    """The scores that need weights; None without these."""

    lpips: Lpips | None = None
    clip: ClipScore | None = None


def try_sizes(pipe: Any, requests: Sequence[Request]) -> list[Latents]:
    """Warm up: two steps of the first request of each size. StepCacheError with the reason if the pipeline refuses.

    Returns the size of each request's latents, without those of a pipeline that does not call the U-Net as a module.
    """
    first: dict[tuple[Any, Any], Request] = {}
    for request in requests:
        first.setdefault(_size(request), request)
    latents: dict[tuple[Any, Any], Latents] = {}
    for (height, width), request in first.items():
        try:
            with calls_seen(pipe.unet) as seen:
                request.make(pipe, steps=min(2, request.steps), each_step=lambda: None)
            if seen:
                latents[height, width] = seen[-1]
        except StepCacheError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            pixels = "its default size" if height is None or width is None else f"{height}x{width} px"
            raise StepCacheError(
                f"The pipeline, as it was loaded, cannot make {request.text!r} at {pixels}: {error}"
            ) from error
    return [latents[size] for size in map(_size, requests) if size in latents]


def _size(request: Request) -> tuple[Any, Any]:
    """In pixels, None for the pipeline's own."""
    return request.call["height"], request.call["width"]


def make_all(pipe: Any, requests: Sequence[Request], comparison: Comparison, scores: Scores, drift: int) -> bool:
    """Make all images, and measure drift on the first `drift` requests; adds to `comparison` request by request.

    False if interrupted after at least one request; before that KeyboardInterrupt is passed on.
    """
    settings, variants = comparison.settings, comparison.variants
    total = len(requests) * (1 + len(settings)) + min(drift, len(requests))
    with image_bar(total) as bar:
        try:
            for i, request in enumerate(requests):
                result = _compared(pipe, request, settings, scores, bar)
                drifts = _drifts(pipe, request, variants, bar) if i < drift else {}
                # Added together, so that an interrupted comparison has whole prompts.
                comparison.results.append(result)
                for variant, values in drifts.items():
                    comparison.drifts.setdefault(variant, []).append(values)
        except KeyboardInterrupt:
            if not comparison.results:
                raise
            return False
    return True


def _compared(pipe: Any, request: Request, settings: Sequence[Setting], scores: Scores, bar: ImageBar) -> Compared:
    """One prompt's images: the original's and each setting's."""
    original, kinds = _original(pipe, request, request.steps, bar.begin("original", pipe))
    shots = []
    for setting in settings:
        each_step = bar.begin(setting.name, pipe)
        if isinstance(setting, Variant):
            made, letters = _accelerated(pipe, request, setting, each_step)
        else:
            made, letters = _original(pipe, request, setting.steps, each_step)
        shots.append(_beside(made, letters, original, request.text, scores))
    height, width = original.images.shape[1:3]
    return Compared(request, height, width, _shot(original, kinds, request.text, scores), shots)


def _original(pipe: Any, request: Request, steps: int, each_step: Callable[[], None]) -> tuple[Made, str]:
    """A run of the original pipeline with so many steps, and a letter for each of its U-Net calls."""
    with calls_seen(pipe.unet) as seen:
        made = request.make(pipe, steps, each_step)
    return made, "F" * len(seen)


def _accelerated(pipe: Any, request: Request, variant: Variant, each_step: Callable[[], None]) -> tuple[Made, str]:
    """A run of a variant, and a letter for each of its U-Net calls."""
    accelerate(pipe, **variant.arguments, **EAGER)
    try:
        made = request.make(pipe, each_step=each_step)
        record = last_run(pipe)
    finally:
        restore(pipe)
    assert record is not None
    return made, record.kinds


def _drifts(pipe: Any, request: Request, variants: Sequence[Variant], bar: ImageBar) -> dict[Variant, list[float]]:
    """The drift of each step for each variant."""
    moved = bar.begin("drift", pipe)

    def run(look: Callable[[], None]) -> None:
        def each_step() -> None:
            look()
            moved()

        request.make(pipe, each_step=each_step)

    return measure_drift(pipe.unet, variants, run)


def _shot(made: Made, kinds: str, text: str, scores: Scores) -> Shot:
    """The image for the page, not compared with anything."""
    (image,), (censored,) = made.images, made.censored
    thumbnail = Image.fromarray(eight_bit(image))
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    clip = None if scores.clip is None or censored else scores.clip(image, text)
    return Shot(data_uri(image), thumbnail, made.seconds, kinds, clip=clip, censored=censored)


def _beside(made: Made, kinds: str, original: Made, text: str, scores: Scores) -> Shot:
    """The image of a setting's run, compared with the original."""
    shot = _shot(made, kinds, text, scores)
    pair = made.images, original.images
    off = data_uri(difference(made.images[0], original.images[0]), DIFFERENCE_QUALITY)
    if any(made.censored + original.censored):
        return replace(shot, difference=off, clip=None, censored=True)
    return replace(
        shot,
        difference=off,
        psnr=float(fidelity.psnr(*pair)[0]),
        ssim=float(fidelity.ssim(*pair)[0]),
        lpips=None if scores.lpips is None else scores.lpips(made.images[0], original.images[0]),
    )
