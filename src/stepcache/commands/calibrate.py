"""`stepcache calibrate`: the plan with the best images at a given cost, for one pipeline, scheduler and step count.

It makes images on your prompts, many times over, and judges by them; see stepcache.calibration. All runs are eager.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ..calibration import calibrate
from ..calibration.images import check_call
from ..errors import InvalidSetting
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
from ..plans.plan import Plan
from ..reuse.schedule import positive_int
from .arguments import check_guidance, check_seed, check_writable
from .quiet import quiet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `stepcache calibrate`."""
    parser.add_argument(
        "pipeline",
        metavar="PIPELINE",
        help=f"directory of a text-to-image pipeline with a U-Net, or {DEMO!r} for the bundled one; nothing is "
        "downloaded",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='at least 8 prompts such as yours will be: text, one a line, or JSONL with "prompt" and '
        '"negative_prompt". Half of them calibrate, the others tell how good the plan is (default: bundled ones)',
    )
    parser.add_argument("--steps", type=int, default=50, help="denoising steps (default 50)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="sampler (default: the pipeline's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's; 3 for the demo)")
    parser.add_argument(
        "--budget",
        metavar="N",
        type=budget,
        default=2.5,
        help="how many times fewer multiply-accumulates the U-Net shall take, such as 2.5x (default)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=60,
        help="candidates to try (default 60)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of images and of the search (default 0)")
    parser.add_argument(
        "--size", metavar="PIXELS", help="image size, HEIGHTxWIDTH or one number (default: the pipeline's)"
    )
    parser.add_argument("--batch", type=int, default=8, help="images in one pipeline call (default 8)")
    add_loading(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("plan.json"),
        help="the plan (default plan.json). Beside it, in OUT.trials.jsonl, stands what was measured: the same command "
        "goes on from there after an interruption",
    )


def budget(text: str) -> float:
    """ "2.5x" or "2.5" as 2.5."""
    try:
        return float(text.lower().removesuffix("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no budget; one is a number over 1 such as 2.5x") from None


def run(args: argparse.Namespace) -> int:
    """Search, write the plan, print a table. What cannot be done is said before the first image."""
    demo = args.pipeline == DEMO
    prompts = bundled_prompts(DEMO if demo else "general") if args.prompts is None else read_prompts(args.prompts)
    if own := [p.text for p in prompts if (p.seed, p.height, p.width) != (None, None, None)]:
        raise InvalidSetting(
            f"{own[0]!r} has a seed or a size of its own; calibrate makes all images alike. Take it out, and give "
            "--size and --seed."
        )
    size = size_of(args.size)
    steps = positive_int("--steps", args.steps, at_least=2)
    check_guidance(args.guidance)
    check_seed(args.seed)
    check_writable(args.out, ".json")
    device, dtype = asked_for(args)

    with quiet("diffusers", "transformers"), one_thread() if demo and device == "cpu" else nullcontext():
        pipe = load(args, device, dtype)
        check_call(pipe)
        swap_scheduler(pipe, args.scheduler, steps)
        (plan,) = calibrate(
            pipe,
            [prompt.text for prompt in prompts],
            steps=steps,
            guidance=args.guidance if args.guidance is not None else 3.0 if demo else default_guidance(pipe),
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
    print(f'{plan.mask}, branch {plan.branch}, guidance "{plan.guidance}"\nPlan: {args.out}')
    return 0


def table(plans: Sequence[Plan]) -> str:
    """The figures of plans as text, a line each."""
    lines = [f"{'':36}{'cost':>8}{'PSNR':>12}{'SSIM':>8}"]
    for plan in plans:
        for row in plan.figures:
            lines.append(f"{row.what:36}{f'{row.speedup:.2f}x':>8}{in_words(row.psnr):>12}{row.ssim:>8.3f}")
    return "\n".join(lines)
