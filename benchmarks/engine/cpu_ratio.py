"""Does skipped work save time? Seconds of a denoising loop on a CPU against the bound that its FLOPs set.

    python -m benchmarks.engine.cpu_ratio --threads 1 2

The original, stepcache and DeepCache's helper share one U-Net, latents and embeddings, and run in turn in one process:
SD 1.5's layout with random weights, 32x32 latents, classifier-free guidance, DDIM, eager, fp32.

- `bound`: the speed-up if time were proportional to FLOPs: the original's count over that of this run's full and
  partial steps. `share` is the measured speed-up divided by it.
- `reachable`: the speed-up if full steps took as long as the original's, and partial steps as long as the bare partial
  forward, called in a loop with nothing around it. It is below `bound` where this CPU runs the shallow layers less
  efficiently than the deep ones. The distance from it to the measured speed-up is the cost of the library.

SD 1.5 has 8 heads of width 40 to 160. With a fifth of its channels, a U-Net can keep the number of heads (8, of width 8
to 32) or roughly their width (2, of width 32 to 128). The FLOPs are the same, the time is not: attention at width 8 is
limited by softmax's exponentials, one for every 32 FLOPs of the two products, and most of it is in shallow layers.

glibc returns the free end of its heap to the kernel and faults it in again when tensors grow. This costs 3 to 11 % of a
run, and least for DeepCache's helper, which holds the most memory between steps. To keep that out of the comparison,
glibc is told to keep its heap, for all variants; `--trim-heap` leaves it alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.console import columns, parser, spread
from benchmarks.engine.loop import GuidedLoop
from stepcache import Schedule, accelerate, last_run, restore
from stepcache.bench.heap import keep_heap
from stepcache.bench.repeats import Spread, interleave
from stepcache.bench.rows import write
from stepcache.forwards import family_of
from stepcache.forwards.macs import branch_macs, meta_unet

GRID = ((3, 0), (5, 0), (5, 1))  # (interval, branch)
CHANNELS = (64, 128, 256, 256)  # SD 1.5's divided by 5
TARGET = 0.93
BARE_CALLS = 5  # of the bare partial forward, in each repeat


@dataclass(frozen=True)
class Row:
    """One variant at one setting. Seconds are of the whole loop; speed-ups are ratios within a repeat."""

    variant: str  # original, stepcache, deepcache
    interval: int
    branch: int | None
    heads: int
    steps: int
    full_steps: int
    size: int  # of the latents
    batch: int  # of the U-Net, guidance included
    heap: str  # kept, or trimmed (glibc as it is)
    repeats: int
    seconds: float
    seconds_p20: float
    seconds_p80: float
    speedup: float
    speedup_p20: float
    speedup_p80: float
    bound: float
    share: float
    reachable: float


class Variant(NamedTuple):
    """A way of running the loop."""

    name: str
    interval: int = 1
    branch: int | None = None


ORIGINAL = Variant("original")


class Loop(GuidedLoop):
    """The loop as a pipeline of a fixed number of steps."""

    def __init__(self, unet: UNet2DConditionModel, steps: int) -> None:
        super().__init__(unet)
        self.steps = steps

    @torch.no_grad()
    def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
        """latents [B, 4, H, W], text [2B, L, D] (unconditional first); returns the denoised latents."""
        (denoised,) = deque(self.denoised(latents, self.steps, encoder_hidden_states=text), maxlen=1)
        return denoised


@contextmanager
def put_on(pipe: Loop, variant: Variant) -> Iterator[None]:
    """Inside, the pipe runs as `variant`; afterwards it is as it was."""
    if variant.name == "stepcache":
        accelerate(pipe, variant.interval, variant.branch or 0)
        try:
            yield
            kinds = last_run(pipe).kinds
        finally:
            restore(pipe)
        assert kinds == Schedule.uniform(variant.interval).kinds(pipe.steps), kinds
    elif variant.name == "deepcache":
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=variant.interval, cache_branch_id=variant.branch)
        helper.enable()
        try:
            yield
        finally:
            helper.disable()
            for module in pipe.unet.modules():  # its disable leaves these on every block
                vars(module).pop("forward", None)
    else:
        yield


def timed_run(pipe: Loop, variant: Variant, latents: Tensor, text: Tensor) -> float:
    """Seconds of one run; putting the variant on the pipe is not counted."""
    with put_on(pipe, variant):
        start = time.perf_counter()
        pipe(latents, text)
        return time.perf_counter() - start


def bare_partial(unet: UNet2DConditionModel, branch: int, latents: Tensor, text: Tensor) -> Callable[[], float]:
    """A function that returns the seconds of one partial forward with nothing around it."""
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    inputs = family.bind(torch.cat([latents] * 2), 500, text).inputs
    with torch.no_grad():
        _, feature = family.full(unet, cut, **inputs)

    @torch.no_grad()
    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(BARE_CALLS):
            family.partial(unet, cut, feature, **inputs)
        return (time.perf_counter() - start) / BARE_CALLS

    return seconds


def run_gain(full: float, partial: float, full_steps: int, steps: int) -> float:
    """How much cheaper a run is with `full_steps` full steps and the others partial than with all steps full."""
    return full * steps / (full * full_steps + partial * (steps - full_steps))


def measure(
    *,
    heads: int = 8,
    steps: int = 30,
    repeats: int = 5,
    size: int = 32,
    channels: Sequence[int] = CHANNELS,
    grid: Sequence[tuple[int, int]] = GRID,
    heap: str = "trimmed",
) -> list[Row]:
    """One row for each variant and setting, with torch's current number of threads.

    grid: (interval, branch) pairs. heap: "kept" or "trimmed", for the row.
    """
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=tuple(channels), cross_attention_dim=256, attention_head_dim=heads
    ).eval()
    pipe, latents, text = Loop(unet, steps), torch.randn(1, 4, size, size), torch.randn(2, 77, 256)
    branches = sorted({branch for _, branch in grid})
    counts = {count.branch: count for count in branch_macs(meta_unet(unet.config), size, size, 2, branches)}

    variants = [ORIGINAL, *(Variant(name, *pair) for pair in grid for name in ("stepcache", "deepcache"))]
    timed: dict[Variant | int, Callable[[], float]] = {
        variant: partial(timed_run, pipe, variant, latents, text) for variant in variants
    }
    timed |= {branch: bare_partial(unet, branch, latents, text) for branch in branches}
    taken = interleave(timed, repeats, f"{torch.get_num_threads()} threads, {heads} heads")

    def row(variant: Variant) -> Row:
        kinds = Schedule.uniform(variant.interval).kinds(steps)
        seconds = Spread.of(taken[variant])
        speedup = Spread.of_ratios(taken[ORIGINAL], taken[variant])
        bound = reachable = 1.0
        if variant.branch is not None:
            count = counts[variant.branch]
            bound = run_gain(count.full_macs, count.partial_macs, kinds.count("F"), steps)
            pairs = zip(taken[ORIGINAL], taken[variant.branch], strict=True)
            gains = [run_gain(whole / steps, bare, kinds.count("F"), steps) for whole, bare in pairs]
            reachable = Spread.of(gains).median
        run = (heads, steps, kinds.count("F"), size, 2, heap, repeats)
        return Row(*variant, *run, *seconds, *speedup, bound, speedup.median / bound, reachable)

    return [row(variant) for variant in variants]


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        (
            r.variant, f"{r.interval}", "" if r.branch is None else f"{r.branch}",
            spread(r.seconds, r.seconds_p20, r.seconds_p80), spread(r.speedup, r.speedup_p20, r.speedup_p80),
            f"{r.bound:.3f}", f"{r.share:.3f}", f"{r.reachable:.3f}",
            f"below {TARGET}" if r.variant == "stepcache" and r.share < TARGET else "",
        )
        for r in rows
    ]  # fmt: skip
    header = ("", "interval", "branch", "seconds (p20 to p80)", "speed-up (p20 to p80)", "bound", "share", "reachable")
    return columns((*header, ""), lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure at each number of threads and heads; write rows and print tables as they come."""
    arguments = parser(__doc__, "cpu_ratio.csv")
    arguments.add_argument("--threads", type=int, nargs="+", default=[1], help="measure with each (default: 1)")
    arguments.add_argument("--heads", type=int, nargs="+", default=[8, 2], help="measure with each (default: 8 2)")
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--size", type=int, default=32, help="height and width of the latents (default: 32)")
    arguments.add_argument("--trim-heap", action="store_true", help="let glibc trim its heap as usual")
    args = arguments.parse_args(argv)
    heap = "kept" if not args.trim_heap and keep_heap() else "trimmed"
    passes = [(threads, heads) for threads in args.threads for heads in args.heads]
    for i, (threads, heads) in enumerate(passes):
        torch.set_num_threads(threads)
        rows = measure(heads=heads, steps=args.steps, repeats=args.repeats, size=args.size, heap=heap)
        write(args.out, rows, append=i > 0)
        print(f"{threads} threads, {heads} heads, heap {heap}\n{table(rows)}\n")
    print(f"rows: {args.out}")


if __name__ == "__main__":
    main()
