"""Shared by the tests of machine code for GPUs, which `benchmarks/kernels/compile.py` compiles without one."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.kernels.compile import Compiled, instructions_and_loops


def slow(*combination: Any) -> Any:
    """A combination that is compiled by `make slow` only."""
    return pytest.param(combination, marks=pytest.mark.slow)


def assert_no_spills(code: Compiled, target: str) -> None:
    """No part of a tile is in local memory: that would take at least 16 bytes, or 32 if h is mixed.

    ptxas 13 keeps scalars that live across a loop on the stack, even with free registers: a program's index, or a mix's
    three weights. It stores them before the loop and loads them after it, so no loop touches the stack (`ptxas -v`
    reports "0 bytes spill stores, 0 bytes spill loads"). AMD's compiler parks them in lanes of a vector register, which
    is no memory.
    """
    if target == "gfx942":
        assert code.spilled <= 4
        assert not re.search(r"\bscratch_(load|store)", code.asm)
        return
    assert code.spilled <= 16
    if code.spilled > 0:
        instructions, loops = instructions_and_loops(code)
        assert not [instructions[i] for loop in loops for i in loop if re.search(r"\b(STL|LDL)\b", instructions[i])]
