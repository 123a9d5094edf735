"""`stepcache compare`: the same prompts and seeds without and with stepcache, as an HTML page and a contact sheet.

Beside each setting stands the original with fewer steps at no higher cost, so that one sees whether reuse is worth it.

Images are made one by one, all variants of a prompt after each other, so that a busy minute of the machine does not hit
one variant alone. Everything runs eager, on a GPU too: reuse alone is compared, and nobody waits for Inductor
(`stepcache bench` measures compiled graphs). Seconds are those of whole pipeline calls.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..api import accelerate, restore
from ..bench.rows import Rig
from ..comparison.closer import closer
from ..comparison.cost import Latents, count
from ..comparison.fewer_steps import announced, dearer, with_fewer_steps
from ..comparison.page import check_pictures, write_page
from ..comparison.results import Comparison, FewerSteps, Variant
from ..comparison.runs import EAGER, Scores, make_all, requests_of, try_sizes
from ..comparison.sheet import draw
from ..comparison.summary import Summary, summaries, table
from ..errors import StepCacheError, UnsupportedUNet
from ..files.replacing import write_bytes
from ..images.make import check_text_to_image
from ..images.pipelines import DEMO, load_pipeline
from ..images.prompts import Prompt, cut_off
from ..images.schedulers import swap_scheduler
from ..images.scores import ClipScore, Lpips, missing_for_lpips
from ..images.sheet import png
from ..settings import Settings
from ..values import amount, positive_int
from .arguments import check_guidance, check_seed, check_writable, distinct, image_size
from .document import decibels, print_document
from .loading import device_and_dtype, guidance_of, prompts_of
from .quiet import quiet
from .threads import one_thread

# Arguments that a pipeline's call must take.
NEEDED = {"prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator"}
NEEDED |= {"output_type", "callback_on_step_end"}


def run(args: argparse.Namespace) -> int:
    """Make the images, write page and sheet, print a table. Invalid arguments are reported before the first image.

    A KeyboardInterrupt is passed on once the prompts that are done are written; so is StepCacheError, if no image could
    be compared.
    """
    prompts, size = prompts_of(args), image_size(args.size)
    intervals, branches = distinct(args.interval, (2, 3, 5)), distinct(args.branch, (0,))
    variants = [Variant(interval, branch, args.predict) for branch in branches for interval in intervals]
    for variant in variants:
        Settings.check(**variant.arguments)
    steps, drift = positive_int("--steps", args.steps), positive_int("--drift", args.drift, at_least=0)
    check_guidance(args.guidance)
    check_seed(args.seed)
    demo = args.pipeline == DEMO
    device, dtype = device_and_dtype(args)
    sheet = args.sheet or args.out.with_suffix(".png")
    check_writable(args.out, ".html")
    check_pictures(args.out)
    check_writable(sheet, ".png", "--sheet")

    with quiet("diffusers", "transformers"), one_thread(demo and device == "cpu"):
        scores, missing = _scores(args.clip, device)
        pipe = load_pipeline(args.pipeline, device, dtype, args.variant)
        _check_pipe(pipe, variants)
        swap_scheduler(pipe, args.scheduler, steps)
        guidance = guidance_of(args, pipe)
        facts = _facts(args, pipe, len(prompts), guidance, dtype, device)
        comparison = Comparison(
            model="The bundled demo pipeline" if demo else Path(args.pipeline).resolve().name,
            summary=_summary(amount(len(prompts), "prompt"), steps, guidance, dict(facts)),
            settings=variants,
            facts=facts,
            missing=missing,
            notes=_too_long(pipe, prompts),
        )
        _announce([comparison.summary, *comparison.notes], args.json)
        requests = requests_of(prompts, steps, guidance, args.seed, size)
        latents = try_sizes(pipe, requests)
        if not args.no_fewer_steps:
            _announce(_add_fewer_steps(comparison, pipe, steps, latents), args.json)
        done = make_all(pipe, requests, comparison, scores, drift)
    unfair = dearer(comparison)
    comparison.notes += unfair
    if not done:
        part = f"{len(comparison.results)} of {amount(len(prompts), 'prompt')}"
        comparison.summary = _summary(f"{part} (interrupted)", steps, guidance, dict(facts))
        comparison.notes.append(f"Interrupted after {part}. The figures are over the prompts done.")
    folder = write_page(comparison, args.out)
    write_bytes(sheet, png(draw(comparison)))
    rows = summaries(comparison)
    if args.json:
        written = {"page": str(args.out), "pictures": folder and str(folder), "sheet": str(sheet)}
        print_document({**document(comparison, rows), "prompts_asked": len(prompts), **written})
    else:
        print(f"\n{table(rows)}\n")
        if sentences := [*closer(comparison), *unfair]:
            print("\n".join(sentences) + "\n")
        print("\n".join(missing if done else [*missing, comparison.notes[-1]]))
        pictures = f", with its pictures in {folder}: move both" if folder else ""
        print(f"\nPage: {args.out}, {args.out.stat().st_size / 1e6:.1f} MB{pictures}\nContact sheet: {sheet}")
    if not done:
        raise KeyboardInterrupt(f"the page has {part}")
    if all(row.psnr is None for row in rows):
        raise StepCacheError("No image was compared: the pipeline's safety checker replaced each, or its original.")
    return 0


def document(comparison: Comparison, rows: Sequence[Summary]) -> dict[str, Any]:
    """What was run, and the rows of the table. facts: as on the page, by their labels there."""
    return {
        "model": comparison.model,
        "summary": comparison.summary,
        "settings": [_setting(row, comparison) for row in rows],
        "closer": closer(comparison),
        "notes": comparison.notes,
        "missing": comparison.missing,
        "prompts": len(comparison.results),
        "steps": comparison.results[0].request.steps,
        "rig": asdict(Rig.now()),
        "facts": dict(comparison.facts),
    }


def _setting(row: Summary, comparison: Comparison) -> dict[str, Any]:
    """A row of the table. steps: of the run; kinds: a letter for each U-Net call; cost_full_calls: of all of them."""
    setting, steps, kind = row.setting, comparison.results[0].request.steps, "original"
    reuse: dict[str, Any] = dict.fromkeys(("interval", "branch", "predict"))
    if isinstance(setting, Variant):
        kind, reuse = "reuse", setting.arguments
    elif isinstance(setting, FewerSteps):
        kind, steps = "fewer steps", setting.steps
    low, high = row.speed_ups or (None, None)
    return {
        "name": row.name,
        "kind": kind,
        **reuse,
        "steps": steps,
        "kinds": row.kinds,
        "seconds": row.seconds,
        "cost_full_calls": row.cost,
        "speedup": row.speed_up,
        "speedup_min": low,
        "speedup_max": high,
        **decibels(row.psnr),
        "worst_psnr_db": row.worst_psnr,
        "ssim": row.ssim,
        "worst_ssim": row.worst_ssim,
        "lpips": row.lpips,
        "worst_lpips": row.worst_lpips,
        "clip": row.clip,
    }


def _scores(clip: Path | None, device: str) -> tuple[Scores, list[str]]:
    """The scores whose weights are here, and what the others need."""
    missing = []
    if without_lpips := missing_for_lpips():
        missing.append(without_lpips)
    if clip is None:
        missing.append("CLIP scores need a CLIP model: --clip DIR, a directory of a transformers CLIPModel.")
    return Scores(None if without_lpips else Lpips(device), None if clip is None else ClipScore(clip, device)), missing


def _check_pipe(pipe: Any, variants: Sequence[Variant]) -> None:
    """UnsupportedPipeline if it cannot make images from prompts alone, and what `accelerate` raises for a variant."""
    check_text_to_image(pipe, NEEDED, "compare")
    for variant in variants:
        accelerate(pipe, **variant.arguments, **EAGER)
    restore(pipe)


def _announce(lines: Sequence[str], as_json: bool) -> None:
    """Say what begins, before minutes of work; a JSON document is to be alone on stdout."""
    print("\n".join(lines), file=sys.stderr if as_json else sys.stdout, flush=True)


def _add_fewer_steps(comparison: Comparison, pipe: Any, steps: int, latents: Sequence[Latents]) -> list[str]:
    """Add fewer steps to the settings; returns what there is to say of them, with a note where there are none."""
    variants = comparison.variants
    try:
        comparison.cost = count(pipe.unet, latents, [variant.branch for variant in variants])
    except UnsupportedUNet as error:
        notes = [f"Fewer steps are left out, since their cost cannot be counted: {error}"]
    else:
        comparison.settings, notes = with_fewer_steps(variants, steps, pipe.scheduler, comparison.cost)
    comparison.notes += notes
    return [*announced(comparison.settings), *notes]


def _too_long(pipe: Any, prompts: Sequence[Prompt]) -> list[str]:
    """A line about the prompts that the pipeline cuts off, if there are any."""
    cut = cut_off(pipe, [prompt.text for prompt in prompts])
    if not cut:
        return []
    limit = pipe.tokenizer.model_max_length - 2
    return [
        f"{amount(len(cut), 'prompt')} of more than {limit} tokens, which the pipeline cuts off: {cut[0][0]:.60}..."
    ]


def _facts(
    args: argparse.Namespace, pipe: Any, prompts: int, guidance: float, dtype: torch.dtype, device: str
) -> list[tuple[str, str]]:
    """What was run, and on what, for the page."""
    rig = Rig.now()
    return [
        ("Pipeline", f"{type(pipe).__name__}, {'bundled' if args.pipeline == DEMO else Path(args.pipeline).resolve()}"),
        ("Prompts", f"{prompts}, {'bundled' if args.prompts is None else args.prompts}"),
        ("Scheduler", type(pipe.scheduler).__name__),
        ("Steps", str(args.steps)),
        ("Guidance", f"{guidance:g}"),
        ("Seeds", f"from {args.seed} on, unless a prompt has its own"),
        ("Data type", str(dtype).removeprefix("torch.")),
        ("Device", torch.cuda.get_device_name(device) if device.startswith("cuda") else device),
        ("CPU", f"{rig.cpu}, {amount(rig.cores, 'core')}, {amount(rig.threads, 'thread')}"),
        ("stepcache", __version__ + (f", commit {rig.commit}" if rig.commit else "")),
        ("torch", rig.torch),
        ("diffusers", rig.diffusers),
        ("Python", f"{rig.python} on {platform.system()}"),
        ("Date", rig.date),
    ]


def _summary(prompts: str, steps: int, guidance: float, facts: dict[str, str]) -> str:
    where = facts["CPU"] if facts["Device"] == "cpu" else facts["Device"]
    return (
        f"{prompts}, {amount(steps, 'step')} of {facts['Scheduler']}, guidance {guidance:g}, "
        f"{facts['Data type']}, on {where}."
    )
