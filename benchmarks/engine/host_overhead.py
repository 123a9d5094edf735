"""What stepcache costs the host: the microseconds that session and attach add to a U-Net call.

    python -m benchmarks.engine.host_overhead

On a GPU, the next kernels are not launched during this time. Here the tensors are so small and the layers so empty that
only the host's time is left. The column `method` names one of two methods:

- `no-op layers`: SD 1.5's U-Net with layers (convolutions, ResNets, attentions, samplers, embeddings) that return a
  fixed tensor. The original and DeepCache's helper run diffusers' own forward and blocks, stepcache its `full` and
  `partial`. `added` is the call minus the original's. At full steps this is what a user pays, including the difference
  between `full` and diffusers' forward. At partial steps it is negative, since fewer blocks run; there, compare `call`
  with DeepCache's.
- `no U-Net`: the original is a module that returns a fixed output; under stepcache, `full` and `partial` return fixed
  tensors. What is added is session and attach alone: intercepting the call and scheduler.step, binding the arguments,
  schedule, bucket, copying the (tiny) feature, and a share of opening and closing the run. DeepCache has no row here:
  its cost is in each block of the U-Net. `stepcache, captured` is the capture engine with SD 1.5's module tree and
  graphs whose replay does nothing: it copies inputs into their slots, clones the output, and checks whether weights or
  settings changed, at full steps in all 709 modules, at partial steps in those that they run.

A figure is the time of one run, scheduler.step included, divided by its U-Net calls; `added` is a difference within a
repeat. It is the CPU time of this one thread, so it is still useful on a busy machine. With interval 1 all steps are
full; with as many as there are steps, one step is full and the others partial.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from benchmarks.console import columns, parser, spread
from stepcache import accelerate
from stepcache.bench.repeats import Spread, interleave
from stepcache.bench.rows import write
from stepcache.forwards import unet_2d_condition as family
from stepcache.forwards.macs import meta_unet
from stepcache.graphs.standin import StandInBackend
from stepcache.images.unet_configs import read_config

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
    """A way of running the loop, and the method that measures it."""

    method: str
    name: str
    interval: int


class SilentGraph:
    """A captured graph that replays nothing."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


class SilentBackend(StandInBackend):
    """Captures nothing, so that only the engine around it is measured."""

    def record(self, function: Callable[[], None], pool: object, device: torch.device) -> Any:
        return SilentGraph()


class NoOp(nn.Module):
    """A layer that always returns `value`."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


def no_op_unet() -> UNet2DConditionModel:
    """SD 1.5's U-Net with its blocks in their order, layers that do nothing, and tiny tensors."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, cross_attention_dim=4, attention_head_dim=2
    )
    hidden, embedding = torch.zeros(2, 4, 1, 1), torch.zeros(2, 4)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        for name in ("resnets", "attentions", "downsamplers", "upsamplers"):
            layers = getattr(block, name, None)
            if layers is not None:
                # A separate module for each place: DeepCache's helper wraps each.
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
    """A U-Net whose forward only wraps a fixed output, as the stock forward does at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.output = torch.zeros(2, 4, 8, 8)

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> UNet2DConditionOutput:
        return UNet2DConditionOutput(sample=self.output)


@contextmanager
def fixed_forwards() -> Iterator[None]:
    """Inside, stepcache's `full` and `partial` return fixed tensors."""
    output, feature = torch.zeros(2, 4, 8, 8), torch.zeros(2, 4, 1, 1)
    full = mock.patch.object(family, "full", lambda *args, **inputs: (output, feature))
    partial = mock.patch.object(family, "partial", lambda *args, **inputs: output)
    with full, partial:
        yield


def timed_run(variant: Variant, steps: int) -> Callable[[], float]:
    """A function that runs a new pipe once and returns the microseconds per U-Net call."""
    direct = variant.method == "no U-Net"
    pipe = Loop(FixedOutput() if direct and variant.name == "original" else no_op_unet(), steps)
    pipe.scheduler.set_timesteps(steps)
    surroundings = fixed_forwards if direct else nullcontext
    if variant.name == CAPTURED:
        pipe.unet = meta_unet(read_config("sd15"))
        with surroundings():
            accelerate(pipe, variant.interval, cuda_graphs=SilentBackend)
    elif variant.name == "stepcache":
        if direct:
            pipe.unet.conv_in = None  # makes every other forward fail
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
    # The helper costs most inside the U-Net, in each block: without a U-Net there is nothing to measure.
    variants += [Variant("no-op layers", "deepcache", n) for n in intervals]
    variants.sort(key=lambda v: v.method, reverse=True)
    taken = interleave({v: timed_run(v, steps) for v in variants}, repeats, "host overhead")

    def row(v: Variant) -> Row:
        base = taken[Variant(v.method, "original", 1)]
        added = Spread.of([mine - theirs for mine, theirs in zip(taken[v], base, strict=True)])
        full_steps = steps if v.name == "original" else -(-steps // v.interval)
        return Row(*v, steps, full_steps, repeats, *Spread.of(taken[v]), *added)

    return [row(v) for v in variants]


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        (
            r.method, r.variant, f"{r.interval}", f"{r.full_steps}/{r.steps}",
            spread(r.call, r.call_p20, r.call_p80, ".1f"), spread(r.added, r.added_p20, r.added_p80, "+.1f"),
            f"over {TARGET:.0f}" if r.variant == "stepcache" and r.added > TARGET else "",
        )
        for r in rows
    ]  # fmt: skip
    header = ("µs per U-Net call", "", "interval", "full steps", "call (p20 to p80)", "added (p20 to p80)", "")
    return columns(header, lines, left=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    arguments = parser(__doc__, "host_overhead.csv")
    arguments.add_argument("--steps", type=int, default=STEPS, help=f"U-Net calls of a run (default: {STEPS})")
    arguments.add_argument("--repeats", type=int, default=300)
    args = arguments.parse_args(argv)
    torch.set_num_threads(1)
    rows = measure(steps=args.steps, repeats=args.repeats)
    write(args.out, rows)
    print(f"{table(rows)}\nrows: {args.out}")


if __name__ == "__main__":
    main()
