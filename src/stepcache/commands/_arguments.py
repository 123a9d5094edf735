"""Types of command-line arguments that several commands take."""

from __future__ import annotations

import argparse


def integers(text: str) -> list[int]:
    """ "2,3,5" as [2, 3, 5]; for `action="extend"`, so that the option can be repeated too."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer, nor several with commas between") from None


def distinct(values: list[int] | None, default: tuple[int, ...]) -> list[int]:
    """`values` without repetitions, in the order given, or the default where none were."""
    return list(dict.fromkeys(values or default))
