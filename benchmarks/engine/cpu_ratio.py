"""Is work skipped time saved? Seconds of a denoising loop on a CPU, against the bound that its FLOPs set.

    python -m benchmarks.engine.cpu_ratio --threads 1 2

An SD 1.5-shaped U-Net with random weights, 32x32 latents, classifier-free guidance, DDIM, eager, fp32: the original,
stepcache and DeepCache's helper, same U-Net, latents and embeddings, interleaved in one process.

- `bound`: the gain of a run if time went with FLOPs, the original's count over that of this run's full and partial
  steps. `share` is the speed-up divided by it.
- `reachable`: the gain of a run if full steps took what the original's do and partial ones what the bare partial
  forward does, called in a loop with nothing around it. It falls short of `bound` where the shallow layers get less
  out of this CPU than the deep ones; what is between it and the speed-up is the price of the library.

SD 1.5 has 8 heads of width 40 to 160. A fifth of its channels can keep the number of heads (8, of width 8 to 32) or
about the width (2, of width 32 to 128). FLOPs are the same. Time is not: attention at width 8 is bound by softmax's
exponentials, one for each 32 FLOPs of the two products, and most of that attention is in the shallow layers.

glibc gives the free end of its heap back to the kernel and faults it in again when tensors grow. That is 3 to 11 % of a
run, and the least for who holds the most memory between steps, DeepCache's helper. So that memory held does not pass
for speed, glibc is told to keep its heap, for all variants alike; `--trim-heap` leaves it as it is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from stepcache import Schedule, accelerate, last_run, restore
from stepcache.bench.heap import keep_heap
from stepcache.bench.rows import RESULTS, Spread, interleave, write
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
    """What is compared with what."""

    name: str
    interval: int = 1
    branch: int | None = None


ORIGINAL = Variant("original")


class Loop:
    """A pipeline without text encoder and VAE: DDIM with classifier-free guidance, latents in, latents out."""

    def __init__(self, unet: UNet2DConditionModel, steps: int) -> None:
        self.unet, self.steps = unet, steps
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    @torch.no_grad()
    def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
        """latents [B, 4, H, W], text [2B, L, D] (unconditional first); returns the denoised latents."""
        self.scheduler.set_timesteps(self.steps)
        for t in self.scheduler.timesteps:
            both = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            uncond, cond = self.unet(both, t, encoder_hidden_states=text).sample.chunk(2)
            latents = self.scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample
        return latents


@contextmanager
def put_on(pipe: Loop, variant: Variant) -> Iterator[None]:
    """The pipe as `variant` inside, and as it was afterwards."""
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
            for module in pipe.unet.modules():  # which its disable leaves on every block
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
    """A job that returns seconds of one partial forward, with nothing around it."""
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    inputs = family.bind(torch.cat([latents] * 2), 500, text).inputs
    with torch.no_grad():
        _, feature = family.full(unet, cut, **inputs)

    @torch.no_grad()
    def job() -> float:
        start = time.perf_counter()
        for _ in range(BARE_CALLS):
            family.partial(unet, cut, feature, **inputs)
        return (time.perf_counter() - start) / BARE_CALLS

    return job


def run_gain(full: float, partial: float, full_steps: int, steps: int) -> float:
    """The original's cost of a run over the cost with `full_steps` full steps, the others partial."""
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
    """One row per variant and setting, at torch's present number of threads.

    grid: (interval, branch) pairs. heap: what the caller did about it, for the row.
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
    # v=v and so on: each job keeps its own.
    jobs: dict[Variant | int, Callable[[], float]] = {
        v: (lambda v=v: timed_run(pipe, v, latents, text)) for v in variants
    }
    jobs |= {branch: bare_partial(unet, branch, latents, text) for branch in branches}
    taken = interleave(jobs, repeats, f"{torch.get_num_threads()} threads, {heads} heads")

    def row(variant: Variant) -> Row:
        kinds = Schedule.uniform(variant.interval).kinds(steps)
        gain = Spread.of([theirs / ours for theirs, ours in zip(taken[ORIGINAL], taken[variant], strict=True)])
        bound = reachable = 1.0
        if variant.branch is not None:
            count = counts[variant.branch]
            bound = run_gain(count.full_macs, count.partial_macs, kinds.count("F"), steps)
            pairs = zip(taken[ORIGINAL], taken[variant.branch], strict=True)
            gains = [run_gain(whole / steps, partial, kinds.count("F"), steps) for whole, partial in pairs]
            reachable = Spread.of(gains).median
        seconds, speedup = Spread.of(taken[variant]), gain
        run = (heads, steps, kinds.count("F"), size, 2, heap, repeats)
        return Row(*variant, *run, *seconds, *speedup, bound, speedup.median / bound, reachable)

    return [row(variant) for variant in variants]


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    head = f"{'':10} {'I':>2} {'B':>2} {'seconds (p20-p80)':>22} {'speed-up (p20-p80)':>22}"
    lines = [f"{head} {'bound':>6} {'share':>6} {'reachable':>9}"]
    for r in rows:
        seconds = f"{r.seconds:.3f} ({r.seconds_p20:.3f}-{r.seconds_p80:.3f})"
        gain = f"{r.speedup:.3f} ({r.speedup_p20:.3f}-{r.speedup_p80:.3f})"
        below = f"  below {TARGET}" if r.variant == "stepcache" and r.share < TARGET else ""
        line = f"{r.variant:10} {r.interval:2} {'' if r.branch is None else r.branch:>2} {seconds:>22} {gain:>22}"
        lines.append(f"{line} {r.bound:6.3f} {r.share:6.3f} {r.reachable:9.3f}{below}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure at each number of threads and heads, write the CSV as it goes, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="one pass for each number (default: 1)")
    parser.add_argument("--heads", type=int, nargs="+", default=[8, 2], help="one pass for each (default: 8 2)")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=32, help="height and width of the latents (default: 32)")
    parser.add_argument("--trim-heap", action="store_true", help="leave glibc's malloc as it is")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_ratio.csv")
    args = parser.parse_args(argv)
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
