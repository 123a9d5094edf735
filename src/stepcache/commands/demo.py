"""`stepcache demo`: the same prompts and seeds without and with stepcache, as a picture and a table.

The pipeline is the small trained Stable Diffusion that comes with the package (assets/demo); nothing is downloaded.
Times are seconds of whole pipeline calls, text encoder and VAE included.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..api import accelerate, last_run
from ..errors import InvalidSetting
from ..images import fidelity
from ..images.pipelines import SCHEDULERS, load_demo, one_thread, swap_scheduler
from ..images.sheet import SheetRow, contact_sheet
from ..reuse.schedule import positive_int
from .arguments import add_reuse, check_guidance, check_seed, check_writable, distinct
from .quiet import quiet

# The ones that come out best with the default seeds.
PROMPTS = ("fox face", "cherry blossom", "hamburger", "red apple", "grinning face", "tiger face")

# Each setting is timed this often, and its best time counts: what else a machine does can only add to it. A further
# round is left out where those before took longer than SECONDS: the demo is to be over within a minute.
ROUNDS = 2
SECONDS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache demo`."""
    parser.add_argument(
        "--prompt",
        action="append",
        help="an emoji's name in lower case, such as 'tiger face' (the pipeline knows 354 of them and nothing else); "
        f"may be repeated (default: {', '.join(PROMPTS)})",
    )
    shown = "The picture shows the first, the table all"
    add_reuse(parser, f", 0 to 11; several with commas, or repeated. {shown} (default 0,1)")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default 30)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="ddim", help="sampler (default ddim)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default 3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; the next have the next (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stepcache-demo.png"), help="the picture (default stepcache-demo.png)"
    )


@dataclass
class Result:
    """One setting's images [N, H, W, 3] in 0..1, the seconds of each timing, and what each U-Net call was."""

    name: str
    images: np.ndarray = field(default_factory=lambda: np.empty(0))
    timings: list[float] = field(default_factory=list)
    kinds: str = ""

    @property
    def seconds(self) -> float:
        """The best timing."""
        return min(self.timings)


@dataclass(frozen=True)
class Job:
    """What is generated, the same for all settings."""

    prompts: list[str]
    steps: int
    guidance: float
    seed: int

    def generate(self, pipe: Any, steps: int | None = None, each_step: Callable[[], None] | None = None) -> np.ndarray:
        """The images [N, H, W, 3] in 0..1, of `steps` instead of the job's steps if given."""

        def on_step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if each_step is not None:
                each_step()
            return tensors

        # One generator an image: an image does not depend on what else is in its batch.
        generators = [torch.Generator("cpu").manual_seed(self.seed + i) for i in range(len(self.prompts))]
        return pipe(
            self.prompts,
            num_inference_steps=steps or self.steps,
            guidance_scale=self.guidance,
            generator=generators,
            output_type="np",
            callback_on_step_end=on_step_end,
        ).images


def run(args: argparse.Namespace) -> int:
    """Generate, draw, print. StepCacheError or OSError before the first image where that cannot be done."""
    job = _checked_job(args)
    intervals, branches = distinct(args.interval, (2, 3, 5)), distinct(args.branch, (0, 1))
    check_writable(args.out)
    with quiet("diffusers", "transformers"), one_thread():
        pipe = load_demo()
        check_length(pipe, job.prompts)
        swap_scheduler(pipe, args.scheduler, job.steps)
        pipes = {"original": pipe}
        for branch in branches:
            for interval in intervals:
                # Eager on a GPU too, as the original is: reuse alone is compared, and nobody waits for Inductor.
                fast = accelerate(twin(pipe), interval, branch, compile=False, cuda_graphs=False, channels_last=False)
                pipes[f"interval {interval}, branch {branch}"] = fast
        where = torch.cuda.get_device_name() if pipe.device.type == "cuda" else "one CPU thread"
        print(f"{len(job.prompts)} images of 64x64 px, {job.steps} steps of {args.scheduler}, on {where}.", flush=True)
        original, *results = generate_all(pipes, job)
    print()
    print(table(original, results))
    if unsteady := unsteadiness([original, *results]):
        print(f"\n{unsteady}")
    shown = results[: len(intervals)]
    subheading = (
        f"The same prompts and seeds, {job.steps} steps of {args.scheduler}, guidance {job.guidance:g}, "
        f"branch {branches[0]}, on {where}. Each bar is a U-Net call: dark ran all of it, light its shallow part."
    )
    draw(original, shown, job.prompts, subheading).save(args.out, format="PNG", optimize=True)
    print(f"\nPicture: {args.out}")
    return 0


def _checked_job(args: argparse.Namespace) -> Job:
    prompts = list(args.prompt or PROMPTS)
    for prompt in prompts:
        if not prompt.strip():
            raise InvalidSetting(f"--prompt {prompt!r} is empty: name an emoji, 'tiger face' for example.")
    check_guidance(args.guidance, " 3 looks best here.")
    check_seed(args.seed)
    return Job(prompts, positive_int("--steps", args.steps), args.guidance, args.seed)


def twin(pipe: Any) -> Any:
    """Another pipeline with the same models and scheduler, to be accelerated on its own."""
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """InvalidSetting for a prompt that the pipeline would cut off."""
    limit = pipe.tokenizer.model_max_length
    for prompt in prompts:
        tokens = len(pipe.tokenizer(prompt, truncation=False, padding=False).input_ids)
        if tokens > limit:
            raise InvalidSetting(
                f"--prompt {prompt!r} has {tokens - 2} tokens; this small pipeline takes {limit - 2}. Name an emoji, "
                "'tiger face' for example."
            )


def generate_all(pipes: dict[str, Any], job: Job) -> list[Result]:
    """One result for each of the named pipes, all of the same job, under one progress bar.

    Each pipe is timed once a round, so that a busy minute of the machine does not hit one of them alone.
    """
    from tqdm import tqdm

    began, batch = time.perf_counter(), len(job.prompts)
    results = {name: Result(name) for name in pipes}
    # The bar counts in images, but moves a step of a batch at a time: its numbers are rounded.
    form = "{desc:<22}{percentage:3.0f}% |{bar:30}| {n:.0f}/{total:.0f} images, {elapsed} so far, {remaining} to go"
    with tqdm(total=batch * ROUNDS * len(pipes), bar_format=form, smoothing=0.1, mininterval=0.2) as bar:
        for i in range(ROUNDS):
            if i and time.perf_counter() - began > SECONDS:
                bar.total = bar.n
                break
            for name, pipe in pipes.items():
                bar.set_description_str(name)
                result, end = results[name], bar.n + batch
                if i == 0 and (name == "original" or pipe.device.type == "cuda"):
                    job.generate(pipe, steps=min(2, job.steps))  # warm-up

                def each_step(pipe: Any = pipe, end: float = end) -> None:
                    bar.update(min(batch / len(pipe.scheduler.timesteps), end - bar.n))

                start = time.perf_counter()
                result.images = job.generate(pipe, each_step=each_step)  # arrays: a GPU is done when they are there
                result.timings.append(time.perf_counter() - start)
                record = None if name == "original" else last_run(pipe)
                result.kinds = record.kinds if record else "F" * len(pipe.scheduler.timesteps)
                bar.update(end - bar.n)
        bar.set_description_str("done")
    return list(results.values())


def unsteadiness(results: Sequence[Result], limit: float = 1.5) -> str:
    """What to say of timings that are further apart than `limit` times, or of a single one; else an empty string."""
    if len(results[0].timings) == 1:
        return "This machine was too slow or too busy to time each setting twice: take the speed-ups as rough ones."
    worst = max(max(result.timings) / result.seconds for result in results)
    if worst <= limit:
        return ""
    return (
        f"One setting's timings differ by a factor of {worst:.1f}: something else keeps this machine busy.\n"
        "Do not rely on the speed-ups above; images and PSNR are not touched by it."
    )


def table(original: Result, results: Sequence[Result]) -> str:
    """All results as text, one line each: seconds, speed-up and PSNR against the original, and what ran."""
    lines = [f"{'setting':22}{'seconds':>8}{'speed-up':>10}{'PSNR':>11}  schedule (U-Net calls: F full, P partial)"]
    for result in (original, *results):
        fidelity_text = (
            "" if result is original else fidelity.in_words(fidelity.mean_psnr(result.images, original.images))
        )
        speed_up = f"{original.seconds / result.seconds:.2f}x"
        kinds = result.kinds if len(result.kinds) <= 64 else f"{result.kinds[:61]}... ({len(result.kinds)})"
        lines.append(f"{result.name:22}{result.seconds:8.2f}{speed_up:>10}{fidelity_text:>11}  {kinds}")
    return "\n".join(lines)


def draw(original: Result, results: Sequence[Result], prompts: Sequence[str], subheading: str) -> Image.Image:
    """The contact sheet: the original's row, then one a result, with what was measured beside it."""
    rows = [SheetRow("original", _pil(original.images), [f"{original.seconds:.1f} s"], original.kinds)]
    for result in results:
        psnr = fidelity.mean_psnr(result.images, original.images)
        notes = [
            f"speed-up {original.seconds / result.seconds:.2f}x, {result.seconds:.1f} s",
            "identical" if math.isinf(psnr) else f"PSNR {psnr:.1f} dB",
        ]
        rows.append(SheetRow(result.name.split(",")[0], _pil(result.images), notes, result.kinds))
    return contact_sheet("stepcache: most steps need only a part of the U-Net", subheading, prompts, rows)


def _pil(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().astype("uint8")) for image in images]
