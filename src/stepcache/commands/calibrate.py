"""`stepcache calibrate`: the plan with the best images at a given cost, for one pipeline and scheduler.

It is for one number of steps, or for that of several which is best for the budget.

It makes images of your prompts, many times over, and judges candidates by them: see stepcache.calibration. All runs are
eager.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..calibration import calibrate
from ..calibration.images import NEEDED
from ..errors import InvalidSetting
from ..images.fidelity import in_words
from ..images.make import check_text_to_image
from ..images.pipelines import DEMO
from ..images.schedulers import SCHEDULERS, swap_scheduler
from ..plans.plan import Plan
from ..values import positive_int
from .arguments import check_guidance, check_seed, check_writable, distinct, image_size, integers
from .loading import add_loading, add_pipeline, device_and_dtype, guidance_of, load, prompts_of
from .quiet import quiet
from .threads import one_thread


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache calibrate`."""
    add_pipeline(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='at least 8 prompts like those you will use: text, a prompt a line, or JSONL with "prompt" and '
        '"negative_prompt". Half of them calibrate, the others measure the plan (default: bundled ones)',
    )
    # As loading.add_call, except for --steps, of which other commands take one.
    parser.add_argument(
        "--steps",
        metavar="N,N",
        type=integers,
        action="extend",
        help="denoising steps; of several with commas, such as 20,25,30,50, the number that is best for the budget, by "
        "its images against those of the most steps (default 50)",
    )
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="sampler (default: the pipeline's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's; 3 for the demo)")
    parser.add_argument(
        "--size", metavar="PIXELS", help="image size, HEIGHTxWIDTH or one number (default: the pipeline's)"
    )
    parser.add_argument(
        "--budget",
        metavar="N",
        type=budget,
        default=2.5,
        help="how many times fewer multiply-accumulates the U-Net is to take than in the run of the most --steps, such "
        "as 2.5x (default)",
    )
    parser.add_argument("--trials", type=int, default=60, help="candidates to try (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of images and of the search (default 0)")
    parser.add_argument("--batch", type=int, default=8, help="images in one pipeline call (default 8)")
    add_loading(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("plan.json"),
        help="the plan (default plan.json). Measurements go to OUT.trials.jsonl beside it; after an interruption the "
        "same command goes on from there",
    )


def budget(text: str) -> float:
    """ "2.5x" or "2.5" as 2.5."""
    try:
        return float(text.lower().removesuffix("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number over 1 such as 2.5x; got {text!r}") from None


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
    check_guidance(args.guidance)
    check_seed(args.seed)
    check_writable(args.out, ".json")
    device, dtype = device_and_dtype(args)

    with quiet("diffusers", "transformers"), one_thread(args.pipeline == DEMO and device == "cpu"):
        pipe = load(args, device, dtype)
        check_text_to_image(pipe, NEEDED, "calibration")
        for count in steps:
            swap_scheduler(pipe, args.scheduler, count)
        (plan,) = calibrate(
            pipe,
            [prompt.text for prompt in prompts],
            steps=steps,
            guidance=guidance_of(args, pipe),
            budgets=[args.budget],
            seed=args.seed,
            trials=args.trials,
            negatives=[prompt.negative or "" for prompt in prompts],
            size=size,
            batch=args.batch,
            journal=args.out.with_name(f"{args.out.name}.trials.jsonl"),
            command=shlex.join(["stepcache", *sys.argv[1:]]),
        )
    plan.write(args.out)
    print(f"\n{table([plan])}\n\nFigures are those of the held-out prompts; the cost is the U-Net's, in MACs.")
    if len(steps) > 1:
        found = plan.made_with["call"]["num_inference_steps"]
        print(f"PSNR and SSIM are against the run of {max(steps)} steps; the plan is for {found} steps.")
    print(f'{plan.mask}, branch {plan.branch}, guidance "{plan.guidance}"\nPlan: {args.out}')
    return 0


def table(plans: Sequence[Plan]) -> str:
    """The figures of plans as text, a line each."""
    lines = [f"{'':36}{'cost':>8}{'PSNR':>12}{'SSIM':>8}"]
    for plan in plans:
        for row in plan.figures:
            lines.append(f"{row.what:36}{f'{row.speedup:.2f}x':>8}{in_words(row.psnr):>12}{row.ssim:>8.3f}")
    return "\n".join(lines)
