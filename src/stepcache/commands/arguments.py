"""Command-line arguments that several commands take: their types and checks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..errors import InvalidSetting
from ..files.replacing import check_replaceable
from ..images.pipelines import DEMO, DTYPES
from ..images.prompts import check_pixels
from ..images.schedulers import SCHEDULERS

DIGITS = 6
"""Of a size in pixels, at most."""


def integers(text: str) -> list[int]:
    """ "2,3,5" as [2, 3, 5]; for `action="extend"`, so that the option can be repeated too."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between, such as 2,3,5; got {text!r}") from None


def sizes(text: str) -> list[tuple[int, int]]:
    """ "512,768x512" as (height, width) pairs."""
    found = []
    for part in text.split(","):
        size = _size(part)
        if size is None:
            raise argparse.ArgumentTypeError(f"must be sizes such as 512 or 768x512 (height x width); got {part!r}")
        found.append(size)
    return found


def pixels_of(size: str) -> tuple[int, int]:
    """(height, width) of a --size such as "512" or "512x768"; InvalidSetting for anything else."""
    pixels = _size(size)
    if pixels is None:
        raise InvalidSetting(f"--size must be pixels such as 512 or 512x768 (height x width), got {size!r}.")
    return pixels


def image_size(size: str | None) -> tuple[int, int] | None:
    """(height, width) of --size, checked to be one that pipelines can make. None without a --size."""
    if size is None:
        return None
    height, width = pixels_of(size)
    return check_pixels(height, "--size"), check_pixels(width, "--size")


def _size(text: str) -> tuple[int, int] | None:
    numbers = text.lower().split("x")
    if len(numbers) in (1, 2) and all(number.isdecimal() and len(number) <= DIGITS for number in numbers):
        return int(numbers[0]), int(numbers[-1])
    return None


def add_reuse(parser: argparse.ArgumentParser, branches: str) -> None:
    """--interval and --branch, several of each. branches: the end of --branch's help."""
    parser.add_argument(
        "--interval",
        metavar="N,N",
        type=integers,
        action="extend",
        help="a full step every N steps; several with commas, or repeated (default 2,3,5)",
    )
    parser.add_argument(
        "--branch",
        metavar="M,M",
        type=integers,
        action="extend",
        help=f"how much of the U-Net a partial step runs{branches}",
    )


def add_predict(parser: argparse.ArgumentParser, default: str | None = "hold") -> None:
    """--predict. default: None where it must be known whether it was given."""
    parser.add_argument(
        "--predict",
        metavar="hold|linear|auto|NUMBER|MEAN,DIFFERENCE",
        type=predict,
        default=default,
        help="the feature in partial steps, as in accelerate(predict=...): of the last full step, on the line through "
        "the last two, or that line damped; a pair damps the mean of guidance's halves and their difference apart, and "
        f"auto chooses the pair (default {default or 'hold'}; write a pair that begins with a minus as "
        "--predict=-0.5,0.5)",
    )


def add_reuse_guidance(parser: argparse.ArgumentParser) -> None:
    """--reuse-guidance, for commands that make graphs. Others have a --guidance, which is the scale."""
    parser.add_argument(
        "--reuse-guidance",
        action="store_const",
        const="reuse",
        dest="guidance",
        help='for accelerate(..., guidance="reuse"), which halves the batch of partial steps',
    )


def predict(text: str) -> str | float | tuple[float, ...]:
    """ "0.5" as 0.5 and "1,-0.25" as (1.0, -0.25). All else stays as it is: `accelerate` says what it can be."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


def add_json(parser: argparse.ArgumentParser, keys: str) -> None:
    """--json. keys: those of the document."""
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"print one JSON document, and nothing else on stdout. Its keys: {keys}. What was not measured is null",
    )


def add_weights(parser: argparse.ArgumentParser, random: str) -> None:
    """PIPELINE, of which names with random weights are enough. random: a clause about these weights, for the help."""
    parser.add_argument(
        "pipeline",
        metavar="PIPELINE",
        help="demo (the small pipeline that comes with the package), a local pipeline's directory, or sd15, sd21, "
        f"sdxl: the real architectures with random weights, {random}. Nothing is downloaded",
    )


def add_shapes(parser: argparse.ArgumentParser, random: str) -> None:
    """PIPELINE, --size, --batch and --no-guidance of commands that make graphs. random: as in `add_weights`."""
    add_weights(parser, random)
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=sizes,
        help="image sizes, each one number or HEIGHTxWIDTH, several with commas (default: the model's own)",
    )
    parser.add_argument("--batch", metavar="N,N", type=integers, default=[1], help="images in one call (default 1)")
    parser.add_argument(
        "--no-guidance", action="store_true", help="for calls without classifier-free guidance, with half the batch"
    )


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """PIPELINE."""
    parser.add_argument(
        "pipeline",
        metavar="PIPELINE",
        help=f"directory of a text-to-image pipeline with a U-Net, or {DEMO!r} for the bundled one (a directory of "
        f"that name is ./{DEMO}); nothing is downloaded",
    )


def add_call(parser: argparse.ArgumentParser, steps: int | None) -> None:
    """--steps (default: `steps`; None: not here), --scheduler, --guidance and --size."""
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps, help="denoising steps (default %(default)s)")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="sampler (default: the pipeline's own)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the pipeline's; 3 for the demo)")
    parser.add_argument(
        "--size", metavar="PIXELS", help="image size, HEIGHTxWIDTH or one number (default: the pipeline's)"
    )


def add_loading(parser: argparse.ArgumentParser) -> None:
    """--device, --dtype and --variant."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="data type (default: float16 on a GPU, else float32)")
    add_variant(parser)


def add_variant(parser: argparse.ArgumentParser) -> None:
    """--variant."""
    parser.add_argument("--variant", help="fp16 for a directory whose weight files are named *.fp16.safetensors")


def distinct(values: list[int] | None, default: tuple[int, ...]) -> list[int]:
    """`values` in their order without repetitions; `default` if there are none."""
    return list(dict.fromkeys(values or default))


def check_writable(path: Path, suffix: str = ".png", option: str = "--out") -> None:
    """InvalidSetting if `path` does not end in `suffix`, OSError if it cannot be written. Leaves no new file.

    For the start of a run that writes its result only at its end.
    """
    if path.suffix.lower() != suffix:
        raise InvalidSetting(f"{option} must be a file name that ends in {suffix}, got {str(path)!r}.")
    check_replaceable(path)


def check_guidance(guidance: float | None, hint: str = "") -> None:
    """InvalidSetting if --guidance is NaN or infinite."""
    if guidance is not None and not math.isfinite(guidance):
        raise InvalidSetting(f"--guidance must be a finite number, got {guidance}.{hint}")


def check_seed(seed: int) -> None:
    """InvalidSetting if torch.Generator would not take --seed, or the seeds that count up from it."""
    if not 0 <= seed < 2**62:
        raise InvalidSetting(f"--seed must be from 0 to 2**62 - 1, got {seed}.")
