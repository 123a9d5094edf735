"""The options of `stepcache demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...images.schedulers import SCHEDULERS
from ..arguments import add_predict, add_reuse

# The ones that come out best with the default seeds.
PROMPTS = ("fox face", "cherry blossom", "hamburger", "red apple", "grinning face", "tiger face")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    parser.add_argument(
        "--prompt",
        action="append",
        help="an emoji's name in lower case, such as 'tiger face' (the pipeline knows 354 of them and nothing else); "
        f"may be repeated (default: {', '.join(PROMPTS)})",
    )
    parser.add_argument(
        "--names", action="store_true", help="print the names that the pipeline knows, and nothing else"
    )
    shown = "The picture shows the first, the table all"
    add_reuse(parser, f", 0 to 11; several with commas, or repeated. {shown} (default 0,1)")
    add_predict(parser, "auto")
    parser.add_argument("--steps", type=int, default=30, help="denoising steps (default 30)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="ddim", help="sampler (default ddim)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default 3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; the next ones count up (default 0)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("stepcache-demo.png"), help="the picture (default stepcache-demo.png)"
    )
