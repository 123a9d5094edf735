"""`stepcache inspect`: what a partial step runs, caches and costs, for each branch of a U-Net. Needs no weights.

For a folder of packages: what is in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting
from ..images.unet_configs import PIXELS, pixels_per_latent, read_config
from ..packages.manifest import NAME as MANIFEST
from ..reuse.cut import Layout
from ..reuse.schedule import Schedule
from ..values import positive_int
from .arguments import distinct, pixels_of
from .document import print_document
from .listing import described, document
from .quiet import quiet

if TYPE_CHECKING:
    from ..forwards.macs import BranchMacs


def run(args: argparse.Namespace) -> int:
    """Print what each branch costs. StepCacheError for an unsupported U-Net or an invalid argument."""
    if (Path(args.unet) / MANIFEST).is_file():
        folder = Path(args.unet)
        if args.json:
            print_document(document(folder))
        else:
            print(described(folder))
        return 0
    from ..forwards import family_of
    from ..forwards.macs import branch_macs, meta_unet

    batch = positive_int("--batch", args.batch)
    intervals = distinct(args.interval, (2, 3, 5))
    for interval in intervals:
        Schedule.uniform(interval)
    config = read_config(args.unet)
    with quiet("diffusers"):
        unet = meta_unet(config)
    factor = pixels_per_latent(args.unet)
    height, width = latent_size(args.size, config, factor or PIXELS)
    layout = family_of(unet).layout(unet)
    rows = branch_macs(unet, height, width, batch)

    parameters = sum(p.numel() for p in unet.parameters())
    if args.json:
        about = {"unet": args.unet, "class": type(unet).__name__, "parameters": parameters, "batch": batch}
        about |= {"latent_height": height, "latent_width": width}
        counted = list(rows)
        adds = [what_runs(unet, layout, row.branch).removeprefix("+ ").split("; ") for row in counted]
        branches = [branch(*each, intervals) for each in zip(counted, adds, strict=True)]
        print_document({**about, "full_macs": counted[0].full_macs, "branches": branches})
        return 0
    print(
        f"{args.unet}: {type(unet).__name__}, {parameters / 1e6:.0f} M parameters\n"
        f"One U-Net call of batch {batch} on {sizes(height, width, factor)}."
    )
    bounds = "".join(f"{f'I={interval}':>7}" for interval in intervals)
    unit, name = 1e9, "GMACs"
    for i, row in enumerate(rows):
        if i == 0:  # the rows are generated, and the first one counts the full step too
            if row.full_macs < 10e9:
                unit, name = 1e6, "MMACs"
            print(f"Full step: {row.full_macs / unit:.1f} {name}.\n")
            print(f"{'':7}{'partial step':>21}  {'speed-up bound at':^{len(bounds)}}  {'cached, in fp16':>23}")
            print(f"{'branch':7}{name:>10}{'of full':>11}  {bounds}  {'CxHxW':>13}{'MB':>10}  a partial step runs")
        _, *shape = row.feature_shape
        print(
            f"{row.branch:<7}{row.partial_macs / unit:10.1f}{100 * row.share:9.1f} %  "
            + "".join(f"{row.bound(interval):6.2f}x" for interval in intervals)
            + f"  {'x'.join(map(str, shape)):>13}{row.feature_bytes() / 1e6:10.3g}  "
            + what_runs(unet, layout, row.branch),
            flush=True,
        )
    print(
        "\n+ is on top of the branch above. MACs: convolutions, linear layers and attention. The bound is\n"
        "N / (1 + (N-1) * partial / full): the most that skipping work can gain in the U-Net. MB: the feature of a\n"
        "U-Net call, batch included, at 2 bytes a value."
    )
    return 0


def branch(row: BranchMacs, adds: Sequence[str], intervals: Sequence[int]) -> dict[str, Any]:
    """A row of the table. adds: what a partial step runs that one of the branch before does not."""
    return {
        "branch": row.branch,
        "partial_macs": row.partial_macs,
        "share": row.share,
        "bounds": {str(interval): row.bound(interval) for interval in intervals},
        "feature_shape": row.feature_shape,
        "feature_fp16_bytes": row.feature_bytes(),
        "adds": adds,
    }


def sizes(height: int, width: int, factor: int | None) -> str:
    """Those of the U-Net's input and of the image, in words. factor: pixels to a latent, None if it is not known."""
    if factor == 1:
        return f"an image of {height}x{width} px"
    pixels = factor or PIXELS
    image = f"latents of {height}x{width}, for an image of {pixels * height}x{pixels * width} px"
    return image if factor else f"{image} if the VAE's factor is {PIXELS}"


def latent_size(size: str | None, config: dict[str, Any], factor: int) -> tuple[int, int]:
    """(height, width) of the latents for `size` in pixels, "512" or "512x768". None: the config's sample_size.

    factor: pixels to a latent.
    """
    if size is None:
        sample = config.get("sample_size")
        if sample is None:
            raise InvalidSetting("The config has no sample_size. Give the size of the image: --size 512 or 512x768.")
        height, width = sample if isinstance(sample, list) and len(sample) == 2 else (sample, sample)
        return positive_int("sample_size", height), positive_int("sample_size", width)
    pixels = pixels_of(size)
    if any(n < factor or n % factor for n in pixels):
        raise InvalidSetting(
            f"--size must be multiples of {factor} over 0, since a latent is {factor}x{factor} pixels; got {size!r}."
        )
    return pixels[0] // factor, pixels[1] // factor


def what_runs(unet: Any, layout: Layout, branch: int) -> str:
    """In words: what a partial step of `branch` runs, after the first branch in addition to the branch before."""
    skip, join = layout.skips[branch], layout.joins[branch]
    by_block = layout.block_skips is not None
    parts = []
    if by_block:
        parts.append("conv_in" if branch == 0 else f"down {branch - 1}: downsampler")
    if skip == "conv_in":
        parts.append(skip)
    else:
        _, block, kind, layer = skip.split(".")
        layers = range(layout.down[int(block)][0]) if by_block else [int(layer)]
        runs = "downsampler" if kind == "downsamplers" else _layers(unet.down_blocks[int(block)], layers)
        parts.append(f"down {block}: {runs}")
    resnets, upsamples = layout.up[join.block]
    layers = range(resnets) if by_block else [join.layer]
    parts.append(f"up {join.block}: {_layers(unet.up_blocks[join.block], layers)}")
    if upsamples and layers[-1] == resnets - 1:
        parts[-1] += ", upsampler"
    words = "; ".join(parts)
    return f"{words}; conv_out" if branch == 0 else f"+ {words}"


def _layers(block: Any, layers: Sequence[int]) -> str:
    attentions = len(getattr(block, "attentions", ()))
    words = []
    for i in layers:
        words.append(f"resnet {i}")
        if attentions == len(block.resnets):
            words.append(f"attention {i}")
        elif attentions and i == len(block.resnets) - 1:  # AttnSkipUpBlock2D has one, at its end
            words.append("attention 0")
    return ", ".join(words)
