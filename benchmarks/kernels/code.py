"""The size of the Triton kernels' code: registers, spills, shared memory, instructions of each loop. No GPU needed.

    python -m benchmarks.kernels.code

The launchers run on fake CUDA tensors, and each kernel that they launch is compiled for every target with the arguments
of that launch. Launches are cut into programs as for an H100, for all targets. The joins are the smallest and largest
of SD 1.5 and SDXL, and those where other tiles are chosen. Many rows are equal, since Triton does not specialise on
most sizes.

`tests/benchmarks/test_kernel_code.py` compiles a few of the rows again, so that kernels do not grow unnoticed. After a
change that is meant to change their size, write the rows again.

`results/kernel_code_before.csv` has the same rows for the kernels at commit 0030e3c. This script compiled them once,
with the two launchers of that commit. There, Triton's autotuner chose the convolution's tile on a device. The rows use
the tile that the launcher chooses now in 16 bits, or 64 x 64 where that tile did not exist (at 8 x 8), and 128 x 64 in
float32. That convolution did not add the residual's bias.

- `spilled`: bytes of stack (NVIDIA), of which 8 may be a parked scalar, or registers (AMD).
- `instructions` are of the whole kernel, `loops` of each loop, in the order of the code. On sm_100, loops of two or
  three instructions wait for a barrier.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu_triton
from stepcache.kernels.dual_conv1x1 import dual_conv1x1_triton
from torch import Tensor

from benchmarks.console import parser
from benchmarks.engine.launches import OwnLaunch, noted_launches
from benchmarks.kernels.bench import MODELS, JoinCase, joins
from benchmarks.kernels.compile import DTYPE_NAMES, TARGETS, compile_launch, instruction_counts
from stepcache.bench.rows import write

OUT = "kernel_code.csv"
OPS = ("cat_group_norm_silu", "dual_conv1x1")
LAYOUT = "channels_last"
# Channels of h, the skip and the output, and the height.
SIZES = (
    (1280, 1280, 1280, 8),
    (1280, 1280, 1280, 16),
    (640, 640, 640, 32),
    (640, 320, 320, 64),
    (320, 320, 320, 64),
    (640, 320, 320, 128),
    (320, 320, 320, 128),
)
LARGEST = (640, 320, 320, 128)
# Buffers that h is combined from, and whether each half of the batch takes from the other's too.
MIXES = ((2, False), (2, True), (3, False), (3, True))


@dataclass(frozen=True)
class Row:
    """One kernel of one launch, for one target. See the docstring of this file."""

    op: str
    kernel: str
    target: str
    dtype: str
    layout: str
    batch: int
    hidden: int
    skip: int
    out: int
    height: int
    width: int
    mix: int  # buffers that are combined to h; 0 if h is given. If halves take from each other: HALVES=True (constants)
    constants: str  # "BLOCK_P=128 BLOCK_O=64"
    num_warps: int
    num_stages: int
    registers: int
    spilled: int
    shared: int  # bytes
    instructions: int
    loops: str  # "96; 12"

    @property
    def halves(self) -> bool:
        """Whether each half of the batch takes from the other's elements too."""
        return "HALVES=True" in self.constants.split()


class OpCall(NamedTuple):
    """One call of an op at a join."""

    op: str
    join: JoinCase
    dtype: torch.dtype
    mix: int = 0
    halves: bool = False


def the_joins() -> list[JoinCase]:
    """A join for each of SIZES, in that order."""
    found = {(j.hidden, j.skip, j.out, j.height): j for model in MODELS for j in joins(model)}
    return [found[size] for size in SIZES]


def op_calls() -> list[OpCall]:
    """Calls of both ops: every join in 16 bits, the largest also in float32 and with h from buffers (MIXES)."""
    every = the_joins()
    largest = every[SIZES.index(LARGEST)]
    made = []
    for op in OPS:
        made += [OpCall(op, join, dtype) for dtype in (torch.bfloat16, torch.float16) for join in every]
        made.append(OpCall(op, largest, torch.float32))
        made += [OpCall(op, largest, torch.bfloat16, mix, halves) for mix, halves in MIXES]
    return made


def launches_of(called: OpCall, target: str = "sm_90") -> list[OwnLaunch]:
    """What the op launches with all optional arguments that a join passes. The target decides the warps' width."""
    join = called.join

    def activation(channels: int) -> Tensor:
        sizes = join.batch, channels, join.height, join.width
        return torch.empty(sizes, dtype=called.dtype, device="cuda", memory_format=torch.channels_last)

    def vector(size: int) -> Tensor:
        return torch.empty(size, dtype=called.dtype, device="cuda")

    def call() -> None:
        channels = join.hidden + join.skip
        h, skip = activation(join.hidden), activation(join.skip)
        mixed: dict[str, Any] = {name: activation(join.hidden) for name in ("h2", "h3")[: max(called.mix - 1, 0)]}
        if called.mix:
            mixed["mix"] = torch.empty((2, called.mix) if called.halves else called.mix, device="cuda")
        if called.op == "cat_group_norm_silu":
            cat_group_norm_silu_triton(h, skip, vector(channels), vector(channels), join.groups, 1e-5, **mixed)
        else:
            weight = vector(join.out * channels).view(join.out, channels, 1, 1)
            dual_conv1x1_triton(
                h, skip, weight, vector(join.out), activation(join.out), **mixed, residual_bias=vector(join.out)
            )

    launches = noted_launches(call, TARGETS[target].warp_size)
    if TARGETS[target].backend == "hip":
        # Here the launcher takes torch for NVIDIA's, and so asks for PTX that rounds to TF32.
        for launch in launches:
            if "ROUND" in launch.arguments:
                launch.arguments["ROUND"] = False
    return launches


def row(called: OpCall, launch: OwnLaunch, target: str) -> Row:
    """Compile one launch and count its code."""
    code = compile_launch(launch.function, launch.arguments, target)
    instructions, loops = instruction_counts(code)
    constants = [p.name for p in launch.function.params if p.is_constexpr]
    return Row(
        op=called.op,
        kernel=launch.kernel,
        target=target,
        dtype=DTYPE_NAMES[called.dtype],
        layout=LAYOUT,
        **called.join.sizes,
        mix=called.mix,
        constants=" ".join(f"{name}={launch.arguments[name]}" for name in constants),
        num_warps=code.num_warps,
        num_stages=code.num_stages,
        registers=code.registers,
        spilled=code.spilled,
        shared=code.shared,
        instructions=instructions,
        loops="; ".join(map(str, loops)),
    )


def rows_of(called: OpCall, targets: Sequence[str]) -> Iterator[Row]:
    """A row for each kernel and target."""
    for target in targets:
        for launch in launches_of(called, target):
            yield row(called, launch, target)


def line(r: Row) -> str:
    """A row as text."""
    join = f"{r.hidden}+{r.skip}->{r.out} at {r.height}x{r.width}"
    mix = f" from {r.mix} buffers{', halves' * r.halves}" if r.mix else ""
    return (
        f"{r.kernel:26}{r.target:8}{r.dtype:5}{join + mix:48}{r.registers:4} registers {r.spilled:3} spilled "
        f"{r.shared:7} shared {r.instructions:5} instructions, loops {r.loops}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compile all calls, print and write."""
    arguments = parser(__doc__, OUT)
    arguments.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    arguments.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    args = arguments.parse_args(argv)
    start, rows = time.perf_counter(), []
    for called in op_calls():
        if called.op in args.ops:
            for new in rows_of(called, args.targets):
                rows.append(new)
                print(line(new), flush=True)
    write(args.out, rows)
    print(f"rows: {args.out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
