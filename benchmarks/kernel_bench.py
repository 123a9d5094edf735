"""What the kernel benchmarks share: the joins of the real U-Nets, the correctness gate, timing on a GPU, the row.

A figure is the median of CUDA-event times of single calls. The inputs rotate through as many copies as it takes to
exceed twice the L2 cache, so that no call finds its inputs there. Bandwidth is stated as a share of what `copy_` of a
large tensor reaches on the same device in the same process (bytes read plus bytes written).
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from stepcache.bench.rows import RESULTS, ROOT, Spread, write
from torch import Tensor

MODELS = {"sd15": 64, "sdxl": 128}
"""Latent height and width of SD 1.5 at 512 px and of SDXL at 1024 px."""
CFG_BATCH = 2
WARM_UP, REPEATS = 10, 100


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
    """One way to compute one join's op. Times in microseconds; `share` of the measured copy bandwidth."""

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
    us: float
    us_p20: float
    us_p80: float
    gb_per_s: float
    copy_gb_per_s: float
    share: float
    error: float  # largest distance from float64, on this row's own inputs
    error_stock: float  # that of the stock operations in this dtype
    cuda: str
    driver: str


def gate(name: str, result: Tensor, stock: Tensor, exact: Tensor) -> tuple[float, float]:
    """The errors of `result` and of the stock operations in its dtype; SystemExit if ours is above twice the other."""
    error = (result.double() - exact).abs().max().item()
    error_stock = (stock.double() - exact).abs().max().item()
    if not error <= 2 * error_stock + 1e-6:  # so that NaN fails
        raise SystemExit(
            f"{name}: error {error:.3g} against {error_stock:.3g} of the stock operations; nothing is timed"
        )
    return error, error_stock


def copies_beyond_l2(bytes_per_call: int) -> int:
    """How many sets of inputs exceed twice the L2 cache, and at least two."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(2, 2 * l2 // bytes_per_call + 1)


def time_us(call: Callable[..., object], inputs: Sequence[tuple[Tensor, ...]]) -> Spread:
    """CUDA-event times of single calls, each with the next set of inputs."""
    for i in range(WARM_UP):
        call(*inputs[i % len(inputs)])
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    # A wait on the device lets the host run ahead, so that launch overhead of the host is not in the times.
    torch.cuda._sleep(20_000_000)
    for i, (begin, end) in enumerate(events):
        begin.record()
        call(*inputs[i % len(inputs)])
        end.record()
    torch.cuda.synchronize()
    return Spread.of([begin.elapsed_time(end) * 1000 for begin, end in events])


def copy_bandwidth() -> float:
    """GB/s of a copy of 1 GiB, bytes read and bytes written together."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_us(target.copy_, [(source,)]).median / 1000


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
    inputs: Callable[[], tuple[Tensor, ...]]
    variants: dict[str, Callable[..., Tensor]]
    """Ours first; "eager" is the stock operations in the dtype, and the gate's measure."""
    exact: Callable[..., Tensor]
    bytes_needed: dict[str, int]
    """What each variant's result takes at the least to read and write, when L2 holds nothing from before."""


def measure(op: str, case: Case, copy: float) -> list[KernelRow]:
    """Gate every variant, then time them all."""
    join, first = case.join, case.inputs()
    exact = case.exact(*(t.double() for t in first))
    stock = case.variants["eager"](*first)
    errors = {name: gate(f"{join}, {name}", call(*first), stock, exact) for name, call in case.variants.items()}
    sets = [first] + [case.inputs() for _ in range(copies_beyond_l2(sum(t.nbytes for t in first)) - 1)]
    rows = []
    for name, call in case.variants.items():
        us = time_us(call, sets)
        rate = case.bytes_needed[name] / us.median / 1000
        rows.append(
            KernelRow(
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
                us=us.median,
                us_p20=us.p20,
                us_p80=us.p80,
                gb_per_s=rate,
                copy_gb_per_s=copy,
                share=rate / copy,
                error=errors[name][0],
                error_stock=errors[name][1],
                cuda=torch.version.cuda or torch.version.hip or "",
                driver=driver_version(),
            )
        )
    return rows


def main(op: str, make_case: Callable[[Join, torch.dtype, str], Case]) -> None:
    """The command line of both benchmarks. Without a GPU it says so and exits with 0; --dry-run runs all but timing."""
    parser = argparse.ArgumentParser(description=f"Time {op} on every join of SD 1.5 at 512 px and SDXL at 1024 px.")
    parser.add_argument("--dry-run", action="store_true", help="tiny joins on the CPU: run and gate all, time nothing")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_{op}.csv")
    arguments = parser.parse_args()
    everything = [join for model in MODELS for join in joins(model)]
    if arguments.dry_run:
        for join in everything:
            case = make_case(tiny(join), torch.float32, "cpu")
            inputs = case.inputs()
            exact, stock = case.exact(*(t.double() for t in inputs)), case.variants["eager"](*inputs)
            for name, call in case.variants.items():
                gate(f"{join}, {name}", call(*inputs), stock, exact)
        print(f"{op}: {len(everything)} joins agree in all variants; nothing was timed")
        return
    if not torch.cuda.is_available():
        print(f"{op}: no CUDA GPU here, so there is nothing to measure; --dry-run checks the benchmark itself")
        return
    copy = copy_bandwidth()
    rows: list[KernelRow] = []
    with torch.inference_mode():
        for join in everything:
            for dtype in (torch.float16, torch.bfloat16):
                torch.compiler.reset()
                new = measure(op, make_case(join, dtype, "cuda"), copy)
                rows += new
                write(arguments.out, rows)
                print(f"{join}, {new[0].dtype}: " + ", ".join(f"{row.variant} {row.us:.1f} us" for row in new))
