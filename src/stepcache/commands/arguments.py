"""Command-line arguments that several commands take: their types and checks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..errors import InvalidSetting


def integers(text: str) -> list[int]:
    """ "2,3,5" as [2, 3, 5]; for `action="extend"`, so that the option can be repeated too."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer, nor several with commas between") from None


def sizes(text: str) -> list[tuple[int, int]]:
    """ "512,768x512" as (height, width) pairs."""
    found = []
    for part in text.lower().split(","):
        numbers = part.split("x")
        if not (len(numbers) in (1, 2) and all(number.isdecimal() for number in numbers)):
            raise argparse.ArgumentTypeError(f"{part!r} is no size: 512, or 768x512 (height x width)")
        found.append((int(numbers[0]), int(numbers[-1])))
    return found


def add_reuse(parser: argparse.ArgumentParser, branches: str) -> None:
    """--interval and --branch, several of each. branches: what the latter's help ends in."""
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


def distinct(values: list[int] | None, default: tuple[int, ...]) -> list[int]:
    """`values` without repetitions, in the order given, or the default where none were."""
    return list(dict.fromkeys(values or default))


def check_writable(path: Path, suffix: str = ".png", option: str = "--out") -> None:
    """InvalidSetting where `path` does not end in `suffix`, OSError where no file can be written there. Leaves no file.

    For the start of a run whose result is only written at its end.
    """
    if path.suffix.lower() != suffix:
        raise InvalidSetting(f"{option} must be a file name that ends in {suffix}, got {str(path)!r}.")
    # Asking for permissions is not enough (read-only file systems, root): try it.
    there = path.exists()
    with path.open("ab"):
        pass
    if not there:
        path.unlink()


def check_guidance(guidance: float | None, hint: str = "") -> None:
    """InvalidSetting for a --guidance that is no number."""
    if guidance is not None and not math.isfinite(guidance):
        raise InvalidSetting(f"--guidance must be a number, got {guidance}.{hint}")


def check_seed(seed: int) -> None:
    """InvalidSetting for a --seed that torch.Generator does not take, counting on from it included."""
    if not 0 <= seed < 2**62:
        raise InvalidSetting(f"--seed must be from 0 to 2**62 - 1, got {seed}.")
