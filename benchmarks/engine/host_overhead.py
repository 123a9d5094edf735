"""What stepcache costs the host: microseconds per U-Net call that session and attach add.

    python -m benchmarks.engine.host_overhead

On a GPU this is time in which the next kernels are not launched. Here the tensors are so small, and the layers so
empty, that the host's time is all there is. Two methods, in the column `method`:

- `no-op layers`: SD 1.5's U-Net whose layers (convolutions, ResNets, attentions, samplers, embeddings) return a fixed
  tensor. diffusers' own forward and blocks run in the original and under DeepCache's helper, stepcache's `full` and
  `partial` under stepcache. `added` is the call less the original's: what a user pays at full steps, in which there is
  also what `full` costs more or less than diffusers' own forward. At partial steps fewer blocks are walked through, so
  it is negative; the figure to compare with DeepCache's is `call`.
- `no U-Net`: the original is a module that returns a fixed output; under stepcache `full` and `partial` return fixed
  tensors. What is added is session + attach alone: interception of the call and of scheduler.step, binding of the
  arguments, schedule, bucket, copy of the (tiny) feature, and a share of opening and closing the run. DeepCache has no
  row here: its cost is at each block of the U-Net. `stepcache, captured` is the capture engine with SD 1.5's module
  tree and graphs whose replay does nothing: copying inputs into their slots, cloning the output, and looking whether
  weights or settings changed, at full steps in all 709 modules, at partial ones in those that they run.

A figure is one run's time, scheduler.step included, over its U-Net calls; `added` is paired within a repeat. It is CPU
time of this one thread: on an idle machine the time on the wall, on a busy one still telling. Interval 1 is all full
steps; an interval of as many as there are steps is one full step and the others partial.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from stepcache import accelerate
from stepcache.bench.rows import RESULTS, Spread, interleave, write
from stepcache.forwards import unet_2d_condition as family
from stepcache.forwards.macs import meta_unet
from stepcache.graphs.standin import StandInBackend

TARGET = 60.0
STEPS = 50
CAPTURED = "stepcache, captured"


@dataclass(frozen=True)
class Row:
    """One variant by one method. All figures are microseconds per U-Net call."""

    method: str  # no-op layers, no U-Net
    variant: str  # original, stepcache, deepcache
    interval: int
    steps: int
    full_steps: int
    repeats: int
    call: float
    call_p20: float
    call_p80: float
    added: float
    added_p20: float
    added_p80: float


class Variant(NamedTuple):
    """What is compared with what, and how."""

    method: str
    name: str
    interval: int


class SilentGraph:
    """A captured graph that replays nothing."""

    def replay(self) -> None:
        """Nothing."""

    def reset(self) -> None:
        """Nothing."""


class SilentBackend(StandInBackend):
    """Captures nothing, so that what is left is the engine around it."""

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> Any:
        """A graph that replays nothing."""
        return SilentGraph()


class NoOp(nn.Module):
    """A layer that returns `value`, whatever it is given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`value`."""
        return self.value


def no_op_unet() -> UNet2DConditionModel:
    """SD 1.5's U-Net in its blocks and their order, with layers that do nothing, and tensors of a few numbers."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, cross_attention_dim=4, attention_head_dim=2
    )
    hidden, embedding = torch.zeros(2, 4, 1, 1), torch.zeros(2, 4)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            layers = getattr(block, name, None)
            if layers is not None:
                # A module of its own for each place: DeepCache's helper puts a wrapper on each.
                value = (hidden,) if name == "attentions" else hidden
                setattr(block, name, nn.ModuleList(NoOp(value) for _ in layers))
    unet.time_proj, unet.time_embedding = NoOp(embedding), NoOp(embedding)
    for name in ("conv_in", "conv_norm_out", "conv_act"):
        setattr(unet, name, NoOp(hidden))
    unet.conv_out = NoOp(torch.zeros(2, 4, 8, 8))
    return unet.eval()


class Loop:
    """A pipeline that is only its denoising loop, with DDIM."""

    def __init__(self, unet: nn.Module, steps: int) -> None:
        self.unet, self.steps = unet, steps
        self.scheduler = DDIMScheduler()

    @torch.no_grad()
    def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
        """latents [B, 4, H, W], text [B, L, D]; returns the denoised latents."""
        for t in self.scheduler.timesteps:
            noise = self.unet(latents, t, encoder_hidden_states=text).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


class FixedOutput(nn.Module):
    """A U-Net whose forward does nothing but wrap a fixed output, as the stock forward does at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.zeros(2, 4, 8, 8)

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        """The fixed output, wrapped."""
        return UNet2DConditionOutput(sample=self.output)


@contextmanager
def fixed_forwards() -> Iterator[None]:
    """Inside, stepcache's `full` and `partial` return fixed tensors."""
    output, feature = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 1, 1)
    full = mock.patch.object(family, "full", lambda *args, **inputs: (output, feature))
    partial = mock.patch.object(family, "partial", lambda *args, **inputs: output)
    with full, partial:
        yield


def job(variant: Variant, steps: int) -> Callable[[], float]:
    """A job that returns microseconds per U-Net call of one run. Each has a pipe of its own."""
    direct = variant.method == "no U-Net"
    pipe = Loop(FixedOutput() if direct and variant.name == "original" else no_op_unet(), steps)
    pipe.scheduler.set_timesteps(steps)
    surroundings = fixed_forwards if direct else nullcontext
    if variant.name == CAPTURED:
        pipe.unet = meta_unet(json.loads((files("stepcache") / "assets" / "unets" / "sd15.json").read_text())).eval()
        with surroundings():
            accelerate(pipe, variant.interval, cuda_graphs=SilentBackend)
    elif variant.name == "stepcache":
        if direct:
            pipe.unet.conv_in = None  # any forward but the fixed ones would fail
        with surroundings():
            accelerate(pipe, variant.interval)
    elif variant.name == "deepcache":
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=variant.interval)
        helper.enable()
    latents, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 4)

    def run() -> float:
        with surroundings():
            start = time.process_time()
            pipe(latents, text)
            return (time.process_time() - start) / steps * 1e6

    return run


def measure(*, steps: int = STEPS, repeats: int = 300) -> list[Row]:
    """One row per method, variant and interval."""
    intervals = (1, 3, steps)
    variants = [Variant("no-op layers", "original", 1), Variant("no U-Net", "original", 1)]
    variants += [Variant(method, "stepcache", n) for method in ("no-op layers", "no U-Net") for n in intervals]
    variants += [Variant("no U-Net", CAPTURED, n) for n in intervals]
    # The helper has most of its cost inside the U-Net, at each block: without one there is nothing to measure.
    variants += [Variant("no-op layers", "deepcache", n) for n in intervals]
    variants.sort(key=lambda v: v.method, reverse=True)
    taken = interleave({v: job(v, steps) for v in variants}, repeats, "host overhead")

    def row(v: Variant) -> Row:
        base = taken[Variant(v.method, "original", 1)]
        added = Spread.of([mine - theirs for mine, theirs in zip(taken[v], base, strict=True)])
        full_steps = steps if v.name == "original" else -(-steps // v.interval)
        return Row(*v, steps, full_steps, repeats, *Spread.of(taken[v]), *added)

    return [row(v) for v in variants]


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [f"µs per U-Net call{'':23} {'I':>2} {'full':>6} {'call (p20-p80)':>22} {'added (p20-p80)':>22}"]
    for r in rows:
        call = f"{r.call:.1f} ({r.call_p20:.1f}-{r.call_p80:.1f})"
        added = f"{r.added:+.1f} ({r.added_p20:+.1f} - {r.added_p80:+.1f})"
        over = f"  over {TARGET:.0f}" if r.variant == "stepcache" and r.added > TARGET else ""
        full = f"{r.full_steps}/{r.steps}"
        lines.append(f"{r.method:20} {r.variant:19} {r.interval:2} {full:>6} {call:>22} {added:>22}{over}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the CSV, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"U-Net calls of a run (default: {STEPS})")
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS / "host_overhead.csv")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = measure(steps=args.steps, repeats=args.repeats)
    write(args.out, rows)
    print(f"{table(rows)}\nrows: {args.out}")


if __name__ == "__main__":
    main()
