"""Where the time of a step goes: on the device, and in the gaps in which it waits for the host.

    python -m benchmarks.engine.profile_steps                                     # SD 2.1 at 512 px, on a CUDA GPU
    python -m benchmarks.engine.profile_steps --model demo --latent 16 --steps 2  # anywhere

One full and one partial step of a DDIM loop with guidance (scale_model_input, U-Net, guidance, scheduler.step), on the
real architecture with random weights. Each figure is the mean over `--steps` steps of one kind in a row.

- `wall` is taken without a profiler. On a GPU, between two CUDA events around the steps, two steps of the same kind
  being queued in front of them: the host runs ahead as it does in a pipeline, and what it takes to get there is in no
  figure. A captured variant's steps are replays of its graph. Without a GPU, by the host's clock. Median of three.
- `busy` is the time in which at least one kernel, copy or fill runs on the device, by torch.profiler. It slows the host
  down, but not the kernels, which is why `gap`, what is left of `wall`, does not come from the profile alone.
- `launches` are the host's calls that put work on the device; the replay of a CUDA graph is one of them, whatever is in
  it. Copying a step's inputs into the graph's slots, guidance and the scheduler are outside of it.

Without a GPU there are no kernels. `unit` says "operators" then: `busy` and `count` are of torch's outermost operators,
and there are neither launches nor gaps.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

# Read by CUPTI when it is loaded: taken down after one profile, it breaks the replay of graphs in the next.
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")
os.environ.setdefault("TEARDOWN_CUPTI", "0")

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from stepcache import Schedule, accelerate, denoising, last_run, restore
from stepcache.bench.rows import RESULTS, Spread, write
from stepcache.forwards.macs import example_inputs
from stepcache.images.unet_configs import BUNDLED, read_config

VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"compile": False, "cuda_graphs": False},
    "captured": {"compile": False},
    "compiled": {"compile": {"mode": "default"}, "cuda_graphs": False},
    "compiled + captured": {"compile": {"mode": "default"}},
}
"""Name -> arguments of `accelerate`."""
WARM_UP = 2  # steps before those that are measured, in every run
RUNS = 3
TOP = 8

LAUNCH = re.compile(r"(cu|cuda|hip)[A-Za-z]*(Launch|Memcpy|Memset)\w*")
"""Names of the calls of CUDA's and HIP's runtimes and drivers that put work on the device."""


@dataclass(frozen=True)
class Row:
    """One kind of step in one variant. Times in milliseconds a step."""

    model: str
    weights: str
    device: str
    dtype: str
    latent: int  # height and width
    batch: int  # images; the U-Net's batch is twice that, for guidance
    branch: int
    variant: str
    kind: str  # "full" or "partial"
    steps: int  # that the figures are means of
    unit: str  # what `busy` and `count` are of: "kernels", or "operators" where there is no GPU
    wall_ms: float
    wall_ms_p20: float
    wall_ms_p80: float
    busy_ms: float
    gap_ms: float | None  # None where there is no GPU
    gap_share: float | None  # of wall
    count: float  # kernels (or operators) a step
    launches: float | None  # host calls a step; None where there is no GPU
    top: str  # the longest by name: "7.12 ms in 38 of sm90_xmma...; ..."


class Span(NamedTuple):
    """Something that ran from `start` to `end`, in microseconds."""

    name: str
    start: float
    end: float


class Loop:
    """A pipeline without text encoder and VAE, with random weights: DDIM with guidance, one step at a time."""

    def __init__(self, model: str, latent: int, batch: int, device: str, dtype: torch.dtype) -> None:
        config = read_config(str(files("stepcache") / "assets" / "demo") if model == "demo" else model)
        torch.manual_seed(0)
        with torch.device(device):
            unet = UNet2DConditionModel.from_config(config)
        self.unet = unet.to(dtype).eval().requires_grad_(False)
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        inputs = _random(example_inputs(self.unet, latent, latent, 2 * batch), dtype)
        self.latents: Tensor = inputs.pop("sample")[:batch]  # [batch, 4, latent, latent]
        del inputs["timestep"]
        self.conditions = inputs

    def __call__(self, steps: int) -> Iterator[None]:
        """`steps` denoising steps, one each time that the iterator is advanced; it must be run to its end."""
        latents = self.latents
        self.scheduler.set_timesteps(steps, device=latents.device)
        with denoising(self):
            for t in self.scheduler.timesteps:
                both = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
                uncond, cond = self.unet(both, t, **self.conditions).sample.chunk(2)
                latents = self.scheduler.step(uncond + 7.5 * (cond - uncond), t, latents).prev_sample
                yield


def _random(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _random(item, dtype) for name, item in value.items()}
    return torch.randn_like(value, dtype=dtype) if value.is_floating_point() else value


@torch.no_grad()
def measure(loop: Loop, model: str, variant: str, branch: int, steps: int) -> list[Row]:
    """The full and the partial step of one variant; the loop is left as it was."""
    run = WARM_UP + steps
    accelerate(loop, branch=branch, schedule=Schedule.explicit("F" * run + "P" * run), **VARIANTS[variant])
    try:
        for _ in loop(2 * run):  # compiles and captures
            pass
        walls = [_walls(loop, steps) for _ in range(RUNS)]
        profiles = _profiles(loop, steps)
        kinds = last_run(loop).kinds
    finally:
        restore(loop)
    assert kinds == "F" * run + "P" * run, kinds
    device, cuda = loop.latents.device.type, loop.latents.is_cuda
    rows = []
    for i, kind in enumerate(("full", "partial")):
        spans, launches = profiles[i]
        wall = Spread.of([1e3 * times[i] / steps for times in walls])
        busy = union(spans) / 1e3 / steps
        rows.append(
            Row(
                model=model,
                weights="random",
                device=device,
                dtype=str(loop.latents.dtype).removeprefix("torch."),
                latent=loop.latents.shape[-1],
                batch=len(loop.latents),
                branch=branch,
                variant=variant,
                kind=kind,
                steps=steps,
                unit="kernels" if cuda else "operators",
                wall_ms=round(wall.median, 4),
                wall_ms_p20=round(wall.p20, 4),
                wall_ms_p80=round(wall.p80, 4),
                busy_ms=round(busy, 4),
                gap_ms=round(wall.median - busy, 4) if cuda else None,
                gap_share=round(1 - busy / wall.median, 4) if cuda else None,
                count=len(spans) / steps,
                launches=launches / steps if cuda else None,
                top=longest(spans, steps),
            )
        )
    return rows


def _walls(loop: Loop, steps: int) -> list[float]:
    """Seconds of `steps` full and of `steps` partial steps."""
    run, spans = loop(2 * (WARM_UP + steps)), []
    now = _event if loop.latents.is_cuda else time.perf_counter
    for _ in range(2):
        for _ in islice(run, WARM_UP):  # not waited for: the host stays ahead
            pass
        start = now()
        for _ in islice(run, steps):
            pass
        spans.append((start, now()))
        _wait(loop)
    for _ in run:
        pass
    if loop.latents.is_cuda:
        return [start.elapsed_time(end) / 1e3 for start, end in spans]
    return [end - start for start, end in spans]


def _event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _profiles(loop: Loop, steps: int) -> list[tuple[list[Span], int]]:
    """What ran on the device in `steps` full and in `steps` partial steps, and how many calls launched it."""
    run, found = loop(2 * (WARM_UP + steps)), []
    for _ in range(2):
        _take(run, WARM_UP, loop)
        with profiler(loop.latents.is_cuda) as prof:
            _take(run, steps, loop)
        found.append(spans_of(prof.events(), loop.latents.is_cuda))
    _take(run, None, loop)
    return found


def profiler(cuda: bool) -> AbstractContextManager[Any]:
    """torch.profiler for the host and, if there is one, the GPU."""
    return profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda)


def _take(run: Iterator[None], steps: int | None, loop: Loop) -> None:
    """Run that many steps, or the rest, to the end on the device."""
    for _ in islice(run, steps):
        pass
    _wait(loop)


def _wait(loop: Loop) -> None:
    if loop.latents.is_cuda:
        torch.cuda.synchronize()


def spans_of(events: Iterable[Any], cuda: bool) -> tuple[list[Span], int]:
    """Of torch.profiler's events: what ran on the device (on the CPU: outermost operators), and launches."""
    spans, launches = [], 0
    for event in events:
        if getattr(event, "is_user_annotation", False):
            continue  # "Torch-Compiled Region" and the like, which span what is in them
        on_device = event.device_type == DeviceType.CUDA
        if on_device if cuda else event.cpu_parent is None and event.name.startswith("aten::"):
            spans.append(Span(event.name, event.time_range.start, event.time_range.end))
        launches += not on_device and LAUNCH.fullmatch(event.name) is not None
    return spans, launches


def union(spans: Iterable[Span]) -> float:
    """Microseconds in which at least one of them runs."""
    total, done = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, done))
        done = max(done, span.end)
    return total


def longest(spans: Iterable[Span], steps: int, limit: int = TOP) -> str:
    """The names that take the most time, with milliseconds and number a step."""
    times: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        times[span.name].append(span.end - span.start)
    ranked = sorted(times.items(), key=lambda item: -sum(item[1]))[:limit]
    return "; ".join(
        f"{sum(values) / 1e3 / steps:.3f} ms in {len(values) / steps:g} of {name[:80]}" for name, values in ranked
    )


def table(rows: Sequence[Row]) -> str:
    """The rows as text, without their top kernels."""
    unit = rows[0].unit
    lines = [f"{'variant':21}{'step':9}{'wall ms':>9}{'busy ms':>9}{'gap':>7}{unit:>11}{'launches':>10}"]
    for row in rows:
        gap = "-" if row.gap_share is None else f"{row.gap_share:.1%}"
        launches = "-" if row.launches is None else f"{row.launches:g}"
        lines.append(
            f"{row.variant:21}{row.kind:9}{row.wall_ms:9.3f}{row.busy_ms:9.3f}{gap:>7}{row.count:11g}{launches:>10}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the variants one after the other, write each one's rows as they come, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="sd21", help=f"demo, {', '.join(BUNDLED)}, or a U-Net's config.json (default sd21)"
    )
    parser.add_argument("--latent", type=int, default=64, help="height and width of the latents (default 64: 512 px)")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--branch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="steps of each kind that a figure is the mean of")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["eager", "captured"])
    parser.add_argument("--out", type=Path, default=RESULTS / "profile_steps.csv")
    parser.add_argument("--append", action="store_true", help="add to the file instead of writing it anew")
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    loop = Loop(
        args.model, args.latent, args.batch, "cuda" if cuda else "cpu", torch.float16 if cuda else torch.float32
    )
    rows: list[Row] = []
    for variant in args.variants:
        if not cuda and "captured" in variant:
            print(f"{variant}: not here, since CUDA graphs need a CUDA GPU")
            continue
        new = measure(loop, args.model, variant, args.branch, args.steps)
        write(args.out, new, append=args.append or bool(rows))
        rows += new
        for row in new:
            print(f"{variant}, {row.kind} step:\n  " + row.top.replace("; ", "\n  "), flush=True)
    if rows:
        print("\n" + table(rows))
    if not cuda:
        print("No CUDA GPU here: times are those of torch's operators on the CPU, there are no kernels to be seen.")


if __name__ == "__main__":
    main()
