"""`stepcache demo`: the same prompts and seeds without and with stepcache, as a picture and a table.

The pipeline is the small trained Stable Diffusion that comes with the package (assets/demo); nothing is downloaded.
Times are seconds of whole pipeline calls, text encoder and VAE included.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..api import accelerate, last_run
from ..errors import InvalidSetting
from ..files.replacing import write_bytes
from ..images.fidelity import in_words, mean_psnr
from ..images.make import Request
from ..images.pictures import eight_bit
from ..images.pipelines import load_demo
from ..images.progress import image_bar
from ..images.prompts import bundled_prompts, check_text, cut_off
from ..images.schedulers import swap_scheduler
from ..images.sheet import SheetRow, contact_sheet, png
from ..values import amount, positive_int
from .arguments import check_guidance, check_seed, check_writable, distinct
from .options.demo import PROMPTS
from .quiet import quiet
from .threads import one_thread

logger = logging.getLogger("stepcache")

# Each setting is timed this often, and its best time counts, since other work on the machine can only add to it. No
# further round begins after SECONDS, so that the demo takes less than a minute.
ROUNDS = 2
SECONDS = 20


@dataclass
class Result:
    """One setting's images [N, H, W, 3] in 0..1, the seconds of each timing, and a letter for each U-Net call."""

    name: str
    images: np.ndarray = field(default_factory=lambda: np.empty(0))
    timings: list[float] = field(default_factory=list)
    kinds: str = ""

    @property
    def seconds(self) -> float:
        """The best timing."""
        return min(self.timings)


def run(args: argparse.Namespace) -> int:
    """Generate, draw, print. StepCacheError or OSError, before the first image, for invalid arguments."""
    if args.names:
        print("\n".join(known_names()))
        return 0
    prompts, steps = _checked_prompts(args), positive_int("--steps", args.steps)
    check_guidance(args.guidance, " 3 looks best here.")
    check_seed(args.seed)
    intervals, branches = distinct(args.interval, (2, 3, 5)), distinct(args.branch, (0, 1))
    check_writable(args.out)
    with quiet("diffusers", "transformers"), one_thread():
        pipe = load_demo()
        check_length(pipe, prompts)
        warn_of_unknown(prompts)
        swap_scheduler(pipe, args.scheduler, steps)
        pipes = {"original": pipe}
        # Eager like the original, on a GPU too: reuse alone is compared, and nobody waits for Inductor.
        settings = {"predict": args.predict, "compile": False, "cuda_graphs": False, "channels_last": False}
        for branch in branches:
            for interval in intervals:
                pipes[f"interval {interval}, branch {branch}"] = accelerate(twin(pipe), interval, branch, **settings)
        where = torch.cuda.get_device_name() if pipe.device.type == "cuda" else "one CPU thread"
        sampled = f"{amount(steps, 'step')} of {type(pipe.scheduler).__name__}"
        how = f"{sampled}, guidance {args.guidance:g}, predict={args.predict}"
        print(f"{amount(len(prompts), 'image')} of 64x64 px, {how}, on {where}.", flush=True)
        seeds = range(args.seed, args.seed + len(prompts))
        request = Request(prompts, seeds, steps, {"guidance_scale": args.guidance})
        original, *results = run_all(pipes, request)
    print()
    print(table(original, results))
    if unsteady := unsteadiness([original, *results]):
        print(f"\n{unsteady}")
    shown = results[: len(intervals)]
    subheading = (
        f"The same prompts and seeds, {how}, branch {branches[0]}, on {where}. "
        "Each bar is a U-Net call: dark ran all of it, light its shallow part."
    )
    write_bytes(args.out, png(draw(original, shown, prompts, subheading)))
    print(f"\nPicture: {args.out}")
    return 0


def _checked_prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt or PROMPTS)
    for prompt in prompts:
        if not prompt.strip():
            raise InvalidSetting(f"--prompt {prompt!r} is empty: name an emoji, such as 'tiger face'.")
        check_text(prompt, "--prompt")
    return prompts


def known_names() -> list[str]:
    """What the pipeline was trained on."""
    return [prompt.text for prompt in bundled_prompts("demo_names")]


def warn_of_unknown(prompts: Sequence[str]) -> None:
    """Images of other prompts show nothing, and the figures beside them look as good as any."""
    known = set(known_names())
    # As the tokenizer sees them.
    unknown = [prompt for prompt in prompts if " ".join(prompt.lower().split()) not in known]
    if unknown:
        logger.warning(
            "The demo pipeline does not know %s: images of unknown names show nothing. `stepcache demo --names` prints "
            "the %d that it knows.",
            ", ".join(map(repr, unknown)),
            len(known),
        )


def twin(pipe: Any) -> Any:
    """Another pipeline with the same models and scheduler, to be accelerated by itself."""
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """InvalidSetting for a prompt that the pipeline would cut off."""
    for prompt, tokens in cut_off(pipe, prompts):
        raise InvalidSetting(
            f"--prompt {prompt!r} has {tokens - 2} tokens; this small pipeline takes "
            f"{pipe.tokenizer.model_max_length - 2}. Name an emoji, such as 'tiger face'."
        )


def run_all(pipes: dict[str, Any], request: Request) -> list[Result]:
    """A result for each of the named pipes, under one progress bar.

    Each pipe is timed once a round, so that a busy minute of the machine does not hit one of them alone.
    """
    began, batch = time.perf_counter(), len(request.prompt)
    results = {name: Result(name) for name in pipes}
    with image_bar(batch * ROUNDS * len(pipes)) as bar:
        for i in range(ROUNDS):
            if i and time.perf_counter() - began > SECONDS:
                bar.stop()
                break
            for name, pipe in pipes.items():
                result, each_step = results[name], bar.begin(name, pipe, batch)
                if i == 0 and (name == "original" or pipe.device.type == "cuda"):
                    request.make(pipe, steps=min(2, request.steps))  # warm-up
                made = request.make(pipe, each_step=each_step)
                result.images = made.images
                result.timings.append(made.seconds)
                record = None if name == "original" else last_run(pipe)
                result.kinds = record.kinds if record else "F" * len(pipe.scheduler.timesteps)
    return list(results.values())


def unsteadiness(results: Sequence[Result], limit: float = 1.5) -> str:
    """A warning if a setting's timings differ by more than a factor of `limit`, or there is only one; else ""."""
    if len(results[0].timings) == 1:
        return "This machine was too slow or too busy to time each setting twice: the speed-ups are rough."
    worst = max(max(result.timings) / result.seconds for result in results)
    if worst <= limit:
        return ""
    return (
        f"One setting's timings differ by a factor of {worst:.1f}: this machine is busy with something else.\n"
        "Do not rely on the speed-ups above; images and PSNR are not affected."
    )


def table(original: Result, results: Sequence[Result]) -> str:
    """All results as text, a line each: seconds, speed-up and PSNR against the original, and the schedule."""
    lines = [f"{'setting':22}{'seconds':>8}{'speed-up':>10}{'PSNR':>11}  schedule (U-Net calls: F full, P partial)"]
    for result in (original, *results):
        psnr = "" if result is original else in_words(mean_psnr(result.images, original.images))
        speed_up = f"{original.seconds / result.seconds:.2f}x"
        kinds = result.kinds if len(result.kinds) <= 64 else f"{result.kinds[:61]}... ({len(result.kinds)})"
        lines.append(f"{result.name:22}{result.seconds:8.2f}{speed_up:>10}{psnr:>11}  {kinds}")
    return "\n".join(lines)


def draw(original: Result, results: Sequence[Result], prompts: Sequence[str], subheading: str) -> Image.Image:
    """The contact sheet: a row for the original and for each result, with its figures beside it."""
    rows = [SheetRow("original", _pil(original.images), [f"{original.seconds:.1f} s"], original.kinds)]
    for result in results:
        notes = [
            f"speed-up {original.seconds / result.seconds:.2f}x, {result.seconds:.1f} s",
            in_words(mean_psnr(result.images, original.images), "PSNR "),
        ]
        rows.append(SheetRow(result.name.split(",")[0], _pil(result.images), notes, result.kinds))
    return contact_sheet("stepcache: most steps need only a part of the U-Net", subheading, prompts, rows)


def _pil(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in eight_bit(images)]
