"""Loads and stores of global memory in the loops of a kernel's machine code (NVIDIA)."""

from __future__ import annotations

import re
from collections.abc import Sequence

LOAD = re.compile(r"\bLDG(?:STS)?\b(\S*)")
STORE = re.compile(r"\bSTG\b")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def loads(instructions: Sequence[str], loop: range) -> list[int]:
    """The bytes of each load of a thread in one round of the loop."""
    found = [LOAD.search(instructions[i]) for i in loop]
    return [_width(match[1]) for match in found if match]


def loaded(instructions: Sequence[str], loop: range) -> int:
    """The bytes that a thread loads in one round of the loop."""
    return sum(loads(instructions, loop))


def streaming(instructions: Sequence[str], loops: Sequence[range], storing: bool) -> list[range]:
    """The innermost loops that load; with `storing`, only those that also store."""
    inner = [a for a in loops if not any(b != a and b.start >= a.start and b.stop <= a.stop for b in loops)]
    return [
        loop
        for loop in inner
        if loads(instructions, loop) and (not storing or any(STORE.search(instructions[i]) for i in loop))
    ]


def _width(modifiers: str) -> int:
    """The bytes of a load with these modifiers: ".E.128"."""
    return next((WIDTHS[part] for part in modifiers.split(".") if part in WIDTHS), 4)
