"""The options of `stepcache calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add_call, add_loading, add_pipeline, integers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    add_pipeline(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help='at least 8 prompts like those you will use: text, a prompt a line, or JSONL with "prompt" and '
        '"negative_prompt". Half of them calibrate, the others measure the plan (default: bundled ones)',
    )
    parser.add_argument(
        "--steps",
        metavar="N,N",
        type=integers,
        action="extend",
        help="denoising steps; of several with commas, such as 20,25,30,50, the number that is best for the budget, by "
        "its images against those of the most steps (default 50)",
    )
    add_call(parser, steps=None)
    parser.add_argument(
        "--budget",
        metavar="N",
        type=budget,
        default=2.5,
        help="speed-up to reach, in multiply-accumulates of the U-Net, over the run with the most --steps (default "
        "2.5x)",
    )
    parser.add_argument("--trials", type=int, default=60, help="candidates to try (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images and of the search (default 0)")
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
