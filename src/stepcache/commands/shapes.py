"""Image sizes and batches of commands that make graphs (`add_shapes`): their checks, and warm-ups at each of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from ..api import warmup
from ..errors import StepCacheError
from ..images.models import Model
from ..images.prompts import check_pixels
from ..values import positive_int

Shape = tuple[int, int, int]
"""(height, width, batch)."""


def check_shapes(args: argparse.Namespace) -> None:
    """InvalidSetting for a --size or --batch that no pipeline can make. For the start, before the first is made."""
    for size in args.size or ():
        for pixels in size:
            check_pixels(pixels, "--size")
    for batch in args.batch:
        positive_int("--batch", batch)


def shapes_of(args: argparse.Namespace, model: Model) -> list[Shape]:
    """Every --size with every --batch; without a --size, the model's own."""
    return [(height, width, batch) for height, width in args.size or [model.size()] for batch in args.batch]


def warm_up(model: Model, shapes: Iterable[Shape], guidance: bool) -> None:
    """A warm-up of the accelerated pipe at each shape. StepCacheError, with the reason, if it refuses one."""
    with torch.inference_mode():
        for height, width, batch in shapes:
            try:
                warmup(model.pipe, height, width, batch, guidance=guidance)
            except StepCacheError:
                raise
            except (ValueError, TypeError) as error:  # as pipelines refuse arguments
                shape = f"{height}x{width} px, batch {batch}"
                raise StepCacheError(f"{model.name} cannot make images of {shape}: {error}") from error
