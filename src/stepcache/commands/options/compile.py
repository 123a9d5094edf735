"""The options of `stepcache compile`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...plans.presets import PRESETS
from ..arguments import add_loading, add_predict, add_reuse_guidance, add_shapes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    add_shapes(parser, "which packages do not hold")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--branch", type=int, help="how much of the U-Net a partial step runs (default 0)")
    add_reuse_guidance(parser)
    add_predict(parser, default=None)
    parser.add_argument("--preset", choices=PRESETS, help="for accelerate(preset=...)")
    parser.add_argument("--plan", metavar="FILE", type=Path, help="for accelerate(plan=...)")
    parser.add_argument("--vae", action="store_true", help="the VAE's decoder too, for accelerate(vae=True)")
    add_loading(parser)
    parser.epilog = (
        "Use them with accelerate(pipe, compiled=DIR). A run that was stopped goes on where it was; other sizes and "
        "settings are added to the folder. Graphs do not depend on the interval, on the scheduler or on the weights. "
        "On a GPU, joins without a verdict are measured first, as by `stepcache tune`."
    )
