"""How large the code of the Triton kernels is: registers, spills, shared memory, instructions of each loop. No GPU.

    python -m benchmarks.kernels.code

The launchers run on fake CUDA tensors, and each kernel that they launch is compiled for every target, with the very
arguments of the launch. Each launch is cut into programs as for an H100, whatever the target. Of the joins of SD 1.5
and SDXL there are the smallest, the largest, and those at which other tiles are chosen. Sizes that Triton does not
specialise on make no other code, so many rows are alike.

`tests/benchmarks/test_kernel_code.py` compiles a few of the rows again: the kernels do not grow unseen. After a change
that is meant to make them larger, or smaller, write the rows anew.

`results/kernel_code_before.csv` has the same rows of the kernels at commit 0030e3c. They were compiled once, by this
script, with the two launchers of a checkout of that commit in place of the present ones. Triton's autotuner chose the
convolution's tile there, on a device. The rows have the tile that its launcher chooses now in 16 bits, or where there
was no such tile (at 8 x 8), 64 x 64; in float32, 128 x 64. That convolution did not add the residual's bias.

- `spilled`: bytes of stack (NVIDIA), 8 of which may be a parked scalar, or registers (AMD).
- `instructions` are those of the whole kernel, `loops` those of each loop, in the order of the code. On sm_100, loops
  of two or three instructions wait for a barrier.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from stepcache.kernels.cat_group_norm_silu import cat_group_norm_silu_triton
from stepcache.kernels.dual_conv1x1 import dual_conv1x1_triton
from torch import Tensor

from benchmarks.kernels.bench import MODELS, Join, joins
from benchmarks.kernels.compile import DTYPE_NAMES, TARGETS, compile_launch, instruction_counts
from benchmarks.kernels.launches import Launch, noted_launches
from stepcache.bench.rows import RESULTS, write

OUT = RESULTS / "kernel_code.csv"
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


@dataclass(frozen=True)
class Row:
    """One kernel of one launch, for one target. See the head of this file."""

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
    mix: int  # buffers that make up h, 0 for h itself
    constants: str  # the kernel's, "BLOCK_P=128 BLOCK_O=64"
    num_warps: int
    num_stages: int
    registers: int
    spilled: int
    shared: int  # bytes
    instructions: int
    loops: str  # "96; 12"


class Case(NamedTuple):
    """One call of an op."""

    op: str
    join: Join
    dtype: torch.dtype
    mix: int = 0


def the_joins() -> list[Join]:
    """One join for each of SIZES, in that order."""
    found = {(j.hidden, j.skip, j.out, j.height): j for model in MODELS for j in joins(model)}
    return [found[size] for size in SIZES]


def cases() -> list[Case]:
    """Of both ops: every join in 16 bits, the largest in float32 and from three buffers."""
    every = the_joins()
    largest = every[SIZES.index(LARGEST)]
    made = []
    for op in OPS:
        made += [Case(op, join, dtype) for dtype in (torch.bfloat16, torch.float16) for join in every]
        made += [Case(op, largest, torch.float32), Case(op, largest, torch.bfloat16, mix=3)]
    return made


def launches_of(case: Case, target: str = "sm_90") -> list[Launch]:
    """What the op launches, with everything optional that a join gives it. Of the target it knows the warps' width."""
    join = case.join

    def activation(channels: int) -> Tensor:
        sizes = join.batch, channels, join.height, join.width
        return torch.empty(sizes, dtype=case.dtype, device="cuda", memory_format=torch.channels_last)

    def vector(size: int) -> Tensor:
        return torch.empty(size, dtype=case.dtype, device="cuda")

    def call() -> None:
        channels = join.hidden + join.skip
        h, skip = activation(join.hidden), activation(join.skip)
        mixed: dict[str, Any] = {name: activation(join.hidden) for name in ("h2", "h3")[: max(case.mix - 1, 0)]}
        if case.mix:
            mixed["mix"] = torch.empty(case.mix, device="cuda")
        if case.op == "cat_group_norm_silu":
            cat_group_norm_silu_triton(h, skip, vector(channels), vector(channels), join.groups, 1e-5, **mixed)
        else:
            weight = vector(join.out * channels).view(join.out, channels, 1, 1)
            dual_conv1x1_triton(
                h, skip, weight, vector(join.out), activation(join.out), **mixed, residual_bias=vector(join.out)
            )

    return noted_launches(call, TARGETS[target].warp_size)


def row(case: Case, launch: Launch, target: str) -> Row:
    """Compile one launch, and count."""
    code = compile_launch(launch.function, launch.arguments, target)
    instructions, loops = instruction_counts(code)
    constants = [p.name for p in launch.function.params if p.is_constexpr]
    join = case.join
    return Row(
        op=case.op,
        kernel=launch.kernel,
        target=target,
        dtype=DTYPE_NAMES[case.dtype],
        layout=LAYOUT,
        batch=join.batch,
        hidden=join.hidden,
        skip=join.skip,
        out=join.out,
        height=join.height,
        width=join.width,
        mix=case.mix,
        constants=" ".join(f"{name}={launch.arguments[name]}" for name in constants),
        num_warps=code.num_warps,
        num_stages=code.num_stages,
        registers=code.registers,
        spilled=code.spilled,
        shared=code.shared,
        instructions=instructions,
        loops="; ".join(map(str, loops)),
    )


def rows_of(case: Case, targets: Sequence[str]) -> Iterator[Row]:
    """A row for each kernel and target."""
    for target in targets:
        for launch in launches_of(case, target):
            yield row(case, launch, target)


def line(r: Row) -> str:
    """A row for people."""
    join = f"{r.hidden}+{r.skip}->{r.out} at {r.height}x{r.width}"
    mix = f" from {r.mix} buffers" if r.mix else ""
    return (
        f"{r.kernel:26}{r.target:8}{r.dtype:5}{join + mix:40}{r.registers:4} registers {r.spilled:3} spilled "
        f"{r.shared:7} shared {r.instructions:5} instructions, loops {r.loops}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Compile all cases, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    start, rows = time.perf_counter(), []
    for case in cases():
        if case.op in args.ops:
            for new in rows_of(case, args.targets):
                rows.append(new)
                print(line(new), flush=True)
    write(args.out, rows)
    print(f"rows: {args.out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
