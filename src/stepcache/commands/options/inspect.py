"""The options of `stepcache inspect`."""

from __future__ import annotations

import argparse

from ...images.pipelines import DEMO
from ...images.unet_configs import BUNDLED, PIXELS
from ..arguments import add_json, integers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add them to the parser of the subcommand."""
    parser.add_argument(
        "unet",
        metavar="UNET",
        help="a pipeline's directory, a U-Net's config.json, or one of the bundled ones: "
        + ", ".join((DEMO, *BUNDLED))
        + "; or a folder of packages, for which the other options mean nothing",
    )
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        help="image size, HEIGHTxWIDTH or one number (default: that of the config's sample_size). A U-Net's "
        f"config.json without its pipeline does not tell the VAE's factor: {PIXELS} pixels to a latent are assumed",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="batch of the U-Net call: the number of images, doubled by guidance (default 1)",
    )
    parser.add_argument(
        "--interval",
        metavar="N,N",
        type=integers,
        action="extend",
        help="intervals of the speed-up bounds (default 2,3,5)",
    )
    add_json(
        parser,
        "unet, class, parameters, batch, latent_height, latent_width, full_macs, and for each of branches branch, "
        "partial_macs, share, bounds by interval, feature_shape, feature_fp16_bytes, adds. Of a folder of packages: "
        "folder, bytes, made_with, and for each of packages graph, settings, joins, bytes, compile_seconds, sound and "
        "damage",
    )
