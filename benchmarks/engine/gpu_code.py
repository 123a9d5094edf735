"""What Inductor generates for an H100, counted without one: launches, configurations, copies, bytes.

    python -m benchmarks.engine.gpu_code                                # all, about an hour on two cores
    python -m benchmarks.engine.gpu_code --models sd15 --kinds partial  # a minute or two a graph

No GPU is needed, and none is used: the U-Nets are on fake CUDA tensors, torch compiles for an H100's properties
(`fake_h100.py`), and the code that comes out is called with every launch noted (`gpu_code_trace.py`). Nothing is
computed and nothing timed. All cases run in this one process, one after the other; each row is written when it is
there.

A case is one graph: a full or a partial step (branch 0), fp16, batch 2 (guidance), as `accelerate` has it compiled
with its default options. `join` is how skips are joined: `reference` (torch) or `triton` (our kernels at every join).
`weights` is the layout of the 4-d weights: `as loaded` (NCHW) or `channels_last`.

- `launches` are Triton's, `kernels` the different ones among them. Our ops, to the compiler one call each, are counted
  by what they launch. `externs` are the other calls, by kind.
- `configs` are the configurations of those kernels that are compiled before the first step, with the package's default
  options (`options`); `configs_torch` with torch's own defaults; `configs_descent` with coordinate descent in all
  directions, an earlier default of the package. Without a search this is exact, but for reductions that turn out to
  need too many registers, which get one more. With the search it is the fewest: what it tries around a first
  configuration that nothing beats (a stand-in for the timer says that all are equally fast).
- `relaid_weights` are launches that only write a weight in another layout, `copies` those that only copy something
  else, `fills` those that read nothing. `join_launches` are those of our kernels. `join_copies` are buffers, beyond one
  of the hidden state and one of the skip, that these are handed at a join (both empty for the reference). `_bytes`
  beside them is what they write.
- `read_bytes` and `written_bytes` are of the Triton launches: the whole of each different buffer that a launch takes as
  an input or an output. A kernel that reads only a part of a buffer is counted for all of it; one that reads a buffer
  twice, once. `extern_bytes` are inputs and outputs of the other calls, each once; what a library does inside
  (workspaces, layouts of its own) is not in it.
- `flops` are two for each multiply-accumulate of convolutions, matrix products and attention.
- `bound_ms` is no time but a bound: the sum over all calls of max(bytes / 3.05 TB/s, FLOPs / 800 TFLOP/s). It takes
  all bytes to come from memory: of what still is in the L2 cache (50 MB), a real GPU may be faster.
- `to_pad` are the matrix products, by shape, that Inductor would time on the device while it compiles, to choose
  whether to pad them. Here all stay unpadded.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from benchmarks.engine import gpu_code_counts as counts
from benchmarks.engine.gpu_code_trace import Code, graph_code
from stepcache.bench.rows import RESULTS, write
from stepcache.forwards.join import JoinFunction, fused_join, reference_join
from stepcache.forwards.macs import example_inputs, meta_unet
from stepcache.graphs.options import CUDA_OPTIONS

PIXELS = {"sd15": 512, "sd21": 512, "sdxl": 1024}
KINDS = ("full", "partial")
JOINS = ("reference", "triton")
WEIGHTS = ("as loaded", "channels_last")
BATCH, BRANCH, DTYPE = 2, 0, torch.float16
DESCENT = {
    "conv_1x1_as_mm": True,
    "coordinate_descent_tuning": True,
    "coordinate_descent_check_all_directions": True,
}


@dataclass(frozen=True)
class Row:
    """One graph. See the head of this file for what is counted and how."""

    model: str
    pixels: int  # height and width of the image
    dtype: str
    batch: int  # of the U-Net call
    branch: int
    kind: str
    join: str
    weights: str
    options: str  # of Inductor, as JSON
    launches: int
    kernels: int
    configs: int
    configs_torch: int
    configs_descent: int
    externs: str  # "addmm 120; convolution 66"
    relaid_weights: int
    relaid_weights_bytes: int
    copies: int
    copies_bytes: int
    join_launches: int | None  # None for the reference, as the next two
    join_copies: int | None
    join_copies_bytes: int | None
    fills: int
    read_bytes: int
    written_bytes: int
    extern_bytes: int
    flops: int
    bound_ms: float
    to_pad: int


class Case(NamedTuple):
    """Which graph."""

    model: str
    kind: str
    join: str
    weights: str


def the_join(name: str) -> JoinFunction:
    """The join of that name, of JOINS."""
    return fused_join(lambda *shape: True) if name == "triton" else reference_join


def unet_of(model: str, weights: str) -> nn.Module:
    """The model's U-Net in DTYPE, without memory, with its weights in that layout."""
    config = json.loads((files("stepcache") / "assets" / "unets" / f"{model}.json").read_text())
    unet = nn.Module.to(meta_unet(config), DTYPE)  # diffusers' own .to() warns of what a checkpoint might hold
    return unet.to(memory_format=torch.channels_last) if weights == "channels_last" else unet


def inputs_of(unet: nn.Module, latent: int, dtype: torch.dtype = DTYPE) -> dict[str, object]:
    """Inputs of one call with guidance, as a pipeline in `dtype` gives them: the timestep stays float32."""
    inputs = example_inputs(unet, latent, latent, BATCH)
    timestep = inputs.pop("timestep")
    cast = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)
    return {**cast, "timestep": timestep}


def row(case: Case, code: Code) -> Row:
    """The counts of one case."""
    kernels = code.kernels.values()
    relaid, copied = counts.relaid_weights(code), counts.copies(code)
    joined = counts.join_copies(code) if case.join == "triton" else None
    read, written, extern = counts.traffic(code)
    return Row(
        model=case.model,
        pixels=PIXELS[case.model],
        dtype=str(DTYPE).removeprefix("torch."),
        batch=BATCH,
        branch=BRANCH,
        kind=case.kind,
        join=case.join,
        weights=case.weights,
        options=json.dumps(CUDA_OPTIONS),
        launches=len(code.launches),
        kernels=len(kernels),
        configs=sum(kernel.configs(CUDA_OPTIONS) for kernel in kernels),
        configs_torch=sum(kernel.configs({}) for kernel in kernels),
        configs_descent=sum(kernel.configs(DESCENT) for kernel in kernels),
        externs=counts.externs_by_kind(code),
        relaid_weights=relaid.count,
        relaid_weights_bytes=relaid.bytes,
        copies=copied.count,
        copies_bytes=copied.bytes,
        join_launches=sum(counts.join_launches(code)) if joined is not None else None,
        join_copies=joined.count if joined is not None else None,
        join_copies_bytes=joined.bytes if joined is not None else None,
        fills=counts.fills(code),
        read_bytes=read,
        written_bytes=written,
        extern_bytes=extern,
        flops=counts.flops(code),
        bound_ms=round(counts.bound_ms(code), 3),
        to_pad=len(code.to_pad),
    )


def measure(cases: Sequence[Case]) -> Iterator[Row]:
    """One row a case, as each is done."""
    for case in cases:
        unet = unet_of(case.model, case.weights)
        inputs = inputs_of(unet, PIXELS[case.model] // 8)
        yield row(case, graph_code(unet, case.kind, the_join(case.join), BRANCH, inputs))


def table(rows: Sequence[Row]) -> str:
    """The rows for people; GB are 10^9 bytes."""
    head = f"{'graph':36}{'launches':>9}{'kernels':>8}{'configs':>8}{'re-laid':>8}{'copies':>7}{'at joins':>9}"
    lines = [head + f"{'fills':>6}{'read GB':>8}{'written':>8}{'externs':>8}{'TFLOP':>7}{'bound ms':>9}"]
    for r in rows:
        name = f"{r.model} {r.kind} {r.join} {r.weights}"
        joined = "-" if r.join_copies is None else f"{r.join_launches}, {r.join_copies}"
        lines.append(
            f"{name:36}{r.launches:9}{r.kernels:8}{r.configs:8}{r.relaid_weights:8}{r.copies:7}{joined:>9}{r.fills:6}"
            f"{r.read_bytes / 1e9:8.3f}{r.written_bytes / 1e9:8.3f}{r.extern_bytes / 1e9:8.3f}{r.flops / 1e12:7.3f}"
            f"{r.bound_ms:9.3f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Compile the cases one after the other, write each one's row as it comes, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=PIXELS, default=list(PIXELS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--joins", nargs="+", choices=JOINS, default=JOINS)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_code.csv")
    parser.add_argument("--append", action="store_true", help="add to the file instead of writing it anew")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled|TRITON_DEFAULT_FP_FUSION")
    torch.set_num_threads(1)
    gc.set_threshold(100_000, 50, 100)  # compiling makes millions of objects that live until the end
    cases = [Case(*case) for case in itertools.product(args.models, args.kinds, args.joins, args.weights)]
    rows: list[Row] = []
    start = time.perf_counter()
    for new in measure(cases):
        write(args.out, [new], append=args.append or bool(rows))
        rows.append(new)
        seconds = time.perf_counter() - start
        print(f"[{len(rows)}/{len(cases)}, {seconds:.0f} s] {table([new])}".replace("\n", "\n  "), flush=True)
    print(f"\n{table(rows)}\nrows: {args.out}")


if __name__ == "__main__":
    main()
