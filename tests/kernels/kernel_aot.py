"""What the tests of code for GPUs that are not there share; `benchmarks/kernel_compile.py` compiles it."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*combination: Any) -> Any:
    """A combination that is compiled in the long run only."""
    return pytest.param(combination, marks=pytest.mark.slow)


def stack_allowed(target: str) -> int:
    """Bytes on the stack that are no spill of a tile.

    ptxas 13 parks one or two scalars that live across a loop, such as a program's index, in 8 bytes of stack, stored
    before the loop and loaded after it, with registers to spare (nvdisasm shows it; `ptxas -v` says "0 bytes spill
    stores, 0 bytes spill loads"). Whatever a thread holds of a tile is 16 bytes and more.
    """
    return 0 if target == "gfx942" else 8
