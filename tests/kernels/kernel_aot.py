"""Compile a kernel for GPUs that are not there, from the very arguments of a launch, and read what came out."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that one program may have: CUDA C++ programming guide, table "Technical specifications per
# compute capability", and the 64 KiB of LDS of CDNA 3.
SHARED_LIMIT = {
    "sm_80": 163 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "gfx942": 64 * 1024,
}
DTYPE_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target."""

    asm: str
    """PTX, or AMDGCN assembly."""
    registers: int
    spilled: int
    """Bytes of local memory (NVIDIA) or spilled vector registers (AMD)."""
    shared: int


@functools.cache
def _cuobjdump() -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_launch(kernel: JITFunction, arguments: dict[str, Any], target: str) -> Compiled:
    """Specialise `kernel` as Triton's launcher would for `arguments` (divisibility by 16, ones), then compile it."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{DTYPE_NAMES[value.dtype]}"
            attributes[(i,)] = [["tt.divisibility", 16]]  # what PyTorch's allocator gives
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    if "cubin" in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [_cuobjdump(), "-res-usage", file.name], capture_output=True, text=True, check=True
            ).stdout
        numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
        return Compiled(
            asm=compiled.asm["ptx"],
            registers=int(numbers["REG"]),
            spilled=int(numbers["STACK"]) + int(numbers["LOCAL"]),
            shared=compiled.metadata.shared,
        )
    assembly = compiled.asm["amdgcn"]
    numbers = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly))
    return Compiled(
        asm=assembly,
        registers=int(numbers["vgpr_count"]),
        spilled=int(numbers["vgpr_spill_count"]) + int(numbers["sgpr_spill_count"]),
        shared=compiled.metadata.shared,
    )


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
