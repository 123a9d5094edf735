"""The options of `stepcache bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...bench.spec import LADDER, MODES, GridSpec
from ...images.schedulers import SCHEDULERS
from ..arguments import add_json, add_loading, add_predict, add_weights, integers, sizes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    default = GridSpec  # its fields' defaults
    add_weights(parser, "whose images mean nothing")
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=sizes,
        default=default.sizes,
        help="image sizes, each one number or HEIGHTxWIDTH, several with commas (default: the model's own)",
    )
    parser.add_argument(
        "--batch", metavar="N,N", type=integers, default=default.batches, help="images in one call (default 1)"
    )
    parser.add_argument(
        "--reuse",
        metavar="I:B,I:B",
        type=_pairs,
        default=default.reuse,
        help="interval:branch of variants that reuse features (default 3:0,5:0,5:1)",
    )
    parser.add_argument(
        "--variants",
        metavar="NAME,NAME",
        type=_names,
        default=default.variants,
        help=f"the most important first, from {', '.join(LADDER)} (default all)",
    )
    parser.add_argument(
        "--modes",
        metavar="MODE,MODE",
        type=_names,
        default=default.modes,
        help="modes of torch.compile for compile, compile+fewer-steps and stepcache-compiled; compile+deepcache takes "
        f"the first (default {','.join(MODES)})",
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="denoising steps (default %(default)s)")
    parser.add_argument(
        "--guidance", type=float, default=default.guidance, help="guidance scale, 1 for none (default %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=default.repeats, help="timed calls of each variant (default %(default)s)"
    )
    parser.add_argument(
        "--scheduler", choices=SCHEDULERS, default=default.scheduler, help="sampler (default %(default)s)"
    )
    add_predict(parser)
    add_loading(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="seed of the first image; the next ones count up (default 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("stepcache-bench.csv"),
        help="CSV to which each cell adds its rows (default %(default)s)",
    )
    add_json(
        parser,
        "rows has the CSV's columns for each row, of which psnr is psnr_db and identical, and height and width end in "
        "_px; then csv, and rig: machine, versions and command",
    )
    parser.epilog = (
        "Compile times depend on what is in torch's caches; with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 all are those of "
        "a cold start. Ctrl-C keeps the rows done. Exit status 2 if no variant could be measured."
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _pairs(text: str) -> list[tuple[int, int]]:
    """ "3:0,5:1" as (interval, branch) pairs."""
    pairs = []
    for part in text.split(","):
        interval, colon, branch = part.partition(":")
        if not (colon and interval.isdecimal() and branch.isdecimal()):
            raise argparse.ArgumentTypeError(f"must be interval:branch such as 3:0; got {part!r}")
        pairs.append((int(interval), int(branch)))
    return pairs
