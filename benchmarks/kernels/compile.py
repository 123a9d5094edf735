"""Compiles a kernel for GPUs that are not present, from the arguments of a launch, and reads the code."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
# Bytes of shared memory that one program may use: CUDA C++ programming guide, table "Technical specifications per
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
ENDS = re.compile(r"EXIT|s_endpgm")  # ends the program unconditionally


@dataclass(frozen=True)
class Compiled:
    """One kernel for one target."""

    asm: str
    """PTX, or AMDGCN assembly."""
    cubin: bytes | None
    """Machine code (NVIDIA only)."""
    registers: int
    spilled: int
    """Bytes of local memory (NVIDIA) or spilled registers (AMD)."""
    shared: int
    num_warps: int
    num_stages: int


def compile_launch(kernel: JITFunction, arguments: dict[str, Any], target: str) -> Compiled:
    """Compile `kernel`, specialised as Triton's launcher does for `arguments` (divisibility by 16, ones)."""
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
            attributes[(i,)] = [["tt.divisibility", 16]]  # PyTorch's allocator guarantees it
        elif isinstance(value, int):
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    key = (source.hash(), *options.items(), target)
    if key not in _compiled:
        _compiled[key] = _compile(source, options, target)
    return _compiled[key]


_compiled: dict[tuple[object, ...], Compiled] = {}
"""Launches of different sizes often have the same code."""


def _compile(source: ASTSource, options: dict[str, int], target: str) -> Compiled:
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    cubin = compiled.asm.get("cubin")
    if cubin is not None:
        assembly = compiled.asm["ptx"]
        usage = nvidia_tool("cuobjdump", "-res-usage", cubin=cubin)
        numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
        registers, spilled = numbers["REG"], numbers["STACK"] + numbers["LOCAL"]
    else:
        assembly = compiled.asm["amdgcn"]
        found = re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", assembly)
        numbers = {name: int(value) for name, value in found}
        registers, spilled = numbers["vgpr_count"], numbers["vgpr_spill_count"] + numbers["sgpr_spill_count"]
    return Compiled(
        asm=assembly,
        cubin=cubin,
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        num_stages=compiled.metadata.num_stages,
    )


def nvidia_tool(name: str, *options: str, cubin: bytes) -> str:
    """The output of a tool that comes with Triton, for a cubin."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([program, *options, file.name], capture_output=True, text=True, check=True).stdout


def instruction_counts(code: Compiled) -> tuple[int, list[int]]:
    """The number of instructions of the whole kernel, and of each loop in the order of the code."""
    instructions, loops = instructions_and_loops(code)
    return len(instructions), [len(loop) for loop in loops]


@functools.cache
def instructions_and_loops(code: Compiled) -> tuple[list[str], list[range]]:
    """The instructions of the whole kernel, and the range of each loop, in the order of the code.

    A loop reaches from a label to the last branch back to it, so an outer loop includes its inner ones. Compilers also
    place code after the end of the program that branches back to before that end; this is not a loop.
    """
    instructions: list[str] = []
    labels: dict[str, int] = {}
    ends: dict[str, int] = {}
    for line in _sass(code.cubin) if code.cubin is not None else _amdgcn(code.asm):
        if line.endswith(":"):
            labels[line[:-1]] = len(instructions)
            continue
        instructions.append(line)
        for label in re.findall(r"\.L\w+", line):
            if label in labels and not any(ENDS.match(i) for i in instructions[labels[label] :]):
                ends[label] = len(instructions)
    return instructions, [range(labels[label], end) for label, end in ends.items()]


def _sass(cubin: bytes) -> list[str]:
    """Instructions and labels of the machine code, without the endless loop and padding after its end."""
    text = nvidia_tool("nvdisasm", "-c", cubin=cubin)
    body = text[text.index("\n.text.") :]
    lines = [line.strip() for line in re.sub(r"/\*[0-9a-f]+\*/", "", body).splitlines()]
    lines = [line for line in lines if line.endswith(";") or re.fullmatch(r"\.L\w+:", line)]
    last = max(i for i, line in enumerate(lines) if re.search(r"\bEXIT\b|\bRET\b", line))
    return lines[: last + 1]


def _amdgcn(assembly: str) -> list[str]:
    """Instructions and labels of the kernel's assembly text, without directives and comments."""
    body = assembly[: assembly.index(".Lfunc_end0:")]
    lines = [line.partition(";")[0].strip() for line in body.splitlines()]
    return [line for line in lines if re.fullmatch(r"\.LBB\w+:", line) or re.match(r"[a-z]\w*(\s|$)", line)]
