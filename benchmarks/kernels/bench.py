"""What the two kernel benchmarks share: the joins of the real U-Nets, the check of results, the row, the order.

A figure is the time of a call in a replayed CUDA graph (stepcache.graphs.replays). All variants but the eager one are
compiled by Inductor, stepcache's included, with the options of a pipe's graphs. The inputs rotate through enough copies
to exceed twice the L2 cache, so that no call finds its inputs there. `share` compares with a `copy_` that reads and
writes as many bytes in total on the same device in the same process: a small copy does not reach a large one's
bandwidth either.

A variant has a figure at a join only if its results there are right. If they are wrong, or it fails, its row says so,
the others go on, and the exit status is 1. float16 comes first, and within a dtype the largest joins, which take the
most time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import OUT_OF_TIME
from benchmarks.console import parser
from benchmarks.gpu import driver_version
from stepcache.bench.repeats import Spread
from stepcache.bench.rows import Rig, read, write
from stepcache.graphs.options import cuda_options
from stepcache.graphs.replays import copies_beyond_l2, times_us
from stepcache.images.unet_configs import read_config

MODELS = {"sd15": 64, "sdxl": 128}
"""Latent height and width of SD 1.5 at 512 px and of SDXL at 1024 px."""
CFG_BATCH = 2
DTYPES = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class JoinCase:
    """The sizes of one up-path ResNet's join; `index` counts from the output, as branches do."""

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

    @property
    def sizes(self) -> dict[str, int]:
        """The columns that all rows about a join have."""
        return {name: getattr(self, name) for name in ("batch", "hidden", "skip", "out", "height", "width")}

    def __str__(self) -> str:
        return f"{self.model} join {self.index}: {self.hidden}+{self.skip}->{self.out} at {self.height}x{self.width}"


def joins(model: str) -> list[JoinCase]:
    """All joins of a U-Net at its usual resolution with CFG, from its config in stepcache's assets."""
    config = read_config(model)
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
        JoinCase(model, i, CFG_BATCH, hidden, skip, out, config["norm_num_groups"], edge, edge)
        for i, (hidden, skip, out, edge) in enumerate(reversed(found))
    ]


def tiny(join: JoinCase) -> JoinCase:
    """The join with a twentieth of its channels and 4 x 4 pixels, for a dry run on a CPU."""
    return JoinCase(join.model, join.index, 1, join.hidden // 20, join.skip // 20, join.out // 20, 4, 4, 4)


@dataclass(frozen=True)
class KernelRow:
    """One variant of an op at one join. Times in microseconds."""

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
    us: float | None  # this and the next fields are None unless the status is ok
    us_p20: float | None
    us_p80: float | None
    gb_per_s: float | None
    copy_us: float | None  # a copy of as many bytes
    share: float | None  # copy_us / us
    error: float | None  # largest distance from float64, on this row's inputs
    error_stock: float | None  # the same for the stock operations in this dtype
    cuda: str
    driver: str


Tensors = tuple[Tensor, ...]


class Wrong(Exception):
    """A result is too far from float64."""


def results_of(value: Tensor | Tensors) -> Tensors:
    """What an op returned, as a tuple."""
    return (value,) if isinstance(value, Tensor) else tuple(value)


def errors_of(results: Tensors, stock: Tensors, exact: Tensors) -> tuple[float, float]:
    """The largest errors of `results` and of the stock operations in the same dtype.

    Raises Wrong if an error is more than twice the stock operations'. Only the tensors that the op makes are compared.
    """
    worst = (0.0, 0.0)
    for ours, theirs, right in zip(results, stock, exact, strict=False):
        if ours.shape != right.shape:
            raise Wrong(f"shape {tuple(ours.shape)}, not {tuple(right.shape)}")
        error, error_stock = ((value.double() - right).abs().max().item() for value in (ours, theirs))
        if not error <= 2 * error_stock + 1e-6:  # NaN is wrong too
            raise Wrong(f"error {error:.3g} against {error_stock:.3g} of the stock operations")
        worst = max(worst, (error, error_stock))
    return worst


@functools.cache
def copy_us(nbytes: int) -> float:
    """Microseconds of a copy that reads and writes `nbytes` in total."""
    half = nbytes // 2
    pairs = [torch.empty(2, half, dtype=torch.uint8, device="cuda").unbind() for _ in range(copies_beyond_l2(half))]
    return time_us(lambda source, target: target.copy_(source), pairs).median


def time_us(call: Callable[..., object], inputs: Sequence[Tensors]) -> Spread:
    """Microseconds of a call."""
    return Spread.of(times_us(call, inputs))


def compiled(function: Callable[..., Tensor | Tensors], device: str) -> Callable[..., Tensor | Tensors]:
    """`function` compiled as a pipe's graphs are; uncompiled on a CPU, where Inductor would be slow."""
    if device != "cuda":
        return function
    return torch.compile(function, fullgraph=True, dynamic=False, options=cuda_options())


def activations(
    join: JoinCase, channels: Sequence[int], dtype: torch.dtype, device: str
) -> Callable[[], tuple[Tensor, ...]]:
    """A function that makes random tensors of the join's size in channels_last, one for each of `channels`."""

    def make() -> tuple[Tensor, ...]:
        shapes = [(join.batch, c, join.height, join.width) for c in channels]
        made = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        return tuple(tensor.to(memory_format=torch.channels_last) for tensor in made)

    return make


def split_weight(weight: Tensor, join: JoinCase) -> list[Tensor]:
    """A 1x1 convolution's weight in two: its channels of the hidden state, and those of the skip."""
    parts = weight.split([join.hidden, join.skip], 1)
    return [part.contiguous(memory_format=torch.channels_last) for part in parts]


@dataclass(frozen=True)
class OpCase:
    """One op at one join, ready to run: several variants on the same inputs."""

    join: JoinCase
    dtype: torch.dtype
    inputs: Callable[[], Tensors]
    variants: dict[str, Callable[..., Tensor | Tensors]]
    """stepcache's first."""
    stock: Callable[..., Tensor | Tensors]
    """The stock operations, in the dtype of their inputs; in float64 they are the exact result."""
    bytes_needed: dict[str, int]
    """The bytes that each variant must read and write at least, if L2 is empty at first."""

    def expected(self, inputs: Tensors) -> tuple[Tensors, Tensors]:
        """(stock, exact): results of the stock operations in the inputs' dtype and in float64."""
        return results_of(self.stock(*inputs)), results_of(self.stock(*(t.double() for t in inputs)))


def measure(op: str, case: OpCase) -> list[KernelRow]:
    """A row for each variant, with a time if its results are right."""
    first = case.inputs()
    stock, exact = case.expected(first)
    sets = [first] + [case.inputs() for _ in range(copies_beyond_l2(sum(t.nbytes for t in first)) - 1)]
    return [_row(op, case, name, sets, stock, exact) for name in case.variants]


def _row(op: str, case: OpCase, name: str, sets: Sequence[Tensors], stock: Tensors, exact: Tensors) -> KernelRow:
    join, call = case.join, case.variants[name]
    status, us, errors = "ok", None, None
    try:
        errors = errors_of(results_of(call(*sets[0])), stock, exact)
        us = time_us(call, sets)
    except Wrong as error:
        status = f"wrong: {error}"
    except Exception as error:  # no compilation, no capture, no memory: the other variants go on
        status = _reason(error)
    nbytes = case.bytes_needed[name]
    copied = copy_us(nbytes) if us else None
    return KernelRow(
        op=op,
        model=join.model,
        join=join.index,
        **join.sizes,
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


MakeCase = Callable[[JoinCase, torch.dtype, str], OpCase]


class Benchmark:
    """All joins of one op, the most important first, until `deadline` (of time.monotonic; None: no limit)."""

    def __init__(self, op: str, make_case: MakeCase, deadline: float | None) -> None:
        self.op, self.make_case, self.deadline = op, make_case, deadline
        self.red: list[str] = []

    @torch.inference_mode()
    def dry(self, everything: Sequence[JoinCase]) -> None:
        """Compare all variants on tiny joins on the CPU, without timing."""
        for join in everything:
            case = self.make_case(tiny(join), torch.float32, "cpu")
            inputs = case.inputs()
            stock, exact = case.expected(inputs)
            for name, call in case.variants.items():
                try:
                    errors_of(results_of(call(*inputs)), stock, exact)
                except Wrong as error:
                    self.say_red(f"{join}, {name}", f"wrong: {error}")

    @torch.inference_mode()
    def run(self, everything: Sequence[JoinCase], rows: list[KernelRow], out: Path) -> int:
        """Measure what is not in `rows`, add to them and write all to `out` as they come; returns how many are left."""
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
            except Exception as error:  # the inputs or the stock operations failed: go on with the next join
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
        """Print it, and keep it for the summary at the end."""
        self.red.append(what)
        print(f"RED {what}: {why}", flush=True)


def rows_so_far(out: Path) -> list[KernelRow]:
    """The rows in `out` that this commit measured on this GPU."""
    if not out.exists():
        return []
    now = Rig.now()
    return [
        row
        for row, rig in zip(read(out, KernelRow), read(out, Rig), strict=True)
        if (rig.gpu, rig.commit, rig.torch) == (now.gpu, now.commit, now.torch)
    ]


def main(op: str, make_case: MakeCase, argv: Sequence[str] | None = None) -> None:
    """The command line of both benchmarks. Without a GPU they say so and exit with 0; --dry-run does all but timing.

    Exit status 1 if something was wrong or failed, OUT_OF_TIME if --seconds were too few.
    """
    description = f"Time {op} on every join of SD 1.5 at 512 px and SDXL at 1024 px."
    arguments = parser(description, f"bench_{op}.csv")
    arguments.add_argument("--dry-run", action="store_true", help="compare all variants on tiny joins on the CPU")
    arguments.add_argument("--seconds", type=float, help="start no join after this time")
    arguments.add_argument(
        "--continue", dest="more", action="store_true", help="keep the rows of this commit and GPU, and add the others"
    )
    args = arguments.parse_args(argv)
    everything = [join for model in MODELS for join in joins(model)]
    benchmark = Benchmark(op, make_case, None if args.seconds is None else time.monotonic() + args.seconds)
    left = 0
    if args.dry_run:
        benchmark.dry(everything)
        if not benchmark.red:
            print(f"{op}: {len(everything)} joins agree in all variants; nothing was timed")
    elif not torch.cuda.is_available():
        print(f"{op}: no CUDA GPU here, so nothing can be measured; --dry-run checks the benchmark itself")
    else:
        left = benchmark.run(everything, rows_so_far(args.out) if args.more else [], args.out)
    if benchmark.red:
        raise SystemExit(f"{op}: {len(benchmark.red)} wrong or failed: {'; '.join(benchmark.red)[:400]}")
    if left:
        print(f"{op}: no time was left for {left} more joins and dtypes.")
        raise SystemExit(OUT_OF_TIME)
