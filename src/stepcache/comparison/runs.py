"""The runs of a comparison: each prompt by the original pipeline and under each setting, with the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..api import accelerate, last_run, restore
from ..errors import StepCacheError
from ..images import fidelity
from ..images.pictures import DIFFERENCE_QUALITY, data_uri, difference, eight_bit
from ..images.prompts import Prompt
from ..images.scores import ClipScore, Lpips
from .drift import measure_drift
from .results import Compared, Comparison, Setting, Shot

THUMBNAIL = 256  # pixels, of the contact sheet's images

# Called with a name and the pipe at the start of an image; gives what is to be called at the end of each step.
Begin = Callable[[str, Any], Callable[[], None]]


@dataclass(frozen=True)
class Made:
    """An image [H, W, 3] in 0..1, the seconds it took, and whether the pipeline's safety checker blackened it."""

    image: np.ndarray
    seconds: float
    censored: bool


@dataclass(frozen=True)
class Job:
    """What is made, the same for all settings.

    guidance, size (height, width in pixels): None for the pipeline's own.
    """

    prompts: Sequence[Prompt]
    steps: int
    guidance: float | None
    seed: int
    size: tuple[int, int] | None = None

    def seed_of(self, index: int) -> int:
        """The seed of that prompt."""
        seed = self.prompts[index].seed
        return self.seed + index if seed is None else seed

    def size_of(self, index: int) -> tuple[int | None, int | None]:
        """Height and width of that prompt's image; None where the pipeline chooses."""
        prompt, (height, width) = self.prompts[index], self.size or (None, None)
        return prompt.height or height, prompt.width or width

    def make(
        self, pipe: Any, index: int, each_step: Callable[[], None] | None = None, steps: int | None = None
    ) -> Made:
        """That prompt's image, in `steps` instead of the job's steps if given. each_step is called after each step.

        StepCacheError where the image has values that are no numbers, as half precision can give.
        """

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if each_step is not None:
                each_step()
            return tensors

        prompt, (height, width) = self.prompts[index], self.size_of(index)
        guidance = {} if self.guidance is None else {"guidance_scale": self.guidance}
        start = time.perf_counter()
        output = pipe(
            prompt=prompt.text,
            negative_prompt=prompt.negative,
            height=height,
            width=width,
            num_inference_steps=steps or self.steps,
            **guidance,
            generator=torch.Generator("cpu").manual_seed(self.seed_of(index)),
            output_type="np",
            callback_on_step_end=on_step_end,
        )
        seconds = time.perf_counter() - start  # the image is an array: a GPU is done when it is there
        (image,) = output.images
        if not np.isfinite(image).all():
            raise StepCacheError(
                f"The image of {prompt.text!r} has values that are no numbers, in {pipe.dtype}: try --dtype bfloat16 "
                "or float32."
            )
        flags = getattr(output, "nsfw_content_detected", None)
        return Made(image, seconds, bool(flags and flags[0]))


@dataclass(frozen=True)
class Scores:
    """The scores that need weights; None where these are not at hand."""

    lpips: Lpips | None = None
    clip: ClipScore | None = None


def rehearse(pipe: Any, job: Job) -> None:
    """Two steps of the first prompt of each size: it warms up, and finds what the pipeline refuses.

    StepCacheError with the pipeline's reason.
    """
    first = {job.size_of(index): index for index in reversed(range(len(job.prompts)))}
    for index in sorted(first.values()):
        try:
            job.make(pipe, index, steps=min(2, job.steps))
        except StepCacheError:
            raise
        except (ValueError, TypeError, RuntimeError) as error:
            height, width = job.size_of(index)
            pixels = "its default size" if height is None or width is None else f"{height}x{width} px"
            raise StepCacheError(
                f"The pipeline, as it was loaded, cannot make {job.prompts[index].text!r} at {pixels}: {error}"
            ) from error


def make_all(pipe: Any, job: Job, comparison: Comparison, scores: Scores, drift: int) -> bool:
    """Make all images, and add to the comparison prompt by prompt; measure drift on the first `drift` of them.

    Returns False where it was interrupted after at least one prompt, and raises KeyboardInterrupt where before.
    """
    settings = comparison.settings
    branches = {s.branch: [other for other in settings if other.branch == s.branch] for s in settings}
    total = len(job.prompts) * (1 + len(settings)) + min(drift, len(job.prompts)) * len(branches)
    with _progress(total) as begin:
        try:
            for index in range(len(job.prompts)):
                result = _compared(pipe, job, index, settings, scores, begin)
                drifts: dict[Setting, list[float]] = {}
                for branch, same in branches.items() if index < drift else ():
                    drifts |= _drifts(pipe, job, index, branch, same, begin)
                # All of a prompt or nothing: interrupted, the comparison has whole prompts.
                comparison.results.append(result)
                for setting, values in drifts.items():
                    comparison.drifts.setdefault(setting, []).append(values)
        except KeyboardInterrupt:
            if not comparison.results:
                raise
            return False
    return True


def _compared(pipe: Any, job: Job, index: int, settings: Sequence[Setting], scores: Scores, begin: Begin) -> Compared:
    """One prompt's images, without stepcache and with it at each setting."""
    prompt, original = job.prompts[index], job.make(pipe, index, begin("original", pipe))
    reused = []
    for setting in settings:
        accelerate(pipe, setting.interval, setting.branch, compile=False, cuda_graphs=False, channels_last=False)
        try:
            made = job.make(pipe, index, begin(setting.name, pipe))
            record = last_run(pipe)
        finally:
            restore(pipe)
        assert record is not None
        reused.append(_reused(made, record.kinds, original, prompt, scores))
    height, width = original.image.shape[:2]
    shot = _shot(original, "F" * len(reused[0].kinds), prompt, scores)
    return Compared(prompt, job.seed_of(index), height, width, shot, reused)


def _drifts(
    pipe: Any, job: Job, index: int, branch: int, settings: Sequence[Setting], begin: Begin
) -> dict[Setting, list[float]]:
    """The drift of each step for each of the settings, which are of one branch."""
    moved = begin(f"drift, branch {branch}", pipe)

    def run(look: Callable[[], None]) -> None:
        def each_step() -> None:
            look()
            moved()

        job.make(pipe, index, each_step)

    values = measure_drift(pipe, branch, [setting.schedule for setting in settings], run)
    return dict(zip(settings, values, strict=True))


def _shot(made: Made, kinds: str, prompt: Prompt, scores: Scores) -> Shot:
    """The image as the page has it, not compared with anything."""
    thumbnail = Image.fromarray(eight_bit(made.image))
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    clip = None if scores.clip is None or made.censored else scores.clip(made.image, prompt.text)
    return Shot(data_uri(made.image), thumbnail, made.seconds, kinds, clip=clip, censored=made.censored)


def _reused(made: Made, kinds: str, original: Made, prompt: Prompt, scores: Scores) -> Shot:
    """The image of an accelerated run, compared with the original."""
    shot = _shot(made, kinds, prompt, scores)
    off = data_uri(difference(made.image, original.image), DIFFERENCE_QUALITY)
    if made.censored or original.censored:
        return replace(shot, difference=off, clip=None, censored=True)
    pair = made.image[None], original.image[None]
    return replace(
        shot,
        difference=off,
        psnr=float(fidelity.psnr(*pair)[0]),
        ssim=float(fidelity.ssim(*pair)[0]),
        lpips=None if scores.lpips is None else scores.lpips(made.image, original.image),
    )


@contextmanager
def _progress(total: int) -> Iterator[Begin]:
    """A bar of `total` images; yields what is to be called for each of them."""
    from tqdm import tqdm

    # The bar counts in images, but moves a step at a time: its numbers are rounded.
    form = "{desc:<22}{percentage:3.0f}% |{bar:30}| {n:.0f}/{total:.0f} images, {elapsed} so far, {remaining} to go"
    with tqdm(total=total, bar_format=form, smoothing=0, mininterval=0.2) as bar:
        begun = 0

        def begin(name: str, pipe: Any) -> Callable[[], None]:
            nonlocal begun
            bar.update(begun - bar.n)
            bar.set_description_str(name)
            begun += 1

            def each_step() -> None:
                bar.update(min(1 / len(pipe.scheduler.timesteps), begun - bar.n))

            return each_step

        yield begin
        bar.update(begun - bar.n)
        bar.set_description_str("done")
