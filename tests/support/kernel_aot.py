"""What the tests of code for GPUs that are not there share; `benchmarks/kernels/compile.py` compiles it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.kernels.compile import Compiled, instructions_and_loops


def slow(*combination: Any) -> Any:
    """A combination that is compiled in the long run only."""
    return pytest.param(combination, marks=pytest.mark.slow)


def assert_no_spills(code: Compiled, target: str) -> None:
    """Nothing that a thread holds of a tile is in local memory, which is 16 bytes and more, and 32 where h is mixed.

    ptxas 13 parks scalars that live across a loop in a stack, with registers to spare: a program's index, or a mix's
    three weights. They are stored before the loop and loaded after it, so no loop touches the stack (`ptxas -v` says
    "0 bytes spill stores, 0 bytes spill loads").
    """
    if target == "gfx942":
        assert code.spilled == 0
        return
    assert code.spilled <= 16
    if code.spilled > 0:
        instructions, loops = instructions_and_loops(code)
        assert not [instructions[i] for loop in loops for i in loop if re.search(r"\b(STL|LDL)\b", instructions[i])]
