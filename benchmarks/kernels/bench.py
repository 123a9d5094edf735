"""What the kernel benchmarks share: the joins of the real U-Nets, whether results are right, the row, the order.

A figure is the time of a call in a replayed CUDA graph, for all variants alike (stepcache.graphs.replays); all but the
eager one are compiled by Inductor, ours included, with the options that a pipe's graphs have. The inputs rotate through
as many copies as it takes to exceed twice the L2 cache, so that no call finds its inputs there. `share` compares with a
`copy_` that moves as many bytes, read and written together, on the same device in the same process: a small copy does
not reach the bandwidth of a large one either.

A variant has a figure at a join where its results there are right; where they are not, or it fails, its row says so,
the others go on, and the exit status is 1. float16 comes first, and of a dtype the largest joins, where the time goes.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gate.jobs import OUT_OF_TIME
from stepcache.bench.rows import RESULTS, ROOT, Rig, Spread, read, write
from stepcache.graphs.options import cuda_options
from stepcache.graphs.replays import copies_beyond_l2, times_us

MODELS = {"sd15": 64, "sdxl": 128}
"""Latent height and width of SD 1.5 at 512 px and of SDXL at 1024 px."""
CFG_BATCH = 2
DTYPES = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Join:
    """One up-path ResNet's join; `index` counts from the output, as branches do."""

    model: str
    index: int
    batch: int
    hidden: int
    skip: int
    out: int
    groups: int
    height: int
    width: int

    @property
    def concat_elements(self) -> int:
        """Elements of the concat that the stock join makes."""
        return self.batch * (self.hidden + self.skip) * self.height * self.width

    def __str__(self) -> str:
        return f"{self.model} join {self.index}: {self.hidden}+{self.skip}->{self.out} at {self.height}x{self.width}"


def joins(model: str) -> list[Join]:
    """All joins of a U-Net at its usual resolution with CFG, from its configuration in stepcache's assets."""
    config = json.loads((ROOT / "src" / "stepcache" / "assets" / "unets" / f"{model}.json").read_text())
    channels, layers = config["block_out_channels"], config["layers_per_block"]
    size = MODELS[model]
    skips = [(channels[0], size)]
    for level, width in enumerate(channels):
        skips += [(width, size >> level)] * layers
        if level < len(channels) - 1:
            skips.append((width, size >> (level + 1)))
    found = []
    hidden = channels[-1]
    for level in reversed(range(len(channels))):
        for _ in range(layers + 1):
            skip, edge = skips.pop()
            found.append((hidden, skip, channels[level], edge))
            hidden = channels[level]
    return [
        Join(model, i, CFG_BATCH, hidden, skip, out, config["norm_num_groups"], edge, edge)
        for i, (hidden, skip, out, edge) in enumerate(reversed(found))
    ]


def tiny(join: Join) -> Join:
    """The join with its channels cut to a twentieth and 4 x 4 pixels: for a dry run on a CPU."""
    return Join(join.model, join.index, 1, join.hidden // 20, join.skip // 20, join.out // 20, 4, 4, 4)


@dataclass(frozen=True)
class KernelRow:
    """One way to compute one join's op. Times in microseconds."""

    op: str
    model: str
    join: int
    batch: int
    hidden: int
    skip: int
    out: int
    height: int
    width: int
    dtype: str
    layout: str
    variant: str
    status: str  # "ok", or why there is no figure: "wrong: ...", "failed: ..."
    us: float | None  # None where the variant is not ok, as what follows
    us_p20: float | None
    us_p80: float | None
    gb_per_s: float | None
    copy_us: float | None  # of a copy of as many bytes
    share: float | None  # copy_us / us
    error: float | None  # largest distance from float64, on this row's own inputs
    error_stock: float | None  # that of the stock operations in this dtype
    cuda: str
    driver: str


Tensors = tuple[Tensor, ...]


class Wrong(Exception):
    """A result that is further from float64 than it may be."""


def results_of(value: Tensor | Tensors) -> Tensors:
    """What an op returned, one tensor or several, as several."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def errors_of(results: Tensors, stock: Tensors, exact: Tensors) -> tuple[float, float]:
    """The errors of `results` and of the stock operations in the same dtype: of the tensor that is furthest off.

    Wrong where ours is above twice the other. An op that makes fewer tensors is held to those that it makes.
    """
    worst = (0.0, 0.0)
    for ours, theirs, right in zip(results, stock, exact, strict=False):
        if ours.shape != right.shape:
            raise Wrong(f"shape {tuple(ours.shape)}, not {tuple(right.shape)}")
        error, error_stock = ((value.double() - right).abs().max().item() for value in (ours, theirs))
        if not error <= 2 * error_stock + 1e-6:  # so that NaN is wrong
            raise Wrong(f"error {error:.3g} against {error_stock:.3g} of the stock operations")
        worst = max(worst, (error, error_stock))
    return worst


@functools.cache
def copy_us(nbytes: int) -> float:
    """Microseconds of a copy that reads and writes so many bytes together."""
    half = nbytes // 2
    pairs = [torch.empty(2, half, dtype=torch.uint8, device="cuda").unbind() for _ in range(copies_beyond_l2(half))]
    return time_us(lambda source, target: target.copy_(source), pairs).median


def time_us(call: Callable[..., object], inputs: Sequence[Tensors]) -> Spread:
    """Microseconds of a call."""
    return Spread.of(times_us(call, inputs))


def compiled(function: Callable[..., Tensor | Tensors], device: str) -> Callable[..., Tensor | Tensors]:
    """Compiled as a pipe's graphs are. A dry run on the CPU takes it as it is: Inductor would be slow."""
    if device != "cuda":
        return function
    return torch.compile(function, fullgraph=True, dynamic=False, options=cuda_options())


@functools.cache
def driver_version() -> str:
    """NVIDIA's driver, or "" where nvidia-smi does not say."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass(frozen=True)
class Case:
    """One join's op, ready to run: several variants on the same inputs."""

    join: Join
    dtype: torch.dtype
    inputs: Callable[[], Tensors]
    variants: dict[str, Callable[..., Tensor | Tensors]]
    """Ours first."""
    stock: Callable[..., Tensor | Tensors]
    """The stock operations, in the dtype of their inputs: in float64 they are what is right."""
    bytes_needed: dict[str, int]
    """What each variant's result takes at the least to read and write, when L2 holds nothing from before."""


def measure(op: str, case: Case) -> list[KernelRow]:
    """A row for each variant: of those that are right, with their time."""
    first = case.inputs()
    exact, stock = results_of(case.stock(*(t.double() for t in first))), results_of(case.stock(*first))
    sets = [first] + [case.inputs() for _ in range(copies_beyond_l2(sum(t.nbytes for t in first)) - 1)]
    return [_row(op, case, name, sets, stock, exact) for name in case.variants]


def _row(op: str, case: Case, name: str, sets: Sequence[Tensors], stock: Tensors, exact: Tensors) -> KernelRow:
    join, call = case.join, case.variants[name]
    status, us, errors = "ok", None, None
    try:
        errors = errors_of(results_of(call(*sets[0])), stock, exact)
        us = time_us(call, sets)
    except Wrong as error:
        status = f"wrong: {error}"
    except Exception as error:  # does not compile, cannot be captured, no memory: the others go on
        status = _reason(error)
    nbytes = case.bytes_needed[name]
    copied = copy_us(nbytes) if us else None
    return KernelRow(
        op=op,
        model=join.model,
        join=join.index,
        batch=join.batch,
        hidden=join.hidden,
        skip=join.skip,
        out=join.out,
        height=join.height,
        width=join.width,
        dtype=str(case.dtype).removeprefix("torch."),
        layout="channels_last",
        variant=name,
        status=status,
        us=us.median if us else None,
        us_p20=us.p20 if us else None,
        us_p80=us.p80 if us else None,
        gb_per_s=nbytes / us.median / 1000 if us else None,
        copy_us=copied,
        share=copied / us.median if us and copied else None,
        error=errors[0] if errors else None,
        error_stock=errors[1] if errors else None,
        cuda=torch.version.cuda or torch.version.hip or "",
        driver=driver_version(),
    )


def _reason(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


MakeCase = Callable[[Join, torch.dtype, str], Case]


class Benchmark:
    """All joins of one op, those of most worth first, until `deadline` (of time.monotonic; None: no end)."""

    def __init__(self, op: str, make_case: MakeCase, deadline: float | None) -> None:
        self.op, self.make_case, self.deadline = op, make_case, deadline
        self.red: list[str] = []

    @torch.inference_mode()
    def dry(self, everything: Sequence[Join]) -> None:
        """Small on the CPU: all variants are compared, nothing is timed."""
        for join in everything:
            case = self.make_case(tiny(join), torch.float32, "cpu")
            inputs = case.inputs()
            exact, stock = results_of(case.stock(*(t.double() for t in inputs))), results_of(case.stock(*inputs))
            for name, call in case.variants.items():
                try:
                    errors_of(results_of(call(*inputs)), stock, exact)
                except Wrong as error:
                    self.say_red(f"{join}, {name}", f"wrong: {error}")

    @torch.inference_mode()
    def run(self, everything: Sequence[Join], rows: list[KernelRow], out: Path) -> int:
        """Measure what `rows` do not have and add to them, writing all to `out` as they come; returns what is left."""
        done = {(row.model, row.join, row.dtype) for row in rows}
        todo = [
            (join, dtype)
            for dtype in DTYPES
            for join in sorted(everything, key=lambda join: -join.concat_elements)
            if (join.model, join.index, str(dtype).removeprefix("torch.")) not in done
        ]
        for row in rows:
            if row.status != "ok":
                self.say_red(f"{row.model} join {row.join}, {row.dtype}, {row.variant}", row.status)
        for i, (join, dtype) in enumerate(todo):
            if self.deadline is not None and time.monotonic() >= self.deadline:
                return len(todo) - i
            torch.compiler.reset()
            name = f"{join}, {str(dtype).removeprefix('torch.')}"
            try:
                new = measure(self.op, self.make_case(join, dtype, "cuda"))
            except Exception as error:  # nothing to compare with: the next join has its turn
                self.say_red(name, _reason(error))
                continue
            rows += new
            write(out, rows)
            print(f"{name}: " + ", ".join(f"{row.variant} {row.us:.1f} us" for row in new if row.us is not None))
            for row in new:
                if row.status != "ok":
                    self.say_red(f"{name}, {row.variant}", row.status)
        return 0

    def say_red(self, what: str, why: str) -> None:
        """Print it, and keep it for the end."""
        self.red.append(what)
        print(f"RED {what}: {why}", flush=True)


def rows_so_far(out: Path) -> list[KernelRow]:
    """Those in `out` that this commit measured on this GPU."""
    if not out.exists():
        return []
    now = Rig.now()
    return [
        row
        for row, rig in zip(read(out, KernelRow), read(out, Rig), strict=True)
        if (rig.gpu, rig.commit, rig.torch) == (now.gpu, now.commit, now.torch)
    ]


def main(op: str, make_case: MakeCase, argv: Sequence[str] | None = None) -> None:
    """The command line of both benchmarks. Without a GPU it says so and exits with 0; --dry-run runs all but timing.

    Exit status 1 where something was wrong or failed, and OUT_OF_TIME (gate_jobs.py) where --seconds were too few.
    """
    parser = argparse.ArgumentParser(description=f"Time {op} on every join of SD 1.5 at 512 px and SDXL at 1024 px.")
    parser.add_argument("--dry-run", action="store_true", help="tiny joins on the CPU: run and compare, time nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_{op}.csv")
    parser.add_argument("--seconds", type=float, help="begin no join after them")
    parser.add_argument(
        "--continue", dest="more", action="store_true", help="keep what this commit and GPU have in --out, do the rest"
    )
    args = parser.parse_args(argv)
    everything = [join for model in MODELS for join in joins(model)]
    benchmark = Benchmark(op, make_case, None if args.seconds is None else time.monotonic() + args.seconds)
    left = 0
    if args.dry_run:
        benchmark.dry(everything)
        if not benchmark.red:
            print(f"{op}: {len(everything)} joins agree in all variants; nothing was timed")
    elif not torch.cuda.is_available():
        print(f"{op}: no CUDA GPU here, so there is nothing to measure; --dry-run checks the benchmark itself")
    else:
        left = benchmark.run(everything, rows_so_far(args.out) if args.more else [], args.out)
    if benchmark.red:
        raise SystemExit(f"{op}: {len(benchmark.red)} wrong or failed: {'; '.join(benchmark.red)[:400]}")
    if left:
        print(f"{op}: no time was left for {left} more joins and dtypes.")
        raise SystemExit(OUT_OF_TIME)
