"""`stepcache compare`: the same prompts and seeds without and with stepcache, as an HTML page and a contact sheet.

Images are made one by one, under all settings of a prompt after each other, so that a busy minute of the machine does
not hit one of them alone. Everything runs eager, on a GPU too: reuse alone is compared, and nobody waits for Inductor
(`stepcache bench` measures compiled graphs). Seconds are those of whole pipeline calls.
"""

from __future__ import annotations

import argparse
import inspect
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import __version__
from ..api import accelerate, restore
from ..bench.rows import Rig
from ..comparison.report import html_report
from ..comparison.results import Comparison, Figures, Setting, figures_of
from ..comparison.runs import Job, Scores, make_all, rehearse
from ..errors import UnsupportedPipeline
from ..images.fidelity import in_words
from ..images.pipelines import (
    DEMO,
    SCHEDULERS,
    add_loading,
    asked_for,
    default_guidance,
    load,
    one_thread,
    swap_scheduler,
)
from ..images.prompts import bundled_prompts, read_prompts, size_of
from ..images.scores import ClipScore, Lpips, missing_for_lpips
from ..images.sheet import SheetRow, contact_sheet
from ..reuse.schedule import Schedule, positive_int
from .arguments import add_reuse, check_guidance, check_seed, check_writable, distinct
from .quiet import quiet

# What a pipeline's call must take.
NEEDED = {"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator"}
NEEDED |= {"output_type", "callback_on_step_end"}

COLUMNS = 8  # prompts beside each other in the contact sheet
LEGEND = "Each bar is a U-Net call: dark ran all of it, light its shallow part. Figures are over all prompts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache compare`."""
    parser.add_argument(
        "pipeline",
        metavar="PIPELINE",
        help=f"directory of a text-to-image pipeline with a U-Net, or {DEMO!r} for the bundled one (a directory of "
        f"that name is ./{DEMO}); nothing is downloaded",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="text: a prompt a line, and # begins a comment. Or, where the name ends in .jsonl, an object a line: "
        '{"prompt": ..., "negative_prompt": ..., "seed": ..., "height": ..., "width": ...}, all but the first optional '
        "(default: 24 bundled prompts; for the demo 12 of the emoji that it knows)",
    )
    add_reuse(parser, "; several with commas, or repeated (default 0)")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default 30)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="sampler (default: the pipeline's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's; 3 for the demo)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first prompt; the next have the next (default 0)"
    )
    parser.add_argument(
        "--size", metavar="PIXELS", help="image size, HEIGHTxWIDTH or one number (default: the pipeline's)"
    )
    add_loading(parser)
    parser.add_argument(
        "--drift",
        metavar="N",
        type=int,
        default=3,
        help="measure the feature's drift on the first N prompts; each takes one more run for every branch (default 3)",
    )
    parser.add_argument(
        "--clip", metavar="DIR", type=Path, help="directory of a transformers CLIPModel, for CLIP scores"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stepcache-compare.html"), help="the page (default stepcache-compare.html)"
    )
    parser.add_argument("--sheet", type=Path, help="the contact sheet (default: the page's name, with .png)")


def run(args: argparse.Namespace) -> int:
    """Make the images, write page and sheet, print a table. What cannot be done is said before the first image.

    Where it is interrupted, the prompts that are done are written, and the status is 130.
    """
    demo = args.pipeline == DEMO
    job, settings = _checked(args, demo)
    drift = positive_int("--drift", args.drift, at_least=0)
    device, dtype = asked_for(args)
    sheet = args.sheet or args.out.with_suffix(".png")
    check_writable(args.out, ".html")
    check_writable(sheet, ".png", "--sheet")

    with quiet("diffusers", "transformers"), one_thread() if demo and device == "cpu" else nullcontext():
        scores, missing = _scores(args.clip, device)
        pipe = load(args, device, dtype)
        _check_pipe(pipe, settings)
        swap_scheduler(pipe, args.scheduler, job.steps)
        if job.guidance is None:
            job = replace(job, guidance=default_guidance(pipe))
        facts = _facts(args, pipe, job, dtype, device)
        comparison = Comparison(
            model="The bundled demo pipeline" if demo else Path(args.pipeline).resolve().name,
            summary=_summary(job, dict(facts)),
            settings=settings,
            facts=facts,
            missing=missing,
            notes=_too_long(pipe, job),
        )
        print("\n".join([comparison.summary, *comparison.notes]), flush=True)
        rehearse(pipe, job)
        done = make_all(pipe, job, comparison, scores, drift)
    if not done:
        comparison.notes.append(f"Interrupted after {len(comparison.results)} of {_count(len(job.prompts), 'prompt')}.")
    args.out.write_text(html_report(comparison), encoding="utf-8")
    draw(comparison).save(sheet, format="PNG", optimize=True)
    print(f"\n{table(figures_of(comparison))}\n")
    print("\n".join(missing if done else [*missing, comparison.notes[-1]]))
    print(f"\nPage: {args.out}, {args.out.stat().st_size / 1e6:.1f} MB\nContact sheet: {sheet}")
    return 0 if done else 130


def _checked(args: argparse.Namespace, demo: bool) -> tuple[Job, list[Setting]]:
    """What is asked for, checked as far as it can be without a pipeline."""
    prompts = bundled_prompts(DEMO if demo else "general") if args.prompts is None else read_prompts(args.prompts)
    intervals, branches = distinct(args.interval, (2, 3, 5)), distinct(args.branch, (0,))
    for interval in intervals:
        Schedule.uniform(interval)
    check_guidance(args.guidance)
    check_seed(args.seed)
    guidance = 3.0 if demo and args.guidance is None else args.guidance
    job = Job(prompts, positive_int("--steps", args.steps), guidance, args.seed, size_of(args.size))
    return job, [Setting(interval, branch) for branch in branches for interval in intervals]


def _scores(clip: Path | None, device: str) -> tuple[Scores, list[str]]:
    """The scores whose weights are at hand, and of the others what they need."""
    missing = []
    if without_lpips := missing_for_lpips():
        missing.append(without_lpips)
    if clip is None:
        missing.append("CLIP scores need a CLIP model: --clip DIR, a directory of a transformers CLIPModel.")
    return Scores(None if without_lpips else Lpips(device), None if clip is None else ClipScore(clip, device)), missing


def _check_pipe(pipe: Any, settings: Sequence[Setting]) -> None:
    """UnsupportedPipeline where the pipe does not make images from prompts alone, as far as its call's names say, and
    what `accelerate` raises for one of the settings."""
    takes = inspect.signature(type(pipe).__call__).parameters
    missing = NEEDED - set(takes)
    # IP-Adapter's is an extra; any other image is what the pipeline starts from.
    images = {argument for argument in takes if argument.endswith("image")} - {"ip_adapter_image"}
    if missing or images:
        why = f"takes no {', '.join(sorted(missing))}" if missing else f"takes {', '.join(sorted(images))}"
        raise UnsupportedPipeline(f"{type(pipe).__name__} {why}: compare is for text-to-image pipelines.")
    for setting in settings:
        accelerate(pipe, setting.interval, setting.branch, compile=False, cuda_graphs=False, channels_last=False)
    restore(pipe)


def _too_long(pipe: Any, job: Job) -> list[str]:
    """A line on the prompts that the pipeline cuts off, where there are some."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if tokenizer is None:
        return []
    limit = tokenizer.model_max_length
    cut = [p.text for p in job.prompts if len(tokenizer(p.text, truncation=False, padding=False).input_ids) > limit]
    if not cut:
        return []
    return [
        f"{_count(len(cut), 'prompt')} of more than {limit - 2} tokens, which the pipeline cuts off: {cut[0]:.60}..."
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facts(args: argparse.Namespace, pipe: Any, job: Job, dtype: torch.dtype, device: str) -> list[tuple[str, str]]:
    """What was run, and on what, as the page lists it."""
    rig = Rig.now()
    return [
        ("Pipeline", f"{type(pipe).__name__}, {'bundled' if args.pipeline == DEMO else Path(args.pipeline).resolve()}"),
        ("Prompts", f"{len(job.prompts)}, {'bundled' if args.prompts is None else args.prompts}"),
        ("Scheduler", type(pipe.scheduler).__name__),
        ("Steps", str(job.steps)),
        ("Guidance", f"{job.guidance:g}"),
        ("Seeds", f"from {job.seed} on, where the prompts do not say otherwise"),
        ("Data type", str(dtype).removeprefix("torch.")),
        ("Device", torch.cuda.get_device_name(device) if device.startswith("cuda") else device),
        ("CPU", f"{rig.cpu}, {_count(rig.cores, 'core')}, {_count(rig.threads, 'thread')}"),
        ("stepcache", __version__ + (f", commit {rig.commit}" if rig.commit else "")),
        ("torch", rig.torch),
        ("diffusers", rig.diffusers),
        ("Python", f"{rig.python} on {platform.system()}"),
        ("Date", rig.date),
    ]


def _summary(job: Job, facts: dict[str, str]) -> str:
    where = facts["CPU"] if facts["Device"] == "cpu" else facts["Device"]
    return (
        f"{_count(len(job.prompts), 'prompt')}, {job.steps} steps of {facts['Scheduler']}, guidance {job.guidance:g}, "
        f"{facts['Data type']}, on {where}."
    )


def table(rows: Sequence[Figures]) -> str:
    """The figures as text, a line each; scores that were not computed are left out."""
    columns: list[tuple[str, int, Callable[[Figures], str]]] = [
        ("seconds", 8, lambda row: f"{row.seconds:.2f}"),
        ("speed-up", 10, lambda row: _text(row.speed_up, "{:.2f}x")),
        ("PSNR", 11, lambda row: "" if row.psnr is None else in_words(row.psnr)),
        ("worst", 11, lambda row: "" if row.worst_psnr is None else in_words(row.worst_psnr)),
        ("SSIM", 8, lambda row: _text(row.ssim, "{:.3f}")),
        ("worst", 8, lambda row: _text(row.worst_ssim, "{:.3f}")),
    ]
    if any(row.lpips is not None for row in rows):
        columns.append(("LPIPS", 8, lambda row: _text(row.lpips, "{:.3f}")))
    if any(row.clip is not None for row in rows):
        columns.append(("CLIP", 8, lambda row: _text(row.clip, "{:.2f}")))
    lines = [f"{'setting':24}" + "".join(f"{name:>{width}}" for name, width, _ in columns)]
    lines += [f"{row.name:24}" + "".join(f"{text(row):>{width}}" for _, width, text in columns) for row in rows]
    return "\n".join(lines)


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def draw(comparison: Comparison) -> Image.Image:
    """The contact sheet, with at most COLUMNS prompts beside each other and the next ones below."""
    results = comparison.results
    parts = []
    for first in range(0, len(results), COLUMNS):
        some = results[first : first + COLUMNS]
        heading, subheading = f"stepcache compare: {comparison.model}", f"{comparison.summary} {LEGEND}"
        if first:
            heading, subheading = f"Prompts {first + 1} to {first + len(some)}", ""
        shots = [[result.original for result in some]]
        shots += [[result.reused[i] for result in some] for i in range(len(comparison.settings))]
        rows = [
            SheetRow(row.name.split(",")[0], [shot.thumbnail for shot in images], _sheet_notes(row), row.kinds)
            for row, images in zip(figures_of(comparison), shots, strict=True)
        ]
        parts.append(contact_sheet(heading, subheading, [result.prompt.text for result in some], rows))
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for i, part in enumerate(parts):
        sheet.paste(part, (0, sum(above.height for above in parts[:i])))
    return sheet


def _sheet_notes(row: Figures) -> list[str]:
    """What stands beside a row of images: figures over all prompts."""
    if row.speed_up is None:
        return [f"{row.seconds:.2f} s"]
    notes = [row.name.split(", ")[1], f"speed-up {row.speed_up:.2f}x, {row.seconds:.2f} s"]
    if row.psnr is not None:
        notes.append("identical" if math.isinf(row.psnr) else f"PSNR {row.psnr:.1f} dB")
    return notes
