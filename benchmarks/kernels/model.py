"""Modelled times of every join on an H100: stepcache's ops and Inductor's code. Nothing is run or measured.

    python -m benchmarks.kernels.model

Each launch of both sides goes through one formula (`times.py` has its constants and what it leaves out). Its inputs are
counted, for fp16, channels_last and guidance:

- stepcache: the launches on fake tensors (`engine/launches.py`), their tensors' bytes, the machine code for sm_90.
- Inductor: its code for an H100 (`engine/gpu_code_trace.py`, with the package's options) of concat, norm and SiLU, the
  3x3 convolution that reads them, the shortcut and the residual add. Its Triton kernels are compiled for sm_90 too,
  with the first configuration of its heuristics. The 3x3 convolution is included for the layout that it asks for; its
  time is not.
- Instructions outside of loops count once. A loop over the activations counts as often as it must run to load them,
  given the widths of its loads. A program of stepcache's two norm kernels takes one of two branches, one for each
  input, so half of the code counts. Their loops that merge partials count once, which is right at most joins.
- The shortcut's matrix product, on both sides: cycles as stepcache's launcher estimates them
  (`dual_conv1x1/launch.py`), with the best of its tiles. What the library really runs is unknown. The product's
  instructions are left out on both sides.
- Norm and shortcut are separate chains, since convolutions run between them: each starts with nothing in L2. The concat
  that Inductor writes is a part of the norm's chain.

`copy` moves the minimum: for the norm each element of the concat in and out once; for the shortcut both inputs, the
weight and the residual in, and the sum out. `bytes` are read and written, for whole tensors. Inductor's kernels read
some of them in strides, which costs more than the model says.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from stepcache.kernels.dual_conv1x1.launch import cycles, programs, tile
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.console import parser
from benchmarks.engine.gpu_code_counts import extent
from benchmarks.engine.gpu_code_trace import Extern, Kernel, Launch, function_code, storage_of
from benchmarks.engine.launches import OwnLaunch
from benchmarks.kernels.bench import MODELS, JoinCase, joins
from benchmarks.kernels.code import OpCall, launches_of
from benchmarks.kernels.compile import compile_launch, instructions_and_loops
from benchmarks.kernels.loads import loaded, streaming
from benchmarks.kernels.times import MULTIPROCESSORS, Work, chain_us, copy_us
from stepcache.bench.rows import write

OUT = "kernel_model.csv"
TARGET = "sm_90"
DTYPE = torch.float16
BRANCHES = {"channel_statistics_kernel": 2, "normalize_silu_kernel": 2}
"""Branches of a kernel, each with one pass over its input. Other kernels have one."""
MERGING = {"normalize_silu_kernel"}
"""Kernels with further loops, which load partials. Their loops over the activations are those that store."""


@dataclass(frozen=True)
class Row:
    """One part of one join, on one side. Times are modelled."""

    model: str
    joins: int  # of the U-Net with this size
    batch: int
    hidden: int
    skip: int
    out: int
    height: int
    width: int
    dtype: str
    part: str  # concat, norm, shortcut
    side: str  # stepcache, inductor, copy
    launches: int
    bytes: int
    instructions: int  # issued by all warps; none of matrix products
    us: float


def the_joins() -> Iterator[tuple[JoinCase, int]]:
    """Every size of join of each model, and how many of the model's joins have it."""
    for model in MODELS:
        every = joins(model)
        sizes = Counter((j.hidden, j.skip, j.out, j.height) for j in every)
        for j in every:
            if count := sizes.pop((j.hidden, j.skip, j.out, j.height), 0):
                yield j, count


def tensors(*which: Tensor) -> dict[int, int]:
    """The bytes of each tensor, by its storage."""
    return {storage_of(t): extent(t) for t in which}


def kernel_work(
    function: JITFunction,
    arguments: dict[str, Any],
    read: dict[int, int],
    written: dict[int, int],
    programs: int,
    streamed: float,
) -> Work:
    """A launch of a Triton kernel whose loops load `streamed` bytes per program."""
    name = function.fn.__name__
    code = compile_launch(function, arguments, TARGET)
    instructions, every = instructions_and_loops(code)
    branches, loops = BRANCHES.get(name, 1), streaming(instructions, every, storing=name in MERGING)
    straight = len(instructions) - sum(map(len, loops))
    rounds = [streamed / (32 * code.num_warps * loaded(instructions, loop)) for loop in loops]
    looped = sum(len(loop) * count for loop, count in zip(loops, rounds, strict=True))
    return Work(
        read=read,
        written=written,
        programs=programs,
        warps=code.num_warps,
        registers=code.registers,
        instructions=(straight + looped) / branches,
        # A second loop finds in L1 what the first one loaded, or belongs to the other branch.
        waits=max(sum(rounds) / len(rounds), 1) if rounds else 1,
        name=name,
    )


def our_norm(launch: OwnLaunch) -> Work:
    """A launch of cat_group_norm_silu."""
    arguments, grid = launch.arguments, prod(launch.grid)
    given = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    written = {"out"} if "out" in given else {"means", "m2s"}
    read = tensors(*(value for name, value in given.items() if name not in written))
    streamed = (extent(given["h"]) + extent(given["skip"])) / grid
    if launch.kernel not in BRANCHES:
        # Its tile is wider than a group, and it loads from both inputs where a group has channels of both.
        streamed *= arguments["BLOCK_C"] / arguments["GROUP_SIZE"] * (2 if arguments["SEAM"] else 1)
    return kernel_work(launch.function, arguments, read, tensors(*(given[name] for name in written)), grid, streamed)


def product(read: Sequence[Tensor], written: Sequence[Tensor], pixels: int, c1: int, c2: int, out: int) -> Work:
    """A matrix product over the channels of one or two sources."""
    size = DTYPE.itemsize
    t = tile(1, pixels, c1, c2, out, size, "ieee", 0, MULTIPROCESSORS)
    count = programs(t, 1, pixels, out)
    return Work(
        read=tensors(*read),
        written=tensors(*written),
        programs=count,
        warps=t.num_warps,
        product_cycles=cycles(t, count, c1, c2, size, "ieee", MULTIPROCESSORS),
        name="product",
    )


def ours(join: JoinCase) -> dict[str, list[Work]]:
    """stepcache's launches, by part."""
    (launch,) = launches_of(OpCall("dual_conv1x1", join, DTYPE))
    given = {name: value for name, value in launch.arguments.items() if isinstance(value, Tensor)}
    out = given.pop("out")
    pixels = join.batch * join.height * join.width
    return {
        "norm": [our_norm(launch) for launch in launches_of(OpCall("cat_group_norm_silu", join, DTYPE))],
        "shortcut": [product(list(given.values()), [out], pixels, join.hidden, join.skip, join.out)],
    }


def inductor_kernel(launch: Launch) -> Work:
    """A launch of one of Inductor's Triton kernels."""
    kernel = launch.kernel
    assert isinstance(kernel, Kernel)
    config = kernel.config
    axes = [axis for axis in "xyz" if f"{axis}numel" in launch.sizes]
    grid = prod(-(-launch.sizes[f"{axis}numel"] // config.kwargs[f"{axis.upper()}BLOCK"]) for axis in axes)
    arguments = {**launch.tensors, **launch.sizes, **kernel.constants, **config.kwargs}
    arguments |= {"num_warps": config.num_warps, "num_stages": config.num_stages}
    read = tensors(*launch.read)
    return kernel_work(kernel.function, arguments, read, tensors(*launch.written), grid, sum(read.values()) / grid)


def inductor(join: JoinCase) -> dict[str, list[Work]]:
    """Inductor's launches, by part."""

    def activation(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=DTYPE, device="meta").to(memory_format=torch.channels_last)

    def vector(size: int) -> Tensor:
        return torch.empty(size, dtype=DTYPE, device="meta")

    def function(h: Tensor, skip: Tensor, residual: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias, next_weight, shortcut, shortcut_bias = weights
        x = torch.cat([h, skip], 1)
        y = F.silu(F.group_norm(x, join.groups, weight, bias, 1e-5))
        return F.conv2d(y, next_weight, padding=1), F.conv2d(x, shortcut, shortcut_bias) + residual

    channels, image = join.hidden + join.skip, (join.height, join.width)
    inputs = [activation(join.batch, c, *image) for c in (join.hidden, join.skip, join.out)]
    weights = [vector(channels), vector(channels), activation(join.out, channels, 3, 3)]
    weights += [activation(join.out, channels, 1, 1), vector(join.out)]
    parts: dict[str, list[Work]] = {"concat": [], "norm": [], "shortcut": []}
    for call in function_code(function, [*inputs, *weights], weights).calls:
        if isinstance(call, Extern):
            if call.name == "convolution":  # the 3x3 one
                continue
            assert call.name == "addmm", call.name
            _, x, w = call.read
            parts["shortcut"].append(product(call.read, call.written, x.shape[0], channels, 0, w.shape[1]))
        else:
            name = call.kernel.name
            part = "norm" if "group_norm" in name else "concat" if "fused_cat" in name else "shortcut"
            parts[part].append(inductor_kernel(call))
    return parts


def rows_of(join: JoinCase, count: int) -> Iterator[Row]:
    """A row for each part of one join on each side."""

    def row(part: str, side: str, launches: int, nbytes: int, instructions: float, us: float) -> Row:
        return Row(
            model=join.model,
            joins=count,
            **join.sizes,
            dtype=str(DTYPE).removeprefix("torch."),
            part=part,
            side=side,
            launches=launches,
            bytes=nbytes,
            instructions=round(instructions),
            us=round(us, 2),
        )

    for side, parts in (("stepcache", ours(join)), ("inductor", inductor(join))):
        for chain in (("concat", "norm"), ("shortcut",)):
            works = [(part, work) for part in chain for work in parts.get(part, [])]
            times = chain_us([work for _, work in works])
            for part in chain:
                mine = [(work, us) for (of, work), us in zip(works, times, strict=True) if of == part]
                if mine:
                    issued = sum(work.instructions * work.warps * work.programs for work, _ in mine)
                    yield row(part, side, len(mine), sum(w.bytes for w, _ in mine), issued, sum(us for _, us in mine))
    output = join.batch * join.out * join.height * join.width
    weight = join.out * (join.hidden + join.skip)
    least = {"norm": 2 * join.concat_elements, "shortcut": join.concat_elements + weight + 2 * output}
    for part, elements in least.items():
        nbytes = DTYPE.itemsize * elements
        yield row(part, "copy", 1, nbytes, 0, copy_us(nbytes))


def main(argv: Sequence[str] | None = None) -> None:
    """Model all joins, print and write."""
    args = parser(__doc__, OUT).parse_args(argv)
    warnings.simplefilter("ignore")
    start, rows = time.perf_counter(), []
    for join, count in the_joins():
        new = list(rows_of(join, count))
        rows += new
        print(f"{join}: " + ", ".join(f"{r.side} {r.part} {r.us:.1f} ({r.launches})" for r in new), flush=True)
    write(args.out, rows)
    print(f"rows: {args.out}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
