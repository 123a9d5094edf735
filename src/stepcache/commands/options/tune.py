"""The options of `stepcache tune`."""

from __future__ import annotations

import argparse

from ...images.pipelines import DTYPES
from ..arguments import add_predict, add_reuse_guidance, add_shapes, add_variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    add_shapes(parser, "which are as fast")
    parser.add_argument("--branch", type=int, default=0, help="how much of the U-Net a partial step runs (default 0)")
    add_reuse_guidance(parser)
    add_predict(parser)
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="data type (default %(default)s)")
    parser.add_argument("--device", help="cuda, cuda:1, ... (default: cuda)")
    add_variant(parser)
    parser.epilog = (
        "Verdicts are kept in joins.csv in ~/.cache/stepcache, or in the folder STEPCACHE_CACHE. "
        'accelerate(pipe) uses them (kernels="auto"). Joins with a verdict are not measured again.'
    )
