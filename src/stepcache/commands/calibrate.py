"""`stepcache calibrate`: the plan with the best images at a given cost, for one pipeline and scheduler.

It is for one number of steps, or for that of several which is best for the budget.

It makes images of your prompts, many times over, and judges candidates by them: see stepcache.calibration. All runs are
eager.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench.command import command_line
from ..calibration import calibrate
from ..calibration.images import NEEDED
from ..calibration.journal import Journal
from ..errors import InvalidSetting
from ..images.fidelity import in_words
from ..images.make import check_text_to_image
from ..images.pipelines import DEMO, load_pipeline
from ..images.schedulers import swap_scheduler
from ..plans.plan import Plan
from ..values import positive_int
from .arguments import check_guidance, check_seed, check_writable, distinct, image_size
from .loading import device_and_dtype, guidance_of, prompts_of
from .quiet import quiet
from .threads import one_thread


def run(args: argparse.Namespace) -> int:
    """Search, write the plan, print a table. Invalid arguments are reported before the first image."""
    prompts = prompts_of(args)
    if own := [p.text for p in prompts if (p.seed, p.height, p.width) != (None, None, None)]:
        raise InvalidSetting(
            f"{own[0]!r} has a seed or a size of its own; calibrate makes all images alike. Remove it, and use --size "
            "and --seed."
        )
    size = image_size(args.size)
    steps = [positive_int("--steps", count, at_least=2) for count in distinct(args.steps, (50,))]
    trials, batch = positive_int("--trials", args.trials), positive_int("--batch", args.batch)
    check_guidance(args.guidance)
    check_seed(args.seed)
    check_writable(args.out, ".json")
    device, dtype = device_and_dtype(args)

    with quiet("diffusers", "transformers"), one_thread(args.pipeline == DEMO and device == "cpu"):
        pipe = load_pipeline(args.pipeline, device, dtype, args.variant)
        check_text_to_image(pipe, NEEDED, "calibration")
        for count in steps:
            swap_scheduler(pipe, args.scheduler, count)
        (plan,) = _calibrated(
            pipe,
            [prompt.text for prompt in prompts],
            steps=steps,
            guidance=guidance_of(args, pipe),
            budgets=[args.budget],
            seed=args.seed,
            trials=trials,
            negatives=[prompt.negative or "" for prompt in prompts],
            size=size,
            batch=batch,
            journal=args.out.with_name(f"{args.out.name}.trials.jsonl"),
            command=command_line(),
        )
    plan.write(args.out)
    print(f"\n{table([plan])}\n\nFigures are those of the held-out prompts; the cost is the U-Net's, in MACs.")
    if len(steps) > 1:
        found = plan.made_with["call"]["num_inference_steps"]
        print(f"PSNR and SSIM are against the run of {max(steps)} steps; the plan is for {found} steps.")
    print(f'{plan.mask}, branch {plan.branch}, guidance "{plan.guidance}"\nPlan: {args.out}')
    return 0


def _calibrated(*args: Any, journal: Path, **options: Any) -> list[Plan]:
    """`calibrate`. A KeyboardInterrupt is passed on with how to go on, if there is something to go on from."""
    try:
        return calibrate(*args, journal=journal, **options)
    except KeyboardInterrupt:
        if not Journal.has_any(journal):
            raise
        raise KeyboardInterrupt(f"run the same command to go on from {journal}") from None


def table(plans: Sequence[Plan]) -> str:
    """The figures of plans as text, a line each."""
    lines = [f"{'':36}{'cost':>8}{'PSNR':>12}{'SSIM':>8}"]
    for plan in plans:
        for row in plan.figures:
            lines.append(f"{row.what:36}{f'{row.speedup:.2f}x':>8}{in_words(row.psnr):>12}{row.ssim:>8.3f}")
    return "\n".join(lines)
